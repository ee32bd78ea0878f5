"""What several seeds of one training, or of one fine-tuning, left, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from robustcli.core.names import TaskName
from robustcli.core.rundir import has_record
from robustcli.finetuning.record import MODES, Mode
from robustcli.metrics.intervals import Bootstrap, FloatArray, Interval
from robustcli.metrics.seed_scores import (
    Reproduction,
    SeedDifference,
    SeedScores,
    reproduction,
    seed_difference,
    seed_scores,
    unit_scores,
)
from robustcli.reports.published_scores import PublishedScore, published_score
from robustcli.reports.scoring import SCORINGS, Scoring
from robustcli.reports.training_findings import (
    TrainingFindings,
    headline,
    paper_scores,
    pooled,
    read_training,
)
from robustcli.training.seeds_record import SeedsRecord, read_seeds_record

REFERENCE: Mode = "full"
"""The mode that the others of a fine-tuning are compared with."""


@dataclass(frozen=True)
class OneScore:
    """The score of one seed with its interval over the held-out images, in [0, 1]."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SeedTraining:
    """The training of one seed, or of one mode with one seed."""

    seed: int
    training: TrainingFindings

    @cached_property
    def score(self) -> OneScore | None:
        """What its own protocol reports; None until the training is complete and measured."""
        training = self.training
        if training.test is None or training.is_partial:
            return None
        if training.record.task == "seg":
            score = headline(training)
            if score is None or score.dice is None:
                return None
            return OneScore(score.dice, score.dice_low, score.dice_high)
        numbers = training.test.numbers
        return OneScore(*(float(numbers[name]) for name in ("top1", "top1_low", "top1_high")))

    @property
    def second(self) -> float | None:
        """IoU, or top-5, which stands beside the score; None where it is not known."""
        training = self.training
        if training.test is None or training.is_partial:
            return None
        if training.record.task == "seg":
            score = headline(training)
            return None if score is None else score.iou
        top5 = training.test.numbers["top5"]
        return None if top5 is None or np.isnan(top5) else float(top5)


@dataclass(frozen=True)
class SeedSeries:
    """One training, or one mode of a fine-tuning, with every seed that has begun.

    Args:
        mode: The mode; None for a training.
        trainings: In the order of the seeds.
        bootstrap: How held-out images are resampled.
    """

    mode: Mode | None
    trainings: Sequence[SeedTraining]
    bootstrap: Bootstrap

    @property
    def name(self) -> str:
        """What it is called in tables and figures."""
        return self.mode or self.trainings[0].training.record.model

    @property
    def measured(self) -> list[SeedTraining]:
        """Those with a score."""
        return [each for each in self.trainings if each.score is not None]

    @property
    def by_seed(self) -> dict[int, float]:
        """The score of each seed that has one."""
        return {e.seed: e.score.value for e in self.trainings if e.score is not None}

    @cached_property
    def scores(self) -> SeedScores | None:
        """The numbers over seeds; None until a seed is measured."""
        if not self.by_seed:
            return None
        units = _units([each.training for each in self.measured])
        return seed_scores(list(self.by_seed.values()), units, self.bootstrap)

    @cached_property
    def second(self) -> SeedScores | None:
        """The same of what stands beside the score, without an interval over images."""
        values = [each.second for each in self.measured]
        known = [value for value in values if value is not None]
        return seed_scores(known, None, self.bootstrap) if known else None


def _units(trainings: Sequence[TrainingFindings]) -> FloatArray | None:
    """The score of each unit with each seed: of images, groups, or the paper's batches."""
    if trainings[0].record.protocol == "paper":
        return _paper_batches(trainings)
    rows = [training.test.rows for training in trainings if training.test is not None]
    return unit_scores(trainings[0].record.task, rows)


def _paper_batches(trainings: Sequence[TrainingFindings]) -> FloatArray | None:
    """The paper's dice of each batch with each seed, NaN where it is not defined."""
    columns = []
    for training in trainings:
        rows, size = training.paper, training.record.recipe.paper_batch
        if rows is None or size is None:
            return None
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        columns.append(np.array([paper_scores(part, size).dice for part in parts]))
    lengths = {len(column) for column in columns}
    return np.column_stack(columns) if len(lengths) == 1 else None


