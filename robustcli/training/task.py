"""What differs in training from one kind of model to another; the rest of this room does not know.

A task says what data there are, how they are split and decoded, what Lightning trains on them, and
what is measured in the end. `segmentation` and `classification` are its members.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.training_run import Header
from robustcli.core.listener import Listener
from robustcli.data.dataset import Indexed
from robustcli.data.splits import Split, Splits
from robustcli.evaluation.record import DatasetRecord
from robustcli.training.cache import Stored
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import batch_sizes
from robustcli.training.learning import Learner
from robustcli.training.recipes import Protocol, Recipe
from robustcli.training.record import AVERAGED, VALIDATIONS, SplitRecord, Validation
from robustcli.training.trainer import Machine

# What fine-tuning changes in a training: where it starts from, and what watches it.


class Enough(Exception):  # noqa: N818  nothing went wrong
    """Ends a training that has given all that was wanted of it, in all its processes at once."""


@dataclass(frozen=True)
class Tuning:
    """The places where `run_training` asks; a plain training has none.

    Args:
        start: Gives the network that training begins with, and where its weights come from.
        callbacks: Of that network: what Lightning calls besides the usual.
        export: Of the trained network's state: that of the plain network, to be written.
    """

    start: Callable[[], tuple[nn.Module, str]]
    callbacks: Callable[[nn.Module], Sequence[pl.Callback]]
    export: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict


@dataclass(frozen=True)
class Selection:
    """What was asked for, looked up: network, data, splits, recipe, devices and folder."""

    task: TrainingTask
    entry: ModelEntry
    index: Indexed
    splits: Splits[Any]
    recipe: Recipe
    on: Machine
    run: Path
    least: int = 1
    """Fewest images of a training batch of one process."""
    grey: bool = False
    """Whether the network gets greyscale images."""

    @property
    def per_epoch(self) -> int:
        """Training images of an epoch, or patches of them."""
        if self.recipe.patches is not None:
            return self.recipe.patches.iterations * self.recipe.batch_size
        there = len(self.splits.train.members)
        return min(self.recipe.images_per_epoch or there, there)

    @property
    def batches(self) -> list[int]:
        """How many images each batch of an epoch has in one of the processes; all have the same."""
        images = math.ceil(self.per_epoch / self.on.world)
        return batch_sizes(images, max(1, self.recipe.batch_size // self.on.world), self.least)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(len(self.batches) / self.recipe.accumulate)

    @property
    def val_batches(self) -> float:
        """Batches of a validation pass, about: an image may be several windows."""
        if self.recipe.patches is not None:
            return self.recipe.patches.validation_iterations
        return len(self.splits.val.members) / self.recipe.batch_size

    @property
    def whole(self) -> bool:
        """Whether images are resized whole and the last epoch is taken: the paper's way."""
        return self.recipe.paper_batch is not None

    @property
    def channels(self) -> Literal["rgb", "bgr", "grey"]:
        """The order of colours that the network gets; the paper's is OpenCV's."""
        if self.grey:
            return "grey"
        return "bgr" if self.whole else "rgb"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as the network gets it."""
        return 1 if self.grey else 3, self.recipe.window, self.recipe.window

    @property
    def monitor(self) -> str:
        """What the best epoch has the highest value of."""
        return AVERAGED if self.recipe.patches is not None else self.task.validation.score


@dataclass(frozen=True)
class Facts:
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
        """Nothing, if the network can be trained as `config` says.

        Raises:
            UsageError: It cannot; the message says why.
        """

    @abstractmethod
    def open(self, config: TrainConfig) -> Indexed:
        """The images that `config` names.

        Raises:
            UsageError: There are none, or it is not known what they show.
        """

    @abstractmethod
    def split(self, index: Indexed, config: TrainConfig) -> Splits[Any]:
        """The parts of `index`.

        Raises:
            UsageError: There are too few images.
        """

    @abstractmethod
    def recipe(self, config: TrainConfig, entry: ModelEntry, splits: Splits[Any]) -> Recipe:
        """How the network is trained, with every override of `config`.

        Raises:
            UsageError: An override is unknown, out of range, or has no meaning here.
        """

    @abstractmethod
    def way(self, config: TrainConfig) -> str:
        """How the parts are made and scored, in a word or two."""

    @abstractmethod
    def counted(self, part: Indexed) -> str:
        """What a part holds, in words."""

    @abstractmethod
    def network(self, config: TrainConfig, index: Indexed) -> tuple[nn.Module, str]:
        """The network as training begins with it, and where its weights come from, in words."""

    @abstractmethod
    def decode(self, member: Any) -> Stored:
        """What is kept of an image while it is trained on.

        Raises:
            RunError: A file cannot be decoded.
        """

    @abstractmethod
    def counts(
        self, selection: Selection, train: Sequence[Any], val: Sequence[Any]
    ) -> dict[Split, SplitRecord]:
        """What the record says of the parts, of which two are decoded.

        Raises:
            UsageError: From such images nothing can be learned.
        """

    @abstractmethod
    def batches(
        self, config: TrainConfig, selection: Selection, train: Sequence[Any], val: Sequence[Any]
    ) -> pl.LightningDataModule:
        """The batches of training and validation, of decoded images."""

    @abstractmethod
    def learner(
        self, selection: Selection, network: nn.Module, data: pl.LightningDataModule | None = None
    ) -> Learner:
        """What Lightning trains.

        Args:
            selection: With the recipe.
            network: The network; put into training mode.
            data: What it is validated on; None where it is not.
        """

    @abstractmethod
    def facts(self, config: TrainConfig, selection: Selection, network: nn.Module) -> Facts:
        """What the record says of the training."""

    @abstractmethod
    def header(self, config: TrainConfig, selection: Selection, network: nn.Module) -> Header:
        """What the weights say of themselves."""

    @abstractmethod
    def measure(
        self, config: TrainConfig, selection: Selection, learner: Learner,
        chosen: Mapping[str, Any], listener: Listener,
    ) -> None:  # fmt: skip
        """Measures the weights that are in the run's folder on the held-out images.

        Args:
            config: The settings.
            selection: What they name.
            learner: What was trained.
            chosen: The state of its network in the chosen epoch.
            listener: Hears of it.
        """
