"""Data loading: worker processes decode each image once and apply all transforms.

A worker decodes a batch of images and then yields one transformed batch after the other, so its
memory contains one batch, independent of the number of transforms. Worker w of W makes the batches
w, w + W, w + 2 W, ... of a list that is fixed before the workers start, so every batch is made
exactly once.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from robustcli.core import machine
from robustcli.core.errors import RobustError, RunError
from robustcli.core.signals import uninterrupted
from robustcli.core.watchdog import Watchdog, WorkerTable, in_batch
from robustcli.data.dataset import Sample
from robustcli.data.decode import UnreadableImage
from robustcli.data.object_files import fetch_ahead
from robustcli.evaluation.plan import PieceBatch
from robustcli.tasks.base import Batch, Preparation
from robustcli.transforms.base import Cell

_T = TypeVar("_T", covariant=True)
_Batch = TypeVar("_Batch")
_MOST_BYTES = 2**29
"""Bytes of decoded images from which a batch is complete; its transformed images take as much.

128 photos of 1.3 megapixels are below it, 32 photos of a camera are not.
"""


@dataclass(frozen=True)
class Notice:
    """A message for the user from a loader process, sent as an item of the stream."""

    text: str


@dataclass(frozen=True)
class Source(IterableDataset["Batch[Any] | Notice | RobustError"]):
    """Data set of the batches of `parts`, in order within each worker.

    A RobustError is sent as an item, because torch would hide an exception in a worker's traceback.
    A batch of large photos is divided by the size of their pixels, and one that does not fit into
    the memory of the machine is halved.
    """

    parts: tuple[PieceBatch, ...]
    preparation: Preparation[Any, Any]

    def __iter__(self) -> Iterator[Batch[Any] | Notice | RobustError]:
        """Yields the batches of this worker, for each part all cells in the run's order."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for part in self.parts[first::step]:
                yield from self._fitting(part, part.piece.models)
        except RobustError as error:
            yield error

    def _fitting(
        self, part: PieceBatch, models: Mapping[Cell, tuple[str, ...]]
    ) -> Iterator[Batch[Any] | Notice]:
        """The batches of `part` for the cells of `models`; several for large photos."""
        while part.images:
            count = yield from self._first_fitting(part, models)
            part = replace(part, images=part.images[count:], first=part.first + count)

    def _first_fitting(
        self, part: PieceBatch, models: Mapping[Cell, tuple[str, ...]]
    ) -> Generator[Batch[Any] | Notice, None, int]:
        """The batches of the first images of `part`, in halves if memory is too small.

        Returns the number of these images: with at most `_MOST_BYTES` of pixels, or one.
        """
        finished_cells: set[Cell] = set()
        count = len(part.images)
        try:
            in_batch([item.image_id for item in part.images])
            items, decoded, unreadable = self._decode_first(part.images)
            count = len(items) + len(unreadable)
            for batch in self._batches(part, models, items, decoded, unreadable):
                yield batch
                finished_cells.add(batch.cell)
            return count
        except MemoryError as error:  # also raised by NumPy
            if count == 1:
                raise _too_large(part.images[0].image_id, error) from error
            items, decoded = [], []
        yield Notice(
            "Out of memory in a loader process: it continues with half of the batch. Fewer "
            "`--workers` or a smaller `--batch-size` need less memory."
        )
        half = count // 2
        left = {cell: names for cell, names in models.items() if cell not in finished_cells}
        yield from self._fitting(replace(part, images=part.images[:half]), left)
        after = replace(part, images=part.images[half:count], first=part.first + half)
        yield from self._fitting(after, left)
        return count

    def _batches(
        self, part: PieceBatch, models: Mapping[Cell, tuple[str, ...]], items: Sequence[Sample],
        decoded: Sequence[Any], unreadable: list[tuple[str, str]],
    ) -> Iterator[Batch[Any]]:  # fmt: skip
        ids = [item.image_id for item in items]
        views = {cell: part.piece.inputs[cell] for cell in models}
        for prepared in self.preparation.prepare(items, decoded, models=models, views=views):
            yield Batch(
                part.piece.block, part.first, len(part.piece.images), prepared.cell,
                models[prepared.cell], ids, prepared.inputs, prepared.measures, unreadable,
            )  # fmt: skip

    def _decode_first(
        self, images: Sequence[Sample]
    ) -> tuple[list[Sample], list[Any], list[tuple[str, str]]]:
        """The first images and their pixels, up to `_MOST_BYTES`, and those not readable."""
        items, decoded, unreadable, size = [], [], [], 0
        fetch_ahead(item for item in images if isinstance(item, Sample))
        for item in images:
            try:
                decoded.append(self.preparation.decode(item))
                items.append(item)
            except UnreadableImage as error:
                unreadable.append((item.image_id, error.reason))
                continue
            size += _bytes_of(decoded[-1])
            if size >= _MOST_BYTES:
                break
        return items, decoded, unreadable


