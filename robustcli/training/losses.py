"""Losses of segmenters, on logits or on probabilities, in float32 whatever the network computes in.

Source: "Mamba-Based Tumor Segmentation" (Crews and Whalen, 2024) for the constants; the losses of
networks that answer with logits are taken from the logits, which a rounded sigmoid cannot harm.

Shapes: output and target (B, 1, H, W); a target lies in 0 to 1, or is `mask_values.IGNORED` where
pixels are to be ignored: these change neither loss nor gradient. Of K classes beside background the
outputs are logits (B, K + 1, H, W) and the target holds 0 to K: see `SoftmaxLoss`.
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
    """`loss` over all outputs of a network; with one output it is `loss` itself.

    Not MONAI's, which also computes the output of weight 0, whose NaN would spoil the sum.
    Source: nnU-Net v2.1.1, `DeepSupervisionWrapper` and `nnUNetTrainer._build_loss`.
    """

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


SMOOTH = 1e-5
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
            finite = output.nan_to_num(nan=0.5)
            loss = self._mean(F.binary_cross_entropy, finite, target, counted)
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
        overlap = 2 * (p * target).sum() + POOLED_SMOOTH
        return 1 - overlap / (p.sum() + target.sum() + POOLED_SMOOTH)


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
        overlap = 2 * (p * t).sum(1) + IMAGE_SMOOTH
        dice = overlap / (p.sum(1) + t.sum(1) + IMAGE_SMOOTH)
        return self.cross_entropy(output, target, counted) + 1 - dice.mean()


LOSSES: dict[str, Callable[..., SegmentationLoss]] = {
    "bce-dice": BceDiceLoss,
    "dice": DiceLoss,
    "bce": CrossEntropyLoss,
}


def make_loss(name: str, *, probabilities: bool, ignores: bool = False) -> SegmentationLoss:
    """The loss called `name`.

    Raises:
        UsageError: No loss is called so.
    """
    return LOSSES[loss_name(name)](probabilities=probabilities, ignores=ignores)


def loss_name(name: str, classes: int = 0) -> str:
    """The registered spelling of `name`, for masks of so many classes beside background.

    Raises:
        UsageError: No loss is called so, with the nearest names; or it is for other masks.
    """
    found = find(name, {**LOSSES, **CLASS_LOSSES}, kind="loss", listing="docs/train-seg.md")
    here: Mapping[str, object] = CLASS_LOSSES if classes else LOSSES
    if found in here:
        return found
    two_valued = "foreground and background"
    of_data = f"{classes} classes" if classes else two_valued
    of_loss = two_valued if classes else "several classes"
    pairs = (pair for pair in COUNTERPARTS.items() if found in pair)
    counterpart = next(name for pair in pairs for name in pair if name != found)
    raise UsageError(
        f"`--loss {found}` does not go with these masks.",
        f"They are of {of_data}, and it is a loss of {of_loss}.",
        f"Use `--loss {counterpart}`, which is the like of it for them; there are "
        f"{', '.join(f'`{name}`' for name in here)}.",
    )


@dataclass(frozen=True)
class ClassTerms:
    """What a loss of several classes adds up.

    Args:
        entropy: Whether cross entropy is a term.
        smooth: Added to both sides of the soft dice, as for two-valued masks; None for no dice.
        batch_dice: Whether the dice pools its sums over the batch; else each image has its own.
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
"""What a recipe's loss is for masks of several classes: with one class both are the same number."""


