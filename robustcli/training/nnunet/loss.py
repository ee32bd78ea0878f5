"""nnU-Net's loss of one output: cross-entropy minus the soft dice of the foreground.

It is `CE - dice`, not `CE + 1 - dice`: a good network has a negative loss, down to -1.

Source: nnU-Net v2.1.1, `DC_and_CE_loss` and `MemoryEfficientSoftDiceLoss`; written anew from the
published formulas. Region-based labels (sigmoid, overlapping classes) are left out.
Shapes: N batch, C classes with the background as class 0, H and W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMOOTH = 1e-5


@dataclass(frozen=True)
class LossParts:
    """The two terms, scalars: `cross_entropy` and `dice`, which is the dice itself, in 0..1."""

    cross_entropy: Tensor
    dice: Tensor

    @property
    def total(self) -> Tensor:
        """The loss, from -1 (perfect) upwards."""
        return self.cross_entropy - self.dice


class DiceCrossEntropy(nn.Module):
    """The loss of one output.

    Args:
        batch_dice: Whether the dice pools its sums over the batch, as 2D plans do; else the mean of
            each image's own.
        ignore_label: Target pixels of this value count nowhere.
    """

    def __init__(self, *, batch_dice: bool = True, ignore_label: int | None = None) -> None:
        super().__init__()
        self.batch_dice, self.ignore_label = batch_dice, ignore_label

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: (N, C, H, W), before softmax.
            target: (N, H, W) or (N, 1, H, W), classes 0..C-1 and the ignore label; any integers.
        """
        return self.parts(logits, target).total

    def parts(self, logits: Tensor, target: Tensor) -> LossParts:
        """Both terms; arguments as of `forward`."""
        labels = (target[:, 0] if target.ndim == logits.ndim else target).long()  # (N, H, W)
        counted = torch.ones_like(labels, dtype=torch.bool)
        if self.ignore_label is not None:
            counted = labels != self.ignore_label
            labels = labels.masked_fill(~counted, 0)
        pixels = F.cross_entropy(logits, labels, reduction="none") * counted
        return LossParts(
            pixels.sum() / counted.sum().clamp_min(1),
            soft_dice(logits.softmax(1), labels, counted, batch_dice=self.batch_dice),
        )


def soft_dice(
    probabilities: Tensor, labels: Tensor, counted: Tensor, *, batch_dice: bool
) -> Tensor:
    """The mean soft dice of the foreground classes, a scalar in 0..1.

    Args:
        probabilities: (N, C, H, W).
        labels: (N, H, W), int64 in 0..C-1.
        counted: (N, H, W), the pixels that count.
        batch_dice: Whether the sums run over the batch too.

    Source: dice_c = (2 sum(p g) + 1e-5) / max(sum(g) + sum(p) + 1e-5, 1e-8).
    """
    truth = F.one_hot(labels, probabilities.shape[1]).movedim(-1, 1)[:, 1:]  # (N, C-1, H, W)
    truth = truth * counted[:, None]
    guess = probabilities[:, 1:] * counted[:, None]
    axes = (0, 2, 3) if batch_dice else (2, 3)
    both, true, guessed = (x.sum(axes) for x in (guess * truth, truth, guess))
    return ((2 * both + SMOOTH) / (true + guessed + SMOOTH).clamp_min(1e-8)).mean()
