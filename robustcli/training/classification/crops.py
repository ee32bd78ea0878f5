"""What a training photo may look like otherwise: a random part of it, and its mirror image.

Source: Szegedy et al., "Going deeper with convolutions" (2015), section 6, as torchvision's
RandomResizedCrop has it: an area and a ratio of the sides are drawn, up to ten times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from robustcli.core.names import find

_TRIES = 10
_RATIOS = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Crops:
    """How photos are changed.

    Args:
        least: Share of the photo's area that a part has at least, in (0, 1].
    """

    least: float


CROPS: dict[str, Crops | None] = {"none": None, "light": Crops(0.5), "strong": Crops(0.08)}
"""`light`: a part of at least half of the area, mirrored half of the time. `strong`: of at least
8 %, as ImageNet's networks are trained. `none`: the photo as it is evaluated."""


def crops_name(name: str) -> str:
    """The registered spelling of `name`.

    Raises:
        UsageError: No augmentation is called so; the message offers the nearest names.
    """
    return find(name, CROPS, kind="augmentation", listing="docs/train-cls.md")


def changed(
    image: Tensor, crops: Crops, side: int, interpolation: str, rng: np.random.Generator
) -> Tensor:
    """A random part of `image`, resized to (3, side, side), mirrored half of the time.

    Args:
        image: uint8 (3, H, W).
        crops: How.
        side: Of the result, in pixels.
        interpolation: The model's own.
        rng: Of this image in this epoch.
    """
    top, left, height, width = _box(image.shape[1], image.shape[2], crops, rng)
    mode = InterpolationMode(interpolation)
    part = F.resized_crop(image, top, left, height, width, [side, side], mode, antialias=True)
    mirrored: Tensor = F.horizontal_flip(part) if rng.random() < 0.5 else part
    return mirrored.to(torch.uint8)


def _box(
    height: int, width: int, crops: Crops, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part."""
    low, high = (math.log(ratio) for ratio in _RATIOS)
    for _ in range(_TRIES):
        area = height * width * rng.uniform(crops.least, 1)
        ratio = math.exp(rng.uniform(low, high))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top = int(rng.integers(0, height - down + 1))
            return top, int(rng.integers(0, width - across + 1)), down, across
    across, down = min(width, round(height * _RATIOS[1])), min(height, round(width / _RATIOS[0]))
    return (height - down) // 2, (width - across) // 2, down, across
