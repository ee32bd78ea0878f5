"""Losses of segmenters on logits or probabilities, computed in float32 for every precision.

Source of the constants: "Mamba-Based Tumor Segmentation" (Crews and Whalen, 2024). Losses of
networks with logits are computed from the logits, without the rounding error of a sigmoid.

Shapes: output and target are (B, 1, H, W). A target is in [0, 1], or `mask_values.IGNORED` for
ignored pixels, which change neither loss nor gradient. With K classes without background, outputs
are logits (B, K + 1, H, W) and the target contains 0 to K; see `SoftmaxLoss`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.core.names import find
from robustcli.data.mask_values import IGNORED


class DeepSupervision(nn.Module):
    """The weighted sum of `loss` over all outputs of a network; for one output, `loss`.

    MONAI's version also computes the output with weight 0, whose NaN would spoil the sum.
    Source: nnU-Net v2.1.1, `DeepSupervisionWrapper` and `nnUNetTrainer._build_loss`.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The weighted sum, a scalar.

        Args:
            outputs: One output (N, C, H, W), or several, highest resolution first.
            target: (N, H, W) or (N, 1, H, W), at the size of the first output.
        """
        several = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        terms = [
            weight * self.loss(output, shrunk(target, output))
            for weight, output in zip(supervision_weights(len(several)), several, strict=True)
            if weight
        ]
        return torch.stack(terms).sum()


def supervision_weights(outputs: int) -> tuple[float, ...]:
    """The weight of each output in the loss, highest resolution first; the weights sum to 1.

    Source: nnU-Net v2.1.1, 1 / 2^i; with several outputs, the lowest resolution has weight 0.
    """
    halves = [2.0**-i for i in range(outputs)]
    if outputs > 1:
        halves[-1] = 0.0
    return tuple(half / sum(halves) for half in halves)


def shrunk(target: Tensor, output: Tensor) -> Tensor:
    """`target` resized to the height and width of `output` by nearest neighbour, if they differ.

    Source: nnU-Net resizes with order 0 of scikit-image, which selects the pixel at or after the
    centre of each cell: `nearest-exact` in torch, not `nearest`.
    """
    height, width = target.shape[-2:]
    if output.shape[-2:] == (height, width):
        return target
    # Interpolation needs floats; float32 represents small integer labels exactly.
    flat = target.reshape(-1, 1, height, width).float()
    small = F.interpolate(flat, output.shape[-2:], mode="nearest-exact")
    return small.reshape(*target.shape[:-2], *output.shape[-2:]).to(target.dtype)


SMOOTH = 1e-5
POOLED_SMOOTH = 100.0
IMAGE_SMOOTH = 1.0
_HALF_MARGIN = 1e-6
"""Smallest distance of half-precision probabilities from 0 and 1, where the gradient of the cross
entropy is infinite and that of the sigmoid zero, so that their product would be NaN."""


class SegmentationLoss(nn.Module, ABC):
    """Base class of losses for one output; returns a scalar.

    Args:
        probabilities: Whether the network returns probabilities; else logits.
        ignores: Whether targets contain pixels to ignore.
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
        """The loss of the float32 `output`.

        Args:
            output: Output of the network, (B, 1, H, W).
            target: Values in [0, 1], (B, 1, H, W); 0 at ignored pixels.
            counted: Mask of the counted pixels, (B, 1, H, W); None for all.
        """

    def probability(self, output: Tensor, counted: Tensor | None) -> Tensor:
        """The probabilities of `output`; 0 at ignored pixels."""
        probability = output if self.probabilities else output.sigmoid()
        return probability if counted is None else probability * counted

    def cross_entropy(self, output: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        """The mean binary cross entropy over the counted pixels."""
        if self.probabilities:
            finite = output.nan_to_num(nan=0.5)
            loss = self._mean(F.binary_cross_entropy, finite, target, counted)
            # Here torch raises on NaN without image names; return NaN, which is reported later.
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
    """One minus the dice pooled over the batch, with smoothing 100."""

    def of(self, output: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        """See the class."""
        p = self.probability(output, counted)
        overlap = 2 * (p * target).sum() + POOLED_SMOOTH
        return 1 - overlap / (p.sum() + target.sum() + POOLED_SMOOTH)


class CrossEntropyLoss(SegmentationLoss):
    """The mean binary cross entropy over all pixels."""

    def of(self, output: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        """See the class."""
        return self.cross_entropy(output, target, counted)


class BceDiceLoss(SegmentationLoss):
    """Cross entropy plus one minus the mean dice of the images, with smoothing 1."""

    def of(self, output: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        """See the class."""
        p, t = self.probability(output, counted).flatten(1), target.flatten(1)  # (B, H*W)
        overlap = 2 * (p * t).sum(1) + IMAGE_SMOOTH
        dice = overlap / (p.sum(1) + t.sum(1) + IMAGE_SMOOTH)
        return self.cross_entropy(output, target, counted) + 1 - dice.mean()


LOSSES: dict[str, Callable[..., SegmentationLoss]] = {
    "bce-dice": BceDiceLoss,
    "dice": DiceLoss,
    "bce": CrossEntropyLoss,
}


def make_loss(name: str, *, probabilities: bool, ignores: bool = False) -> SegmentationLoss:
    """The loss with the name `name`.

    Raises:
        UsageError: The loss does not exist.
    """
    return LOSSES[loss_name(name)](probabilities=probabilities, ignores=ignores)


def loss_name(name: str, classes: int = 0) -> str:
    """The registered spelling of the loss `name`, for masks with `classes` classes.

    Args:
        name: Name as typed.
        classes: Number of classes without background; 0 for foreground and background.

    Raises:
        UsageError: The loss does not exist (the message lists the nearest names), or it is for
            another kind of masks.
    """
    loss = find(name, {**LOSSES, **CLASS_LOSSES}, kind="loss", listing="docs/train-seg.md")
    available: Mapping[str, object] = CLASS_LOSSES if classes else LOSSES
    if loss in available:
        return loss
    two_valued = "foreground and background"
    of_data = f"{classes} classes" if classes else two_valued
    of_loss = two_valued if classes else "several classes"
    pairs = (pair for pair in COUNTERPARTS.items() if loss in pair)
    counterpart = next(name for pair in pairs for name in pair if name != loss)
    raise UsageError(
        f"`--loss {loss}` cannot be used with these masks.",
        f"The masks have {of_data}; the loss is for {of_loss}.",
        f"Use its counterpart `--loss {counterpart}`, or another of "
        f"{', '.join(f'`{name}`' for name in available)}.",
    )


@dataclass(frozen=True)
class ClassTerms:
    """The terms of a loss for several classes.

    Args:
        entropy: Whether cross entropy is a term.
        smooth: Added to numerator and denominator of the soft dice; None without a dice term.
        batch_dice: Whether dice is pooled over the batch; else it is computed per image.
    """

    entropy: bool
    smooth: float | None = None
    batch_dice: bool = False


CLASS_LOSSES: dict[str, ClassTerms] = {
    "ce-dice": ClassTerms(entropy=True, smooth=IMAGE_SMOOTH),
    "dice": ClassTerms(entropy=False, smooth=POOLED_SMOOTH, batch_dice=True),
    "ce": ClassTerms(entropy=True),
}
COUNTERPARTS = {"bce-dice": "ce-dice", "dice": "dice", "bce": "ce"}
"""Maps a loss for two-valued masks to its counterpart for several classes; with one class both give
the same number."""


class SoftmaxLoss(nn.Module):
    """A loss of exclusive classes, in float32: cross entropy, one minus soft dice, or their sum.

    The cross entropy includes background pixels; the dice is averaged over the classes without
    background, as in MONAI's `DiceCELoss(include_background=False, softmax=True)` and in nnU-Net.
    Unlike MONAI's loss, it excludes ignored pixels from both terms.

    Args:
        terms: A row of CLASS_LOSSES.
        ignores: Whether targets contain pixels to ignore.
    """

    def __init__(self, terms: ClassTerms, *, ignores: bool = False) -> None:
        super().__init__()
        self.terms = terms
        self.loss = DiceCrossEntropy(
            batch_dice=terms.batch_dice,
            ignore_label=IGNORED if ignores else None,
            smooth=SMOOTH if terms.smooth is None else terms.smooth,
        )

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar of 0 or above.

        Args:
            output: Logits (B, K + 1, H, W), background first.
            target: (B, 1, H, W), 0 to K, or IGNORED.
        """
        with torch.autocast(output.device.type, enabled=False):
            cross_entropy, dice = self.loss.terms(output.float(), target)
        if self.terms.smooth is None:
            return cross_entropy
        return 1 - dice + cross_entropy * self.terms.entropy


class DiceCrossEntropy(nn.Module):
    """nnU-Net's loss of one output: cross-entropy minus the soft dice of the foreground.

    It is `CE - dice`, not `CE + 1 - dice`: a good network has a negative loss, down to -1.
    Source: nnU-Net v2.1.1, `DC_and_CE_loss` and `MemoryEfficientSoftDiceLoss`; written from
    the published formulas. Region-based labels (sigmoid, overlapping classes) are not supported.

    Args:
        batch_dice: Whether dice is pooled over the batch, as in 2D plans; else averaged per image.
        ignore_label: Target value of ignored pixels.
        smooth: Added to numerator and denominator of the dice.
    """

    def __init__(
        self, *, batch_dice: bool = True, ignore_label: int | None = None, smooth: float = SMOOTH
    ) -> None:
        super().__init__()
        self.batch_dice, self.ignore_label, self.smooth = batch_dice, ignore_label, smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: (N, C, H, W), before softmax.
            target: (N, H, W) or (N, 1, H, W) of any integer type, classes 0..C-1 and the ignore
                label.
        """
        cross_entropy, dice = self.terms(logits, target)
        return cross_entropy - dice

    def terms(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice, scalars; for the arguments, see `forward`."""
        labels = (target[:, 0] if target.ndim == logits.ndim else target).long()  # (N, H, W)
        counted = torch.ones_like(labels, dtype=torch.bool)
        if self.ignore_label is not None:
            counted = labels != self.ignore_label
            labels = labels.masked_fill(~counted, 0)
        pixels = F.cross_entropy(logits, labels, reduction="none") * counted
        dice = soft_dice(
            logits.softmax(1), labels, counted, batch_dice=self.batch_dice, smooth=self.smooth
        )
        return pixels.sum() / counted.sum().clamp_min(1), dice


def soft_dice(
    probabilities: Tensor, labels: Tensor, counted: Tensor, *, batch_dice: bool,
    smooth: float = SMOOTH,
) -> Tensor:  # fmt: skip
    """The mean soft dice of the foreground classes, a scalar in 0..1.

    Args:
        probabilities: (N, C, H, W).
        labels: (N, H, W), int64 in 0..C-1.
        counted: (N, H, W), mask of the counted pixels.
        batch_dice: Whether the sums include the batch dimension.
        smooth: Added to numerator and denominator.

    Source: dice_c = (2 sum(p g) + 1e-5) / max(sum(g) + sum(p) + 1e-5, 1e-8).
    """
    truth = F.one_hot(labels, probabilities.shape[1]).movedim(-1, 1)[:, 1:]  # (N, C-1, H, W)
    truth = truth * counted[:, None]
    guess = probabilities[:, 1:] * counted[:, None]
    axes = (0, 2, 3) if batch_dice else (2, 3)
    overlap, true, guessed = (x.sum(axes) for x in (guess * truth, truth, guess))
    return ((2 * overlap + smooth) / (true + guessed + smooth).clamp_min(1e-8)).mean()


_SMALLEST = 1e-7  # keeps the logarithm of probabilities finite


class NnUNetLoss(DiceCrossEntropy):
    """nnU-Net's loss of one output of a network, in float32; from -1 (perfect) upwards.

    Softmax and cross entropy of two classes depend only on the difference of the two scores, which
    is the logit of the foreground. If a network has one output for the foreground, the score of the
    background is therefore set to 0.

    Args:
        probabilities: Whether foreground outputs are probabilities; else logits.
        batch_dice: Whether dice is pooled over the batch.
        ignore_label: Target value of ignored pixels.
    """

    def __init__(
        self, *, probabilities: bool = False, batch_dice: bool = True,
        ignore_label: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(batch_dice=batch_dice, ignore_label=ignore_label)
        self.probabilities = probabilities

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            output: Foreground output (B, 1, H, W), or logits of several classes (B, K + 1, H, W)
                with the background first.
            target: (B, 1, H, W), 0 to K (1 for foreground) or the ignore label.
        """
        with torch.autocast(target.device.type, enabled=False):
            scores = class_scores(output.float(), probabilities=self.probabilities)
            return super().forward(scores, target)


def class_scores(output: Tensor, *, probabilities: bool) -> Tensor:
    """Scores before softmax: (B, 2, H, W) of foreground logits or probabilities (B, 1, H, W).

    Outputs of several classes are returned unchanged.
    """
    if output.shape[1] > 1:
        return output
    if not probabilities:
        return torch.cat([torch.zeros_like(output), output], 1)
    scores = torch.cat([1 - output, output], 1)
    return scores.clamp_min(_SMALLEST).log()
