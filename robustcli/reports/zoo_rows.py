"""Several trainings in the form of the paper's Table I: published numbers beside own ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from robustcli.reports.training_findings import HeldOutResults, Training
from robustcli.reports.training_results import (
    Published,
    Score,
    headline,
    other_experiment,
    published,
    table_one,
)


@dataclass(frozen=True)
class ZooRow:
    """One line: a network, what was printed of it, and one training of it.

    Args:
        label: The network's name, with the run's where several trainings are of one network.
        parameters: Of the network as it was trained, else as published.
        printed: What the paper printed; None for a network that is not in it.
        training: None for a network that was not trained here.
        score: What the training's own protocol reports.
    """

    label: str
    parameters: int
    printed: Published | None
    training: Training | None = None
    score: Score | None = None

    @property
    def difference(self) -> float | None:
        """Own dice minus the printed one."""
        if self.printed is None or self.score is None or self.score.dice is None:
            return None
        return self.score.dice - self.printed.dice

    @property
    def is_outside(self) -> bool:
        """Whether the printed dice is outside the interval of the own one."""
        if self.printed is None or self.score is None:
            return False
        low, high = self.score.dice_low, self.score.dice_high
        return low is not None and high is not None and not low <= self.printed.dice <= high


def zoo_rows(trainings: Sequence[Training]) -> list[ZooRow]:
    """A line per training, and one per network of the paper that none is of.

    In the order of the printed dice; networks that the paper has not come last.
    """
    rows: list[ZooRow] = []
    for printed in table_one():
        mine = [t for t in trainings if t.record.model == printed.model]
        rows += [_row(t, printed, trainings) for t in mine]
        rows += [] if mine else [ZooRow(printed.model, printed.parameters, printed)]
    names = {printed.model for printed in table_one()}
    return rows + [_row(t, None, trainings) for t in trainings if t.record.model not in names]


@dataclass(frozen=True)
class Baseline:
    """Otsu's threshold on a set of held-out images: which (empty if there is one), and its numbers.

    `numbers` is a line with `metrics.SEG_COLUMNS`.
    """

    images: str
    numbers: pd.Series


def baselines(trainings: Sequence[Training]) -> list[Baseline]:
    """Otsu's threshold on each set of images that any of `trainings` held out."""
    found: dict[str, tuple[Training, HeldOutResults]] = {}
    for training in trainings:
        if training.baseline is not None:
            digest = training.baseline.findings.record.dataset.digest
            found.setdefault(digest, (training, training.baseline))
    several = len(found) > 1
    return [
        Baseline(f"images of {label(training, trainings)}" if several else "", held.numbers)
        for training, held in found.values()
    ]


def label(training: Training, trainings: Sequence[Training]) -> str:
    """The network's name, with so much of the run's path as tells it from others of `trainings`."""
    name, run = training.record.model, training.run.resolve()
    runs = {other.run.resolve() for other in trainings if other.record.model == name}
    if len(runs) == 1:
        return name
    depth = 1
    while len({path.parts[-depth:] for path in runs}) < len(runs):
        depth += 1
    return f"{name} ({'/'.join(run.parts[-depth:])})"


def _row(training: Training, printed: Published | None, trainings: Sequence[Training]) -> ZooRow:
    record = training.record
    name, score = label(training, trainings), headline(training)
    return ZooRow(name, record.parameters, printed, training, score)


@dataclass(frozen=True)
class Zoo:
    """Several trainings of segmenters, or one, beside what was published.

    Args:
        trainings: At least one.
    """

    trainings: Sequence[Training]

    @property
    def rows(self) -> list[ZooRow]:
        """The lines of the table."""
        return zoo_rows(self.trainings)

    @property
    def baselines(self) -> list[Baseline]:
        """Otsu's threshold on each set of held-out images."""
        return baselines(self.trainings)

    @property
    def has_energy(self) -> bool:
        """Whether the energy of any training was measured."""
        return any(training.record.energy_joules is not None for training in self.trainings)

    @property
    def image_sets(self) -> int:
        """How many different sets of training and held-out images there are."""
        records = [training.record for training in self.trainings]
        return len({(record.dataset.digest, record.seed) for record in records})

    @property
    def experiments(self) -> dict[str, list[str]]:
        """In what trainings differ from the published ones (empty: in nothing), and which do so."""
        alike: dict[str, list[str]] = {}
        for training in self.trainings:
            if published(training.record.model) is not None:
                reasons = "; ".join(other_experiment(training.record))
                alike.setdefault(reasons, []).append(self.label(training))
        return alike

    @property
    def remarks(self) -> dict[str, str]:
        """What is to be known of the published numbers of some networks, by network."""
        printed = [row.printed for row in self.rows if row.printed]
        return {line.model: line.remark for line in printed if line.remark}

    @property
    def versions(self) -> dict[str, list[str]]:
        """Each set of versions, with the trainings that it is of."""
        sets: dict[str, list[str]] = {}
        for training in self.trainings:
            versions = sorted(training.record.versions.items())
            told = ", ".join(f"{name} {version}" for name, version in versions)
            sets.setdefault(told, []).append(self.label(training))
        return sets

    def label(self, training: Training) -> str:
        """The network's name, with so much of the run's path as tells it from the others."""
        return label(training, self.trainings)