@dataclass(frozen=True)
class PublishedVerdict:
    """A published score beside the one measured here over seeds.

    Args:
        score: What was published.
        outcome: See `seed_scores.reproduction`; None where the experiments cannot be compared.
        single_holds: Whether 95 % of single trainings reach around it; None where not known.
    """

    score: PublishedScore
    outcome: Reproduction | None
    single_holds: bool | None


@dataclass(frozen=True)
class SeedsFindings:
    """Several seeds as a report sees them.

    Args:
        run: The folder of all.
        record: Its `run.json`.
        series: One of a training; of a fine-tuning one for each mode that has begun.
    """

    run: Path
    record: SeedsRecord
    series: Sequence[SeedSeries]

    @property
    def task(self) -> TaskName:
        """What the networks do."""
        return self.record.task

    @property
    def scoring(self) -> Scoring:
        """What they are scored by."""
        return SCORINGS[self.task]

    @property
    def finished(self) -> list[int]:
        """The seeds of which every mode is complete and measured."""
        if not self.series:
            return []
        return [seed for seed in self.record.seeds if all(seed in s.by_seed for s in self.series)]

    @property
    def missing(self) -> list[int]:
        """The other seeds."""
        return [seed for seed in self.record.seeds if seed not in self.finished]

    @property
    def is_partial(self) -> bool:
        """Whether something is still to be done."""
        return self.record.status != "complete" or bool(self.missing)

    @property
    def begun(self) -> list[int]:
        """The seeds whose folder holds a run, which has a report of its own."""
        return [seed for seed, out in self.record.folders(self.run).items() if has_record(out)]

    @property
    def training(self) -> TrainingFindings | None:
        """Any of the trainings, a measured one where there is one: all have the same recipe."""
        trainings = [each for series in self.series for each in series.measured or series.trainings]
        return trainings[0].training if trainings else None

    @property
    def held_out(self) -> int:
        """How many images are held out; 0 until they are measured."""
        test = self.training.test if self.training is not None else None
        return 0 if test is None else int(test.numbers["n"])

    @property
    def unit(self) -> str:
        """What is resampled among the held-out images, in the singular."""
        training = self.training
        if training is None or self.task == "cls":
            return "image"
        paper = pooled(training)
        return f"batch of {paper.batch} slices" if paper is not None else training.record.grouping

    @property
    def units(self) -> str:
        """The same in the plural."""
        unit = self.unit
        return f"batches{unit.removeprefix('batch')}" if unit.startswith("batch") else f"{unit}s"

    @cached_property
    def differences(self) -> dict[Mode, SeedDifference]:
        """Each mode minus REFERENCE, seed by seed; none without that mode."""
        by_mode = {series.mode: series.by_seed for series in self.series}
        reference, differences = by_mode.get(REFERENCE, {}), {}
        for mode, values in by_mode.items():
            seeds = [seed for seed in values if seed in reference]
            if mode not in (None, REFERENCE) and seeds:
                assert mode is not None
                pair = [values[s] for s in seeds], [reference[s] for s in seeds]
                differences[mode] = seed_difference(*pair)
        return differences

    @cached_property
    def published(self) -> PublishedVerdict | None:
        """What was published of the network; None of fine-tunings and where nothing was."""
        training = self.training
        if self.record.of != "train" or training is None:
            return None
        score, scores = published_score(training.record), self.series[0].scores
        if score is None or scores is None:
            return None
        if score.differences:
            return PublishedVerdict(score, None, None)
        holds = None if scores.single is None else _holds(scores.single, score.value)
        return PublishedVerdict(score, reproduction(score.value, scores.over_seeds), holds)


def _holds(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def read_seeds(run: Path) -> SeedsFindings:
    """The seeds in the folder `run`, as far as they have come.

    Raises:
        UsageError: It holds no readable seeds.
    """
    record = read_seeds_record(run)
    modes: tuple[Mode | None, ...] = (None,) if record.of == "train" else MODES
    series = []
    for mode in modes:
        places = {s: out / mode if mode else out for s, out in record.folders(run).items()}
        begun = [SeedTraining(s, read_training(at)) for s, at in places.items() if has_record(at)]
        if begun:
            series.append(SeedSeries(mode, begun, Bootstrap(record.seed)))
    return SeedsFindings(run, record, series)
