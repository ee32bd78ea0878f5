"""Segmenters for evaluation: uint8 images of any size in, masks or probabilities out.

They predict foreground and background, or K classes and background (`Segmenter.classes`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.adapters.memory import free_cached, is_out_of_memory
from robustcli.adapters.model import (
    ModelFacts,
    Precision,
    Trial,
    check_finite,
    check_probabilities,
    first_pass,
    made_up_image,
    needs_contiguous,
    number_format,
)
from robustcli.adapters.preprocessing import check_side, grey
from robustcli.adapters.training_run import WeightsHeader
from robustcli.core.errors import UsageError
from robustcli.models.blocks import StagedUNet
from robustcli.models.conv_segmenters import ResNetSeg
from robustcli.models.segformer import SegFormer
from robustcli.models.ulvm import ULVMUNet
from robustcli.models.vmunet import VMUNet
from robustcli.nnunet.inference import Mirrored, covered_evenly
from robustcli.nnunet.normalisation import NnUNetInference

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
_LEVELS = 256


class Otsu(nn.Module):
    """Otsu's threshold: maps RGB images (B, 3, H, W) in [0, 1] to binary masks (B, 1, H, W).

    Foreground is the side of the threshold with fewer pixels, or the brighter side if both are
    equal. An image with a single brightness has no foreground.
    """

    num_classes = 1

    def forward(self, x: Tensor) -> Tensor:
        """The masks; each depends only on its image."""
        weights = torch.tensor(LUMINANCE, dtype=torch.float32, device=x.device).view(1, 3, 1, 1)
        levels = ((x.float() * weights).sum(1) * (_LEVELS - 1)).round().long()
        return torch.stack([_minority(image) for image in levels])[:, None].to(x.dtype)


def _minority(levels: Tensor) -> Tensor:
    bright = levels > threshold(levels)
    if 2 * int(bright.sum()) <= bright.numel():
        return bright
    return ~bright & (levels.min() < levels.max())


def threshold(levels: Tensor) -> int:
    """Otsu's threshold: the lowest level that maximises the variance between the two classes.

    Levels up to the threshold form the first class.

    Source: Otsu, "A Threshold Selection Method from Gray-Level Histograms" (1979).

    Args:
        levels: Integers from 0 to 255, of any shape.
    """
    # In float64: scikit-image, the test's oracle, counts in float32, which is inexact from 2**24.
    # On the CPU: not every device has float64.
    counts = torch.bincount(levels.flatten(), minlength=_LEVELS).cpu().double()
    below, sums = counts.cumsum(0), (counts * torch.arange(_LEVELS)).cumsum(0)
    above = below[-1] - below
    split = (below > 0) & (above > 0)
    means = sums / below.clamp(min=1), (sums[-1] - sums) / above.clamp(min=1)
    between = torch.where(split, below * above * (means[0] - means[1]) ** 2, 0.0)
    return int(between.argmax())


# Converts the outputs of all segmenters to one foreground score per pixel, or one score per class.
# Networks return logits or probabilities, for one or several classes, at the size of the input or
# smaller, as a tensor or as the first of a list. Training and prediction both use these functions.

Output = Tensor | list[Tensor] | tuple[Tensor, ...]


def is_probability(network: nn.Module) -> bool:
    """Whether the outputs of the network are probabilities; else they are logits.

    Networks that end with a sigmoid return logits if they are built for several classes.
    """
    return isinstance(network, (ULVMUNet, VMUNet, Otsu)) and network.num_classes == 1


def raw_output(network: nn.Module, x: Tensor, classes: int = 0) -> Tensor:
    """The foreground scores (n, 1, H, W) of the network for the images `x` (n, 3, H, W).

    Scores are probabilities or logits, see `is_probability`. With `classes` (counted without
    background), returns logits (n, classes + 1, H, W).
    """
    return at_size(first(network(x)), (x.shape[-2], x.shape[-1]), classes)


def first(output: Output) -> Tensor:
    """The output of highest resolution, if deep supervision returns a list."""
    return output if isinstance(output, Tensor) else output[0]


def at_size(scores: Tensor, size: tuple[int, int], classes: int = 0) -> Tensor:
    """`selected_scores` of class scores (n, C, h, w), resized to height and width `size`.

    Bilinear without align_corners, as the tumour paper did outside of SegFormer, whose logits have
    a quarter of the input's size.
    """
    scores = selected_scores(scores, classes)
    if tuple(scores.shape[2:]) == size:
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def selected_scores(scores: Tensor, classes: int = 0) -> Tensor:
    """Foreground scores (n, 1, h, w) of class scores (n, C, h, w); with `classes`, all scores.

    Raises:
        UsageError: The number of scores is not `classes` + 1.
    """
    if not classes:
        return foreground_logits(scores)
    if scores.shape[1] != classes + 1:
        raise UsageError(
            f"The network returns {scores.shape[1]} scores per pixel.",
            f"Background and {classes} classes need {classes + 1}.",
            f"Build it with `--model-arg num_classes={classes + 1}`, and matching weights.",
        )
    return scores


def foreground_logits(scores: Tensor) -> Tensor:
    """Foreground logits (n, 1, h, w) of logits (n, C, h, w), where class 0 is background.

    The sigmoid of the result is the sum of the softmax over the foreground classes.
    """
    if scores.shape[1] == 1:
        return scores
    return torch.logsumexp(scores[:, 1:], 1, keepdim=True) - scores[:, :1]


def native_window(network: nn.Module) -> int:
    """Default input size of the network in pixels, that of its publication."""
    if isinstance(network, StagedUNet):
        return network.config.square
    if isinstance(network, ResNetSeg):
        return network.config.output
    return 224 if isinstance(network, SegFormer) else 256


@dataclass(frozen=True)
class MaskPreprocessing:
    """Preprocessing of segmenters. Values are scaled to [0, 1] unless `nnunet` is set.

    Args:
        window: Side of the network's input in pixels, or its height and width. Smaller images are
            padded, larger ones are covered by overlapping windows. 0 passes complete images to the
            network.
        channels: Channel order of the input; `grey` is luma.
        threshold: Probability from which a pixel is foreground, in [0, 1]. Not used for several
            classes, where the most probable class is predicted.
        overlap: Overlap of neighbouring windows as a share of their side, in [0, 1).
        nnunet: Settings of nnU-Net's inference, for networks trained by its procedure.
        mean: Subtracted from the values, per channel; None for no normalisation.
        std: Divisor after the subtraction, per channel; None for no normalisation.
    """

    window: int | tuple[int, int]
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    threshold: float = 0.5
    overlap: float = 0.5
    nnunet: NnUNetInference | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        least, count = (1, 2) if isinstance(self.window, tuple) else (0, 1)
        sides: tuple[Any, ...] = self.window if isinstance(self.window, tuple) else (self.window,)
        pixels = all(isinstance(s, int) and not isinstance(s, bool) and s >= least for s in sides)
        if not pixels or len(sides) != count:
            raise UsageError(f"`window={self.window}` is not a number of pixels.")
        check_side(max(sides), "window")
        if self.channels not in ("rgb", "bgr", "grey"):
            raise UsageError(
                f"`channels={self.channels}` is unknown.", "Expected `rgb`, `bgr` or `grey`."
            )
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"`threshold={self.threshold}` is not a probability.")
        if not 0 <= self.overlap < 1:
            raise UsageError(
                f"`overlap={self.overlap}` is out of range.", "It is at least 0 and below 1."
            )

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a window; (0, 0) for complete images."""
        return self.window if isinstance(self.window, tuple) else (self.window, self.window)

    @property
    def view(self) -> str:
        """Name of the geometry: every segmenter gets the pixels of the image without resize."""
        return "as-is"

    def of_channels(self, channels: int) -> MaskPreprocessing:
        """This preprocessing for a network with `channels` input channels, 3 or 1 (greyscale)."""
        return replace(self, channels="grey") if channels == 1 else self

    def changed(
        self, changes: Mapping[str, Any], channels: int
    ) -> tuple[MaskPreprocessing, tuple[str, ...]]:
        """This preprocessing with changed fields, and no announcements.

        Args:
            changes: New values by field.
            channels: Number of input channels; 1 means greyscale and overrides `changes`.

        Raises:
            UsageError: A field is unknown or a value out of range.
        """
        changeable = [field.name for field in fields(self) if field.name not in ("mean", "std")]
        for name in changes:
            if name not in changeable:
                raise UsageError(
                    f"The preprocessing of a segmenter has no `{name}`.",
                    f"It has {', '.join(f'`{field}`' for field in changeable)}, because images "
                    "keep their size.",
                )
        return replace(self, **changes).of_channels(channels), ()


