"""Decoding, transforming and resizing, in worker processes: each image is decoded once.

A worker takes a batch of images, decodes them, and then sends one transform after the other: memory
is that of one batch, however many transforms there are.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import RobustError, RunError
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.index import ImageRef
from robustcli.evaluation.measures import Measures, measure
from robustcli.evaluation.plan import BlockPlan, Plan, batches
from robustcli.evaluation.store import Cell
from robustcli.transforms.registry import TransformCell, image_seed

ORIGINAL = "original"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """One transform of one batch of images, as the runner receives it.

    `models` lack these rows; `views` holds, per view of theirs, uint8 (n, 3, crop, crop);
    `measures`, per view that lacks them, one entry an image. `unreadable` is (image id, reason) of
    the images that are left out. This is part `first` of the block's `of` parts.
    """

    block: int
    first: int
    of: int
    cell: Cell
    models: tuple[str, ...]
    image_ids: list[str]
    targets: list[int]
    views: dict[str, Tensor]
    measures: dict[str, list[Measures]]
    unreadable: list[tuple[str, str]]


@dataclass(frozen=True)
class Source(IterableDataset["Batch | RobustError"]):
    """The stream of batches of the blocks in `order`; finished blocks are passed over.

    An error for the user comes as an item: torch would bury an exception in a worker's traceback.
    """

    plan: Plan
    transforms: dict[Cell, TransformCell]
    preprocessing: dict[str, Preprocessing]
    model_views: dict[str, str]
    order: tuple[int, ...]
    batch_size: int
    seed: int
    at_crop: bool

    def __iter__(self) -> Iterator[Batch | RobustError]:
        """This worker's share of the batches, each with all its cells in the run's order."""
        try:
            yield from self._share()
        except RobustError as error:
            yield error

    def _share(self) -> Iterator[Batch]:
        worker = get_worker_info()
        share, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        turn = 0
        for number in self.order:
            block = self.plan.block(number)
            if not block.cells:
                continue
            parts = batches(block.images, self.batch_size)
            for first, images in enumerate(parts):
                turn += 1
                if turn % workers == share:
                    yield from self._batch(first, len(parts), images, block)

    def _batch(
        self, first: int, of: int, images: Sequence[ImageRef], block: BlockPlan
    ) -> Iterator[Batch]:
        decoded, unreadable = _decode_all(images)
        ids, targets = [ref.image_id for ref, _ in decoded], [ref.target for ref, _ in decoded]
        clean = {ORIGINAL: [pixels for _, pixels in decoded]}
        if self.at_crop:
            clean = {v: self._fit_all(v, clean[ORIGINAL]) for v in self.preprocessing}
        for cell in block.cells:
            models = block.models[cell]
            views = {self.model_views[model] for model in models}
            bases = views | set(block.inputs[cell]) if self.at_crop else {ORIGINAL}
            made = {v: self._apply_all(cell, ids, clean[v]) for v in bases}
            seen = made if self.at_crop else {v: self._fit_all(v, made[ORIGINAL]) for v in views}
            measures = {v: list(map(measure, clean[v], made[v])) for v in block.inputs[cell]}
            stacked = {v: _stack(seen[v], self.preprocessing[v].crop) for v in views}
            yield Batch(
                block.block, first, of, cell, models, ids, targets, stacked, measures, unreadable
            )

    def _apply_all(self, cell: Cell, ids: list[str], images: list[Pixels]) -> list[Pixels]:
        made = [self._apply(cell, name, image) for name, image in zip(ids, images, strict=True)]
        for before, after in zip(images, made, strict=True):
            if self.at_crop and before.shape != after.shape:
                raise RunError(
                    f"`{cell.transform}` changed the size of a crop.",
                    f"It made {after.shape[:2]} of {before.shape[:2]} pixels.",
                    "With `--apply-at crop` it must keep the size; use `--apply-at original`.",
                )
        return made

    def _apply(self, cell: Cell, image_id: str, pixels: Pixels) -> Pixels:
        seed = image_seed(self.seed, cell.transform, cell.severity, image_id)
        transform = self.transforms[cell].transform
        return transform.apply(pixels, seed=seed, severity=cell.severity)

    def _fit_all(self, view: str, images: list[Pixels]) -> list[Pixels]:
        return [self.preprocessing[view].apply(image) for image in images]


def _decode_all(
    images: Sequence[ImageRef],
) -> tuple[list[tuple[ImageRef, Pixels]], list[tuple[str, str]]]:
    decoded, unreadable = [], []
    for ref in images:
        try:
            decoded.append((ref, decode(ref)))
        except UnreadableImage as error:
            unreadable.append((ref.image_id, error.reason))
    return decoded, unreadable


def _stack(images: list[Pixels], side: int) -> Tensor:
    """(n, 3, side, side) uint8; the copy also puts the channels first."""
    stacked = np.empty((len(images), 3, side, side), np.uint8)
    for place, image in enumerate(images):
        stacked[place] = image.transpose(2, 0, 1)
    return torch.from_numpy(stacked)


def batch_stream(source: Source, workers: int, *, pin: bool) -> DataLoader[Batch | RobustError]:
    """The batches of `source`, made by `workers` processes (0: in this one)."""
    fork = "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        source,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
        # A transform from a user's file cannot be imported by name in a fresh interpreter.
        multiprocessing_context="fork" if workers and fork else None,
        worker_init_fn=_one_thread,
    )


def _one_thread(_: int) -> None:
    """OpenCV's and torch's own threads would fight with the other workers for the same cores."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
