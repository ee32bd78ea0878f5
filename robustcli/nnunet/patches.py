"""What one batch of nnU-Net's training is: patches cut at random from images chosen at random.

The last third of a batch is forced to show foreground. Every draw is seeded by what it is for (run
seed, phase, epoch, iteration, place in the batch): order, workers and resume change nothing.

Source: nnU-Net v2.1.1, `nnUNetDataLoader2D` and `nnUNetDataLoaderBase`.
Deviation: a forced patch comes from an image that has foreground, as upstream's comes from a slice
that has some; upstream's falls back to a random place where a whole case has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.models.umamba import Pair
from robustcli.nnunet.augmentation import Augmentation, largest_angle
from robustcli.nnunet.normalisation import Channel, Normaliser, fit

# --- Where a patch lies in its image, and what it is cut to ---------------------------------------
#
# Source: nnU-Net v2.1.1, `nnUNetDataLoaderBase.get_bbox` and `get_patch_size`.


SMALLEST_SCALE = 0.85  # upstream's, for the margin only: the scaling itself goes down to 0.7


def loader_patch(patch: Pair) -> Pair:
    """The size to cut for training, from whose middle `patch` comes after rotation and scaling.

    Source: `get_patch_size`: the patch turned by the largest angle (at most 90 degrees), over 0.85;
    512 x 512 gives 602 x 602.
    """
    angle = min(math.radians(90), math.radians(largest_angle(patch)))
    cos, sin = math.cos(angle), math.sin(angle)
    turned = abs(patch[0] * cos + patch[1] * sin), abs(patch[1] * cos - patch[0] * sin)
    height, width = (
        int(max(side, own) / SMALLEST_SCALE) for side, own in zip(turned, patch, strict=True)
    )
    return height, width


def choose_corner(
    shape: tuple[int, ...], size: Pair, final: Pair, centre: Pair | None, rng: np.random.Generator
) -> Pair:
    """The upper left corner of a patch; it may lie outside of the image, which is then padded.

    Args:
        shape: Of the image.
        size: Of the patch to cut.
        final: Of the patch that the network gets: the margin of `size` around it may be padding.
        centre: What the patch is cut around, where it must show something; its corner is then not
            above or left of the lowest valid one, as upstream; else it is drawn from all valid.
        rng: For the draw.
    """
    corner = []
    for axis in (0, 1):
        padding = max(size[axis] - final[axis], size[axis] - shape[axis])
        low = -padding // 2
        high = shape[axis] + padding // 2 + padding % 2 - size[axis]
        if centre is None:
            corner.append(int(rng.integers(low, high + 1)))
        else:
            corner.append(max(low, centre[axis] - size[axis] // 2))
    return corner[0], corner[1]


def cut(
    image: NDArray[np.uint8],
    labels: NDArray[Any],
    normaliser: Normaliser,
    corner: Pair,
    size: Pair,
) -> tuple[Tensor, Tensor]:
    """The patch of `size` at `corner`, normalised: (C, h, w) float32 and (h, w) int64.

    Outside of the image the pixels are 0, the mean under z-scores, and the labels background:
    upstream writes -1 there and turns it into 0 before the loss.
    """
    pixels = np.zeros((image.shape[2], *size), np.float32)
    truth = np.zeros(size, np.int64)
    starts = [max(0, c) for c in corner]
    ends = [min(c + s, full) for c, s, full in zip(corner, size, labels.shape, strict=True)]
    here = slice(starts[0], ends[0]), slice(starts[1], ends[1])
    there = tuple(slice(a - c, b - c) for a, b, c in zip(starts, ends, corner, strict=True))
    pixels[:, *there] = normaliser(image, here)
    truth[there] = labels[here]
    return torch.from_numpy(pixels), torch.from_numpy(truth)


def foreground_pixel(
    labels: NDArray[Any], ignore_label: int | None, *, forced: bool, rng: np.random.Generator
) -> Pair | None:
    """A random pixel of a random class if `forced`; else an annotated one where not all are."""
    if forced:
        classes = [c for c in np.unique(labels) if c > 0 and c != ignore_label]
        chosen = labels == rng.choice(classes) if classes else np.zeros(labels.shape, bool)
    elif ignore_label is not None:
        chosen = labels != ignore_label
    else:
        return None
    found = np.flatnonzero(chosen)
    if not found.size:
        return None
    row, column = divmod(int(rng.choice(found)), labels.shape[1])
    return row, column


Load: TypeAlias = Callable[[int], tuple[NDArray[np.uint8], NDArray[Any]]]
"""An image's index to its pixels (H, W, C) and its labels (H, W): bool, or whole numbers."""
Phase = Literal["train", "val"]


