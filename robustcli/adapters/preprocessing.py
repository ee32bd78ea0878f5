"""How a photo becomes a model's input: resize and centre crop as torchvision does with PIL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.errors import UsageError

Triple = tuple[float, float, float]
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """A model's own resize, crop and normalisation.

    Args:
        resize: Length in pixels of the shorter side after resizing; None keeps the size.
        crop: Side in pixels of the square that is cut from the centre.
        interpolation: A key of INTERPOLATIONS.
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].
        mode: `center` keeps the aspect ratio; `squash` resizes both sides to `resize`.
    """

    resize: int | None
    crop: int
    interpolation: str = "bicubic"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    mode: Literal["center", "squash"] = "center"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"`--interpolation {self.interpolation}` is unknown.",
                f"It is one of {', '.join(INTERPOLATIONS)}.",
            )
        if self.crop < 1 or (self.resize is not None and self.resize < 1):
            raise UsageError("`--resize` and `--crop` are pixels, at least 1.")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise UsageError("`--mean` and `--std` are numbers.", f"Got {self.mean}, {self.std}.")
        if min(self.std) <= 0:
            raise UsageError("`--std` must be above zero in every channel.", f"Got {self.std}.")

    @property
    def view(self) -> str:
        """A name for the geometry alone: two models with the same view see the same pixels."""
        size = "as-is" if self.resize is None else f"{self.mode}{self.resize}-{self.interpolation}"
        return f"{size}-crop{self.crop}"

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The model's view of `image` (H, W, 3): (crop, crop, 3)."""
        picture = Image.fromarray(image)
        if self.resize is not None:
            size = self._resized(*picture.size)
            if size != picture.size:
                picture = picture.resize(size, INTERPOLATIONS[self.interpolation])
        return _centre(np.asarray(picture), self.crop)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        assert self.resize is not None
        if self.mode == "squash":
            return self.resize, self.resize
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize


def _centre(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The central square; a smaller image is zero-padded, as torchvision's CenterCrop does."""
    height, width = image.shape[:2]
    down, across = max(0, side - height), max(0, side - width)
    if down or across:
        before = down // 2, across // 2
        pads = [(before[0], down - before[0]), (before[1], across - before[1]), (0, 0)]
        image = np.pad(image, pads)
        height, width = image.shape[:2]
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return np.ascontiguousarray(image[top : top + side, left : left + side])
