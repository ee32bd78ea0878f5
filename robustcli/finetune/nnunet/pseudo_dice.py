"""The dice by which nnU-Net chooses its best epoch.

Source: nnU-Net v2.1.1, `nnUNetTrainer.validation_step` and `on_validation_epoch_end`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class PseudoDice:
    """The dice of a validation pass, from the counts of all its patches together.

    It sees patches, not whole images, and pools them: it says which epoch is best, and is no score
    to report. Counts stay on the network's device until `by_class` asks.
    """

    def __init__(self, *, ignore_label: int | None = None) -> None:
        self._ignore_label = ignore_label
        self._counts: Tensor | None = None  # (3, C-1): true positives, false positives, negatives

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: (N, C, H, W), the highest resolution of a network.
            target: (N, H, W) or (N, 1, H, W), classes 0..C-1 and the ignore label.
        """
        labels = (target[:, 0] if target.ndim == logits.ndim else target).long()
        counted = torch.ones_like(labels, dtype=torch.bool)
        if self._ignore_label is not None:
            counted = labels != self._ignore_label
        classes = logits.shape[1]
        truth = F.one_hot(labels[counted], classes)[:, 1:].bool()  # (pixels, C-1)
        guess = F.one_hot(logits.argmax(1)[counted], classes)[:, 1:].bool()
        found = torch.stack(
            [(x & y).sum(0) for x, y in ((guess, truth), (guess, ~truth), (~guess, truth))]
        )
        self._counts = found if self._counts is None else self._counts + found

    def by_class(self) -> tuple[float, ...]:
        """2 TP / (2 TP + FP + FN) per foreground class; NaN where the class never occurred."""
        if self._counts is None:
            return ()
        tp, fp, fn = self._counts.double().cpu()
        return tuple((2 * tp / (2 * tp + fp + fn)).tolist())

    def mean(self) -> float:
        """The mean over the classes that occurred; NaN where none did."""
        found = [dice for dice in self.by_class() if not math.isnan(dice)]
        return sum(found) / len(found) if found else math.nan
