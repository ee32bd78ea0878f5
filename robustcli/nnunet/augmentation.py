"""nnU-Net's augmentation of a patch, through MONAI's transforms."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

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
from torch import Tensor

from robustcli.models.umamba import Pair

# What MONAI's transforms lack for nnU-Net's augmentation: each channel by itself, no metadata.


class PerChannel(RandomizableTransform):
    """`transform` on each channel by itself, with draws of its own.

    Args:
        transform: Applied whenever it is called.
        prob: Of touching the sample at all.
        channel_prob: Of touching a channel of it.
    """

    def __init__(
        self, transform: RandomizableTransform, *, prob: float, channel_prob: float = 1.0
    ) -> None:
        super().__init__(prob)
        self._transform, self._channel_prob = transform, channel_prob

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> PerChannel:
        """Seeds itself; its transform draws from the same generator in turn. MONAI calls it."""
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
    """MONAI keeps no record of what it did to a tensor, which would take a third of the time."""
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


# --- nnU-Net's rotation and scaling of a patch, in one resampling by MONAI ------------------------
#
# The draws are upstream's own: MONAI's random transforms would scale the two axes apart, or
# resample twice, and their lazy mode mixes 2D and 3D matrices (1.6.1).
#
# Source: batchgenerators 0.25, `augment_spatial` as `nnUNetTrainer.get_training_transforms` of nnU-
# Net v2.1.1 calls it.


PROBABILITY = 0.2  # of each of the two, by itself
SCALES = (0.7, 1.4)  # of what is seen: above 1 things look smaller
_LONG = 1.5  # a patch of a larger aspect ratio is turned a little only


def largest_angle(patch: Pair) -> float:
    """Degrees by which a patch may be turned either way: 180, or 15 for a long one."""
    return 15.0 if max(patch) / min(patch) > _LONG else 180.0


class TurnAndScale(Randomizable):
    """The middle of an image and its labels, at times turned, at times scaled.

    Args:
        patch: Height and width to return.
    """

    def __init__(self, patch: Pair) -> None:
        self._patch = patch
        self._limit = math.radians(largest_angle(patch))
        self._middle = CenterSpatialCrop(patch)

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both at the patch's size.

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
        assert isinstance(pixels, Tensor)  # with `image_only` there is no matrix beside it
        assert isinstance(shown, Tensor)
        return plain(pixels), plain(shown)

    def _happens(self) -> bool:
        return bool(self.R.rand() < PROBABILITY)

    def _scale(self) -> float:
        """Below or above 1 with equal chances, then even."""
        low, high = SCALES
        return float(self.R.uniform(low, 1) if self.R.rand() < 0.5 else self.R.uniform(1, high))


# --- nnU-Net's augmentation of a patch, through MONAI's transforms --------------------------------
#
# In upstream's order, with its probabilities per sample: rotation (.2) and scaling (.2), noise
# (.1), blur (.2), brightness (.15), contrast (.15), low resolution (.25), gamma of the inverted
# image (.1), gamma (.3), flips (.5 per axis).
#
# Source: nnU-Net v2.1.1, `nnUNetTrainer.get_training_transforms`, with the functions of
# batchgenerators 0.25. Where MONAI differs:
# - Contrast and gamma: drawn evenly from the range; upstream first decides between below and above
#   1 with equal chances.
# - Blur: the two axes have a sigma each and the border is 0; upstream has one sigma and reflects.
# - Low resolution: enlarged by cubic convolution; upstream uses a cubic spline.
# - Noise: upstream hands its `variance` to NumPy as the standard deviation; so does this, in
#   effect: the deviation is drawn from U(0, 0.1).
# - Masked normalisation: upstream sets the pixels outside of the mask back to 0 at the end.
# What is done per channel, and with which chance, is upstream's; so are rotation and scaling.


class Augmentation:
    """Augments one patch at a time; not to be shared between threads.

    Args:
        patch: Height and width to return, cut from the middle after rotation and scaling.
        mirror_axes: Axes that may be flipped, 0 for height.
    """

    def __init__(self, patch: Pair, mirror_axes: Sequence[int] = (0, 1)) -> None:
        self._spatial = TurnAndScale(patch)
        self._intensity = _intensity()
        self._flips = [
            RandFlipd(("image", "labels"), prob=0.5, spatial_axis=axis) for axis in mirror_axes
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
        both: Mapping[Hashable, Tensor] = {"image": image, "labels": shown}
        for flip in self._flips:
            both = flip(both)
        return plain(both["image"]).contiguous(), _labels(plain(both["labels"]), classes)

    def _seed(self, seed: int) -> None:
        """One generator for all, which draw from it in turn: seeding each would cost more."""
        state = np.random.RandomState(seed)
        for transform in (self._spatial, *self._intensity, *self._flips):
            transform.set_random_state(state=state)


def _labels(shown: Tensor, classes: Sequence[int]) -> Tensor:
    """Per pixel the class with at least half of it, the last one where several have."""
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
    # MONAI 1.5 has no `channel_wise` for it.
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
