"""Statistics of the rows of any evaluation beyond its table: verdicts and rankings of models.

They are computed from the rows at first use, so that they exist for old runs too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.evaluation.record import RunRecord
from robustcli.metrics.columns import PIXEL_COLUMNS
from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.mask_scores import group_dice
from robustcli.metrics.paired import smallest_p
from robustcli.metrics.verdicts import (
    ALPHA,
    Agreement,
    CellKey,
    Claim,
    Flips,
    ModelRows,
    Rank,
    Verdict,
    claims,
    rank_probabilities,
    transform_verdicts,
    verdicts,
)
from robustcli.transforms.base import CLEAN

CLEAN_CELL = (CLEAN.transform, CLEAN.severity)


@dataclass(frozen=True)
class Statistics:
    """Statistics of the models of one task; those of segmenters unless a subclass overrides them.

    If rows are missing, models are compared on the images that they have in common.

    Args:
        record: Record of the run, or of the first of several runs with the same images and
            transforms.
        rows: Rows by model and cell: all columns of an evaluation except `top5`; to compare models
            at least the columns `row_columns`.
    """

    record: RunRecord
    rows: ModelRows

    row_columns: ClassVar[Sequence[str]] = ("image_id", "group", *PIXEL_COLUMNS)
    test: ClassVar[str] = "sign-flip test of the dice of groups"

    @property
    def unit(self) -> str:
        """Name of the unit of resampling and tests, in the singular."""
        return self.record.grouping or "image"

    @property
    def words(self) -> str:
        """Sentences on how differences are tested."""
        return (
            f"Test: sign flips of the differences of {self.unit}s; interval: paired bootstrap "
            f"over {self.unit}s."
        )

    @property
    def mean_words(self) -> str:
        """How a transform with several severities is tested, as text."""
        return f"each {self.unit}'s mean over them"

    @staticmethod
    def smallest_p(units: int) -> float:
        """The smallest possible p-value with this number of units."""
        return smallest_p(units)

    @staticmethod
    def scores(rows: pd.DataFrame) -> NDArray[np.float64]:
        """The score of each unit of a cell, in [0, 1]."""
        return group_dice(rows)

    @property
    def transformed(self) -> dict[str, dict[CellKey, pd.DataFrame]]:
        """The rows without those of clean images."""
        return {
            model: {cell: rows for cell, rows in cells.items() if cell != CLEAN_CELL}
            for model, cells in self.rows.items()
        }

    @property
    def bootstrap(self) -> Bootstrap:
        """The bootstrap with the run's seed."""
        return Bootstrap(self.record.seed)

    # Comparison of the models; empty for a single model.

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Verdicts for every pair of models under every transform, clean images included."""
        return transform_verdicts(self.rows, self.record.task, self.bootstrap, common=True)

    @cached_property
    def severity_verdicts(self) -> list[Verdict]:
        """Verdicts for each severity; empty if no transform has several severities."""
        cells = dict.fromkeys(cell for cells in self.rows.values() for cell in cells)
        if len({transform for transform, _ in cells}) == len(cells):
            return []
        return verdicts(self.rows, self.record.task, self.bootstrap, common=True)

    @cached_property
    def claims(self) -> list[Claim]:
        """Per pair of models, the number of transforms in which one of them is ahead."""
        return claims(v for v in self.verdicts if v.transform != CLEAN.transform)

    @property
    def sentences(self) -> list[str]:
        """One sentence per pair of models: the claim, or the verdict on clean images."""
        if self.claims:
            return [claim.sentence() for claim in self.claims]
        return [_on_clean_images(verdict) for verdict in self.verdicts]

    @property
    def pairs(self) -> dict[tuple[str, str], list[Verdict]]:
        """The verdicts of each pair of models."""
        table: dict[tuple[str, str], list[Verdict]] = {}
        for verdict in self.verdicts:
            table.setdefault((verdict.first, verdict.second), []).append(verdict)
        return table

    @property
    def smallest_adjusted_p(self) -> float:
        """The smallest possible adjusted p-value in `verdicts`."""
        units = max((verdict.groups for verdict in self.verdicts), default=0)
        return min(1.0, self.smallest_p(units) * max(1, len(self.verdicts)))

    @cached_property
    def ranking(self) -> list[Rank]:
        """The models by their mean over transforms, or by their clean score without transforms."""
        if len(self.rows) < 2:
            return []
        rows = self.transformed if any(self.transformed.values()) else self.rows
        return rank_probabilities(rows, self.record.task, self.bootstrap, common=True)

    # Agreement of predictions between models, and with each model's clean predictions.

    @property
    def agreements(self) -> list[Agreement]:
        """The agreement of each pair of classifiers in each cell; empty for segmenters."""
        return []

    @property
    def flips(self) -> list[Flips]:
        """The changes of each classifier's predictions by each cell; empty for segmenters."""
        return []

    def further_lists(self) -> dict[str, Any]:
        """Further lists of `statistics.json`, by key."""
        return {}

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that are written to separate files, by file name."""
        levels = (("transform", self.verdicts), ("severity", self.severity_verdicts))
        lines = [{"level": level} | _verdict(v) for level, table in levels for v in table]
        if not lines:
            return {}
        return {"verdicts.csv": pd.DataFrame(lines).astype({"severity": "Int64"})}


def _on_clean_images(verdict: Verdict) -> str:
    names = verdict.first, verdict.second
    if verdict.outcome == "no difference shown":
        return f"No difference between {names[0]} and {names[1]} is shown on clean images."
    ahead, behind = names if verdict.outcome == "first ahead" else names[::-1]
    return f"{ahead} is ahead of {behind} on clean images."


# Machine-readable files.


def statistics_json(statistics: Statistics, extra: Mapping[str, Any]) -> str:
    """All statistics as one JSON document; shares are fractions in [0, 1], missing ones null.

    Args:
        statistics: Statistics of one run.
        extra: Further entries, by key.
    """
    document = {
        "schema_version": 1,
        "alpha": ALPHA,
        "correction": "Holm 1979, over all lines of a list of verdicts",
        "test": statistics.test,
        "claims": [asdict(claim) | {"sentence": claim.sentence()} for claim in statistics.claims],
        "verdicts": [_verdict(verdict) for verdict in statistics.verdicts],
        "severity_verdicts": [_verdict(verdict) for verdict in statistics.severity_verdicts],
        "ranking": [asdict(rank) for rank in statistics.ranking],
        **statistics.further_lists(),
        **extra,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"outcome": verdict.outcome}
