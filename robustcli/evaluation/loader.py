"""The stream of batches, made in worker processes: each image is decoded once.

A worker decodes a batch of images and then sends one transform after the other, so memory holds one
batch, however many transforms there are. Worker w of W makes the batches w, w + W, w + 2 W, ... of
a list that exists before the workers start, so every batch is made exactly once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from robustcli.core import machine
from robustcli.core.errors import RobustError
from robustcli.data.dataset import Sample
from robustcli.data.decode import UnreadableImage
from robustcli.data.object_files import fetch_ahead
from robustcli.evaluation.plan import PieceBatch
from robustcli.tasks.base import Batch, Item, Preparation


@dataclass(frozen=True)
class Source(IterableDataset["Batch[Any] | RobustError"]):
    """The stream of the batches of `parts`, in their order within each worker.

    A RobustError is an item of the stream: torch would hide an exception in a worker's traceback.
    """

    parts: tuple[PieceBatch, ...]
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

    def _batches(self, part: PieceBatch) -> Iterator[Batch[Any]]:
        items, decoded, unreadable = self._decode_all(part.images)
        ids = [item.image_id for item in items]
        for prepared in self.preparation.prepare(
            items, decoded, models=part.piece.models, views=part.piece.inputs
        ):
            models = part.piece.models[prepared.cell]
            yield Batch(
                part.piece.block, part.number, part.count, prepared.cell, models, ids,
                prepared.inputs, prepared.measures, unreadable,
            )  # fmt: skip

    def _decode_all(
        self, images: Sequence[Item]
    ) -> tuple[list[Item], list[Any], list[tuple[str, str]]]:
        items, decoded, unreadable = [], [], []
        fetch_ahead(item for item in images if isinstance(item, Sample))
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

    With 0 `workers` this process makes the batches. `pin` puts tensors into page-locked memory, for
    a fast copy to a GPU. `start_method` is that of worker processes, None for the system's.
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
    """Limits a worker to one thread: more would compete with the other workers for the cores.

    What a scheduler signals before it pre-empts a job is for the process that computes.
    """
    import cv2

    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
