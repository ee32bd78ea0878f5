"""What differs from one kind of model to another; the rest of this room is the same for all.

A task says what is evaluated, how a batch is made of decoded images, what a model answers to it and
which columns the answers have. `classification` and `segmentation` are its two members.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import pyarrow as pa
import torch

from robustcli.adapters.load import ModelRequest
from robustcli.adapters.model import Facts, Precision
from robustcli.core.listener import Listener
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.loader import Batch, Preparation
from robustcli.evaluation.pictures import Sample
from robustcli.evaluation.record import DatasetRecord, ModelRecord, Split
from robustcli.evaluation.sessions import ModelCost
from robustcli.evaluation.store import Cell
from robustcli.transforms.registry import TransformCell

Row = dict[str, object]


class Model(Protocol):
    """What every kind of model has."""

    facts: Facts

    def to(self, device: torch.device, precision: Precision) -> Any:
        """The model, moved."""


ModelT = TypeVar("ModelT", bound=Model)


@dataclass(frozen=True)
class Data:
    """What is evaluated: looked up, not decoded.

    Args:
        items: The images, with what is known of each.
        record: What `run.json` says of them.
        grouping: What a group of images is, in the singular, where there are groups.
        split: Which part of the data set they are, where it has parts.
    """

    items: tuple[Any, ...]
    record: DatasetRecord
    grouping: str | None = None
    split: Split | None = None


class Answering(Protocol):
    """One model answering batches."""

    @property
    def cost(self) -> ModelCost:
        """What its forward passes took so far."""

    def rows(self, batch: Batch[Any]) -> list[Row]:
        """The rows of the images of `batch`, at least one, in their order."""


class Task(ABC, Generic[ModelT]):
    """One kind of model, from settings to rows.

    `batch_sizes` are the images that it sends through a model at once, by type of device.
    """

    name: ClassVar[Literal["cls", "seg"]]
    batch_sizes: ClassVar[Mapping[str, int]]

    @abstractmethod
    def check(self, config: EvalConfig) -> None:
        """Nothing, if every setting has a meaning here.

        Raises:
            UsageError: One has none; the message says why.
        """

    @abstractmethod
    def open(self, config: EvalConfig, listener: Listener) -> Data:
        """The images that `config` names; a default that is taken is announced.

        Raises:
            UsageError: There is no such data, or it does not fit the models.
        """

    @abstractmethod
    def load(self, request: ModelRequest, *, seed: int, offline: bool) -> ModelT:
        """The model that `request` names, on the CPU."""

    @abstractmethod
    def model_record(self, model: ModelT, config: EvalConfig) -> ModelRecord:
        """What `run.json` says of `model`."""

    @abstractmethod
    def preparation(
        self, models: Mapping[str, ModelT], cells: Mapping[Cell, TransformCell], config: EvalConfig
    ) -> Preparation[Any, Any, Any]:
        """How a batch for `models` is made of decoded images."""

    @abstractmethod
    def schema(self, dataset: DatasetRecord) -> pa.Schema:
        """The columns of the rows of `dataset`."""

    @abstractmethod
    def answering(self, model: ModelT, dataset: DatasetRecord) -> Answering:
        """`model`, answering batches of `preparation`, with rows that `dataset` asks for."""

    @abstractmethod
    def sample(self, data: Data, models: Mapping[str, ModelT], config: EvalConfig) -> Sample | None:
        """The image that shows what each transform does; None where none can be read."""

    def finish(self, run: Path, data: Data, models: Mapping[str, ModelT]) -> None:
        """Adds to the folder `run` what is drawn from the finished rows of `models`: nothing."""
        return

    @abstractmethod
    def trial_model(self, request: ModelRequest) -> ModelT:
        """A model that costs what the one of `request` costs, without any download."""
