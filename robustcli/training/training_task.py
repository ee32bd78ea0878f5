"""The plan of a training, and what differs in it between classifiers and segmenters.

A task says what data there are, how they are split, what Lightning trains on them, and what is
measured in the end. `segmenter_training` and `classifier_training` have its members.
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
from robustcli.adapters.training_run import Header
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.rundir import check_folder
from robustcli.data.dataset import Dataset
from robustcli.data.splits import Split, Splits
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.tasks.record import DatasetRecord
from robustcli.training.cache import Decoded
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, BatchSettings, batch_sizes
from robustcli.training.lit_module import LitModule
from robustcli.training.procedures import procedure_of
from robustcli.training.procedures.base import Procedure
from robustcli.training.recipes import Protocol, Recipe
from robustcli.training.record import VALIDATIONS, SplitRecord, Validation
from robustcli.training.trainer import Machine, default_workers


@dataclass(frozen=True)
class TrainInputs:
    """What a training takes, looked up once: network, data set and devices.

    Args:
        index: The images of it that `--limit` leaves.
        splits: These, split for training, validation and testing.
    """

    task: TrainingTask
    entry: ModelEntry
    dataset: Dataset
    index: Dataset
    splits: Splits
    machine: Machine


@dataclass(frozen=True)
class TrainPlan(TrainInputs):
    """A training, looked up and checked: everything that is handed down from here.

    Args:
        least: Fewest images of a training batch of one process.
        grey: Whether the network gets greyscale images.
    """

    config: TrainConfig
    recipe: Recipe
    run: Path
    least: int = 1
    grey: bool = False

    def for_seed(self, seed: int, out: Path) -> TrainPlan:
        """The plan of another seed, on the same parts of the data, into the folder `out`.

        Raises:
            UsageError: Somebody's files are in that folder.
        """
        check_folder(out)
        return replace(self, config=self.config.for_seed(seed, out), run=out)

    @property
    def procedure(self) -> Procedure:
        """The way in which the recipe is trained."""
        return procedure_of(self.recipe)

    @property
    def per_epoch(self) -> int:
        """Training images of an epoch, or patches of them."""
        return self.procedure.images_per_epoch(len(self.splits.train.samples))

    @property
    def batches(self) -> list[int]:
        """How many images each batch of an epoch has in one of the processes; all have the same."""
        world = self.machine.world
        images = math.ceil(self.per_epoch / world)
        return batch_sizes(images, max(1, self.recipe.batch_size // world), self.least)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(len(self.batches) / self.recipe.accumulate)

    @property
    def val_batches(self) -> float:
        """Batches of a validation pass, about: an image may be several windows."""
        return self.procedure.val_batches(len(self.splits.val.samples))

    @property
    def channels(self) -> Literal["rgb", "bgr", "grey"]:
        """The order of colours that the network gets."""
        return "grey" if self.grey else self.procedure.channels

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as the network gets it."""
        return 1 if self.grey else 3, self.recipe.window, self.recipe.window

    @property
    def monitor(self) -> str:
        """What the best epoch has the highest value of."""
        return self.procedure.monitor(self.task.validation.score)

    def batch_settings(self, *, ignores: bool = False) -> BatchSettings:
        """How batches are made; `ignores` says whether masks hold pixels to ignore."""
        device, workers = self.machine.device, self.config.workers
        return BatchSettings(
            self.config.seed, default_workers(device) if workers is None else workers,
            device.type == "cuda", self.least, ignores,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainStart:
    """What a training begins with; the defaults are those of a plain training.

    Args:
        network: With the weights that it starts from.
        callbacks: What Lightning calls besides the usual.
        export: Of the trained network's state: that of the plain network, to be written.
    """

    network: nn.Module
    origin: str
    callbacks: Sequence[pl.Callback] = ()
    export: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict


@dataclass(frozen=True)
class RecordedFacts:
    """What a record says of a training beside its recipe; see `record.TrainRecord`."""

    dataset: DatasetRecord
    protocol: Protocol | None
    decision: str
    faults: Sequence[str] = ()


class TrainingTask(ABC):
    """One kind of model, from settings to trained weights and their numbers."""

    name: ClassVar[Literal["cls", "seg"]]

    @property
    def validation(self) -> Validation:
        """What is logged of the validation images."""
        return VALIDATIONS[self.name]

    @abstractmethod
    def check(self, entry: ModelEntry, config: TrainConfig) -> None:
        """Raises UsageError if the network cannot be trained as `config` says."""

    @abstractmethod
    def open(self, config: TrainConfig, entry: ModelEntry) -> Dataset:
        """The data set that `config` names, all of it; else the default one for `entry`.

        Raises:
            UsageError: There is none, or it is not known what it shows.
        """

    def built_for(self, config: TrainConfig, index: Dataset) -> TrainConfig:
        """`config` with the arguments that the network needs for the classes of `index`."""
        return config

    @abstractmethod
    def split(self, index: Dataset, config: TrainConfig) -> Splits:
        """The parts of `index`.

        Raises:
            UsageError: There are too few images.
        """

    @abstractmethod
    def recipe(self, config: TrainConfig, entry: ModelEntry, splits: Splits) -> Recipe:
        """How the network is trained, with every override of `config`.

        Raises:
            UsageError: An override is unknown, out of range, or has no meaning here.
        """

    @abstractmethod
    def way(self, config: TrainConfig) -> str:
        """How the data are split and scored, in a word or two."""

    @abstractmethod
    def counted(self, part: Dataset) -> str:
        """What a part holds, in words."""

    @abstractmethod
    def network(
        self, config: TrainConfig, entry: ModelEntry, index: Dataset
    ) -> tuple[nn.Module, str]:
        """The network as training begins with it, and where its weights come from, in words."""

    def start_faults(self, plan: TrainPlan) -> Sequence[str]:
        """Known faults of the recipe that are announced when a training begins; the report has all.

        Those of a segmenter's protocol are documented, and stand in the report alone.
        """
        return ()

    def start(self, plan: TrainPlan) -> TrainStart:
        """What the training of `plan` begins with."""
        return TrainStart(*self.network(plan.config, plan.entry, plan.index))

    @abstractmethod
    def answer(self, network: nn.Module, images: Tensor) -> object:
        """What `network` answers to `images` (B, C, H, W), as its training takes it."""

    @abstractmethod
    def check_answer(self, answer: object, network: nn.Module, tried: Trial) -> None:
        """Raises UsageError if no network of this task can give `answer`."""

    @abstractmethod
    def counts(
        self, plan: TrainPlan, train: Sequence[Decoded], val: Sequence[Decoded]
    ) -> dict[Split, SplitRecord]:
        """What the record says of the parts, of which two are decoded.

        Raises:
            UsageError: From such images nothing can be learned.
        """

    @abstractmethod
    def batches(
        self, plan: TrainPlan, train: Sequence[Decoded], val: Sequence[Decoded]
    ) -> BaseDataModule:
        """The batches of training and validation, of decoded images."""

    @abstractmethod
    def lit_module(
        self, plan: TrainPlan, network: nn.Module, data: BaseDataModule | None = None
    ) -> LitModule:
        """What Lightning trains.

        Args:
            plan: With the recipe.
            network: The network; put into training mode.
            data: What it is validated on; None where it is not.
        """

    @abstractmethod
    def facts(self, plan: TrainPlan, network: nn.Module) -> RecordedFacts:
        """What the record says of the training."""

    @abstractmethod
    def header(self, plan: TrainPlan, network: nn.Module) -> Header:
        """What the weights say of themselves."""

    @abstractmethod
    def measure(
        self, plan: TrainPlan, lit_module: LitModule, chosen: Mapping[str, Any], listener: Listener
    ) -> None:
        """Measures the weights that are in the run's folder on the held-out images."""


_OVERRIDES = {
    "epochs": "epochs", "lr": "lr", "batch_size": "batch_size", "accumulate": "accumulate",
    "loss": "loss", "aug": "augmentation", "window": "window", "clip": "clip",
    "patience": "patience",
}  # fmt: skip
"""Field of the settings to field of the recipe."""


def typed_options(config: TrainConfig) -> dict[str, Any]:
    """The overrides of the recipe that were typed, by the name of the option.

    Raises:
        UsageError: A number is not above 0.
    """
    every = {name: getattr(config, name) for name in _OVERRIDES}
    options = {name: value for name, value in every.items() if value is not None}
    for name, value in options.items():
        if not isinstance(value, str) and not value > 0:
            flag = name.replace("_", "-")
            raise UsageError(f"`--{flag} {value}` is out of range.", "It must be above 0.")
    return options


def overridden_fields(config: TrainConfig) -> dict[str, Any]:
    """The fields of the recipe that `config` overrides; raises as `typed_options` does."""
    return {_OVERRIDES[name]: value for name, value in typed_options(config).items()}


def hash_ids(part: Dataset) -> str:
    """SHA-256 (hex) over the ids of the images, a line each, in order."""
    return hashlib.sha256("".join(f"{s.image_id}\n" for s in part.samples).encode()).hexdigest()


def trained_model(run: Path) -> str:
    """The training run `run` as the name of a model, also where its folder is called like one."""
    return str(run) if run.is_absolute() else f"./{run}"


def evaluate_test_images(plan: TrainPlan, model: str, out: Path) -> None:
    """Evaluates `model` on the held-out images of the training, into the folder `out`.

    Raises:
        IncompleteRun: Some images were not evaluated; the same command computes the rest.
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
