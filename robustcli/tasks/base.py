"""What an evaluation asks of a task; `classification` and `segmentation` are the two.

A task opens the data, loads the models, makes their inputs in loader workers, and turns their
answers into rows. The rest of an evaluation does not know which of the two it serves.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.model import Model, ModelFacts
from robustcli.core.listener import Listener
from robustcli.core.names import TaskName
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.subsets import quick_look, take
from robustcli.models.scan.choice import choose_backend
from robustcli.tasks.config import TaskConfig
from robustcli.tasks.pictures import SamplePicture
from robustcli.tasks.record import DatasetRecord, EvaluatedPart, ModelCost, ModelRecord
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import TransformCell

Row = dict[str, object]
ModelT = TypeVar("ModelT", bound=Model)
ConfigT = TypeVar("ConfigT", bound=TaskConfig)


class Item(Protocol):
    """Something to evaluate: an image, with what is known of it."""

    @property
    def image_id(self) -> str:
        """The same on every machine."""


@dataclass(frozen=True)
class Pool:
    """How many images and groups of images there were before some were taken."""

    images: int
    groups: int


@dataclass(frozen=True)
class Data:
    """What is evaluated: looked up, not decoded.

    Args:
        items: The images, with what is known of each.
        record: What `run.json` says of them.
        pool: From which `--quick`, `--limit` or `--per-class` took the images.
        grouping: What a group of images is, in the singular, where there are groups.
        split: Which part of the data set they are, where it has parts.
        dataset: The images with their classes; None where they have masks.
    """

    items: tuple[Any, ...]
    record: DatasetRecord
    pool: Pool
    grouping: str | None = None
    split: EvaluatedPart | None = None
    dataset: Dataset | None = None


def select_subset(dataset: Dataset, config: TaskConfig) -> Dataset:
    """The images of `dataset` that `--quick`, or `--limit` and `--per-class`, take."""
    if config.quick:
        return quick_look(dataset, seed=config.seed)
    return take(dataset, per_class=config.per_class, limit=config.limit, seed=config.seed)


def pool_of(dataset: Dataset) -> Pool:
    """The counts of `dataset`."""
    return Pool(len(dataset.samples), len(dataset.groups))


# Inputs, made in loader workers.


ORIGINAL = "original"
ItemT = TypeVar("ItemT", bound=Item)
DecodedT = TypeVar("DecodedT")
InputsT = TypeVar("InputsT")


@dataclass(frozen=True)
class Prepared(Generic[InputsT]):
    """One transform of some images: what models get, and per view that lacks them its measures."""

    cell: Cell
    inputs: InputsT
    measures: dict[str, list[Measures]]


class Preparation(ABC, Generic[ItemT, DecodedT, InputsT]):
    """How images become inputs of models. It is sent to worker processes."""

    @abstractmethod
    def decode(self, item: ItemT) -> DecodedT:
        """The pixels of `item`.

        Raises:
            UnreadableImage: They cannot be had.
        """

    @abstractmethod
    def prepare(
        self,
        items: Sequence[ItemT],
        decoded: Sequence[DecodedT],
        *,
        models: Mapping[Cell, Sequence[str]],
        views: Mapping[Cell, Sequence[str]],
    ) -> Iterator[Prepared[InputsT]]:
        """What is missing of these images (perhaps none), cell by cell in the order of `models`.

        Args:
            items: Some images.
            decoded: What `decode` gave for each.
            models: By cell, the models that lack its rows.
            views: By cell, the views that lack the measures of its images.
        """


@dataclass(frozen=True)
class Batch(Generic[InputsT]):
    """One transform of one batch of images, as the runner receives it.

    `models` lack these rows; `inputs` is what they get, for the images `image_ids`; `measures` has,
    per view that lacks them, one entry an image. `unreadable` is (image id, reason) of the images
    that are left out. This is part `part` (from 0) of the `of` parts of `block`'s rows in `cell`.
    """

    block: int
    part: int
    of: int
    cell: Cell
    models: tuple[str, ...]
    image_ids: list[str]
    inputs: InputsT
    measures: dict[str, list[Measures]]
    unreadable: list[tuple[str, str]]


@dataclass(frozen=True)
class Measures:
    """Digest of the transformed pixels, PSNR in dB against the clean ones, whether any changed.

    PSNR is infinite for unchanged pixels and NaN where the transform changed the size.
    """

    digest: str
    psnr_db: float
    changed: bool


def measure(clean: NDArray[np.uint8], transformed: NDArray[np.uint8]) -> Measures:
    """The measures of `transformed` (H, W, 3) against `clean`."""
    digest = hashlib.blake2b(repr(transformed.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(transformed).data)
    if transformed.shape != clean.shape:
        return Measures(digest.hexdigest(), float("nan"), True)
    error = mean_squared_error(clean, transformed)
    psnr = float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
    return Measures(digest.hexdigest(), psnr, error > 0)


def mean_squared_error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean of (a - b)**2 over all values, exact: the sum is taken in integers."""
    difference = np.subtract(a, b, dtype=np.int16).ravel().astype(np.int32)
    return float(np.square(difference).sum(dtype=np.int64)) / difference.size