@dataclass(frozen=True)
class Sampling:
    """How patches are drawn.

    Args:
        patch: Height and width that the network gets, in pixels.
        batch_size: Patches per batch.
        oversampling: The share of a batch, at its end, that is sure to show foreground.
        channels: How each input channel is normalised.
        seed: The run's.
        ignore_label: The label of pixels that nobody annotated.
        mirror_axes: Axes that augmentation may flip, 0 for height.
    """

    patch: Pair
    batch_size: int
    oversampling: float
    channels: tuple[Channel, ...]
    seed: int
    ignore_label: int | None = None
    mirror_axes: tuple[int, ...] = (0, 1)


@dataclass(frozen=True)
class Patch:
    """One patch.

    Args:
        image: (C, h, w), float32, normalised.
        labels: (h, w), int64.
        index: The image that it was cut from.
        forced: Whether it was forced to show foreground. It was cut around a foreground pixel;
            augmentation may still move that out, as upstream's may.
    """

    image: Tensor
    labels: Tensor
    index: int
    forced: bool


class Patches:
    """Batches of patches, a pure function of phase, epoch and iteration.

    Args:
        load: Gives decoded images; called as often as an image is drawn, so it should cache them.
        images: How many there are.
        with_foreground: The indices of those that have any.
        sampling: How patches are drawn.
        phase: `train` augments; `val` does not.

    Raises:
        UsageError: There is no image, or none has foreground.
    """

    def __init__(
        self,
        load: Load,
        images: int,
        with_foreground: Sequence[int],
        sampling: Sampling,
        phase: Phase,
    ) -> None:
        if not images or not with_foreground:
            raise UsageError(
                f"There is nothing to learn from in the {phase} images.",
                f"Of {images} images, none has any foreground in its mask.",
                "Check the masks: foreground is what is not 0.",
            )
        self._load, self._images, self._with_foreground = load, images, tuple(with_foreground)
        self._sampling, self._phase = sampling, phase
        self._normalisers: dict[int, Normaliser] = {}
        self._augmentation: Augmentation | None = None
        self._size = sampling.patch
        if phase == "train":
            self._augmentation = Augmentation(sampling.patch, sampling.mirror_axes)
            self._size = loader_patch(sampling.patch)

    def batch(self, epoch: int, iteration: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, h, w), float32, and labels (B, h, w), int64."""
        places = range(self._sampling.batch_size)
        patches = [self.patch(epoch, iteration, place) for place in places]
        return torch.stack([p.image for p in patches]), torch.stack([p.labels for p in patches])

    def patch(self, epoch: int, iteration: int, place: int) -> Patch:
        """The patch at `place` of a batch."""
        own = self._sampling
        identity = ("nnunet", own.seed, self._phase, epoch, iteration, place)
        rng = np.random.default_rng(identity_seed(*identity, "patch"))
        forced = is_forced(place, own.batch_size, own.oversampling)
        index = int(rng.choice(self._with_foreground) if forced else rng.integers(self._images))
        image, labels = self._load(index)
        centre = foreground_pixel(labels, own.ignore_label, forced=forced, rng=rng)
        corner = choose_corner(labels.shape, self._size, own.patch, centre, rng)
        pixels, truth = cut(image, labels, self._normaliser(index, image), corner, self._size)
        if self._augmentation is not None:
            seed = identity_seed(*identity, "augmentation", bits=32)
            pixels, truth = self._augmentation(pixels, truth, seed=seed)
        return Patch(pixels, truth, index, forced)

    def _normaliser(self, index: int, image: NDArray[np.uint8]) -> Normaliser:
        if index not in self._normalisers:
            self._normalisers[index] = fit(image, self._sampling.channels)
        return self._normalisers[index]


def is_forced(place: int, batch_size: int, share: float) -> bool:
    """Whether the patch at `place` must show foreground: the last `share` of the batch does."""
    return place >= round(batch_size * (1 - share))
