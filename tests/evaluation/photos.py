"""Builds a small folder of photos and a fast evaluation of a tiny network on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.data.dataset import Dataset
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.loader import Source
from robustcli.evaluation.plan import EvaluationPlan, parts_of
from robustcli.evaluation.store import Store
from robustcli.tasks.base import ORIGINAL
from robustcli.tasks.classification import ViewPreparation
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import resolve_transforms

CLASSES = ("airplane", "cat", "dog", "ship")
CROP32, CROP24 = Preprocessing(32, 32, "bilinear"), Preprocessing(40, 24, "bicubic")
PICO = ModelRequest("vmamba-pico", untrained=True)


def make_photos(folder: Path, per_class: int = 3) -> Path:
    """Writes `per_class` random 40x36 PNG files for each of four CIFAR-10 classes to `folder`."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.random.default_rng((number, index)).integers(0, 256, (36, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def config(data: Path, out: Path, *transforms: str, **changes: object) -> EvalConfig:
    """Returns the settings of a fast evaluation of the untrained pico network in this process."""
    settings: dict[str, object] = {"workers": 0, "device": "cpu", "batch_size": 4} | changes
    models = settings.pop("models", (PICO,))
    names = transforms or ("fliplr",)
    return EvalConfig(models, names, str(data), out, **settings)  # type: ignore[arg-type]


def source(
    index: Dataset,
    run: Path,
    *names: str,
    batch_size: int = 5,
    at_crop: bool = False,
    seed: int = 0,
    order: tuple[int, ...] = (0, 1),
    plugins: tuple[Path, ...] = (),
    severities: tuple[int, ...] | None = None,
) -> Source:
    """Returns batches with two views, in blocks of seven images."""
    cells = {
        Cell(c.transform.name, c.severity): c
        for c in resolve_transforms(names, severities, plugins)
    }
    sizes = {CROP32.view: CROP32, CROP24.view: CROP24}
    measured_views = tuple(sizes) if at_crop else (ORIGINAL,)
    plan = EvaluationPlan(
        Store(run), index.samples, tuple(cells), ("small", "large"), measured_views, 7
    )
    model_views = {"small": CROP32.view, "large": CROP24.view}
    pieces = {piece.block: piece for piece in plan.missing()}
    return Source(
        parts_of([pieces[block] for block in order], batch_size),
        ViewPreparation(cells, sizes, model_views, seed, at_crop),
    )
