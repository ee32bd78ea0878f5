"""What is still to compute: models x transforms x blocks of images, less the files there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from robustcli.evaluation.store import Cell, Store


class Item(Protocol):
    """Something to evaluate: an image, with what is known of it."""

    @property
    def image_id(self) -> str:
        """The same on every machine."""


ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class BlockPlan:
    """The work on one block: which models lack rows of a cell, which views lack its measures."""

    block: int
    images: tuple[Item, ...]
    models: dict[Cell, tuple[str, ...]]
    inputs: dict[Cell, tuple[str, ...]]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells in which something is missing, in the run's order."""
        return tuple(c for c in self.models if self.models[c] or self.inputs[c])

    @property
    def forwards(self) -> int:
        """Model inputs to compute."""
        return len(self.images) * sum(len(models) for models in self.models.values())


@dataclass(frozen=True)
class Plan:
    """What the run is made of; what is missing is read from the store at each call."""

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

    def block(self, number: int) -> BlockPlan:
        """What is missing in block `number` now."""
        first = number * self.block_size
        return BlockPlan(
            number,
            self.images[first : first + self.block_size],
            {c: self._missing_models(c, number) for c in self.cells},
            {c: self._missing_inputs(c, number) for c in self.cells},
        )

    def missing(self, start: int = 0) -> Iterator[BlockPlan]:
        """The unfinished blocks, from block `start` on and around to it."""
        for step in range(self.block_count):
            block = self.block((start + step) % self.block_count)
            if block.cells:
                yield block

    def _missing_models(self, cell: Cell, number: int) -> tuple[str, ...]:
        paths = ((m, self.store.prediction_path(m, cell, number)) for m in self.models)
        return tuple(model for model, path in paths if not path.exists())

    def _missing_inputs(self, cell: Cell, number: int) -> tuple[str, ...]:
        paths = ((v, self.store.input_path(v, cell, number)) for v in self.views)
        return tuple(view for view, path in paths if not path.exists())


def starting_block(slot: int, blocks: int) -> int:
    """Where the process in `slot` (0, 1, 2, ...) starts, so that processes meet late.

    Source: the van der Corput sequence 0, 1/2, 1/4, 3/4, ... of fractions of the run.
    """
    fraction, weight = 0.0, 0.5
    while slot:
        fraction += weight * (slot & 1)
        slot, weight = slot >> 1, weight / 2
    return int(fraction * blocks)


def batches(images: Sequence[ItemT], size: int) -> list[Sequence[ItemT]]:
    """`images` in runs of `size`, the last one possibly short."""
    return [images[first : first + size] for first in range(0, len(images), size)]