@dataclass(frozen=True)
class Padded:
    """A padded image (H, W, 3) with the original at `top` and `left`."""

    image: NDArray[Any]
    top: int
    left: int


def padded_to_window(
    image: NDArray[Any], window: tuple[int, int], *,
    by: Literal["reflect", "constant"] = "reflect",
) -> Padded:  # fmt: skip
    """`image` (H, W, 3), padded to at least the height and width `window`.

    Pads by repeated reflection (a side of a single pixel is repeated), or with zeros if `constant`.
    """
    shortfall = [max(0, least - side) for least, side in zip(window, image.shape[:2], strict=True)]
    if not any(shortfall):
        return Padded(image, 0, 0)
    top, left = (pixels // 2 for pixels in shortfall)
    pads = [(top, shortfall[0] - top), (left, shortfall[1] - left), (0, 0)]
    return Padded(np.pad(image, pads, mode=by), top, left)


def covered(
    images: Tensor, window: tuple[int, int], predict: Callable[[Tensor], Tensor], *,
    overlap: float, batch: int, device: torch.device,
) -> Tensor:  # fmt: skip
    """Predictions of overlapping windows, averaged with Gaussian weights: (n, C, H, W).

    Images and result keep their device; only windows are moved to `device`.

    Args:
        images: (n, 3, H, W), at least as large as a window.
        window: Height h and width w of a window in pixels.
        predict: Maps windows (m, 3, h, w) to scores (m, C, h, w).
        overlap: Overlap of neighbouring windows as a share of their side, in [0, 1).
        batch: Number of windows per call of `predict`.
        device: Device of `predict`.
    """
    # Slow to import, and not needed for images with the size of the window.
    from monai.inferers.utils import sliding_window_inference

    averaged = sliding_window_inference(
        images, window, batch, predict, overlap, mode="gaussian", sw_device=device,
        device=images.device,
    )  # fmt: skip
    assert isinstance(averaged, Tensor), "one output, so no tuple of them"
    return averaged


Pixels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
_TRIED = 64  # side of the generated image for networks without a window
WINDOWS = {"cuda": 32, "mps": 16, "cpu": 4}
"""Windows of a large image per forward pass, by type of device; more in a batch of more images."""


class Segmenter:
    """A network on its device, with its preprocessing and precision.

    Args:
        network: The network in eval mode.
        preprocessing: Preprocessing of its input.
        facts: Facts about the model for the record.
        header: Header of its weights file; None without one.
        notes: Announcements about loading.
        merging: Announcement for the case that all its classes count as foreground.
        trained_classes: Names of the classes 1 to K of its training, if it has no header.

    `classes` has the names of the predicted classes 1 to K: those of the training, or those set by
    `for_classes`. If it is empty, the segmenter predicts foreground and background.
    `most_windows` is the number of windows that fit into memory; None until memory ran out.
    `answers_probabilities` is whether the outputs of the network are probabilities; else logits.
    """

    classes: tuple[str, ...] = ()
    most_windows: int | None = None

    def __init__(
        self, network: nn.Module, preprocessing: MaskPreprocessing, facts: ModelFacts,
        header: WeightsHeader | None = None, notes: tuple[str, ...] = (),
        merging: tuple[str, ...] = (), trained_classes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.network, self.preprocessing, self.facts = network, preprocessing, facts
        self.header, self.notes = header, (*notes, *merging)
        self._merging = merging
        self._trained_classes = trained_classes if header is None else header.mask_classes
        self.classes = self._trained_classes
        self.device = torch.device("cpu")
        self.precision: Precision = "fp32"
        self.answers_probabilities = is_probability(network)
        self._contiguous = needs_contiguous(network)
        self._nnunet = preprocessing.nnunet
        axes = () if self._nnunet is None else self._nnunet.mirror_axes
        self._scores = Mirrored(network, axes) if axes else network

    def to(self, device: torch.device, precision: Precision) -> Segmenter:
        """Moves this segmenter to `device` and `precision`; returns it."""
        self.network.to(device)
        self.device, self.precision = device, precision
        return self

    def with_preprocessing(
        self, preprocessing: MaskPreprocessing, facts: ModelFacts | None = None
    ) -> Segmenter:
        """This segmenter with other preprocessing and, if given, other facts."""
        facts = facts or self.facts
        changed = Segmenter(
            self.network, preprocessing, facts, self.header, self.notes,
            trained_classes=self._trained_classes,
        )  # fmt: skip
        changed._merging, changed.classes = self._merging, self.classes
        return changed

    def for_classes(self, classes: Sequence[str]) -> Segmenter:
        """This segmenter for masks with these classes 1 to K.

        With empty `classes`, it predicts foreground (all its classes) and background.

        Raises:
            UsageError: It has another number of outputs, was trained for other classes, or has a
                threshold, which is defined only for foreground.
        """
        outputs = getattr(self.network, "num_classes", None)
        if classes and outputs not in (None, len(classes) + 1):
            raise _other_outputs(self.facts.name, outputs, classes)
        trained = self._trained_classes
        if classes and trained and tuple(classes) != trained:
            raise UsageError(
                f"`{self.facts.name}` was trained for other classes.",
                f"It predicts {', '.join(trained)} (in this order), but the masks contain "
                f"{', '.join(classes)}.",
                f"Specify the classes as in its training: `--classes {','.join(trained)}`, or "
                "`labels.json` in the data set.",
            )
        if classes and self.preprocessing.threshold != MaskPreprocessing.threshold:
            raise UsageError(
                f"`threshold={self.preprocessing.threshold}` cannot be used with several classes.",
                "The most probable class of each pixel is used, independent of its probability.",
                "Omit it.",
            )
        if trained and not self._merging:
            self._merging = (
                f"`{self.facts.name}` was trained for the classes {', '.join(trained)}; the masks "
                "only have foreground and background, so all its classes count as foreground.",
            )
        others = tuple(note for note in self.notes if note not in self._merging)
        self.notes = others if classes else (*others, *self._merging)
        self.classes = tuple(classes)
        return self

    def try_out(self) -> None:
        """Runs one generated image through the network.

        Raises:
            UsageError: The network cannot process images of its window, or its output is not that
                of a segmenter; the message states the expected input.
        """
        facts, channels = self.facts, 1 if self.preprocessing.channels == "grey" else 3
        height, width = self.preprocessing.sides
        shape = (channels, height or _TRIED, width or _TRIED)
        trial = Trial(
            facts.name, facts.builder, facts.arguments, shape, size_flag="",
            precision=self.precision,
        )  # fmt: skip
        scores = first_pass(
            lambda: self._raw(made_up_image(shape).to(self.device), self.network), trial
        )
        check_finite(scores, trial)

    def predict(self, images: Sequence[Pixels]) -> list[NDArray[Any]]:
        """The foreground mask, bool (H, W), of each image (H, W, 3).

        With `classes`, the most probable class of each pixel, uint8 (H, W), 0 for background.
        """
        if self.classes:
            return [scores.argmax(0).astype(np.uint8) for scores in self._scored(images)]
        threshold = self.preprocessing.threshold
        return [probabilities >= threshold for probabilities in self.probabilities(images)]

    def probabilities(self, images: Sequence[Pixels]) -> list[Probabilities]:
        """The foreground probabilities (H, W) of each RGB image (H, W, 3).

        With `classes`, the probability of any class but background.
        """
        scored = self._scored(images)
        return [scores[1:].sum(0) if self.classes else scores[0] for scores in scored]

    @torch.inference_mode()
    def _scored(self, images: Sequence[Pixels]) -> list[Probabilities]:
        """The probabilities of each image: foreground (1, H, W), or all classes (K + 1, H, W).

        Images of equal size, or smaller than the window, are processed in one batch.

        Raises:
            RunError: A probability is NaN.
        """
        prepared = [self._prepared(image) for image in images]
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image_padded in enumerate(prepared):
            by_shape[image_padded.image.shape].append(index)
        answers: dict[int, Probabilities] = {}
        for indices in by_shape.values():
            batch = np.stack([prepared[index].image for index in indices])
            answers |= zip(indices, self._answers(torch.from_numpy(batch)), strict=True)
        for probabilities in answers.values():
            check_probabilities(probabilities, self.facts.name, self.precision)
        return [
            _cut(answers[index], image.shape[:2], (image_padded.top, image_padded.left))
            for index, (image, image_padded) in enumerate(zip(images, prepared, strict=True))
        ]

    def first_window(self, image: Pixels) -> Tensor:
        """The network's input, float32 (1, C, h, w), of the upper left window of an image.

        The segmenter must have a window.
        """
        height, width = self.preprocessing.sides
        corner = np.ascontiguousarray(self._prepared(image).image[:height, :width])
        return self.normalised(torch.from_numpy(corner)[None].permute(0, 3, 1, 2).to(self.device))

    def _prepared(self, image: Pixels) -> Padded:
        window = self.preprocessing.sides
        if self.preprocessing.channels == "grey":
            image = grey(image)
        if self._nnunet is None:
            return padded_to_window(image, window)
        return padded_to_window(self._nnunet.normalised(image), window, by="constant")

    def _answers(self, batch: Tensor) -> list[Probabilities]:
        """Probabilities of images (n, H, W, 3); large images one at a time, to bound memory."""
        images, window = batch.permute(0, 3, 1, 2), self.preprocessing.sides
        if self.preprocessing.window == 0 or tuple(images.shape[2:]) == window:
            return list(self._probabilities(images.to(self.device)).cpu().numpy())
        at_once = max(WINDOWS[self.device.type], len(images))
        answers = (self._covered(image[None].float(), at_once) for image in images)
        if self._nnunet is None:
            return [answer[0].numpy() for answer in answers]
        return [self._as_probability(answer)[0].numpy() for answer in answers]

    def _covered(self, image: Tensor, at_once: int) -> Tensor:
        """The scores of an image (1, 3, H, W); fewer windows at once whenever memory runs out."""
        cover = covered if self._nnunet is None else covered_evenly
        while True:
            windows = min(at_once, self.most_windows or at_once)
            try:
                return cover(
                    image, self.preprocessing.sides, self._averaged, batch=windows,
                    overlap=self.preprocessing.overlap, device=self.device,
                )  # fmt: skip
            except Exception as error:
                if windows == 1 or not is_out_of_memory(error):
                    raise
            self.most_windows = windows // 2
            free_cached(self.device)

    def _averaged(self, pixels: Tensor) -> Tensor:
        """The averaged quantity of overlapping windows: scores for nnU-Net, else probabilities."""
        return self._raw(pixels) if self._nnunet else self._probabilities(pixels)

    def _probabilities(self, pixels: Tensor) -> Tensor:
        return self._as_probability(self._raw(pixels))

    def _as_probability(self, scores: Tensor) -> Tensor:
        if self.classes:
            return scores.softmax(1)
        return scores if self.answers_probabilities else scores.sigmoid()

    def normalised(self, pixels: Tensor) -> Tensor:
        """The network's input, float32 (n, C, H, W), for pixels on its device.

        Args:
            pixels: (n, C, H, W), values from 0 to 255, or normalised as nnU-Net does.
        """
        images = pixels.float() if self._nnunet else pixels.float() / 255
        if self.preprocessing.channels == "bgr":
            images = images.flip(1)
        if self.preprocessing.mean is not None and self.preprocessing.std is not None:
            mean, std = (
                torch.tensor(values, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
                for values in (self.preprocessing.mean, self.preprocessing.std)
            )
            images = (images - mean) / std
        # Decoded images are channels-last, which most convolutions are faster with.
        return images.contiguous() if self._contiguous else images

    def _raw(self, pixels: Tensor, network: nn.Module | None = None) -> Tensor:
        """The scores of the network, float32 (n, 1 or K + 1, H, W), on its device.

        Args:
            pixels: (n, C, H, W), values from 0 to 255, or normalised as nnU-Net does.
            network: The network to call; None for the predicting one, which can average mirrored
                images.
        """
        images = self.normalised(pixels)
        with number_format(self.device, self.precision):
            return raw_output(network or self._scores, images, len(self.classes)).float()


def _cut(
    probabilities: Probabilities, size: tuple[int, ...], corner: tuple[int, int]
) -> Probabilities:
    (height, width), (top, left) = size, corner
    return np.ascontiguousarray(probabilities[:, top : top + height, left : left + width])


def _other_outputs(name: str, outputs: int | None, classes: Sequence[str]) -> UsageError:
    tells = "tells foreground from background" if outputs == 1 else f"has {outputs} outputs"
    return UsageError(
        f"`{name}` {tells}; the masks have {len(classes)} classes.",
        f"Background and {', '.join(classes)} need {len(classes) + 1} outputs.",
        "Use a model that was trained for these classes (`robust train seg --data DIR`), or "
        "evaluate all classes together against background with `--foreground nonzero`.",
    )
