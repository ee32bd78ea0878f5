"""A model's answers for a batch, timed, in as many pieces as its memory needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustcli.adapters.model import Model
from robustcli.core.errors import RunError
from robustcli.tasks.record import ModelCost


class Forward:
    """Runs one model; halves the piece it computes at once whenever memory runs out.

    Args:
        model: On its device.
        predict: Takes equally long inputs, one entry an image; None for the model's own.
    """

    def __init__(self, model: Model, predict: Callable[..., Any] | None = None) -> None:
        self.model = model
        self.predict = predict or model.predict
        self.cost = ModelCost()
        self.most: int | None = None

    def __call__(self, *inputs: Tensor | Sequence[Any]) -> list[Any]:
        """The answers for `inputs`, in pieces that follow one another.

        Raises:
            RunError: Not even one image fits into memory.
        """
        images, started = len(inputs[0]), time.perf_counter()
        while True:
            try:
                pieces = self._pieces(inputs, images)
                break
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._halve(images, error)
        self.cost.seconds += time.perf_counter() - started
        self.cost.images += images
        return pieces

    def _pieces(self, inputs: tuple[Tensor | Sequence[Any], ...], images: int) -> list[Any]:
        size = self.most or images
        starts = range(0, images, size)
        return [self.predict(*(part[at : at + size] for part in inputs)) for at in starts]

    def _halve(self, size: int, error: Exception) -> None:
        if not _is_out_of_memory(error):
            raise error
        device = self.model.device
        self.most = (self.most or size) // 2
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type == "mps":
            torch.mps.empty_cache()
        if self.most == 0:
            raise RunError(
                f"`{self.model.facts.name}` does not fit into the memory of {device}.",
                "It ran out with a batch of one image.",
                "Try `--precision bf16` or `--device cpu`; the same command continues the run.",
            ) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; the CPU allocator says so only in the text of a RuntimeError."""
    is_memory_error = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_memory_error or "can't allocate memory" in str(error) or "out of memory" in str(error)
