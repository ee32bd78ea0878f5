"""Several trainings: in the form of the paper's Table I, and compared with each other.

Tests and intervals are those of `robust compare`. Trainings are tested against each other if they
were evaluated on the same images; others are listed with the settings that differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.core.names import counted
from robustcli.data.splits import read_splits
from robustcli.reports.comparison import Comparison, ComparisonLine
from robustcli.reports.controls import ControlPair, control_pairs
from robustcli.reports.numbers import duration, p_equals, thousands
from robustcli.reports.pages import run_kind
from robustcli.reports.pairing import (
    ComparedModel,
    EvaluatedRun,
    PairedRows,
    read_rows,
    setting_differences,
    unique_labels,
)
from robustcli.reports.training_findings import (
    HeldOutResults,
    Score,
    Spread,
    TrainingFindings,
    headline,
)
from robustcli.tasks.record import DatasetRecord
from robustcli.training.record import TrainRecord

# The paper's experiment: the LGG set, protocol `paper`.
IMAGES = 3929
EPOCHS = 100


@dataclass(frozen=True)
class PrintedResult:
    """One row of the table.

    Args:
        model: Name of the model in this project.
        parameters: Number of parameters, counted from the code behind the paper's numbers.
        dice: Published dice in [0, 1], with its published digits.
        iou: IoU in [0, 1] from the notebooks behind the table.
        remark: Remark on these numbers; empty without one.
    """

    model: str
    parameters: int
    dice: float
    iou: float | None
    remark: str


def table_one() -> list[PrintedResult]:
    """All rows of the table, the highest dice first."""
    lines = [
        PrintedResult(
            entry.name, entry.parameters, entry.published, entry.published_iou, entry.remark
        )
        for entry in CATALOGUE.values()
        if entry.task == "seg" and entry.published is not None
    ]
    return sorted(lines, key=lambda line: -line.dice)


def published(model: str) -> PrintedResult | None:
    """The row of `model`; None if the paper does not have it."""
    return next((line for line in table_one() if line.model == model), None)


def other_experiment(record: TrainRecord) -> list[str]:
    """The differences to the paper's training that change the scores, as text."""
    differences = []
    if record.protocol != "paper":
        differences.append(f"protocol {record.protocol} instead of paper")
    if record.dataset.images != IMAGES:
        differences.append(
            f"{record.dataset.images:,} images of {record.dataset.name} instead of "
            f"the {IMAGES:,} slices of LGG"
        )
    if record.recipe.epochs != EPOCHS or record.recipe.images_per_epoch is not None:
        differences.append(f"{counted(record.recipe.epochs, 'epoch')} instead of {EPOCHS}")
    return differences


def printed_of(record: TrainRecord) -> PrintedResult | None:
    """The published row of the network of a training; None for masks with several classes.

    All published numbers are of one class.
    """
    return None if record.dataset.mask_classes else published(record.network)


@dataclass(frozen=True)
class ZooRow:
    """One row: a network, its published numbers, and one training of it.

    Args:
        label: The network's name; with the run's if several trainings have the same network.
        parameters: Number of parameters of the trained network, else the published number.
        printed: The paper's numbers; None for a network that is not in the paper.
        training: None for a network that was not trained here.
        score: The score by the training's protocol.
    """

    label: str
    parameters: int
    printed: PrintedResult | None
    training: TrainingFindings | None = None
    score: Score | None = None

    @property
    def difference(self) -> float | None:
        """The dice measured here minus the published one."""
        if self.printed is None or self.score is None or self.score.dice is None:
            return None
        return self.score.dice - self.printed.dice

    @property
    def is_outside(self) -> bool:
        """Whether the published dice is outside the interval of the one measured here."""
        if self.printed is None or self.score is None:
            return False
        low, high = self.score.dice_low, self.score.dice_high
        return low is not None and high is not None and not low <= self.printed.dice <= high


@dataclass(frozen=True)
class Baseline:
    """Scores of Otsu's threshold on a set of held-out images.

    `images` names the set; it is empty if there is only one. `numbers` is a row with
    `metrics.columns.MASK_TABLE_COLUMNS`.
    """

    images: str
    numbers: pd.Series


