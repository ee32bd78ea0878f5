"""A corruption of ImageNet-C at one of its five severities, through imgaug's `imgcorruptlike`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcli.transforms.alone import ONE_AT_A_TIME
from robustcli.transforms.base import Image, Mask, Transform

SMALLEST_SIDE = 32  # `imgcorruptlike` refuses smaller images


@dataclass(frozen=True, kw_only=True)
class Corruption(Transform):
    """One of the 19 corruptions.

    An image under 32 pixels on a side is mirrored out to 32, corrupted, and cut back.

    Args:
        corruption: Its name in ImageNet-C.
    """

    corruption: str

    def _parameters(self, severity: int) -> dict[str, Any]:
        return {"severity": severity}

    def _changed(self, image: Image, *, seed: int, severity: int) -> Image:
        from imgaug.augmenters import imgcorruptlike

        function = getattr(imgcorruptlike, f"apply_{self.corruption}")
        height, width = image.shape[:2]
        with ONE_AT_A_TIME:
            changed: Image = function(_framed(image), severity=severity, seed=_narrow(seed))
        return changed[:height, :width]

    def _moved(self, image: Image, mask: Mask, *, seed: int, severity: int) -> tuple[Image, Mask]:
        changed = self._changed(image, seed=seed, severity=severity)
        if not self.geometric:
            return changed, mask
        height, width = mask.shape
        return changed, _elastically(_framed(mask), seed, severity)[:height, :width]


def _elastically(mask: Mask, seed: int, severity: int) -> Mask:
    """`mask` (H, W) moved as `elastic_transform` moves an image of that size with that seed.

    The corruption samples between neighbours, so what it makes of a picture of the coordinates is,
    pixel by pixel, where it looked.
    """
    from imagecorruptions.corruptions import elastic_transform  # type: ignore[import-untyped]
    from imgaug.random import temporary_numpy_seed

    rows, columns = np.indices(mask.shape, dtype=np.float64)
    last = max(mask.shape) - 1
    picture = np.stack([rows, columns, columns], axis=2) / last * 255
    with ONE_AT_A_TIME, temporary_numpy_seed(_narrow(seed)):
        looked = elastic_transform(picture, severity) / 255 * last
    row, column = np.rint(looked[..., :2]).astype(int).transpose(2, 0, 1)
    moved: Mask = mask[row, column]
    return moved


def _framed(array: NDArray[Any]) -> NDArray[Any]:
    missing = [max(0, SMALLEST_SIDE - side) for side in array.shape[:2]]
    if not any(missing):
        return array
    width = [(0, more) for more in missing] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, width, mode="symmetric")


def _narrow(seed: int) -> int:
    return seed % 2**32  # numpy's legacy generator takes 32 bits
