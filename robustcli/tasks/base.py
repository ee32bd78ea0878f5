"""The interface of a task of an evaluation: `classification` or `segmentation`.

A task opens the data, loads the models, prepares their inputs in loader workers, and converts their
predictions to rows. The rest of an evaluation does not depend on the task. Both tasks use the same
settings (`TaskConfig`), and run models by `Forward`.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.memory import Announce, BatchLimit
from robustcli.adapters.model import Model, ModelFacts
from robustcli.adapters.segmenter import Segmenter
from robustcli.core.arguments import Positive
from robustcli.core.listener import Listener
from robustcli.core.names import TaskName, counted
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.mask_classes import ClassesOption
from robustcli.data.mask_values import ValueOption
from robustcli.data.natural_shifts import AnswerClasses
from robustcli.data.splits import quick_look, take
from robustcli.models.scan.dispatch import choose_backend
from robustcli.tasks.pictures import SamplePicture
from robustcli.tasks.record import DatasetRecord, EvaluatedPart, ModelCost, ModelRecord
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import TransformCell


@dataclass(frozen=True)
class TaskConfig:
    """Models, transforms and images of an evaluation; see `robust eval --help` for each option.

    `splits_of` is a training run that defines the split of each image, as if one of the models came
    from that run. `quick` selects the images of `data.splits.quick_look`. `dataset` is the data
    set of `data`, if it is already open. `mask_classes` is the value of `--classes`.
    """

    models: tuple[ModelRequest, ...]
    transforms: tuple[str, ...]
    data: str | None = None
    _: KW_ONLY
    label_space: str | None = None
    labels: Path | None = None
    per_class: Positive | None = None
    limit: Positive | None = None
    quick: bool = False
    answers: AnswerClasses = "auto"
    split: Literal["auto"] | EvaluatedPart = "auto"
    splits_of: Path | None = None
    seed: int = 0
    apply_at: Literal["original", "crop"] = "original"
    foreground: ValueOption = None
    ignore: ValueOption = None
    mask_classes: ClassesOption = None
    dataset: Dataset | None = None
    offline: bool = False


Row = dict[str, object]
ModelT = TypeVar("ModelT", bound=Model)
ConfigT = TypeVar("ConfigT", bound=TaskConfig)


@dataclass(frozen=True)
class Pool:
    """The number of images and groups before a subset was drawn."""

    images: int
    groups: int


@dataclass(frozen=True)
class Data:
    """The images of an evaluation, before decoding.

    Args:
        items: The images, with their classes or masks.
        record: Their record in `run.json`.
        pool: Numbers of images and groups before `--quick`, `--limit` or `--per-class`.
        grouping: Singular noun for a group, such as `patient`; None without groups.
        split: The evaluated split of the data set; None without splits.
        dataset: The images with their classes; None for masks.
    """

    items: tuple[Sample, ...]
    record: DatasetRecord
    pool: Pool
    grouping: str | None = None
    split: EvaluatedPart | None = None
    dataset: Dataset | None = None


def select_subset(dataset: Dataset, config: TaskConfig) -> Dataset:
    """The images of `dataset` that `--quick`, or `--limit` and `--per-class`, select."""
    if config.quick:
        return quick_look(dataset, seed=config.seed)
    return take(dataset, per_class=config.per_class, limit=config.limit, seed=config.seed)


def pool_of(dataset: Dataset) -> Pool:
    """The numbers of images and groups of `dataset`."""
    return Pool(len(dataset.samples), len(dataset.groups))


def announce_default(dataset: Dataset, data: str | None, listener: Listener) -> None:
    """Announces the default data set, if `data`, the value of `--data`, is None."""
    if data is None:
        kind = " (a demonstration set)" if dataset.demonstration else ""
        images = f"{counted(len(dataset.samples), 'image')}, {dataset.location}"
        listener.say(f"`--data` is not set; using {dataset.name}{kind}, {images}.")


ORIGINAL = "original"
DecodedT = TypeVar("DecodedT")
InputsT = TypeVar("InputsT")


@dataclass(frozen=True)
class Prepared(Generic[InputsT]):
    """Images under one transform: model inputs, and the missing image measures by view."""

    cell: Cell
    inputs: InputsT
    measures: dict[str, list[Measures]]


class Preparation(ABC, Generic[DecodedT, InputsT]):
    """Prepares model inputs from images; must be picklable for worker processes."""

    @abstractmethod
    def decode(self, item: Sample) -> DecodedT:
        """The pixels of `item`; raises UnreadableImage if they cannot be decoded."""

    @abstractmethod
    def prepare(
        self,
        items: Sequence[Sample],
        decoded: Sequence[DecodedT],
        *,
        models: Mapping[Cell, Sequence[str]],
        views: Mapping[Cell, Sequence[str]],
    ) -> Iterator[Prepared[InputsT]]:
        """Yields the missing inputs of the images, if any, by cell in the order of `models`.

        Args:
            items: The images.
            decoded: The result of `decode` for each image.
            models: The models without rows, by cell.
            views: The views without image measures, by cell.
        """


@dataclass(frozen=True)
class Batch(Generic[InputsT]):
    """One batch of images under one transform, as the runner receives it.

    `models` are the models to predict with; `inputs` are their inputs for the images `image_ids`.
    `measures` contains, for each view without stored measures, one entry per image. `unreadable`
    contains id and reason of images that cannot be read, which are not in `image_ids`. The images
    are those of `block`, which has `block_images` images, from index `first` on.
    """

    block: int
    first: int
    block_images: int
    cell: Cell
    models: tuple[str, ...]
    image_ids: list[str]
    inputs: InputsT
    measures: dict[str, list[Measures]]
    unreadable: list[tuple[str, str]]

    def pin_memory(self) -> Batch[InputsT]:
        """The batch with the tensors of `inputs` in page-locked memory, if the inputs have any.

        torch's DataLoader calls this method; it leaves other objects without it unpinned.
        """
        pinned = getattr(self.inputs, "pin_memory", None)
        return self if pinned is None else replace(self, inputs=pinned())


@dataclass(frozen=True)
class Measures:
    """Digest of the transformed pixels, PSNR in dB against the clean pixels, whether any changed.

    PSNR is infinite for unchanged pixels and NaN if the transform changed the size.
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
    """Mean of (a - b)**2 over all values, computed from the exact sum."""
    import cv2

    # OpenCV may return the squared root of the sum; the sum is an integer far below 2**53.
    return float(round(cv2.norm(a, b, cv2.NORM_L2SQR))) / a.size


