"""The plan of a training, and the interface of its task-specific parts.

A task defines the data, their split, the Lightning module, and the scores after training. It is
implemented in `segmenter_training` and `classifier_training`.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelEntry, ModelRequest
from robustcli.adapters.model import Trial
from robustcli.adapters.training_run import EarlierTraining, Header
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.rundir import check_folder
from robustcli.core.seeds import identity_seed
from robustcli.data.dataset import CONTENTS_READ, Dataset
from robustcli.data.splits import Split, Splits
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.tasks.heldout import TrainingData
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import (
    BaseDataModule,
    BatchSettings,
    Decoded,
    DecodedSubset,
    batch_sizes,
)
from robustcli.training.lit_module import LitModule
from robustcli.training.procedures import procedure_of
from robustcli.training.procedures.base import Procedure
from robustcli.training.recipes import Protocol, Recipe
from robustcli.training.record import VALIDATIONS, SplitRecord, Validation
from robustcli.training.trainer import Machine, default_workers


@dataclass(frozen=True)
class TrainInputs:
    """Network, data set and devices of a training, looked up once.

    Args:
        index: The images of the data set, at most `--limit`.
        splits: `index` split into training, validation and test images.
    """

    task: TrainingTask
    entry: ModelEntry
    dataset: Dataset
    index: Dataset
    splits: Splits
    machine: Machine


@dataclass(frozen=True)
class TrainPlan(TrainInputs):
    """A training with all names looked up and checked.

    Args:
        least: Smallest training batch of one process.
        grey: Whether the network takes greyscale images.
        used_before: Remark that the initial weights were trained on held-out images; else empty.
        earlier: The trainings of the initial weights, the last one first.
    """

    config: TrainConfig
    recipe: Recipe
    run: Path
    least: int = 1
    grey: bool = False
    used_before: str = ""
    earlier: tuple[TrainingData, ...] = ()

    def described(self, origin: str) -> str:
        """The `origin` of the initial weights in words, with the remark on held-out images."""
        is_random = self.config.untrained or not self.used_before
        return origin if is_random else f"{origin} ({self.used_before})"

    @property
    def trainings_before(self) -> tuple[TrainingData, ...]:
        """`earlier`, unless this training starts from random weights."""
        return () if self.config.untrained else self.earlier

    def for_seed(self, seed: int, out: Path) -> TrainPlan:
        """The plan of another seed with the same data split, into the folder `out`.

        Raises:
            UsageError: The folder contains files of something else.
        """
        check_folder(out)
        return replace(self, config=self.config.for_seed(seed, out), run=out)

    @property
    def procedure(self) -> Procedure:
        """The training procedure of the recipe."""
        return procedure_of(self.recipe)

    @property
    def per_epoch(self) -> int:
        """Number of training images or patches per epoch."""
        return self.procedure.images_per_epoch(len(self.splits.train.samples))

    @property
    def batches(self) -> list[int]:
        """Number of images in each batch of an epoch in one process; equal in all processes."""
        world = self.machine.world
        images = math.ceil(self.per_epoch / world)
        return batch_sizes(images, max(1, self.recipe.batch_size // world), self.least)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return math.ceil(len(self.batches) / self.recipe.accumulate)

    @property
    def val_batches(self) -> float:
        """Approximate number of validation batches; an image can have several windows."""
        return self.procedure.val_batches(len(self.splits.val.samples))

    @property
    def channels(self) -> Literal["rgb", "bgr", "grey"]:
        """Channel order of the network's input."""
        return "grey" if self.grey else self.procedure.channels

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's input."""
        return 1 if self.grey else 3, self.recipe.window, self.recipe.window

    @property
    def monitor(self) -> str:
        """Name of the value whose highest value determines the best epoch."""
        return self.procedure.monitor(self.task.validation.score)

    def batch_settings(self, *, ignores: bool = False) -> BatchSettings:
        """Settings of the loaders; `ignores`: whether masks contain pixels to ignore."""
        device, workers = self.machine.device, self.config.workers
        if workers is None:
            workers = default_workers(device, self.machine.devices)
        return BatchSettings(self.config.seed, workers, device.type == "cuda", self.least, ignores)


@dataclass(frozen=True)
class TrainStart:
    """The start of a training; the defaults are those of `robust train`.

    Args:
        network: The network with its initial weights.
        callbacks: Additional Lightning callbacks.
        export: Maps the state of the trained network to the state to write.
    """

    network: nn.Module
    origin: str
    callbacks: Sequence[pl.Callback] = ()
    export: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict


@dataclass(frozen=True)
class RecordedFacts:
    """Task-specific fields of the record; see `record.TrainRecord`."""

    protocol: Protocol | None
    decision: str


