"""Losses of segmenters, on logits or on probabilities, in float32 whatever the network computes in.

Source: "Mamba-Based Tumor Segmentation" (Crews and Whalen, 2024) for the constants; the losses of
networks that answer with logits are taken from the logits, which a rounded sigmoid cannot harm.

Shapes: output and target (B, 1, H, W); a target lies in 0 to 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.names import find

POOLED_SMOOTH = 100.0
IMAGE_SMOOTH = 1.0
_HALF_MARGIN = 1e-6
"""How far from 0 and 1 a half-precision probability is kept: at 0 or 1 the gradient of the cross
entropy times that of the sigmoid is infinity times zero."""


class SegmentationLoss(nn.Module, ABC):
    """A loss of what a network says; a scalar.

    Args:
        probabilities: Whether the network says probabilities; else logits.
    """

    def __init__(self, *, probabilities: bool) -> None:
        super().__init__()
        self.probabilities = probabilities

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, float32."""
        with torch.autocast(output.device.type, enabled=False):
            if self.probabilities and output.dtype != torch.float32:
                output = output.float().clamp(_HALF_MARGIN, 1 - _HALF_MARGIN)
            return self.of(output.float(), target.float())

    @abstractmethod
    def of(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of float32 `output`."""

    def probability(self, output: Tensor) -> Tensor:
        """The probabilities that `output` stands for."""
        return output if self.probabilities else output.sigmoid()

    def cross_entropy(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean binary cross entropy over all pixels."""
        if self.probabilities:
            known = output.nan_to_num(nan=0.5)
            loss = F.binary_cross_entropy(known, target)
            # torch stops at a NaN with an error that names no image: hand it on as a NaN instead.
            return loss + 0 * output.mean()
        return F.binary_cross_entropy_with_logits(output, target)


class DiceLoss(SegmentationLoss):
    """One minus the dice of the whole batch pooled, smoothed by 100."""

    def of(self, output: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        p = self.probability(output)
        both = 2 * (p * target).sum() + POOLED_SMOOTH
        return 1 - both / (p.sum() + target.sum() + POOLED_SMOOTH)


class CrossEntropyLoss(SegmentationLoss):
    """The mean binary cross entropy over all pixels."""

    def of(self, output: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        return self.cross_entropy(output, target)


class BceDiceLoss(SegmentationLoss):
    """Cross entropy plus one minus the mean dice of the images, each smoothed by 1."""

    def of(self, output: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        p, t = self.probability(output).flatten(1), target.flatten(1)  # (B, H*W)
        both = 2 * (p * t).sum(1) + IMAGE_SMOOTH
        dice = both / (p.sum(1) + t.sum(1) + IMAGE_SMOOTH)
        return self.cross_entropy(output, target) + 1 - dice.mean()


LOSSES: dict[str, Callable[..., SegmentationLoss]] = {
    "bce-dice": BceDiceLoss,
    "dice": DiceLoss,
    "bce": CrossEntropyLoss,
}


def make_loss(name: str, *, probabilities: bool) -> SegmentationLoss:
    """The loss called `name`.

    Args:
        name: One of LOSSES.
        probabilities: Whether the network says probabilities; else logits.

    Raises:
        UsageError: No loss is called so.
    """
    return LOSSES[loss_name(name)](probabilities=probabilities)


def loss_name(name: str) -> str:
    """The registered spelling of `name`.

    Raises:
        UsageError: No loss is called so; the message offers the nearest names.
    """
    return find(name, LOSSES, kind="loss", listing="docs/train-seg.md")
