"""Results of several seeds of one training or fine-tuning, and their statistics over seeds.

With the published scores of networks, and whether the training is the same experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from robustcli.core.names import TaskName, canonical, counted
from robustcli.core.rundir import has_record
from robustcli.finetuning.record import MODES, Mode
from robustcli.metrics.intervals import Bootstrap, FloatArray
from robustcli.metrics.seed_scores import (
    Reproduction,
    SeedDifference,
    SeedScores,
    reproduction,
    seed_difference,
    seed_scores,
    unit_scores,
)
from robustcli.reports.finetuning_findings import (
    FinetuningFindings,
    Frozen,
    ModeRun,
    frozen_by_rule,
    read_finetuning,
)
from robustcli.reports.scoring import Scoring, scoring_of
from robustcli.reports.training_findings import (
    TrainingFindings,
    headline,
    paper_batches,
    pooled,
    read_training,
)
from robustcli.reports.zoo_findings import other_experiment, published
from robustcli.training.record import SeedsRecord, TrainRecord, read_seeds_record

REFERENCE: Mode = "full"
"""The mode with which the other modes of a fine-tuning are compared."""


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
        """The score by the training's protocol; None until complete and evaluated."""
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
        """The second score, IoU or top-5; None if unknown."""
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
    """One training, or one mode of a fine-tuning, with every seed that has started.

    Args:
        mode: The mode; None for a training.
        trainings: The runs in the order of the seeds.
        bootstrap: Resampling of the held-out images.
    """

    mode: Mode | None
    trainings: Sequence[SeedTraining]
    bootstrap: Bootstrap

    @property
    def name(self) -> str:
        """Name in tables and figures."""
        return self.mode or self.trainings[0].training.record.model

    @property
    def measured(self) -> list[SeedTraining]:
        """The runs that have a score."""
        return [run for run in self.trainings if run.score is not None]

    @property
    def by_seed(self) -> dict[int, float]:
        """The score of each seed that has one."""
        return {e.seed: e.score.value for e in self.trainings if e.score is not None}

    @cached_property
    def scores(self) -> SeedScores | None:
        """Statistics of the score over seeds; None until a seed is evaluated."""
        if not self.by_seed:
            return None
        units = _units([run.training for run in self.measured])
        return seed_scores(list(self.by_seed.values()), units, self.bootstrap)

    @cached_property
    def second(self) -> SeedScores | None:
        """Statistics of the second score over seeds, without an interval over images."""
        values = [run.second for run in self.measured]
        known = [value for value in values if value is not None]
        return seed_scores(known, None, self.bootstrap) if known else None


def _units(trainings: Sequence[TrainingFindings]) -> FloatArray | None:
    """Scores of each unit (image, group, or batch of the paper) with each seed."""
    if trainings[0].record.protocol == "paper":
        return _paper_batches(trainings)
    rows = [training.test.rows for training in trainings if training.test is not None]
    return unit_scores(trainings[0].record.task, rows)


def _paper_batches(trainings: Sequence[TrainingFindings]) -> FloatArray | None:
    """The paper's dice of each batch with each seed, NaN if undefined."""
    columns = []
    for training in trainings:
        rows, size = training.paper, training.record.recipe.paper_batch
        if rows is None or size is None:
            return None
        columns.append(paper_batches(rows, size)[0])
    lengths = {len(column) for column in columns}
    return np.column_stack(columns) if len(lengths) == 1 else None


@dataclass(frozen=True)
class PublishedVerdict:
    """A published score, compared with the one measured here over seeds.

    Args:
        score: The published score.
        outcome: See `seed_scores.reproduction`; None if the experiments are not comparable.
        single_holds: Whether it is in the interval for 95 % of single trainings; None if unknown.
    """

    score: PublishedScore
    outcome: Reproduction | None
    single_holds: bool | None


@dataclass(frozen=True)
class SeedFreezing:
    """What the rule froze with one seed, and the costs of mode freeze and of REFERENCE.

    The costs are ratios, freeze divided by REFERENCE; None until both are measured.
    """

    seed: int
    frozen: Frozen
    freeze: ModeRun | None
    reference: ModeRun | None

    @property
    def seconds(self) -> float | None:
        """The median time of an iteration after freezing."""
        return self._ratio(lambda run: run.seconds_per_iteration)

    @property
    def optimizer(self) -> float | None:
        """The size of the optimizer's state at the end of training."""
        return self._ratio(lambda run: None if run.costs is None else run.costs.optimizer_bytes)

    @property
    def memory(self) -> float | None:
        """The peak memory."""
        return self._ratio(lambda run: None if run.costs is None else run.costs.peak_memory_bytes)

    def _ratio(self, cost: Callable[[ModeRun], float | None]) -> float | None:
        if self.freeze is None or self.reference is None:
            return None
        spent, full = cost(self.freeze), cost(self.reference)
        return None if spent is None or not full else spent / full