class TrainingTask(ABC):
    """Interface of the task-specific parts of a training."""

    name: ClassVar[Literal["cls", "seg"]]

    @property
    def validation(self) -> Validation:
        """The scores of the validation images."""
        return VALIDATIONS[self.name]

    @abstractmethod
    def check(self, entry: ModelEntry, config: TrainConfig) -> None:
        """Raises UsageError if the network cannot be trained with `config`."""

    @abstractmethod
    def open(self, config: TrainConfig, entry: ModelEntry) -> Dataset:
        """The complete data set of `config`, or the default data set of `entry`.

        Raises:
            UsageError: There is no such data set, or its labels are unknown.
        """

    def built_for(self, config: TrainConfig, index: Dataset) -> TrainConfig:
        """`config` with the builder arguments for the classes of `index`."""
        return config

    @abstractmethod
    def split(self, index: Dataset, config: TrainConfig) -> Splits:
        """`index` split into training, validation and test images.

        Raises:
            UsageError: There are too few images.
        """

    @abstractmethod
    def recipe(self, config: TrainConfig, entry: ModelEntry, splits: Splits) -> Recipe:
        """The recipe with all overrides of `config`.

        Raises:
            UsageError: An override is unknown, out of range, or not used by the recipe.
        """

    @abstractmethod
    def protocol_words(self, config: TrainConfig) -> str:
        """A few words on how the data are split and scored."""

    @abstractmethod
    def counted(self, part: Dataset) -> str:
        """The content of a part in words."""

    @abstractmethod
    def network(
        self, config: TrainConfig, entry: ModelEntry, index: Dataset
    ) -> tuple[nn.Module, str]:
        """The network with its initial weights, and their origin in words."""

    def start_faults(self, plan: TrainPlan) -> Sequence[str]:
        """Known faults of the recipe to announce at the start; the report lists all faults.

        Faults of a segmenter's protocol are documented and appear only in the report.
        """
        return ()

    def start(self, plan: TrainPlan) -> TrainStart:
        """The start of the training of `plan`."""
        return TrainStart(*self.network(plan.config, plan.entry, plan.index))

    @abstractmethod
    def answer(self, network: nn.Module, images: Tensor) -> object:
        """The output of `network` for `images` (B, C, H, W) that the loss uses."""

    @abstractmethod
    def check_answer(self, answer: object, network: nn.Module, tried: Trial) -> None:
        """Raises UsageError if `answer` is not an output of this task."""

    @abstractmethod
    def counts(
        self, plan: TrainPlan, train: Sequence[Decoded], val: Sequence[Decoded]
    ) -> dict[Split, SplitRecord]:
        """The records of the three parts, from decoded training and validation images.

        Raises:
            UsageError: The images cannot train a network, for example without foreground.
        """

    @abstractmethod
    def batches(self, plan: TrainPlan, train: DecodedSubset, val: DecodedSubset) -> BaseDataModule:
        """The data module of decoded training and validation images."""

    @abstractmethod
    def lit_module(
        self, plan: TrainPlan, network: nn.Module, data: BaseDataModule | None = None
    ) -> LitModule:
        """The Lightning module.

        Args:
            plan: Gives the recipe.
            network: The network; put into training mode.
            data: The data module; None without validation.
        """

    @abstractmethod
    def facts(self, plan: TrainPlan, network: nn.Module) -> RecordedFacts:
        """Task-specific fields of the record."""

    @abstractmethod
    def header(self, plan: TrainPlan, network: nn.Module) -> Header:
        """The header of the weights file, with the `common_header`."""

    @abstractmethod
    def measure(
        self, plan: TrainPlan, lit_module: LitModule, chosen: Mapping[str, Any], listener: Listener
    ) -> None:
        """Scores the weights in the run folder on the held-out images."""


_OVERRIDES = {
    "epochs": "epochs", "lr": "lr", "batch_size": "batch_size", "accumulate": "accumulate",
    "loss": "loss", "aug": "augmentation", "window": "window", "clip": "clip",
    "patience": "patience",
}  # fmt: skip
"""Maps fields of the settings to fields of the recipe."""


def typed_options(config: TrainConfig) -> dict[str, Any]:
    """The typed overrides of the recipe, by option name.

    Raises:
        UsageError: A number is not finite, or not above 0.
    """
    overrides = {name: getattr(config, name) for name in _OVERRIDES}
    options = {name: value for name, value in overrides.items() if value is not None}
    for name, value in options.items():
        if not isinstance(value, str) and not 0 < value < math.inf:
            flag = name.replace("_", "-")
            raise UsageError(
                f"`--{flag} {value}` is out of range.", "It must be a finite number above 0."
            )
    return options


def overridden_fields(config: TrainConfig) -> dict[str, Any]:
    """The recipe fields that `config` overrides; raises the errors of `typed_options`."""
    return {_OVERRIDES[name]: value for name, value in typed_options(config).items()}


def hash_ids(part: Dataset) -> str:
    """SHA-256 (hex) of the image ids in order, one per line."""
    return hashlib.sha256("".join(f"{s.image_id}\n" for s in part.samples).encode()).hexdigest()


_SEEN = 16


def common_header(plan: TrainPlan) -> dict[str, Any]:
    """The fields of `Header` that identify the data of `plan` and of its initial weights."""
    train, seed = plan.splits.train, plan.config.seed
    images = [sample for sample in train.samples if sample.image.length <= CONTENTS_READ]
    drawn = sorted(images, key=lambda image: identity_seed("seen", seed, image.image_id))
    return {
        "trained_on": plan.index.digest,
        "images_sha256": hash_ids(train),
        "seen": {i.image_id: hashlib.sha256(i.image.read()).hexdigest() for i in drawn[:_SEEN]},
        "earlier": tuple(
            EarlierTraining(trained_on=training.digest, seen=dict(training.file_hashes))
            for training in plan.trainings_before
        ),
    }


def run_as_model(run: Path) -> str:
    """The model name of the training run `run`; a path, so that it cannot match another name."""
    return str(run) if run.is_absolute() else f"./{run}"


def evaluate_test_images(plan: TrainPlan, model: str, out: Path) -> None:
    """Evaluates `model` on the held-out images of the training, into the folder `out`.

    Raises:
        IncompleteRun: Some images were not evaluated; the same command evaluates the rest.
    """
    config = plan.config
    run_evaluation(
        EvalConfig(
            models=(ModelRequest(model),),
            transforms=("identity",),
            data=config.data,
            dataset=plan.dataset,
            out=out,
            split="test",
            splits_of=plan.run,
            seed=config.seed,
            precision=plan.recipe.precision,
            device=config.device,
            workers=config.workers,
            offline=config.offline,
            foreground=config.foreground,
            ignore=config.ignore,
            mask_classes=config.mask_classes,
            command=config.command,
        )
    )
