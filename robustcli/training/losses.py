"""Losses of segmenters, on logits or on probabilities, in float32 whatever the network computes in.

Source: "Mamba-Based Tumor Segmentation" (Crews and Whalen, 2024) for the constants; the losses of
networks that answer with logits are taken from the logits, which a rounded sigmoid cannot harm.

Shapes: output and target (B, 1, H, W); a target lies in 0 to 1, or is `mask_values.IGNORED` where
pixels are to be ignored: these change neither loss nor gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.names import find
from robustcli.data.mask_values import IGNORED

# MONAI's losses are the tests' oracle: importing them takes seconds, and its deep supervision also
# computes the output of weight 0, whose NaN would spoil the sum.

# A loss over several outputs of a network, highest resolution first.
#
# Source: nnU-Net v2.1.1, `DeepSupervisionWrapper` and `nnUNetTrainer._build_loss`.


class DeepSupervision(nn.Module):
    """`loss` over all outputs of a network; with one output it is `loss` itself."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The weighted sum, a scalar.

        Args:
            outputs: (N, C, H, W), or several of them, highest resolution first.
            target: (N, H, W) or (N, 1, H, W), at the first output's size.
        """
        several = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        terms = [
            weight * self.loss(output, shrunk(target, output))
            for weight, output in zip(supervision_weights(len(several)), several, strict=True)
            if weight
        ]
        return torch.stack(terms).sum()


def supervision_weights(outputs: int) -> tuple[float, ...]:
    """The share of each output in the loss, highest resolution first; they sum to 1.

    Source: 1 / 2^i, the lowest resolution left out where there are several.
    """
    halves = [2.0**-i for i in range(outputs)]
    if outputs > 1:
        halves[-1] = 0.0
    return tuple(half / sum(halves) for half in halves)


def shrunk(target: Tensor, output: Tensor) -> Tensor:
    """`target` at the height and width of `output`, by nearest neighbour; else as it is.

    Source: nnU-Net resizes with scikit-image's order 0, which takes the pixel at or after the
    middle of each cell: what torch calls `nearest-exact`, not `nearest`.
    """
    height, width = target.shape[-2:]
    if output.shape[-2:] == (height, width):
        return target
    # Labels are small whole numbers: float32 holds them exactly, and interpolation needs a float.
    flat = target.reshape(-1, 1, height, width).float()
    small = F.interpolate(flat, output.shape[-2:], mode="nearest-exact")
    return small.reshape(*target.shape[:-2], *output.shape[-2:]).to(target.dtype)


POOLED_SMOOTH = 100.0
IMAGE_SMOOTH = 1.0
_HALF_MARGIN = 1e-6
"""How far from 0 and 1 a half-precision probability is kept: at 0 or 1 the gradient of the cross
entropy times that of the sigmoid is infinity times zero."""


class SegmentationLoss(nn.Module, ABC):
    """A loss of what a network says; a scalar.

    Args:
        probabilities: Whether the network says probabilities; else logits.
        ignores: Whether targets hold pixels to ignore.
    """

    def __init__(self, *, probabilities: bool, ignores: bool = False) -> None:
        super().__init__()
        self.probabilities, self.ignores = probabilities, ignores

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, float32."""
        with torch.autocast(output.device.type, enabled=False):
            if self.probabilities and output.dtype != torch.float32:
                output = output.float().clamp(_HALF_MARGIN, 1 - _HALF_MARGIN)
            target = target.float()
            if not self.ignores:
                return self.of(output.float(), target, None)
            counted = target != IGNORED
            return self.of(output.float(), target.masked_fill(~counted, 0.0), counted)

    @abstractmethod
    def of(self, output: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        """The loss of float32 `output`.

        Args:
            output: What the network says.
            target: 0 to 1; 0 where a pixel does not count.
            counted: Which pixels count; None for all.
        """

    def probability(self, output: Tensor, counted: Tensor | None) -> Tensor:
        """The probabilities that `output` stands for; 0 where a pixel does not count."""
        probability = output if self.probabilities else output.sigmoid()
        return probability if counted is None else probability * counted

    def cross_entropy(self, output: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        """The mean binary cross entropy over all pixels that count."""
        if self.probabilities:
            known = output.nan_to_num(nan=0.5)
            loss = self._mean(F.binary_cross_entropy, known, target, counted)
            # torch stops at a NaN with an error that names no image: hand it on as a NaN instead.
            return loss + 0 * output.mean()
        return self._mean(F.binary_cross_entropy_with_logits, output, target, counted)

    @staticmethod
    def _mean(
        entropy: Callable[..., Tensor], output: Tensor, target: Tensor, counted: Tensor | None
    ) -> Tensor:
        if counted is None:
            return entropy(output, target)
        pixels = entropy(output, target, reduction="none") * counted
        return pixels.sum() / counted.sum().clamp_min(1)


class DiceLoss(SegmentationLoss):
    """One minus the dice of the whole batch pooled, smoothed by 100."""

    def of(self, output: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        """See the class."""
        p = self.probability(output, counted)
        both = 2 * (p * target).sum() + POOLED_SMOOTH
        return 1 - both / (p.sum() + target.sum() + POOLED_SMOOTH)


class CrossEntropyLoss(SegmentationLoss):
    """The mean binary cross entropy over all pixels."""

    def of(self, output: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        """See the class."""
        return self.cross_entropy(output, target, counted)


class BceDiceLoss(SegmentationLoss):
    """Cross entropy plus one minus the mean dice of the images, each smoothed by 1."""

    def of(self, output: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        """See the class."""
        p, t = self.probability(output, counted).flatten(1), target.flatten(1)  # (B, H*W)
        both = 2 * (p * t).sum(1) + IMAGE_SMOOTH
        dice = both / (p.sum(1) + t.sum(1) + IMAGE_SMOOTH)
        return self.cross_entropy(output, target, counted) + 1 - dice.mean()


LOSSES: dict[str, Callable[..., SegmentationLoss]] = {
    "bce-dice": BceDiceLoss,
    "dice": DiceLoss,
    "bce": CrossEntropyLoss,
}


def make_loss(name: str, *, probabilities: bool, ignores: bool = False) -> SegmentationLoss:
    """The loss called `name`.

    Args:
        name: One of LOSSES.
        probabilities: Whether the network says probabilities; else logits.
        ignores: Whether targets hold pixels to ignore.

    Raises:
        UsageError: No loss is called so.
    """
    return LOSSES[loss_name(name)](probabilities=probabilities, ignores=ignores)


def loss_name(name: str) -> str:
    """The registered spelling of `name`.

    Raises:
        UsageError: No loss is called so; the message offers the nearest names.
    """
    return find(name, LOSSES, kind="loss", listing="docs/train-seg.md")
