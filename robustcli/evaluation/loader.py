"""The stream of batches, made in worker processes: each image is decoded once.

A worker takes a batch of images, decodes them, and then sends one transform after the other: memory
is that of one batch, however many transforms there are. Worker number w of W makes the batches w,
w + W, w + 2 W, ... of a list that was made before the workers began, so that no batch is made twice
and none is left out, however fast or slow a worker is.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from robustcli.core import machine
from robustcli.core.errors import RobustError
from robustcli.data.decode import UnreadableImage
from robustcli.evaluation.plan import Item, Part, Piece
from robustcli.evaluation.store import Cell

# What a transform did to the pixels of one image.


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
        self, items: Sequence[ItemT], decoded: Sequence[DecodedT], piece: Piece
    ) -> Iterator[Prepared[InputsT]]:
        """What is missing in `piece` of these images (perhaps none), cell by cell.

        Args:
            items: Some images of the piece.
            decoded: What `decode` gave for each.
            piece: Which models and views lack which cells.
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
class Source(IterableDataset["Batch[Any] | RobustError"]):
    """The stream of the batches of `parts`, in their order within each worker.

    An error for the user comes as an item: torch would bury an exception in a worker's traceback.
    """

    parts: tuple[Part, ...]
    preparation: Preparation[Any, Any, Any]

    def __iter__(self) -> Iterator[Batch[Any] | RobustError]:
        """This worker's batches, each with all its cells in the run's order."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for part in self.parts[first::step]:
                yield from self._batches(part)
        except RobustError as error:
            yield error

    def _batches(self, part: Part) -> Iterator[Batch[Any]]:
        items, decoded, unreadable = self._decode_all(part.images)
        ids = [item.image_id for item in items]
        for made in self.preparation.prepare(items, decoded, part.piece):
            yield Batch(
                part.piece.block, part.number, part.of, made.cell, part.piece.models[made.cell],
                ids, made.inputs, made.measures, unreadable,
            )  # fmt: skip

    def _decode_all(
        self, images: Sequence[Item]
    ) -> tuple[list[Item], list[Any], list[tuple[str, str]]]:
        items, decoded, unreadable = [], [], []
        for item in images:
            try:
                decoded.append(self.preparation.decode(item))
                items.append(item)
            except UnreadableImage as error:
                unreadable.append((item.image_id, error.reason))
        return items, decoded, unreadable


def batch_stream(
    source: Source, workers: int, *, pin: bool, start_method: str | None = None
) -> DataLoader[Batch[Any] | RobustError]:
    """The batches of `source`.

    Args:
        source: What is to be made.
        workers: Processes that make it; 0 makes it in this one.
        pin: Whether tensors are put into page-locked memory, for a fast copy to a GPU.
        start_method: How workers start (`fork`, `spawn`, `forkserver`); None takes that of the
            system.
    """
    return DataLoader(
        source,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
        multiprocessing_context=(start_method or machine.start_method()) if workers else None,
        worker_init_fn=_one_thread,
    )


def _one_thread(_: int) -> None:
    """OpenCV's and torch's own threads would fight with the other workers for the same cores."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
