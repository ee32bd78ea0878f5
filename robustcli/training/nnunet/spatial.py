"""nnU-Net's rotation and scaling of a patch, in one resampling by MONAI.

The draws are upstream's own: MONAI's random transforms would scale the two axes apart, or resample
twice, and their lazy mode mixes 2D and 3D matrices (1.6.1).

Source: batchgenerators 0.25, `augment_spatial` as `nnUNetTrainer.get_training_transforms` of
nnU-Net v2.1.1 calls it.
"""

from __future__ import annotations

import math

from monai.transforms.croppad.array import CenterSpatialCrop
from monai.transforms.spatial.array import Affine
from monai.transforms.transform import Randomizable
from torch import Tensor

from robustcli.models.umamba_config import Pair
from robustcli.training.nnunet.channelwise import plain

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