def _bytes_of(decoded: Any) -> int:
    """Bytes of the arrays of a decoded image."""
    arrays = decoded if isinstance(decoded, tuple) else (decoded,)
    return sum(getattr(array, "nbytes", 0) for array in arrays)


def _too_large(image_id: str, error: MemoryError) -> RunError:
    why = str(error)
    return RunError(
        f"`{image_id}` and its transforms do not fit into the memory of this machine.",
        f"The memory ran out with only this image{f': {why}' if why else ''}.",
        "Use fewer `--workers`, stop other programs, or remove the image; the same command "
        "continues the run.",
    )


class WorkerLoader(DataLoader[_T]):
    """A DataLoader that starts all of its worker processes, even if a signal arrives meanwhile.

    The number of workers may exceed the number of cores.
    """

    _has_started = False

    def __iter__(self) -> Any:
        """Starts the workers; if they are persistent, only the first time."""
        if not self.num_workers or (self.persistent_workers and self._has_started):
            return super().__iter__()
        with uninterrupted(), _silent_finaliser_after_errors():
            iterator: Any = super().__iter__()
        self._has_started = True
        with suppress(TypeError):  # only Python classes can be extended
            iterator.__class__ = _with_silent_finaliser(type(iterator))
        return iterator

    def check_worker_number_rationality(self) -> None:
        """Does nothing; torch prints the same warning at creation and at the first batch."""


def in_shared_memory(batch: _Batch) -> _Batch:
    """`batch`, with its tensors in shared memory if this is a loader process.

    torch would move them there in a thread of the process. If it fails, because shared memory is
    full, that thread only prints its traceback, and the main process waits for the batch forever.
    """
    if get_worker_info() is not None:
        for tensor in _tensors(batch):
            tensor.share_memory_()
    return batch


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif is_dataclass(value):
        yield from _tensors([getattr(value, field.name) for field in fields(value)])


@contextmanager
def _silent_finaliser_after_errors() -> Iterator[None]:
    """Finalises an iterator that could not start its workers, without the traceback of torch."""
    try:
        yield
    except Exception as error:
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        traceback.clear_frames(error.__traceback__)  # they hold the iterator
        sys.unraisablehook = hook
        raise


def _with_silent_finaliser(iterator: type[Any]) -> type[Any]:
    """A subclass of torch's class `iterator`, which is private.

    The finaliser fails, for example, if a signal has ended a worker; Python would print a
    traceback.
    """

    def finalise(self: Any) -> None:
        with suppress(Exception):
            iterator.__del__(self)

    return type(iterator.__name__, (iterator,), {"__del__": finalise})


def batch_stream(
    source: Source, workers: int, *, pin: bool, start_method: str | None = None,
    watchdog: Watchdog | None = None,
) -> DataLoader[Batch[Any] | Notice | RobustError]:  # fmt: skip
    """Creates a loader of the batches of `source`.

    Args:
        source: The data set.
        workers: Number of worker processes; 0 makes the batches in this process.
        pin: Whether tensors are in page-locked memory, for fast copies to a GPU.
        start_method: Start method of worker processes; None for `machine.start_method()`.
        watchdog: Observes the worker processes.
    """
    method = start_method or machine.start_method()
    table = watchdog.table(workers, method) if watchdog is not None and workers else None
    return WorkerLoader(
        source,
        batch_size=None,
        collate_fn=in_shared_memory,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
        multiprocessing_context=method if workers else None,
        worker_init_fn=partial(_start_worker, table),
    )


def _start_worker(table: WorkerTable | None, worker: int) -> None:
    """Initialises a worker: one thread per worker, because workers share the cores.

    Ignores SIGUSR2, which schedulers send before they pre-empt a job; the parent handles it.
    """
    import cv2

    if table is not None:
        table.enter(worker)
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