@dataclass(frozen=True)
class SeedsFindings:
    """The results of several seeds.

    Args:
        run: Folder that contains all seeds.
        record: Its `run.json`.
        series: One for a training; one per started mode for a fine-tuning.
        finetunings: The fine-tuning with each seed that has started; empty for a training.
    """

    run: Path
    record: SeedsRecord
    series: Sequence[SeedSeries]
    finetunings: Mapping[int, FinetuningFindings] = field(default_factory=dict)

    @property
    def task(self) -> TaskName:
        """The task of the networks."""
        return self.record.task

    @property
    def scoring(self) -> Scoring:
        """The scores of the task."""
        return scoring_of(self.task, self.record.dataset)

    @cached_property
    def missing(self) -> dict[int, tuple[Mode, ...]]:
        """The seeds that are not complete and evaluated, with their missing modes.

        Seeds of a training have no modes.
        """
        if self.record.of == "train" or not self.series:
            scored = self.series[0].by_seed if self.series else {}
            return {seed: () for seed in self.record.seeds if seed not in scored}
        scores = {series.mode: series.by_seed for series in self.series}
        begun = {mode for run in self.finetunings.values() for mode in run.record.modes}
        modes = [mode for mode in MODES if mode in begun or mode in scores]
        lacking = {
            seed: tuple(mode for mode in modes if seed not in scores.get(mode, {}))
            for seed in self.record.seeds
        }
        return {seed: lacked for seed, lacked in lacking.items() if lacked}

    @property
    def missing_in_words(self) -> str:
        """The seeds of `missing`, such as `3, 4 (modes freeze, full)`."""
        seeds_of: dict[tuple[Mode, ...], list[int]] = {}
        for seed, modes in self.missing.items():
            seeds_of.setdefault(modes, []).append(seed)
        return "; ".join(
            ", ".join(map(str, seeds))
            + (f" (mode{'s' * (len(modes) > 1)} {', '.join(modes)})" if modes else "")
            for modes, seeds in seeds_of.items()
        )

    @property
    def finished(self) -> list[int]:
        """The seeds for which every mode is complete and evaluated."""
        return [seed for seed in self.record.seeds if seed not in self.missing]

    @property
    def is_partial(self) -> bool:
        """Whether the run is incomplete."""
        return self.record.status != "complete" or bool(self.missing)

    @property
    def begun(self) -> list[int]:
        """The seeds whose folder contains a run, which has a separate report."""
        return [seed for seed, out in self.record.folders(self.run).items() if has_record(out)]

    @property
    def training(self) -> TrainingFindings | None:
        """Any of the trainings, preferably an evaluated one; all have the same recipe."""
        trainings = [run for series in self.series for run in series.measured or series.trainings]
        return trainings[0].training if trainings else None

    @property
    def held_out(self) -> int:
        """Number of held-out images; 0 until they are evaluated."""
        test = self.training.test if self.training is not None else None
        return 0 if test is None else int(test.numbers["n"])

    @property
    def unit(self) -> str:
        """Name of the unit of resampling among the held-out images, in the singular."""
        training = self.training
        if training is None or self.task == "cls":
            return "image"
        paper = pooled(training)
        return f"batch of {paper.batch} slices" if paper is not None else training.record.grouping

    @property
    def units(self) -> str:
        """Name of the unit of resampling, in the plural."""
        unit = self.unit
        return f"batches{unit.removeprefix('batch')}" if unit.startswith("batch") else f"{unit}s"

    @cached_property
    def differences(self) -> dict[Mode, SeedDifference]:
        """Each mode's score minus that of REFERENCE, paired by seed; empty without REFERENCE."""
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
    def freezing(self) -> list[SeedFreezing]:
        """What the rule froze with each seed that has a decision, and what that saved."""
        decided = []
        for seed, finetuning in self.finetunings.items():
            frozen = frozen_by_rule(finetuning)
            if "freeze" in finetuning.record.modes and frozen is not None:
                modes = finetuning.of("freeze"), finetuning.of(REFERENCE)
                decided.append(SeedFreezing(seed, frozen, *modes))
        return decided

    @property
    def froze_nothing(self) -> bool:
        """Whether the rule selected no tensor with any seed."""
        return bool(self.freezing) and not any(line.frozen.tensors for line in self.freezing)

    @cached_property
    def published(self) -> PublishedVerdict | None:
        """The published score of the network, compared with that over seeds.

        None for fine-tunings, without a published score, and until a seed is evaluated.
        """
        training = self.training
        if self.record.of != "train" or training is None:
            return None
        score, scores = published_score(training.record), self.series[0].scores
        if score is None or scores is None:
            return None
        if score.differences:
            return PublishedVerdict(score, None, None)
        holds = (
            None
            if scores.single is None
            else scores.single.low <= score.value <= scores.single.high
        )
        return PublishedVerdict(score, reproduction(score.value, scores.over_seeds), holds)


