"""Several trainings on the same held-out images: which network is better, and what it costs.

Tests and intervals are those of `robust compare`. Trainings are tested against each other where
they were measured on the same images; others are named with what keeps them apart.
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
    """Trainings that were measured on the same held-out images in the same way.

    Args:
        models: At least one.
        unlike: In what they differ from the first set of the page, in sentences; empty for that.
    """

    models: Sequence[ComparedModel]
    unlike: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """The names of the trainings."""
        return [model.label for model in self.models]

    @cached_property
    def comparison(self) -> Comparison | None:
        """Its tests; None for a single training, or where no images are left to compare on."""
        cells = {} if self._paired is None else next(iter(self._paired.rows.values()))
        if self._paired is None or not any(len(rows) for rows in cells.values()):
            return None
        return Comparison(self.models, self._paired, [])

    @property
    def left_out(self) -> Sequence[str]:
        """What keeps held-out images out of the tests, in sentences."""
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
        """The measured trainings, those of the same held-out images together; the largest first."""
        sets: list[list[ComparedModel]] = []
        for training in self.zoo.trainings:
            if training.test is None:
                continue
            label = self.zoo.label(training)
            run = EvaluatedRun(label, training.run / "test", trained=True)
            model = ComparedModel(label, run, training.test.findings.models[0])
            alike = (models for models in sets if not setting_differences([models[0], model]))
            members = next(alike, None)
            if members is None:
                sets.append([model])
            else:
                members.append(model)
        sets.sort(key=lambda models: -len(models))
        return [PairedTrainings(models, _unlike(sets[0], models)) for models in sets]

    @property
    def has_backticks(self) -> bool:
        """Whether the name of a training holds the mark that stands around names in sentences."""
        return any("`" in self.zoo.label(training) for training in self.zoo.trainings)

    @property
    def unmeasured(self) -> list[str]:
        """The trainings without results on held-out images."""
        return [self.zoo.label(t) for t in self.zoo.trainings if t.test is None]

    @property
    def comparisons(self) -> list[Comparison]:
        """Of the sets with at least two trainings."""
        return [s.comparison for s in self.sets if s.comparison is not None]

    @cached_property
    def training_sets(self) -> int:
        """The number of different sets of training images, by their recorded parts."""
        return len({_trained_on(training) for training in self.zoo.trainings})

    def verdicts(self) -> pd.DataFrame | None:
        """A row per tested pair, as `robust compare` writes them; None without any pair."""
        tables = [comparison.table() for comparison in self.comparisons]
        return pd.concat(tables, ignore_index=True) if tables else None

    @cached_property
    def sentences(self) -> list[str]:
        """Conclusions about the trainings; names stand between backticks."""
        spoken = [sentence for c in self.comparisons for sentence in _of_scores(c, self.zoo)]
        return [*spoken, *_of_time(self.zoo)]


def _unlike(first: Sequence[ComparedModel], models: Sequence[ComparedModel]) -> list[str]:
    return [d.sentence for d in setting_differences([first[0], models[0]])]


def _trained_on(training: TrainingFindings) -> frozenset[str] | tuple[str, int]:
    """The ids of its training images; where they are not recorded, what they were drawn by."""
    path = training.run / "splits.csv"
    if path.is_file():
        parts = read_splits(path)
        return frozenset(image_id for image_id, part in parts.items() if part == "train")
    return training.record.dataset.digest, training.record.seed


# What can be said of the scores.


def _of_scores(comparison: Comparison, zoo: Zoo) -> Iterator[str]:
    """Sentences on the best network, what it is shown to beat, and the smallest equal one."""
    trainings = {zoo.label(training): training for training in zoo.trainings}
    shown = [label for label in comparison.labels if trainings[label].test is not None]
    column = comparison.scoring.measure.column
    best = max(shown, key=lambda label: _score(trainings[label], column))
    lines = [line for line in comparison.clean_lines if best in _pair(line)]
    beaten = [line for line in lines if line.word == f"{best} ahead"]
    yield _highest(comparison, trainings[best], best, len(beaten), len(lines))
    open_lines = [line for line in lines if line.verdict.outcome == "no difference shown"]
    rivals = {_other(line, best): line for line in open_lines}
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


def _other(line: ComparisonLine, label: str) -> str:
    first, second = _pair(line)
    return second if first == label else first


def _highest(
    comparison: Comparison, training: TrainingFindings, label: str, beaten: int, others: int
) -> str:
    assert training.test is not None
    measure, unit = comparison.scoring.measure, comparison.grouping
    images = counted(comparison.n, "held-out image")
    groups = "" if unit == "image" else f" of {counted(comparison.groups, unit)}"
    verdict = (
        "No difference to any other is shown"
        if not beaten
        else f"It is shown to be ahead of {beaten} of the {others} others"
        if others > 1
        else "It is shown to be ahead of the other"
    )
    test = "McNemar's exact test" if comparison.task == "cls" else f"sign flips of {unit}s"
    return (
        f"`{label}` has the highest {measure.name} of "
        f"{counted(len(comparison.models), 'training')} on the same {images}{groups}: "
        f"{comparison.scoring.shown(training.test.numbers)}. {verdict} ({test}, adjusted after "
        "Holm)."
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
        f"The smallest network for which no difference to it is shown is `{label}`, with "
        f"{thousands(small.record.parameters)} parameters against "
        f"{thousands(best.record.parameters)}: {measure.name} differs by "
        f"{measure.signed(sign * verdict.difference, verdict.n)}{scoring.unit}{ends}{adjusted}. "
        "That does not show them to be equal."
    )


def _equals(verdict: Verdict) -> str:
    shown = p_value(verdict.p_adjusted)
    return shown if shown.startswith("<") else f"= {shown}"


# What can be said of the time.


_ALIKE = 1.1  # times as long: less is what a machine varies by from epoch to epoch


def _of_time(zoo: Zoo) -> Iterator[str]:
    """Sentences on the shortest and longest epochs, or why times cannot be compared."""
    spreads = {zoo.label(t): t.epoch_seconds for t in zoo.trainings}
    known = {label: spread for label, spread in spreads.items() if spread is not None}
    if len(known) < 2:
        return
    alike = {(t.machine, t.record.recipe.precision) for t in zoo.trainings if t.epochs}
    if len(alike) > 1:
        yield (
            "Times are of different devices, threads or precisions (see the recipes), so they do "
            "not compare the networks."
        )
        return
    fast, slow = (end(known, key=lambda label: known[label].median) for end in (min, max))
    times = known[slow].median / max(known[fast].median, 1e-9)
    if times < _ALIKE:
        yield (
            f"An epoch with its validation takes all about the same time: `{slow}` "
            f"{_spread(known[slow])}."
        )
        return
    amounts = {t.images_per_epoch for t in zoo.trainings if t.epochs}
    caution = "" if len(amounts) == 1 else " Their epochs hold different numbers of images."
    yield (
        f"An epoch with its validation takes `{slow}` {_spread(known[slow])}, {times:.1f} times "
        f"as long as `{fast}` with {_spread(known[fast])}; medians, and from the shortest to the "
        f"longest epoch.{caution}"
    )


def _spread(spread: Spread) -> str:
    if spread.epochs == 1:
        return f"{duration(spread.median)} (one epoch)"
    return f"{duration(spread.median)} ({duration(spread.low)} to {duration(spread.high)})"
