"""What is still to compute: models x transforms x blocks of images, less the rows there are.

The main process looks at the folder once, before anything is computed. What it finds missing are
immutable pieces of work; which rank computes a piece, and which loader worker makes a batch of it,
are pure functions of their numbers. Nobody looks at the folder again to find out what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from robustcli.evaluation.store import Store, rows_in
from robustcli.tasks.base import Item
from robustcli.transforms.base import Cell

PIECES_PER_RANK = 4  # fewer, and ranks wait at the end for the one with the largest share


ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Piece:
    """The work on some cells of one block of images.

    Args:
        block: The number of the block.
        images: All images of the block.
        models: By cell, the models that lack its rows; a cell in which nothing is missing is left
            out.
        inputs: By cell, the views that lack the measures of its images.
    """

    block: int
    images: tuple[Item, ...]
    models: Mapping[Cell, tuple[str, ...]]
    inputs: Mapping[Cell, tuple[str, ...]]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells in which something is missing, in the run's order."""
        return tuple(self.models)

    @property
    def forwards(self) -> int:
        """Model inputs to compute."""
        return len(self.images) * sum(len(models) for models in self.models.values())

    def only(self, cells: Sequence[Cell]) -> Piece:
        """The part of this piece that belongs to `cells`."""
        return Piece(
            self.block,
            self.images,
            {cell: self.models[cell] for cell in cells},
            {cell: self.inputs[cell] for cell in cells},
        )


@dataclass(frozen=True)
class PieceBatch:
    """One batch of images of a piece, under all its cells: what a loader worker takes at once.

    Args:
        piece: What the images belong to.
        images: The images.
        number: Which part of the piece this is, from 0.
        of: How many parts the piece has.
    """

    piece: Piece
    images: tuple[Item, ...]
    number: int
    of: int


@dataclass(frozen=True)
class EvaluationPlan:
    """What a run is made of."""

    store: Store
    images: tuple[Item, ...]
    cells: tuple[Cell, ...]
    models: tuple[str, ...]
    views: tuple[str, ...]
    block_size: int

    @property
    def block_count(self) -> int:
        """Blocks of images, the last one possibly short."""
        return -(-len(self.images) // self.block_size)

    @property
    def forwards(self) -> int:
        """Model inputs of the whole run, finished ones included."""
        return len(self.images) * len(self.cells) * len(self.models)

    def images_of(self, block: int) -> tuple[Item, ...]:
        """The images of block number `block`."""
        return self.images[block * self.block_size : (block + 1) * self.block_size]

    def missing(self) -> tuple[Piece, ...]:
        """What the folder lacks now, a piece for each unfinished block.

        A file counts when it has a row for every image of its block that could be read.
        """
        pieces = (self._piece(block) for block in range(self.block_count))
        return tuple(piece for piece in pieces if piece.cells)

    def _piece(self, block: int) -> Piece:
        images = self.images_of(block)
        rows = len(images) - (rows_in(self.store.skipped_path(block)) or 0)

        def lacking(
            names: Sequence[str], path: Callable[[str, Cell, int], Path], cell: Cell
        ) -> tuple[str, ...]:
            return tuple(name for name in names if rows_in(path(name, cell, block)) != rows)

        models = {c: lacking(self.models, self.store.prediction_path, c) for c in self.cells}
        inputs = {c: lacking(self.views, self.store.input_path, c) for c in self.cells}
        return Piece(block, images, models, inputs).only(
            [cell for cell in self.cells if models[cell] or inputs[cell]]
        )


def shared(pieces: Sequence[Piece], ranks: int) -> tuple[Piece, ...]:
    """The same work in enough pieces for `ranks` processes, each taking every `ranks`-th one.

    Where there are few blocks, the cells of a block are dealt to several pieces; its images are
    then decoded once for each.
    """
    if ranks == 1 or not pieces:
        return tuple(pieces)
    ways = -(-ranks * PIECES_PER_RANK // len(pieces))
    return tuple(part for piece in pieces for part in _split(piece, ways))


def _split(piece: Piece, ways: int) -> Iterator[Piece]:
    cells = piece.cells
    for way in range(min(ways, len(cells))):
        yield piece.only(cells[way :: min(ways, len(cells))])


def share_of(pieces: Sequence[Piece], rank: int, ranks: int) -> tuple[Piece, ...]:
    """The pieces of rank number `rank` of `ranks`: every piece belongs to exactly one rank."""
    return tuple(pieces[rank::ranks])


def parts_of(pieces: Sequence[Piece], batch_size: int) -> tuple[PieceBatch, ...]:
    """The batches of `pieces` in their order, the last one of each piece possibly short."""
    return tuple(
        PieceBatch(piece, tuple(images), number, -(-len(piece.images) // batch_size))
        for piece in pieces
        for number, images in enumerate(batches(piece.images, batch_size))
    )


def batches(images: Sequence[ItemT], size: int) -> list[Sequence[ItemT]]:
    """`images` in runs of `size`, the last one possibly short."""
    return [images[first : first + size] for first in range(0, len(images), size)]
