"""The 19 corruptions of the preset `imagenet-c`, as data.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019 (arXiv 1903.12261): 15 of the benchmark, then the 4 held out for
validation. A name carries the prefix `c_`, because `gaussian_blur` is also a transform of paper21.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcli.transforms.base import SEVERITIES, Image, Mask, Transform

# The corruptions draw from numpy's global generator, which imgcorruptlike seeds and then restores:
# correct only while no second thread does the same.
ONE_AT_A_TIME = threading.Lock()
SMALLEST_SIDE = 32  # `imgcorruptlike` refuses smaller images


@dataclass(frozen=True, kw_only=True)
class Corruption(Transform):
    """One of the 19 corruptions.

    An image under 32 pixels on a side is mirrored out to 32, corrupted, and cut back.
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

    The corruption interpolates between neighbours, so a picture of the coordinates shows, pixel by
    pixel, the place that was sampled.
    """
    from imagecorruptions.corruptions import elastic_transform  # type: ignore[import-untyped]
    from imgaug.random import temporary_numpy_seed

    rows, columns = np.indices(mask.shape, dtype=np.float64)
    last = max(mask.shape) - 1
    picture = np.stack([rows, columns, columns], axis=2) / last * 255
    with ONE_AT_A_TIME, temporary_numpy_seed(_narrow(seed)):
        sampled = elastic_transform(picture, severity) / 255 * last
    row, column = np.rint(sampled[..., :2]).astype(int).transpose(2, 0, 1)
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


NAME_PREFIX = "c_"
_SUMMARIES = {
    "gaussian_noise": "Gaussian noise",
    "shot_noise": "Poisson noise, as from too little light",
    "impulse_noise": "Salt-and-pepper noise",
    "defocus_blur": "Out-of-focus blur",
    "glass_blur": "Seen through frosted glass",
    "motion_blur": "Camera moved, at a random angle",
    "zoom_blur": "Camera moved towards the scene",
    "snow": "Falling snow",
    "frost": "Ice crystals on the lens",
    "fog": "Fog (diamond-square noise)",
    "brightness": "Brighter",
    "contrast": "Less contrast",
    "elastic_transform": "Small regions stretched",
    "pixelate": "Fewer, larger pixels",
    "jpeg_compression": "JPEG at quality 25 down to 7",
    "speckle_noise": "Noise that grows with the value",
    "gaussian_blur": "Gaussian blur",
    "spatter": "Water or mud on the lens",
    "saturate": "Less saturation (1, 2) or more (3 to 5)",
}

IMAGENET_C: tuple[Corruption, ...] = tuple(
    Corruption(
        name=NAME_PREFIX + corruption,
        family="imagenet-c",
        geometric=corruption == "elastic_transform",
        severities=SEVERITIES,
        ranged=False,
        summary=summary,
        corruption=corruption,
    )
    for corruption, summary in _SUMMARIES.items()
)