# Answers, and the task itself.


class Predictor(Protocol):
    """One model answering batches."""

    @property
    def cost(self) -> ModelCost:
        """What its forward passes took so far."""

    def rows(self, batch: Batch[Any]) -> list[Row]:
        """The rows of the images of `batch`, at least one, in their order."""


class Task(ABC, Generic[ModelT]):
    """What a model does, from settings to rows.

    `batch_sizes` are the images that it sends through a model at once, by type of device.
    """

    name: ClassVar[TaskName]
    batch_sizes: ClassVar[Mapping[str, int]]

    @abstractmethod
    def check(self, config: TaskConfig) -> None:
        """Validates the settings.

        Raises:
            UsageError: One has no meaning for this task; the message says why.
        """

    def with_defaults(self, config: ConfigT, listener: Listener) -> ConfigT:
        """`config` with the settings that its models decide, each announced; most tasks have none.

        Raises:
            UsageError: The models contradict each other.
        """
        return config

    @abstractmethod
    def open(self, config: TaskConfig, listener: Listener) -> Data:
        """The images that `config` names; a default that is taken is announced.

        Raises:
            UsageError: There is no such data, or it does not fit the models.
        """

    @abstractmethod
    def load(self, request: ModelRequest, *, seed: int, offline: bool) -> ModelT:
        """The model that `request` names, on the CPU."""

    @abstractmethod
    def model_record(self, model: ModelT, config: TaskConfig) -> ModelRecord:
        """What `run.json` says of `model`."""

    @abstractmethod
    def preparation(
        self, models: Mapping[str, ModelT], cells: Mapping[Cell, TransformCell], config: TaskConfig
    ) -> Preparation[Any, Any, Any]:
        """How a batch for `models` is made of decoded images."""

    @abstractmethod
    def schema(self, dataset: DatasetRecord) -> pa.Schema:
        """The columns of the rows of `dataset`."""

    @abstractmethod
    def predictor(self, model: ModelT, dataset: DatasetRecord) -> Predictor:
        """`model`, answering batches of `preparation`, with rows that `dataset` asks for."""

    @abstractmethod
    def sample(
        self, items: Sequence[Sample], models: Mapping[str, ModelT], config: TaskConfig
    ) -> SamplePicture | None:
        """The first of `items` that shows what transforms do; None where none can be read."""

    def finish(
        self,
        run: Path,
        data: Data,
        models: Mapping[str, ModelT],
        rows: Callable[[str], pd.DataFrame],
        cells: Collection[TransformCell],
        seed: int,
    ) -> None:
        """Adds to the folder `run` the pictures of finished rows; most tasks have none.

        Args:
            run: The run's folder.
            data: What was evaluated.
            models: By name.
            rows: The finished rows of a model on untouched images, by its name.
            cells: The transforms of the command.
            seed: The run's.
        """
        return

    @abstractmethod
    def trial_model(self, request: ModelRequest) -> ModelT:
        """A model that costs what the one of `request` costs, without any download."""


def facts_record(facts: ModelFacts, device: torch.device) -> dict[str, Any]:
    """The fields of a `ModelRecord` that do not depend on the task."""
    told = asdict(facts)
    scans = told.pop("scans")
    return {**told, "scan_backend": choose_backend(device, torch.float32) if scans else None}
