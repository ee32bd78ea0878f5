"""What one batch of nnU-Net's training is: patches cut at random from images chosen at random.

The last third of a batch is forced to show foreground. Every draw is seeded by what it is for (run
seed, phase, epoch, iteration, place in the batch): order, workers and resume change nothing.

Source: nnU-Net v2.1.1, `nnUNetDataLoader2D` and `nnUNetDataLoaderBase`.
Deviation: a forced patch comes from an image that has foreground, as upstream's comes from a slice
that has some; upstream's falls back to a random place where a whole case has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.adapters.nnunet_normalise import Channel, Normaliser, fit
from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.models.umamba_config import Pair
from robustcli.training.nnunet.augment import Augmentation
from robustcli.training.nnunet.cutting import choose_corner, cut, foreground_pixel, loader_patch

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