class Predictor(Protocol):
    """Predicts batches with one model."""

    @property
    def cost(self) -> ModelCost:
        """The cost of its forward passes so far."""

    def rows(self, batch: Batch[Any]) -> list[Row]:
        """The rows of the images of `batch` (at least one), in the order of the images."""


class Forward:
    """Runs one model; halves the size of pieces whenever memory runs out.

    Args:
        model: The model, already on its device.
        predict: Called with inputs of equal length, one entry per image; None for `model.predict`.
        announce: Receives a line if the model continues with smaller pieces.
    """

    def __init__(
        self, model: Model, predict: Callable[..., Any] | None = None,
        announce: Announce | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.predict = predict or model.predict
        self.cost = ModelCost()
        self.announce = announce
        self.limit = BatchLimit(model, announce)

    def __call__(self, *inputs: Tensor | Sequence[Any]) -> list[Any]:
        """The predictions for `inputs`, as a list of consecutive pieces.

        Raises:
            RunError: A single image does not fit into memory.
        """
        images, started = len(inputs[0]), time.perf_counter()
        windows = _windows(self.model)
        pieces = self.limit.run(
            images, lambda part: self.predict(*(values[part] for values in inputs)),
            _size_in_words(inputs[0]),
        )  # fmt: skip
        if self.announce is not None and _windows(self.model) != windows:
            self.announce(
                f"Out of memory on {self.model.device}: `{self.model.facts.name}` now processes "
                f"the windows of an image in batches of {_windows(self.model)}."
            )
        self.cost.seconds += time.perf_counter() - started
        self.cost.images += images
        return pieces


def _windows(model: Model) -> int | None:
    return model.most_windows if isinstance(model, Segmenter) else None


def _size_in_words(images: Tensor | Sequence[Any]) -> str:
    """Width and height of a batch (n, C, H, W), or of the largest of several images (H, W, 3)."""
    if isinstance(images, Tensor):
        height, width = images.shape[-2:]
        return f"{width}x{height} pixels"
    height, width = max((np.shape(image)[:2] for image in images), key=np.prod)
    return f"{width}x{height} pixels"


@dataclass(frozen=True)
class FinishedRows(Generic[ModelT]):
    """The finished rows of a command; `clean_rows` returns the clean rows of a model by name."""

    run: Path
    data: Data
    models: Mapping[str, ModelT]
    clean_rows: Callable[[str], pd.DataFrame]
    cells: Collection[TransformCell]
    seed: int


class Task(ABC, Generic[ModelT]):
    """Base class of tasks; `batch_sizes` maps the type of device to a batch size."""

    name: ClassVar[TaskName]
    batch_sizes: ClassVar[Mapping[str, int]]

    @abstractmethod
    def check(self, config: TaskConfig) -> None:
        """Raises UsageError for settings that do not apply to this task."""

    def with_defaults(self, config: ConfigT, listener: Listener) -> ConfigT:
        """`config` with settings taken from its models, each announced to `listener`.

        Raises:
            UsageError: The models need different settings.
        """
        return config

    @abstractmethod
    def open(self, config: TaskConfig, listener: Listener) -> Data:
        """Opens the images that `config` names; announces a default data set.

        Raises:
            UsageError: The data does not exist, or does not fit the models.
        """

    @abstractmethod
    def load(self, request: ModelRequest, *, seed: int, offline: bool) -> ModelT:
        """Loads the model that `request` names, on the CPU."""

    @abstractmethod
    def model_record(self, model: ModelT, config: TaskConfig) -> ModelRecord:
        """The record of `model` in `run.json`."""

    @abstractmethod
    def preparation(
        self, models: Mapping[str, ModelT], cells: Mapping[Cell, TransformCell], config: TaskConfig
    ) -> Preparation[Any, Any]:
        """The preparation of batches for `models`."""

    @abstractmethod
    def schema(self, dataset: DatasetRecord) -> pa.Schema:
        """The columns of the rows of `dataset`."""

    @abstractmethod
    def predictor(
        self, model: ModelT, dataset: DatasetRecord, announce: Announce | None = None
    ) -> Predictor:
        """The predictor of `model` for batches of `preparation`, with the columns of `dataset`.

        `announce` receives a line if memory runs out and the model continues with smaller batches.
        """

    @abstractmethod
    def sample(
        self, items: Sequence[Sample], models: Mapping[str, ModelT], config: TaskConfig
    ) -> SamplePicture | None:
        """The first of `items` suited to show transforms; None if no item is readable."""

    def finish(self, finished: FinishedRows[ModelT]) -> None:
        """Adds pictures of finished rows to the run's folder; by default none."""
        return

    @abstractmethod
    def trial_model(self, request: ModelRequest) -> ModelT:
        """A model with the same cost as that of `request`, loaded without any download."""


def facts_record(facts: ModelFacts, device: torch.device) -> dict[str, Any]:
    """The fields of a `ModelRecord` that do not depend on the task."""
    fields = asdict(facts)
    scans = fields.pop("scans")
    return {**fields, "scan_backend": choose_backend(device, torch.float32) if scans else None}
