"""Training batches of nnU-Net: randomly cropped and augmented patches.

The last third of a batch is forced to contain foreground. Random draws are seeded by run seed,
phase, epoch, iteration and position in the batch, so they do not depend on order, workers or
resuming.

Source: nnU-Net v2.1.1, `nnUNetDataLoader2D` and `nnUNetDataLoaderBase`. Deviation: a forced patch
is always cropped from an image with foreground, as upstream's from a slice with foreground;
upstream falls back to a random position if the entire case has no foreground.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms.croppad.array import CenterSpatialCrop
from monai.transforms.intensity.array import (
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandScaleIntensityFixedMean,
)
from monai.transforms.spatial.array import Affine, RandSimulateLowResolution
from monai.transforms.spatial.dictionary import RandFlipd
from monai.transforms.transform import Randomizable, RandomizableTransform
from numpy.typing import NDArray
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.models.blocks import Pair
from robustcli.nnunet.normalisation import Channel, Normaliser, fit


class PerChannel(RandomizableTransform):
    """Applies `transform` to each channel separately, with separate random draws.

    Args:
        transform: A transform that is applied at each call (`prob` 1).
        prob: Probability of changing a sample.
        channel_prob: Probability of changing each channel of a changed sample.
    """

    def __init__(
        self, transform: RandomizableTransform, *, prob: float, channel_prob: float = 1.0
    ) -> None:
        super().__init__(prob)
        self._transform, self._channel_prob = transform, channel_prob

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> PerChannel:
        """Sets the random generator, which the transform shares; called by MONAI."""
        super().set_random_state(seed, state)
        self._transform.set_random_state(state=self.R)
        return self

    def __call__(self, image: Tensor) -> Tensor:
        """The changed image, (C, H, W)."""
        self.randomize(None)
        if not self._do_transform:
            return image
        channels = [
            plain(self._transform(c)) if self.R.rand() < self._channel_prob else c
            for c in image.split(1)
        ]
        return torch.cat(channels)


@contextmanager
def without_metadata() -> Iterator[None]:
    """Disables MONAI's tracking of metadata, which would take a third of the time."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def plain(tensor: Tensor) -> Tensor:
    """`tensor` without MONAI's metadata."""
    bare: Tensor = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return bare


# nnU-Net's rotation and scaling of a patch, in a single resampling by MONAI. Random draws follow
# upstream: MONAI's random transforms would scale the two axes independently, or resample twice, and
# their lazy mode mixes 2D and 3D matrices (1.6.1).
#
# Source: batchgenerators 0.25, `augment_spatial` as `nnUNetTrainer.get_training_transforms` of
# nnU-Net v2.1.1 calls it.

PROBABILITY = 0.2  # of rotation and of scaling, independently
SCALES = (0.7, 1.4)  # of the visible region: above 1, objects look smaller
_LONG = 1.5  # aspect ratio above which rotation is limited


def largest_angle(patch: Pair) -> float:
    """Largest rotation of a patch in degrees, in both directions: 180, or 15 for long patches."""
    return 15.0 if max(patch) / min(patch) > _LONG else 180.0