def read_seeds(run: Path) -> SeedsFindings:
    """The seeds in the folder `run`, complete or not.

    Raises:
        UsageError: The record of the seeds does not exist or cannot be read.
    """
    record = read_seeds_record(run)
    begun = {seed: out for seed, out in record.folders(run).items() if has_record(out)}
    bootstrap = Bootstrap(record.seed)
    if record.of == "train":
        trainings = [SeedTraining(seed, read_training(out)) for seed, out in begun.items()]
        series = [SeedSeries(None, trainings, bootstrap)] if trainings else []
        return SeedsFindings(run, record, series)
    finetunings = {seed: read_finetuning(out) for seed, out in begun.items()}
    series = []
    for mode in MODES:
        runs = {seed: finetuning.of(mode) for seed, finetuning in finetunings.items()}
        trainings = [SeedTraining(seed, run.training) for seed, run in runs.items() if run]
        if trainings:
            series.append(SeedSeries(mode, trainings, bootstrap))
    return SeedsFindings(run, record, series, finetunings)


# Published scores. Those of segmenters are in the catalogue (`zoo_findings.published`), those of
# classifiers here. Source: "Mamba vs State-of-the-Art for Vision Tasks" (Crews and Whalen, 2024),
# lxaw/mamba-vs-else-vision @f55e490: `val_vim.json`, `val_vit.json` and the figures.


@dataclass(frozen=True)
class PublishedScore:
    """A published score of the network of a training.

    Args:
        value: The score in [0, 1], with its published digits.
        source: Publication and experiment, as text.
        differences: Settings in which the training here differs from the published experiment, as
            text; empty if none affects the scores.
    """

    value: float
    source: str
    differences: Sequence[str]


@dataclass(frozen=True)
class PrintedAccuracy:
    """The accuracy of one classifier at its best of 100 epochs on CIFAR-10's test images.

    The best epoch is used because recipe `paper` also selects its epoch on these images.

    Args:
        model: Name of the model in this project.
        patch_size: Side of its patches, in pixels.
        top1: Accuracy in [0, 1].
        remark: Origin of the number.
    """

    model: str
    patch_size: int
    top1: float
    remark: str


PRINTED_ACCURACIES = (
    PrintedAccuracy("vim", 4, 0.8947, "val_vim.json, epoch 87, patch 4, a head of 1000 classes"),
    PrintedAccuracy("vit", 4, 0.8619, "val_vit.json, patch 4 by its curve"),
    PrintedAccuracy("vit", 8, 0.796, "read off the figure, patch 8 by its parameters"),
)
CIFAR_IMAGES, CIFAR_CLASSES, CIFAR_EPOCHS = 60_000, 10, 100
_PATCH = "patch_size"
_USUAL_PATCH = 4


def published_score(record: TrainRecord) -> PublishedScore | None:
    """The published score of the network of `record`; None without one."""
    return (_of_classifier if record.task == "cls" else _of_segmenter)(record)


def _of_segmenter(record: TrainRecord) -> PublishedScore | None:
    line = published(record.model)
    if line is None:
        return None
    differences = other_experiment(record)
    if record.arguments:
        differences.append("other options of the network (`--model-arg`)")
    source = "“Mamba-Based Tumor Segmentation”, Table I: LGG, protocol paper, 100 epochs"
    return PublishedScore(line.dice, source, differences)


def _of_classifier(record: TrainRecord) -> PublishedScore | None:
    patch = record.arguments.get(_PATCH, _USUAL_PATCH)
    lines = [line for line in PRINTED_ACCURACIES if line.model == canonical(record.model)]
    line = next((line for line in lines if line.patch_size == patch), None)
    if line is None:
        return None
    source = f"“Mamba vs State-of-the-Art for Vision Tasks”, CIFAR-10, 100 epochs ({line.remark})"
    return PublishedScore(line.top1, source, _other_than_cifar(record))


def _other_than_cifar(record: TrainRecord) -> list[str]:
    """The settings in which a training of a classifier differs from the published ones."""
    recipe, dataset, differences = record.recipe, record.dataset, []
    if recipe.name != "paper":
        differences.append(f"recipe {recipe.name} instead of paper")
    if (dataset.images, dataset.classes) != (CIFAR_IMAGES, CIFAR_CLASSES):
        differences.append(
            f"{dataset.images:,} images of {dataset.name} instead of the {CIFAR_IMAGES:,} of "
            "CIFAR-10"
        )
    if recipe.epochs != CIFAR_EPOCHS or recipe.images_per_epoch is not None:
        differences.append(f"{counted(recipe.epochs, 'epoch')} instead of {CIFAR_EPOCHS}")
    return differences
