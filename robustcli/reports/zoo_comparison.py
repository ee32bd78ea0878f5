"""Compares several trainings on the same held-out images: scores and costs of the networks.

Tests and intervals are those of `robust compare`. Trainings are tested against each other if they
were evaluated on the same images; others are listed with the settings that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from robustcli.data.splits import read_splits
from robustcli.metrics.verdicts import Verdict
from robustcli.reports.comparison import Comparison, ComparisonLine
from robustcli.reports.numbers import counted, duration, p_value, thousands
from robustcli.reports.pairing import (
    ComparedModel,
    EvaluatedRun,
    PairedRows,
    read_rows,
    setting_differences,
)
from robustcli.reports.training_findings import Spread, TrainingFindings
from robustcli.reports.zoo_rows import Zoo


@dataclass(frozen=True)
class PairedTrainings:
    """Trainings that were evaluated on the same held-out images in the same way.

    Args:
        models: At least one.
        unlike: Sentences on their differences to the first set of the page; empty for that set.
    """

    models: Sequence[ComparedModel]
    unlike: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """The names of the trainings."""
        return [model.label for model in self.models]

    @cached_property
    def comparison(self) -> Comparison | None:
        """The tests between them; None for a single training, or without common images."""
        cells = {} if self._paired is None else next(iter(self._paired.rows.values()))
        if self._paired is None or not any(len(rows) for rows in cells.values()):
            return None
        return Comparison(self.models, self._paired, [])

    @property
    def left_out(self) -> Sequence[str]:
        """Sentences on why held-out images are left out of the tests."""
        return [] if self._paired is None else self._paired.left_out

    @cached_property
    def _paired(self) -> PairedRows | None:
        return None if len(self.models) < 2 else read_rows(self.models)


@dataclass(frozen=True)
class ZooComparison:
    """The tests between the trainings of a zoo.

    Args:
        zoo: The trainings.
    """

    zoo: Zoo

    @cached_property
    def sets(self) -> list[PairedTrainings]:
        """The evaluated trainings, grouped by held-out images; the largest group first."""
        sets: list[list[ComparedModel]] = []
        for training in self.zoo.trainings:
            if training.test is None:
                continue
            label = self.zoo.label(training)
            run = EvaluatedRun(label, training.run / "test", trained=True)
            model = ComparedModel(label, run, training.test.findings.models[0])
            matches = (models for models in sets if not setting_differences([models[0], model]))
            members = next(matches, None)
            if members is None:
                sets.append([model])
            else:
                members.append(model)
        sets.sort(key=lambda models: -len(models))
        return [PairedTrainings(models, _unlike(sets[0], models)) for models in sets]

    @property
    def has_backticks(self) -> bool:
        """Whether the name of a training contains a backtick, the mark of names in sentences."""
        return any("`" in self.zoo.label(training) for training in self.zoo.trainings)

    @property
    def unmeasured(self) -> list[str]:
        """The trainings without results on held-out images."""
        return [self.zoo.label(t) for t in self.zoo.trainings if t.test is None]

    @property
    def comparisons(self) -> list[Comparison]:
        """Comparisons of the sets with at least two trainings."""
        return [s.comparison for s in self.sets if s.comparison is not None]

    @cached_property
    def training_sets(self) -> int:
        """The number of different sets of training images, by their recorded splits."""
        return len({_trained_on(training) for training in self.zoo.trainings})

    def verdicts(self) -> pd.DataFrame | None:
        """A row per tested pair, as written by `robust compare`; None without any pair."""
        tables = [comparison.table() for comparison in self.comparisons]
        return pd.concat(tables, ignore_index=True) if tables else None

    @cached_property
    def sentences(self) -> list[str]:
        """Conclusions on the trainings; names are in backticks."""
        spoken = [sentence for c in self.comparisons for sentence in _of_scores(c, self.zoo)]
        return [*spoken, *_of_time(self.zoo)]


def _unlike(first: Sequence[ComparedModel], models: Sequence[ComparedModel]) -> list[str]:
    return [d.sentence for d in setting_differences([first[0], models[0]])]


def _trained_on(training: TrainingFindings) -> frozenset[str] | tuple[str, int]:
    """The ids of the training images; if not recorded, the values that determine them."""
    path = training.run / "splits.csv"
    if path.is_file():
        parts = read_splits(path)
        return frozenset(image_id for image_id, part in parts.items() if part == "train")
    return training.record.dataset.digest, training.record.seed


# Sentences on the scores.


def _of_scores(comparison: Comparison, zoo: Zoo) -> Iterator[str]:
    """Sentences on the best network, the networks it is ahead of, and the smallest equal one."""
    trainings = {zoo.label(training): training for training in zoo.trainings}
    shown = [label for label in comparison.labels if trainings[label].test is not None]
    column = comparison.scoring.measure.column
    best = max(shown, key=lambda label: _score(trainings[label], column))
    lines = [line for line in comparison.clean_lines if best in _pair(line)]
    beaten = [line for line in lines if line.word == f"{best} ahead"]
    yield _highest(comparison, trainings[best], best, len(beaten), len(lines))
    open_lines = [line for line in lines if line.verdict.outcome == "no difference shown"]
    rivals = {_opponent(line, best): line for line in open_lines}
    smaller = [
        label
        for label in rivals
        if trainings[label].record.parameters < trainings[best].record.parameters
    ]
    if smaller:
        label = min(smaller, key=lambda name: trainings[name].record.parameters)
        yield _may_be_as_good(comparison, rivals[label], trainings[label], trainings[best], label)


def _score(training: TrainingFindings, column: str) -> float:
    assert training.test is not None
    return float(training.test.numbers[column])


def _pair(line: ComparisonLine) -> tuple[str, str]:
    return line.verdict.first, line.verdict.second


def _opponent(line: ComparisonLine, label: str) -> str:
    first, second = _pair(line)
    return second if first == label else first


def _highest(
    comparison: Comparison, training: TrainingFindings, label: str, beaten: int, other_count: int
) -> str:
    assert training.test is not None
    measure, unit = comparison.scoring.measure, comparison.grouping
    images = counted(comparison.n, "held-out image")
    groups = "" if unit == "image" else f" of {counted(comparison.groups, unit)}"
    verdict = (
        "No difference from any other network is shown"
        if not beaten
        else f"It is significantly ahead of {beaten} of the {other_count} others"
        if other_count > 1
        else "It is significantly ahead of the other"
    )
    test = "McNemar's exact test" if comparison.task == "cls" else f"sign flips of {unit}s"
    return (
        f"`{label}` has the highest {measure.name} of "
        f"{counted(len(comparison.models), 'training')} on the same {images}{groups}: "
        f"{comparison.scoring.shown(training.test.numbers)}. {verdict} ({test}, adjusted by "
        "Holm's method)."
    )


def _may_be_as_good(
    comparison: Comparison, line: ComparisonLine, small: TrainingFindings,
    best: TrainingFindings, label: str,
) -> str:  # fmt: skip
    verdict, scoring = line.verdict, comparison.scoring
    measure = scoring.measure
    sign = 1 if verdict.first == label else -1
    ends = ""
    if verdict.low is not None and verdict.high is not None:
        low, high = sorted((sign * verdict.low, sign * verdict.high))
        ends = f" ({measure.show_range(low, high, verdict.n, ' to ')})"
    adjusted = "" if verdict.p_adjusted is None else f", adjusted p {_equals(verdict)}"
    return (
        f"The smallest network without a significant difference from it is `{label}`, with "
        f"{thousands(small.record.parameters)} parameters compared with "
        f"{thousands(best.record.parameters)}: {measure.name} differs by "
        f"{measure.signed(sign * verdict.difference, verdict.n)}{scoring.unit}{ends}{adjusted}. "
        "This does not show that they are equal."
    )


def _equals(verdict: Verdict) -> str:
    shown = p_value(verdict.p_adjusted)
    return shown if shown.startswith("<") else f"= {shown}"


# Sentences on the time.


_ALIKE = 1.1  # ratio of times; smaller ratios are within the variation between epochs on a machine


def _of_time(zoo: Zoo) -> Iterator[str]:
    """Sentences on the shortest and longest epochs, or on why times cannot be compared."""
    spreads = {zoo.label(t): t.epoch_seconds for t in zoo.trainings}
    known = {label: spread for label, spread in spreads.items() if spread is not None}
    if len(known) < 2:
        return
    conditions = {(t.machine, t.record.recipe.precision) for t in zoo.trainings if t.epochs}
    if len(conditions) > 1:
        yield (
            "Times were measured with different devices, threads or precisions (see the recipes), "
            "so they do not compare the networks."
        )
        return
    fast, slow = (end(known, key=lambda label: known[label].median) for end in (min, max))
    times = known[slow].median / max(known[fast].median, 1e-9)
    if times < _ALIKE:
        yield (
            f"An epoch with its validation takes about the same time for all networks: `{slow}` "
            f"{_spread(known[slow])}."
        )
        return
    amounts = {t.images_per_epoch for t in zoo.trainings if t.epochs}
    caution = "" if len(amounts) == 1 else " Their epochs have different numbers of images."
    yield (
        f"An epoch with its validation takes `{slow}` {_spread(known[slow])}, {times:.1f} times "
        f"as long as `{fast}` with {_spread(known[fast])}; medians, with the range from the "
        f"shortest to the longest epoch.{caution}"
    )


def _spread(spread: Spread) -> str:
    if spread.epochs == 1:
        return f"{duration(spread.median)} (one epoch)"
    return f"{duration(spread.median)} ({duration(spread.low)} to {duration(spread.high)})"