@dataclass(frozen=True)
class Zoo:
    """One or several trainings, next to published results of segmenters.

    Args:
        trainings: At least one.
    """

    trainings: Sequence[TrainingFindings]

    @property
    def rows(self) -> list[ZooRow]:
        """A row per training, and one per network of the paper without a training.

        Rows are ordered by published dice; networks that are not in the paper are last.
        """
        rows: list[ZooRow] = []
        lines = table_one()
        for line in lines:
            runs = [self._row(t, line) for t in self.trainings if t.record.network == line.model]
            rows += runs or [ZooRow(line.model, line.parameters, line)]
        known = {line.model for line in lines}
        return rows + [self._row(t, None) for t in self.trainings if t.record.network not in known]

    def _row(self, training: TrainingFindings, line: PrintedResult | None) -> ZooRow:
        record, score = training.record, headline(training)
        printed = None if record.dataset.mask_classes else line
        return ZooRow(self.label(training), record.parameters, printed, training, score)

    @property
    def baselines(self) -> list[Baseline]:
        """Otsu's threshold on each set of images and masks that any training held out."""
        results: dict[tuple[str, str | None], tuple[TrainingFindings, HeldOutResults]] = {}
        for training in self.trainings:
            if training.baseline is not None:
                images = _images(training.baseline.findings.record.dataset)
                results.setdefault(images, (training, training.baseline))
        several = len(results) > 1
        return [
            Baseline(f"images of {self.label(training)}" if several else "", baseline.numbers)
            for training, baseline in results.values()
        ]

    @property
    def has_energy(self) -> bool:
        """Whether the energy of any training was measured."""
        return any(training.record.energy_joules is not None for training in self.trainings)

    @property
    def has_seeds(self) -> bool:
        """Whether two of the trainings are seeds of one training (`--seeds`)."""
        folders = Counter(training.run.resolve().parent for training in self.trainings)
        return any(n > 1 and run_kind(folder) == "seeds" for folder, n in folders.items())

    @property
    def image_sets(self) -> int:
        """Number of different sets of training and held-out images, with the meaning of masks."""
        records = [training.record for training in self.trainings]
        return len({(*_images(record.dataset), record.parts_seed) for record in records})

    @property
    def experiments(self) -> dict[str, list[str]]:
        """The trainings by their differences to the published ones.

        The key is a text; it is empty for trainings without differences.
        """
        labels_by_reasons: dict[str, list[str]] = {}
        for training in self.trainings:
            if printed_of(training.record) is not None:
                reasons = "; ".join(other_experiment(training.record))
                labels_by_reasons.setdefault(reasons, []).append(self.label(training))
        return labels_by_reasons

    @property
    def remarks(self) -> dict[str, str]:
        """Remarks on the published numbers of some networks, by network."""
        printed = [row.printed for row in self.rows if row.printed]
        return {line.model: line.remark for line in printed if line.remark}

    @property
    def versions(self) -> dict[str, list[str]]:
        """The trainings by their package versions."""
        sets: dict[str, list[str]] = {}
        for training in self.trainings:
            names = sorted(training.record.versions.items())
            versions = ", ".join(f"{name} {version}" for name, version in names)
            sets.setdefault(versions, []).append(self.label(training))
        return sets

    @cached_property
    def _labels(self) -> dict[Path, str]:
        labels = unique_labels([(t.record.network, str(t.run)) for t in self.trainings])
        return {t.run: label for t, label in zip(self.trainings, labels, strict=True)}

    def label(self, training: TrainingFindings) -> str:
        """The network's name, with the part of the run's path that makes it unique."""
        return self._labels[training.run]

    @cached_property
    def controls(self) -> list[ControlPair]:
        """The trainings paired with their controls among them."""
        return control_pairs(self.trainings)

    @cached_property
    def comparison(self) -> ZooComparison:
        """The tests between the trainings."""
        return ZooComparison(self)


# The trainings compared with each other.


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
            if training.test is None or training.evaluated_so_far:
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
        return [
            PairedTrainings(
                models, [d.sentence for d in setting_differences([sets[0][0], models[0]])]
            )
            for models in sets
        ]

    @property
    def has_backticks(self) -> bool:
        """Whether the name of a training contains a backtick, the mark of names in sentences."""
        return any("`" in self.zoo.label(training) for training in self.zoo.trainings)

    @property
    def unmeasured(self) -> list[str]:
        """The trainings without results on held-out images."""
        return [self.zoo.label(t) for t in self.zoo.trainings if t.test is None]

    @property
    def unfinished(self) -> list[str]:
        """The trainings with results on only some of the held-out images."""
        return [self.zoo.label(t) for t in self.zoo.trainings if t.evaluated_so_far]

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


def _images(dataset: DatasetRecord) -> tuple[str, str | None]:
    """The digest of the images, and how their masks are read."""
    return dataset.digest, None if dataset.masks is None else dataset.masks.words


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
    highest = _score(trainings[best], column)
    equal = sum(_score(trainings[label], column) == highest for label in shown) - 1
    subject = f"`{best}` has" if not equal else f"`{best}` and {counted(equal, 'other')} have"
    name = "It" if not equal else f"`{best}`"
    ahead = (
        "No difference from any other network is shown"
        if not beaten
        else f"{name} is significantly ahead of {len(beaten)} of the {len(lines)} others"
        if len(lines) > 1
        else f"{name} is significantly ahead of the other"
    )
    yield _highest(comparison, trainings[best], subject, ahead)
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


def _highest(comparison: Comparison, training: TrainingFindings, subject: str, ahead: str) -> str:
    assert training.test is not None
    measure, unit = comparison.scoring.measure, comparison.grouping
    images = counted(comparison.n, "held-out image")
    groups = "" if unit == "image" else f" of {counted(comparison.groups, unit)}"
    test = "McNemar's exact test" if comparison.task == "cls" else f"sign flips of {unit}s"
    return (
        f"{subject} the highest {measure.name} of "
        f"{counted(len(comparison.models), 'training')} on the same {images}{groups}: "
        f"{comparison.scoring.shown(training.test.numbers)}. {ahead} ({test}, adjusted by "
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
    adjusted = "" if verdict.p_adjusted is None else f", adjusted p {p_equals(verdict.p_adjusted)}"
    return (
        f"The smallest network without a significant difference from it is `{label}`, with "
        f"{thousands(small.record.parameters)} parameters compared with "
        f"{thousands(best.record.parameters)}: {measure.name} differs by "
        f"{measure.signed(sign * verdict.difference, verdict.n)}{scoring.unit}{ends}{adjusted}. "
        "This does not show that they are equal."
    )


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
