"""Photos of three colours that a very small classifier learns to tell apart in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 60), "red": (210, 40, 30)}


def write_photos(root: Path, each: int = 12, side: int = 32, seed: int = 0) -> Path:
    """`each` noisy photos of each colour, in a folder of its own; of two sizes."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            shape = (side, side + 8 * (number % 2), 3)
            pixels = np.clip(rng.normal(colour, 60, shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03}.png")
    return root
