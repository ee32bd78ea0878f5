"""Scores over severities: breaking points, and ImageNet-C's corruption errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from robustcli.core.names import canonical

BREAKING_RETENTION = 0.5


@dataclass(frozen=True)
class BreakingPoint:
    """The lowest severity with a retention below BREAKING_RETENTION; None without one.

    `strongest` is the highest measured severity.
    """

    model: str
    transform: str
    severity: int | None
    strongest: int


def breaking_points(table: pd.DataFrame) -> list[BreakingPoint]:
    """One point per model and transform with at least two severities above 0, in table order.

    Severity 0 mixes all strengths of a transform, so its lines in `table`, the table of the run
    (`cell_table.table`), are ignored.
    """
    graded = table[(table["severity"] > 0) & table["retention"].notna()]
    points = []
    for (model, transform), cells in graded.groupby(["model", "transform"], sort=False):
        if len(cells) > 1:
            broken = cells.loc[cells["retention"] < BREAKING_RETENTION, "severity"]
            lowest = None if broken.empty else int(broken.min())
            strongest = int(cells["severity"].max())
            points.append(BreakingPoint(str(model), str(transform), lowest, strongest))
    return points


# AlexNet's top-1 error on ImageNet-C, mean over the five severities.
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
ALEXNET_CLEAN_ERROR = 0.4348
CORRUPTION_FAMILIES = ("imagenet-c", "published")
"""Families: corruptions computed from clean images, and the published images of ImageNet-C."""
BENCHMARK_SEVERITIES = 5


@dataclass(frozen=True)
class CorruptionError:
    """One model's errors relative to AlexNet's: 1 equals AlexNet, lower is better.

    Args:
        model: Name of the model in the run.
        family: The family of the corruptions, one of CORRUPTION_FAMILIES.
        mce: Mean corruption error.
        relative_mce: Relative mean corruption error, for the increase over the clean error.
        by_corruption: The corruption error of each of the 15 corruptions.

    Source: D. Hendrycks, T. Dietterich, Benchmarking neural network robustness to common
    corruptions and perturbations, ICLR 2019, section 4.1; AlexNet's errors from the authors' code.
    """

    model: str
    family: str
    mce: float
    relative_mce: float
    by_corruption: dict[str, float]


def corruption_errors(
    table: pd.DataFrame, *, label_space: str, families: Mapping[str, str]
) -> list[CorruptionError]:
    """The corruption errors of models, by family, then in the order of the run.

    Only includes models with all 15 corruptions x 5 severities, measured on the same number of
    images. Empty for classes other than ImageNet-1K's, on which AlexNet's errors were measured.

    `table` is `cell_table.table` of the run, `label_space` the name of its classes, `families` the
    family of each transform.
    """
    if label_space != "imagenet-1k":
        return []
    errors = []
    for corruption_family in CORRUPTION_FAMILIES:
        transforms = [t for t, family in families.items() if family == corruption_family]
        names = {transform: benchmark_name(transform) for transform in transforms}
        for model in table["model"].unique():
            rows = table[table["model"] == model]
            error = _corruption_error(str(model), corruption_family, rows, names)
            errors += [] if error is None else [error]
    return errors


def benchmark_name(transform: str) -> str | None:
    """The benchmark's name of a corruption; the name `transform` may have a prefix."""
    spelling = canonical(transform)
    for name in ALEXNET_ERROR:
        if spelling == canonical(name) or spelling.endswith("-" + canonical(name)):
            return name
    return None


def _corruption_error(
    model: str, family: str, rows: pd.DataFrame, names: dict[str, str | None]
) -> CorruptionError | None:
    cells = rows.assign(corruption=rows["transform"].map(names)).dropna(subset="corruption")
    cells = cells[cells["severity"].between(1, BENCHMARK_SEVERITIES)]
    clean = rows[rows["transform"] == "identity"]
    if len(cells) != len(ALEXNET_ERROR) * BENCHMARK_SEVERITIES or not _same_images(cells, clean):
        return None
    alexnet = pd.Series(ALEXNET_ERROR)
    error = (1 - cells.groupby("corruption")["top1"].mean()).reindex(alexnet.index)
    relative = (error - (1 - clean["top1"].iloc[0])) / (alexnet - ALEXNET_CLEAN_ERROR)
    by_corruption = error / alexnet
    errors = {name: float(by_corruption[name]) for name in ALEXNET_ERROR}
    return CorruptionError(
        model, family, float(by_corruption.mean()), float(relative.mean()), errors
    )


def _same_images(cells: pd.DataFrame, clean: pd.DataFrame) -> bool:
    if clean.empty or not clean["n"].iloc[0]:
        return False
    n = clean["n"].iloc[0]
    return bool((cells["n"] == n).all() and (cells["paired_n"] == n).all())
