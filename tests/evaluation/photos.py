"""A small folder of pictures to evaluate, and the settings to do it fast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from robustcli.adapters.load import ModelRequest
from robustcli.evaluation.config import EvalConfig

CLASSES = ("airplane", "cat", "dog", "ship")
PICO = ModelRequest("vmamba-pico", untrained=True)


def make_photos(folder: Path, per_class: int = 3) -> Path:
    """`folder` with `per_class` random 40x36 PNGs in each of four of CIFAR-10's classes."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.random.default_rng((number, index)).integers(0, 256, (36, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def config(data: Path, out: Path, *transforms: str, **changes: object) -> EvalConfig:
    """A quick evaluation of the untrained pico network in this process."""
    settings: dict[str, object] = {"workers": 0, "device": "cpu", "batch_size": 4} | changes
    models = settings.pop("models", (PICO,))
    wanted = transforms or ("fliplr",)
    return EvalConfig(models, wanted, str(data), out, **settings)  # type: ignore[arg-type]
