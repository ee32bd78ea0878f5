"""nnU-Net's loss for networks that tell foreground from background, whatever they return.

A network of two classes gets nnU-Net's own loss: softmax and cross-entropy depend on the difference
of the scores alone, which is the logit of the foreground. A network with one output gets the same,
with 0 as the score of the background; of several foreground classes the scores are joined.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustcli.training.deep_supervision import DeepSupervision
from robustcli.training.nnunet.loss import DiceCrossEntropy

_SMALLEST = 1e-7  # under a probability of 0 or 1, whose logarithm is infinite


class TwoClasses(nn.Module):
    """Cross-entropy minus soft dice over all resolutions, in float32.

    Args:
        probabilities: Whether the network says probabilities; else logits.
        batch_dice: Whether the dice pools its sums over the batch.
        ignore_label: Target pixels of this value count nowhere.
    """

    def __init__(
        self, *, probabilities: bool, batch_dice: bool = True, ignore_label: int | None = None
    ) -> None:
        super().__init__()
        self.probabilities = probabilities
        self.loss = DeepSupervision(
            DiceCrossEntropy(batch_dice=batch_dice, ignore_label=ignore_label)
        )

    def forward(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss, a scalar, from -1 (perfect) upwards.

        Args:
            outputs: Of the foreground, (B, 1, H, W), highest resolution first.
            target: (B, 1, H, W), 0, 1 or the ignore label.
        """
        with torch.autocast(target.device.type, enabled=False):
            scores = [class_scores(o.float(), probabilities=self.probabilities) for o in outputs]
            loss: Tensor = self.loss(scores, target.long())
            return loss


def class_scores(output: Tensor, *, probabilities: bool) -> Tensor:
    """Scores (B, 2, H, W) before softmax of foreground logits or probabilities (B, 1, H, W)."""
    if not probabilities:
        return torch.cat([torch.zeros_like(output), output], 1)
    both = torch.cat([1 - output, output], 1)
    return both.clamp_min(_SMALLEST).log()
