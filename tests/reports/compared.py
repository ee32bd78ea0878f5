"""Runs to compare: evaluations of one model each, on the same images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from robustcli.evaluation.store import INPUT_SCHEMA, Store, write_rows
from robustcli.metrics.columns import PREDICTION_SCHEMA
from robustcli.transforms.base import Cell
from tests.builders import IDENTITY, RunPlan, build_run, paper21

TRANSFORMS = (IDENTITY, *paper21()[:3])
CONTENTS = "ef" * 32
PLAN = RunPlan(transforms=TRANSFORMS, images=80, samples=False, dataset={"contents": CONTENTS})


def build_evaluation(run: Path, name: str, worse: int = 0, plan: RunPlan = PLAN) -> Path:
    """Writes an evaluation of model `name`; a larger `worse` gives a lower accuracy."""
    entry = plan.models[0].model_copy(update={"name": name, "weights_sha256": f"{worse:02d}" * 32})
    return build_run(run, replace(plan, models=(entry,), first_rank=worse))


def two_runs(folder: Path, plan: RunPlan = PLAN, other_plan: RunPlan | None = None) -> list[Path]:
    """Writes the runs `a` (of the better model) and `b`; `other_plan` is for `b` only."""
    return [
        build_evaluation(folder / "a", "vmamba-b", 0, plan),
        build_evaluation(folder / "b", "swin-b", 4, other_plan or plan),
    ]


def rows_of(run: Path, name: str, transform: str = "identity", severity: int = 0) -> pd.DataFrame:
    return Store(run).rows(name, Cell(transform, severity), "cls")


def rewrite_pixels(run: Path, transform: str, images: slice, block: int = 0) -> None:
    """Writes other digests for some images of a block."""
    path = Store(run).input_path("r256c224", Cell(transform, 0), block)
    rows = pd.read_parquet(path, partitioning=None)
    rows.loc[rows.index[images], "digest"] = "f" * 16
    write_rows(path, rows.to_dict("records"), INPUT_SCHEMA)


def rewrite_targets(run: Path, name: str, images: int) -> None:
    """Changes the true class of the first images, in all cells."""
    for transform in TRANSFORMS:
        path = Store(run).prediction_path(name, Cell(transform.name, 0), 0)
        rows = pd.read_parquet(path, partitioning=None)
        rows.loc[: images - 1, "target"] = 9
        rows["top5"] = [np.asarray(values).tolist() for values in rows["top5"]]
        write_rows(path, rows.to_dict("records"), PREDICTION_SCHEMA)
