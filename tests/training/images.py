"""Synthetic images: discs with masks, and photos of three colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from robustcli.training.datamodule import Decoded, PixelArray


def disc(number: int, height: int, width: int) -> tuple[PixelArray, PixelArray]:
    """Returns an image (H, W, 3) and its mask (H, W) of 0 and 1."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:height, :width]
    radius = min(height, width) / 4
    centre = rng.uniform(radius, [height - radius, width - radius])
    mask = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    image = np.where(mask[:, :, None], [200, 120, 60], [40, 40, 40])
    image = image + rng.integers(0, 4, (height, width, 3))
    return image.astype(np.uint8), mask.astype(np.uint8)


def decoded(count: int, height: int = 40, width: int = 48) -> list[Decoded]:
    return [Decoded(*disc(number, height, width)) for number in range(count)]


def write_pairs(folder: Path, count: int, *, size: int = 32, empty: bool = False) -> Path:
    """Writes `count` pairs in the layout images/, masks/."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image, mask = disc(number, size, size)
        Image.fromarray(image).save(folder / "images" / f"{number:03d}.png")
        Image.fromarray(mask * (0 if empty else 255)).save(folder / "masks" / f"{number:03d}.png")
    return folder


COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 60), "red": (210, 40, 30)}


def write_photos(root: Path, each: int = 12, side: int = 32, seed: int = 0) -> Path:
    """Writes `each` noisy photos of two sizes per colour, in one folder per colour."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            shape = (side, side + 8 * (number % 2), 3)
            pixels = np.clip(rng.normal(colour, 60, shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03}.png")
    return root
