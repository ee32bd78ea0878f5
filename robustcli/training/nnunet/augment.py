"""nnU-Net's augmentation of a patch, through MONAI's transforms.

In upstream's order, with its probabilities per sample: rotation (.2) and scaling (.2), noise (.1),
blur (.2), brightness (.15), contrast (.15), low resolution (.25), gamma of the inverted image (.1),
gamma (.3), flips (.5 per axis).

Source: nnU-Net v2.1.1, `nnUNetTrainer.get_training_transforms`, with the functions of
batchgenerators 0.25. Where MONAI differs:
- Contrast and gamma: drawn evenly from the range; upstream first decides between below and above 1
  with equal chances.
- Blur: the two axes have a sigma each and the border is 0; upstream has one sigma and reflects.
- Low resolution: enlarged by cubic convolution; upstream uses a cubic spline.
- Noise: upstream hands its `variance` to NumPy as the standard deviation; so does this, in effect:
  the deviation is drawn from U(0, 0.1).
- Masked normalisation: upstream sets the pixels outside of the mask back to 0 at the end.
What is done per channel, and with which chance, is upstream's; so are rotation and scaling
(`robustcli.training.nnunet.spatial`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.transforms.intensity.array import (
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandScaleIntensityFixedMean,
)
from monai.transforms.spatial.array import RandSimulateLowResolution
from monai.transforms.spatial.dictionary import RandFlipd
from monai.transforms.transform import RandomizableTransform
from torch import Tensor

from robustcli.models.umamba_config import Pair
from robustcli.training.nnunet.channelwise import PerChannel, plain, without_metadata
from robustcli.training.nnunet.spatial import TurnAndScale


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