class TurnAndScale(Randomizable):
    """Randomly rotates and scales image and labels, and crops the centre.

    Args:
        patch: Height and width of the result.
    """

    def __init__(self, patch: Pair) -> None:
        self._patch = patch
        self._limit = math.radians(largest_angle(patch))
        self._middle = CenterSpatialCrop(patch)

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Image and labels at the size of the patch.

        Args:
            image: (C, H, W), float32; resampled by cubic splines, 0 outside.
            labels: (K, H, W), float32, one map per class; resampled linearly, 0 outside.
        """
        angle = self.R.uniform(-self._limit, self._limit) if self._happens() else 0.0
        scale = self._scale() if self._happens() else 1.0
        if (angle, scale) == (0.0, 1.0):
            return plain(self._middle(image)), plain(self._middle(labels))
        moved = Affine(
            rotate_params=angle,
            scale_params=(scale, scale),
            spatial_size=self._patch,
            image_only=True,
        )
        pixels = moved(image, mode=3, padding_mode="constant")
        shown = moved(labels, mode="bilinear", padding_mode="zeros")
        assert isinstance(pixels, Tensor)  # with `image_only`, no matrix is returned
        assert isinstance(shown, Tensor)
        return plain(pixels), plain(shown)

    def _happens(self) -> bool:
        return bool(self.R.rand() < PROBABILITY)

    def _scale(self) -> float:
        """A scale from the range below or above 1 with equal probability, uniform within it."""
        low, high = SCALES
        return float(self.R.uniform(low, 1) if self.R.rand() < 0.5 else self.R.uniform(1, high))


# nnU-Net's augmentation of a patch with MONAI's transforms, in upstream's order and with its
# probabilities per sample: rotation (.2) and scaling (.2), noise (.1), blur (.2), brightness (.15),
# contrast (.15), low resolution (.25), gamma of the inverted image (.1), gamma (.3), flips (.5 per
# axis).
#
# Source: nnU-Net v2.1.1, `nnUNetTrainer.get_training_transforms`, with the functions of
# batchgenerators 0.25. Differences of MONAI:
# - Contrast and gamma: uniform over the range; upstream first chooses between below and above 1
#   with equal probability.
# - Blur: one sigma per axis, and zero padding; upstream uses a single sigma and reflection.
# - Low resolution: enlarged by cubic convolution; upstream uses a cubic spline.
# - Noise: upstream passes its `variance` to NumPy as the standard deviation; equivalently, the
#   standard deviation is drawn from U(0, 0.1) here.
# - Masked normalisation: upstream sets the pixels outside of the mask to 0 again at the end.
# Probabilities per channel, rotation and scaling are the same as upstream's.


class Augmentation:
    """Augments single patches; must not be shared between threads.

    Args:
        patch: Height and width of the result, cropped from the centre after rotation and scaling.
    """

    def __init__(self, patch: Pair) -> None:
        self._spatial = TurnAndScale(patch)
        self._intensity = _intensity()
        self._flips = [
            RandFlipd(("image", "labels"), prob=0.5, spatial_axis=axis) for axis in (0, 1)
        ]

    def __call__(self, image: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """The augmented image (C, h, w), float32, and labels (h, w), int64.

        Args:
            image: (C, H, W), float32, normalised, at least as large as the patch.
            labels: (H, W), int64, 0 for background.
            seed: In [0, 2**32); the only source of randomness.
        """
        with without_metadata():
            return self._augmented(image, labels, seed)

    def _augmented(self, image: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        self._seed(seed)
        classes = [int(c) for c in labels.unique() if c > 0]
        shown = torch.stack([labels == c for c in classes or [1]]).float()  # (K, H, W)
        image, shown = self._spatial(image, shown)
        for change in self._intensity:
            image = plain(change(image))
        sample: Mapping[Hashable, Tensor] = {"image": image, "labels": shown}
        for flip in self._flips:
            sample = flip(sample)
        return plain(sample["image"]).contiguous(), _labels(plain(sample["labels"]), classes)

    def _seed(self, seed: int) -> None:
        """Seeds one generator that all transforms share; seeding each would be slower."""
        state = np.random.RandomState(seed)
        for transform in (self._spatial, *self._intensity, *self._flips):
            transform.set_random_state(state=state)


def _labels(shown: Tensor, classes: Sequence[int]) -> Tensor:
    """The class of each pixel with a share of at least 0.5; of several, the last."""
    labels = torch.zeros(shown.shape[1:], dtype=torch.int64)
    for number, share in zip(classes, shown, strict=False):
        labels[share >= 0.5] = number
    return labels


def _intensity() -> list[RandomizableTransform]:
    blur = RandGaussianSmooth((0.5, 1.0), (0.5, 1.0), prob=1.0)
    coarse = RandSimulateLowResolution(1.0, "nearest", "bicubic", (0.5, 1.0))
    inverted, upright = (
        RandAdjustContrast(1.0, (0.7, 1.5), invert_image=invert, retain_stats=True)
        for invert in (True, False)
    )
    # MONAI 1.5 has no `channel_wise` option for this transform.
    contrast = RandScaleIntensityFixedMean(prob=1.0, factors=0.25, preserve_range=True)
    return [
        RandGaussianNoise(prob=0.1, std=0.1),
        PerChannel(blur, prob=0.2, channel_prob=0.5),
        RandScaleIntensity(0.25, prob=0.15, channel_wise=True),
        PerChannel(contrast, prob=0.15),
        PerChannel(coarse, prob=0.25, channel_prob=0.5),
        PerChannel(inverted, prob=0.1),
        PerChannel(upright, prob=0.3),
    ]


# Position and size of patches in their images. Source: nnU-Net v2.1.1,
# `nnUNetDataLoaderBase.get_bbox` and `get_patch_size`.

SMALLEST_SCALE = 0.85  # upstream's value for the margin only; the scaling goes down to 0.7


def loader_patch(patch: Pair) -> Pair:
    """The size to crop for training, before rotation, scaling and the centre crop to `patch`.

    Source: `get_patch_size`: the patch rotated by the largest angle (at most 90 degrees), divided
    by 0.85; for 512 x 512, the result is 602 x 602.
    """
    angle = min(math.radians(90), math.radians(largest_angle(patch)))
    cos, sin = math.cos(angle), math.sin(angle)
    turned = abs(patch[0] * cos + patch[1] * sin), abs(patch[1] * cos - patch[0] * sin)
    height, width = (
        int(max(side, patch_side) / SMALLEST_SCALE)
        for side, patch_side in zip(turned, patch, strict=True)
    )
    return height, width


def choose_corner(
    shape: tuple[int, ...], size: Pair, final: Pair, centre: Pair | None, rng: np.random.Generator
) -> Pair:
    """The upper left corner of a patch; outside of the image, the patch is padded.

    Args:
        shape: Height and width of the image.
        size: Size of the patch to crop.
        final: Size of the patch for the network; the margin of `size` around it may be padding.
        centre: A pixel at which the patch is centred; as in upstream, the corner is only limited at
            the upper left. None to draw from all valid corners.
        rng: Random generator.
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

    Outside of the image, pixels are 0 (the mean of z-scores) and labels are background; upstream
    sets labels to -1 there and converts them to 0 before the loss.
    """
    pixels = np.zeros((image.shape[2], *size), np.float32)
    truth = np.zeros(size, np.int64)
    starts = [max(0, c) for c in corner]
    ends = [min(c + s, full) for c, s, full in zip(corner, size, labels.shape, strict=True)]
    target = slice(starts[0], ends[0]), slice(starts[1], ends[1])
    source = tuple(slice(a - c, b - c) for a, b, c in zip(starts, ends, corner, strict=True))
    pixels[:, *source] = normaliser(image, target)
    truth[source] = labels[target]
    return torch.from_numpy(pixels), torch.from_numpy(truth)


def foreground_pixel(
    labels: NDArray[Any], ignore_label: int | None, *, forced: bool, rng: np.random.Generator
) -> Pair | None:
    """A random pixel of a random class if `forced`, else of the annotated pixels.

    None if no such pixel exists, or if not `forced` and there is no `ignore_label`.
    """
    if forced:
        classes = [c for c in np.unique(labels) if c > 0 and c != ignore_label]
        chosen = labels == rng.choice(classes) if classes else np.zeros(labels.shape, bool)
    elif ignore_label is not None:
        chosen = labels != ignore_label
    else:
        return None
    indices = np.flatnonzero(chosen)
    if not indices.size:
        return None
    row, column = divmod(int(rng.choice(indices)), labels.shape[1])
    return row, column


Load: TypeAlias = Callable[[int], tuple[NDArray[np.uint8], NDArray[Any]]]
"""Maps the index of an image to pixels (H, W, C) and labels (H, W), bool or integer."""
Phase = Literal["train", "val"]


@dataclass(frozen=True)
class Sampling:
    """Settings for drawing patches.

    Args:
        patch: Height and width of the network's input in pixels.
        batch_size: Number of patches per batch.
        oversampling: Share of a batch, at its end, that is forced to contain foreground.
        channels: The normalisation of each input channel.
        seed: Seed of the run.
        ignore_label: Label of pixels without annotation; None without one.
    """

    patch: Pair
    batch_size: int
    oversampling: float
    channels: tuple[Channel, ...]
    seed: int
    ignore_label: int | None = None


@dataclass(frozen=True)
class Patch:
    """One patch.

    Args:
        image: (C, h, w), float32, normalised.
        labels: (h, w), int64.
        index: Index of the image from which it was cropped.
        forced: Whether it was forced to contain foreground, by cropping around a foreground pixel.
            As in upstream, augmentation may still move that pixel out of the patch.
    """

    image: Tensor
    labels: Tensor
    index: int
    forced: bool


class Patches:
    """Batches of patches, a pure function of phase, epoch and iteration.

    Args:
        load: Returns a decoded image; called for each drawn patch, so it should cache images.
        images: Number of images.
        with_foreground: Indices of the images with foreground.
        sampling: Settings for drawing patches.
        phase: `train` augments patches; `val` does not.

    Raises:
        UsageError: No images exist, or none has foreground.
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
                f"The {phase} images cannot be used for training.",
                f"Of {images} images, none has any foreground in its mask.",
                "Check the masks: foreground is every value except 0.",
            )
        self._load, self._images, self._with_foreground = load, images, tuple(with_foreground)
        self._sampling, self._phase = sampling, phase
        self._normalisers: dict[int, Normaliser] = {}
        self._augmentation: Augmentation | None = None
        self._size = sampling.patch
        if phase == "train":
            self._augmentation = Augmentation(sampling.patch)
            self._size = loader_patch(sampling.patch)

    def batch(self, epoch: int, iteration: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, h, w), float32, and labels (B, h, w), int64."""
        positions = range(self._sampling.batch_size)
        patches = [self.patch(epoch, iteration, position) for position in positions]
        return torch.stack([p.image for p in patches]), torch.stack([p.labels for p in patches])

    def patch(self, epoch: int, iteration: int, position: int) -> Patch:
        """The patch at `position` in a batch."""
        sampling = self._sampling
        identity = ("nnunet", sampling.seed, self._phase, epoch, iteration, position)
        rng = np.random.default_rng(identity_seed(*identity, "patch"))
        forced = is_forced(position, sampling.batch_size, sampling.oversampling)
        index = int(rng.choice(self._with_foreground) if forced else rng.integers(self._images))
        image, labels = self._load(index)
        centre = foreground_pixel(labels, sampling.ignore_label, forced=forced, rng=rng)
        corner = choose_corner(labels.shape, self._size, sampling.patch, centre, rng)
        pixels, truth = cut(image, labels, self._normaliser(index, image), corner, self._size)
        if self._augmentation is not None:
            seed = identity_seed(*identity, "augmentation", bits=32)
            pixels, truth = self._augmentation(pixels, truth, seed=seed)
        return Patch(pixels, truth, index, forced)

    def _normaliser(self, index: int, image: NDArray[np.uint8]) -> Normaliser:
        if index not in self._normalisers:
            self._normalisers[index] = fit(image, self._sampling.channels)
        return self._normalisers[index]


def is_forced(position: int, batch_size: int, share: float) -> bool:
    """Whether the patch at `position` is in the last `share` of a batch, forced to foreground."""
    return position >= round(batch_size * (1 - share))
