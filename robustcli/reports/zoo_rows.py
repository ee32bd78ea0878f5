"""Trainings in the form of the paper's Table I: published next to measured numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.reports.training_findings import HeldOutResults, Score, TrainingFindings, headline
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
        differences.append(f"{record.recipe.epochs} epochs instead of {EPOCHS}")
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
        """Otsu's threshold on each set of images that any training held out."""
        results: dict[str, tuple[TrainingFindings, HeldOutResults]] = {}
        for training in self.trainings:
            if training.baseline is not None:
                digest = training.baseline.findings.record.dataset.digest
                results.setdefault(digest, (training, training.baseline))
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
    def image_sets(self) -> int:
        """Number of different sets of training and held-out images."""
        records = [training.record for training in self.trainings]
        return len({(record.dataset.digest, record.parts_seed) for record in records})

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

    def label(self, training: TrainingFindings) -> str:
        """The network's name, with the part of the run's path that makes it unique."""
        name, run = training.record.network, training.run.resolve()
        runs = {t.run.resolve() for t in self.trainings if t.record.network == name}
        if len(runs) == 1:
            return name
        depth = 1
        while len({path.parts[-depth:] for path in runs}) < len(runs):
            depth += 1
        return f"{name} ({'/'.join(run.parts[-depth:])})"
