"""Compares folders of several seeds: the score of every image is its mean over the seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from robustcli.core.errors import UsageError
from robustcli.core.names import TaskName, counted, find
from robustcli.metrics.intervals import Bootstrap, FloatArray
from robustcli.metrics.seed_scores import SeedsGap, seeds_gap, unit_scores
from robustcli.metrics.verdicts import ALPHA
from robustcli.reports.markdown import from_template
from robustcli.reports.pages import (
    Page,
    grid,
    in_ascii,
    json_records,
    run_kind,
    typed_table,
    write_page,
)
from robustcli.reports.pairing import (
    ComparedModel,
    EvaluatedRun,
    PairedRows,
    find_models,
    read_rows,
    setting_differences,
    split_name,
    unique_labels,
)
from robustcli.reports.scoring import SCORINGS, Scoring
from robustcli.reports.seeds_findings import SeedSeries, SeedsFindings, read_seeds
from robustcli.reports.statistics import CLEAN_CELL

_INTERVALS = ("seeds", "units", "joint")
_COMPARISON_COLUMNS = (
    *("first", "second", "first_seeds", "second_seeds", "units", "first_score", "second_score"),
    "difference",
    *(f"{name}_{end}" for name in _INTERVALS for end in ("low", "high")),
    *("confidence", "outcome"),
)
_WORDS, _COUNTS = ("first", "second", "outcome"), ("first_seeds", "second_seeds", "units")


@dataclass(frozen=True)
class SeededModel:
    """One training over its seeds, or one mode of a fine-tuning over its seeds.

    Args:
        label: Its unique name in the comparison.
        source: The folder as the user named it; with the mode for a mode.
        findings: Results of the folder.
        series: The runs of its seeds.
    """

    label: str
    source: str
    findings: SeedsFindings
    series: SeedSeries

    @property
    def seeds(self) -> list[int]:
        """The evaluated seeds."""
        return [run.seed for run in self.series.measured]

    @property
    def evaluated(self) -> ComparedModel:
        """The evaluation of its first seed, which represents the settings of all seeds."""
        return replace(self.evaluations[0], label=self.label)

    @property
    def evaluations(self) -> list[ComparedModel]:
        """The evaluation of each of its evaluated seeds."""
        models = [find_models([str(r.training.run)], fewest=1)[0][0] for r in self.series.measured]
        return [
            ComparedModel(
                f"{self.label}, seed {seed}",
                EvaluatedRun(self.source, model.run.folder, trained=True),
                model.model,
            )
            for seed, model in zip(self.seeds, models, strict=True)
        ]


@dataclass(frozen=True)
class SeedsPair:
    """A pair of models with their difference."""

    first: SeededModel
    second: SeededModel
    gap: SeedsGap

    @property
    def outcome(self) -> str:
        """The outcome, with the name of the model that is ahead."""
        if self.gap.lead == "first ahead":
            return f"{self.first.label} ahead"
        if self.gap.lead == "second ahead":
            return f"{self.second.label} ahead"
        return self.gap.lead


@dataclass(frozen=True)
class SeedsComparison:
    """Several trainings, each over its seeds, on the same held-out images.

    Args:
        models: At least two.
        paired: Rows of the images that all seeds of all models held out.
        differences: Sentences on the settings in which they differ; empty if they match.
    """

    models: Sequence[SeededModel]
    paired: PairedRows
    differences: Sequence[str]

    @property
    def unfinished(self) -> list[str]:
        """Sentences on the models that lack seeds; the names are in backticks."""
        return [
            f"`{model.label}` has {len(model.seeds)} of {counted(count, 'seed')}."
            for model in self.models
            if len(model.seeds) < (count := model.findings.record.count)
        ]

    @property
    def task(self) -> TaskName:
        """The task of the models."""
        return self.models[0].findings.task

    @property
    def scoring(self) -> Scoring:
        """The scores of the task."""
        return SCORINGS[self.task]

    @property
    def unit(self) -> str:
        """Name of the resampled unit, in the singular."""
        return self.models[0].evaluated.run.record.grouping or "image"

    @property
    def confidence(self) -> float:
        """Confidence of each interval, so that all pairs together have 95 % (Bonferroni)."""
        pairs = len(self.models) * (len(self.models) - 1) // 2
        return 1 - ALPHA / pairs

    @cached_property
    def _units(self) -> FloatArray | None:
        seeds = self.paired.rows.values()
        if not all(seeds):
            return None
        return unit_scores(self.task, [cells[CLEAN_CELL] for cells in seeds])

    @cached_property
    def pairs(self) -> list[SeedsPair]:
        """All pairs of models.

        Raises:
            UsageError: They have no held-out image in common.
        """
        units = self._units
        if units is None:
            raise UsageError(
                "These folders have no held-out image in common.",
                "\n".join(["Comparisons are paired by image.", *self.paired.left_out]),
                "Train both with the same data, `--limit`, `--seed` and `--split-seed`.",
            )
        ends = np.cumsum([len(model.seeds) for model in self.models])
        parts = np.split(units, ends[:-1], axis=1)
        seed = self.models[0].findings.record.seed
        bootstrap = Bootstrap(seed, confidence=self.confidence)
        return [
            SeedsPair(first, second, seeds_gap(first_scores, second_scores, bootstrap))
            for (first, first_scores), (second, second_scores) in combinations(
                zip(self.models, parts, strict=True), 2
            )
        ]

    def table(self) -> pd.DataFrame:
        """A row per pair; unknown numbers are missing, scores are in [0, 1]."""
        rows = [self._row(pair) for pair in self.pairs]
        return typed_table(rows, _COMPARISON_COLUMNS, words=_WORDS, counts=_COUNTS)

    def _row(self, pair: SeedsPair) -> dict[str, object]:
        gap = pair.gap
        row: dict[str, object] = {
            "first": pair.first.label,
            "second": pair.second.label,
            "first_seeds": len(pair.first.seeds),
            "second_seeds": len(pair.second.seeds),
            "units": gap.units,
            "first_score": gap.first,
            "second_score": gap.second,
            "difference": gap.difference,
            "confidence": self.confidence,
            "outcome": gap.lead,
        }
        intervals = (gap.over_seeds, gap.over_units, gap.joint)
        for name, interval in zip(_INTERVALS, intervals, strict=True):
            if interval is not None:
                row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        return row

    def as_json(self) -> str:
        """The complete comparison as a JSON document."""
        document = {
            "task": self.task,
            "score": self.scoring.measure.column,
            "unit": self.unit,
            "models": [
                {"label": model.label, "run": model.source, "seeds": model.seeds}
                for model in self.models
            ],
            "differences": list(self.differences),
            "left_out": list(self.paired.left_out),
            "pairs": json_records(self.table()),
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    def shown(self, pair: SeedsPair) -> tuple[str, ...]:
        """Scores, their difference, the three intervals and the verdict of a pair, as text."""
        measure, gap = self.scoring.measure, pair.gap
        ends = (i or (None, None) for i in (gap.over_seeds, gap.over_units, gap.joint))
        return (
            *(measure.show(score, gap.units) for score in (gap.first, gap.second)),
            measure.signed(gap.difference, gap.units),
            *(measure.show_range(low, high, gap.units, " to ") for low, high in ends),
            pair.outcome,
        )


def names_seeds_only(names: Sequence[str | Path]) -> bool:
    """Whether every name is that of a folder of several seeds, or of one mode in it."""
    return bool(names) and all(_is_of_seeds(str(name)) for name in names)


def _is_of_seeds(name: str) -> bool:
    run, chosen = split_name(name)
    return run_kind(run) == "seeds" and not (chosen or "").startswith("seed-")


def read_seeds_comparison(
    names: Sequence[str | Path], *, force_common: bool = False
) -> SeedsComparison:
    """Reads the comparison of folders of seeds (`RUN`, or `RUN:MODE` for fine-tunings).

    Raises:
        UsageError: There are fewer than two models, one is not measured yet, or they differ in more
            than the network and `force_common` is False; the message names each difference.
    """
    models = _distinguished([model for name in names for model in _models(str(name))])
    if len(models) < 2:
        raise UsageError(
            f"A comparison needs two models, but only one was found: `{models[0].label}`.",
            "",
            "Pass a second folder of seeds.",
        )
    unlike = setting_differences([model.evaluated for model in models])
    refusals = [difference.sentence for difference in unlike if not difference.forcible]
    differences = [difference.sentence for difference in unlike]
    if refusals or (differences and not force_common):
        raise _not_alike(refusals or differences, forcible=not refusals)
    paired = read_rows([seed for model in models for seed in model.evaluations])
    if paired.left_out and not force_common:
        raise _not_alike(paired.left_out, forcible=True)
    return SeedsComparison(models, paired, differences)


def _not_alike(sentences: Sequence[str], *, forcible: bool) -> UsageError:
    return UsageError(
        "These seeds differ in more than their networks.",
        "\n".join(sentences),
        "Train them with the same data, `--limit`, `--seed` and `--split-seed`."
        + (" `--force-common` compares the images that all folders have." if forcible else ""),
    )


def _models(name: str) -> Iterator[SeededModel]:
    run, chosen = split_name(name)
    findings = read_seeds(run)
    series = {str(mode_series.mode or ""): mode_series for mode_series in findings.series}
    if chosen is not None:
        kind = "mode of these fine-tunings"
        mode = find(chosen, series, kind=kind, listing=f"robust report {run}")
        series = {mode: series[mode]}
    measured = {mode: mode_series for mode, mode_series in series.items() if mode_series.measured}
    if not measured:
        raise UsageError(
            f"`{run}` has no finished seed yet.",
            f"Its status is `{findings.record.status}`.",
            "Repeat the command that created it, which continues the training.",
        )
    for mode, mode_series in measured.items():
        label = f"{findings.record.model} {mode}".strip()
        yield SeededModel(label, f"{run}:{mode}" if mode else str(run), findings, mode_series)


def _distinguished(models: Sequence[SeededModel]) -> list[SeededModel]:
    """The models without duplicates; see `pairing.unique_labels`."""
    once = list({Path(model.source).resolve(): model for model in models}.values())
    labels = unique_labels([(model.label, model.source) for model in once])
    return [replace(model, label=label) for model, label in zip(once, labels, strict=True)]


def seeds_comparison_text(comparison: SeedsComparison) -> str:
    """The table and the differences of the folders for a terminal, in ASCII."""
    percent = f"{100 * comparison.confidence:.3g} %"
    header = (
        f"{comparison.scoring.measure.name}, mean over seeds",
        *("first", "second", "difference", f"{percent} over seeds"),
        *(f"over {comparison.unit}s", "over both", "verdict"),
    )
    rows: list[tuple[str, ...]] = [
        (f"{pair.first.label} and {pair.second.label}", *comparison.shown(pair))
        for pair in comparison.pairs
    ]
    blocks = [f"The folders differ. {sentence}" for sentence in comparison.differences]
    blocks += [f"Not compared: {sentence}" for sentence in comparison.paired.left_out]
    blocks += [f"Not finished: {sentence}" for sentence in comparison.unfinished]
    return in_ascii("\n\n".join([*blocks, grid(header, rows)]))


def write_seeds_comparison(comparison: SeedsComparison, out: Path, command: str) -> Path:
    """Writes report.md, report.html, results.csv and results.json; returns report.md's path.

    Args:
        comparison: The comparison to write.
        out: Output folder, created if it does not exist.
        command: The command that repeats the comparison.
    """
    text = from_template("seeds_comparison", comparison=comparison, command=command)
    return write_page(Page(comparison.table(), text), out)