class SoftmaxLoss(nn.Module):
    """A loss of exclusive classes, in float32: cross entropy, one minus soft dice, or their sum.

    The cross entropy counts every pixel, of background too; the dice is averaged over the classes
    without background, as MONAI's `DiceCELoss(include_background=False, softmax=True)` and nnU-Net
    do it. Unlike MONAI's, it leaves pixels to ignore out of both.

    Args:
        terms: A row of CLASS_LOSSES.
        ignores: Whether targets hold pixels to ignore.
    """

    def __init__(self, terms: ClassTerms, *, ignores: bool = False) -> None:
        super().__init__()
        self.terms = terms
        self.parts = DiceCrossEntropy(
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
            parts = self.parts.parts(output.float(), target)
        if self.terms.smooth is None:
            return parts.cross_entropy
        return 1 - parts.dice + parts.cross_entropy * self.terms.entropy


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
    """nnU-Net's loss of one output: cross-entropy minus the soft dice of the foreground.

    It is `CE - dice`, not `CE + 1 - dice`: a good network has a negative loss, down to -1.
    Source: nnU-Net v2.1.1, `DC_and_CE_loss` and `MemoryEfficientSoftDiceLoss`; written anew from
    the published formulas. Region-based labels (sigmoid, overlapping classes) are left out.

    Args:
        batch_dice: Whether the dice pools its sums over the batch, as 2D plans do; else the mean of
            each image's own.
        ignore_label: Target pixels of this value count nowhere.
        smooth: Added to both sides of the dice.
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
            soft_dice(
                logits.softmax(1), labels, counted, batch_dice=self.batch_dice, smooth=self.smooth
            ),
        )


def soft_dice(
    probabilities: Tensor, labels: Tensor, counted: Tensor, *, batch_dice: bool,
    smooth: float = SMOOTH,
) -> Tensor:  # fmt: skip
    """The mean soft dice of the foreground classes, a scalar in 0..1.

    Args:
        probabilities: (N, C, H, W).
        labels: (N, H, W), int64 in 0..C-1.
        counted: (N, H, W), the pixels that count.
        batch_dice: Whether the sums run over the batch too.
        smooth: Added to both sides.

    Source: dice_c = (2 sum(p g) + 1e-5) / max(sum(g) + sum(p) + 1e-5, 1e-8).
    """
    truth = F.one_hot(labels, probabilities.shape[1]).movedim(-1, 1)[:, 1:]  # (N, C-1, H, W)
    truth = truth * counted[:, None]
    guess = probabilities[:, 1:] * counted[:, None]
    axes = (0, 2, 3) if batch_dice else (2, 3)
    overlap, true, guessed = (x.sum(axes) for x in (guess * truth, truth, guess))
    return ((2 * overlap + smooth) / (true + guessed + smooth).clamp_min(1e-8)).mean()


_SMALLEST = 1e-7  # under a probability of 0 or 1, whose logarithm is infinite


class TwoClasses(nn.Module):
    """nnU-Net's loss for networks that tell foreground from background, in float32.

    Softmax and cross-entropy of two classes depend on the difference of the scores alone, which is
    the logit of the foreground: a network with one output gets 0 as the score of the background.

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


class SeveralClasses(nn.Module):
    """nnU-Net's loss for networks that tell several classes apart, in float32.

    Args:
        batch_dice: Whether the dice pools its sums over the batch.
        ignore_label: Target pixels of this value count nowhere.
    """

    def __init__(self, *, batch_dice: bool = True, ignore_label: int | None = None) -> None:
        super().__init__()
        self.loss = DeepSupervision(
            DiceCrossEntropy(batch_dice=batch_dice, ignore_label=ignore_label)
        )

    def forward(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss, a scalar, from -1 (perfect) upwards.

        Args:
            outputs: Logits (B, K + 1, H, W), background first, highest resolution first.
            target: (B, 1, H, W), 0 to K or the ignore label.
        """
        with torch.autocast(target.device.type, enabled=False):
            loss: Tensor = self.loss([output.float() for output in outputs], target.long())
            return loss


def class_scores(output: Tensor, *, probabilities: bool) -> Tensor:
    """Scores (B, 2, H, W) before softmax of foreground logits or probabilities (B, 1, H, W)."""
    if not probabilities:
        return torch.cat([torch.zeros_like(output), output], 1)
    scores = torch.cat([1 - output, output], 1)
    return scores.clamp_min(_SMALLEST).log()
