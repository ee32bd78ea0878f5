"""Plan of the missing work: models x transforms x blocks of images, without existing rows.

The main process reads the folder once, before the computation, and divides the missing work into
immutable pieces. The rank that computes a piece, and the loader worker that makes a batch of it,
are pure functions of their numbers; no process reads the folder again to find work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from robustcli.data.dataset import Sample
from robustcli.evaluation.store import READERS, Store, rows_in
from robustcli.transforms.base import Cell

_T = TypeVar("_T")
PIECES_PER_RANK = 4  # with fewer, ranks wait longer at the end for the rank with the largest share


@dataclass(frozen=True)
class Piece:
    """Missing work on some cells of one block of images.

    For each unfinished cell, `models` are the models without rows, and `inputs` are the views
    without image measures.
    """

    block: int
    images: tuple[Sample, ...]
    models: Mapping[Cell, tuple[str, ...]]
    inputs: Mapping[Cell, tuple[str, ...]]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The unfinished cells, in the run's order."""
        return tuple(self.models)

    @property
    def forwards(self) -> int:
        """Number of predictions to compute."""
        return len(self.images) * sum(len(models) for models in self.models.values())

    def only(self, cells: Sequence[Cell]) -> Piece:
        """The part of this piece that belongs to `cells`."""
        return Piece(
            self.block,
            self.images,
            {cell: self.models[cell] for cell in cells},
            {cell: self.inputs[cell] for cell in cells},
        )

    def as_plain(self) -> list[Any]:
        """This piece as JSON: block, and per cell the transform, severity, models and views."""
        return [
            self.block,
            [[c.transform, c.severity, self.models[c], self.inputs[c]] for c in self.cells],
        ]


@dataclass(frozen=True)
class PieceBatch:
    """A batch of images of a piece, for all its cells; `first` is the index of the first image."""

    piece: Piece
    images: tuple[Sample, ...]
    first: int


@dataclass(frozen=True)
class EvaluationPlan:
    """All work of a command: images x cells x models, and the views with image measures."""

    store: Store
    images: tuple[Sample, ...]
    cells: tuple[Cell, ...]
    models: tuple[str, ...]
    views: tuple[str, ...]
    block_size: int

    @property
    def forwards(self) -> int:
        """Number of predictions, including finished ones."""
        return len(self.images) * len(self.cells) * len(self.models)

    def images_of(self, block: int) -> tuple[Sample, ...]:
        """The images of block number `block`."""
        return self.images[block * self.block_size : (block + 1) * self.block_size]

    def missing(self) -> tuple[Piece, ...]:
        """The missing work, one piece for each unfinished block.

        A file is finished if it has a row for every readable image of its block.
        """
        blocks = -(-len(self.images) // self.block_size)
        with ThreadPoolExecutor(READERS) as readers:
            return tuple(p for p in readers.map(self._piece, range(blocks)) if p.cells)

    def piece_of(self, plain: Sequence[Any]) -> Piece:
        """The piece in the format of `as_plain`, sent by another process, with its images."""
        block, cells = plain
        models = {Cell(name, severity): tuple(models) for name, severity, models, _ in cells}
        inputs = {Cell(name, severity): tuple(views) for name, severity, _, views in cells}
        return Piece(block, self.images_of(block), models, inputs)

    def still_missing(self, pieces: Sequence[Piece]) -> tuple[Piece, ...]:
        """The parts of `pieces` that are still missing, such as after the death of a worker."""
        pairs = ((piece, self._piece(piece.block)) for piece in pieces)
        left = (now.only([c for c in piece.cells if c in now.models]) for piece, now in pairs)
        return tuple(piece for piece in left if piece.cells)

    def damaged(self, missing: Sequence[Piece]) -> list[Path]:
        """The files of `missing` work that exist but are damaged."""
        paths = (
            path(name, cell, piece.block)
            for piece in missing
            for path, cells in (
                (self.store.prediction_path, piece.models),
                (self.store.input_path, piece.inputs),
            )
            for cell, names in cells.items()
            for name in names
        )
        return [path for path in paths if path.is_file() and rows_in(path) is None]

    def _piece(self, block: int) -> Piece:
        images = self.images_of(block)
        rows = len(images) - (rows_in(self.store.skipped_path(block)) or 0)

        def without_rows(
            names: Sequence[str], path: Callable[[str, Cell, int], Path], cell: Cell
        ) -> tuple[str, ...]:
            return tuple(name for name in names if rows_in(path(name, cell, block)) != rows)

        models = {c: without_rows(self.models, self.store.prediction_path, c) for c in self.cells}
        inputs = {c: without_rows(self.views, self.store.input_path, c) for c in self.cells}
        return Piece(block, images, models, inputs).only(
            [cell for cell in self.cells if models[cell] or inputs[cell]]
        )


def shared(pieces: Sequence[Piece], ranks: int) -> tuple[Piece, ...]:
    """Divides the work into enough pieces for `ranks` processes.

    With few blocks, the cells of a block are divided among several pieces, each of which decodes
    the images of the block.
    """
    if ranks == 1 or not pieces:
        return tuple(pieces)
    parts_per_piece = -(-ranks * PIECES_PER_RANK // len(pieces))
    return tuple(
        piece.only(piece.cells[first :: min(parts_per_piece, len(piece.cells))])
        for piece in pieces
        for first in range(min(parts_per_piece, len(piece.cells)))
    )


def share_of(pieces: Sequence[_T], rank: int, ranks: int) -> tuple[_T, ...]:
    """The pieces of rank number `rank` of `ranks`: every piece belongs to exactly one rank."""
    return tuple(pieces[rank::ranks])


def parts_of(pieces: Sequence[Piece], batch_size: int) -> tuple[PieceBatch, ...]:
    """The batches of `pieces` in order; the last one of each piece may be short."""
    return tuple(
        PieceBatch(piece, tuple(images), number * batch_size)
        for piece in pieces
        for number, images in enumerate(batches(piece.images, batch_size))
    )


def batches(images: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    """`images` in batches of `size`; the last one may be short."""
    return [images[first : first + size] for first in range(0, len(images), size)]
