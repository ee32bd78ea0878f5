"""What is done when a device or the machine runs out of memory: fewer images at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from robustcli.adapters.model import Model
from robustcli.core.errors import RunError

Announce = Callable[[str], None]
_T = TypeVar("_T")
_TEXTS = (
    "out of memory",  # of CUDA, HIP, MPS and of the NCCL and Triton calls below them
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",  # the same on Windows
    "unable to allocate",  # NumPy, in an error of another class
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Unable to find a valid cuDNN algorithm",  # each one that there is needs more than is free
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or a device ran out; some libraries say so only in the text.

    Source: `lightning.pytorch.utilities.memory.is_oom_error`, with cuBLAS, NumPy and MPS.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):  # NumPy's is a MemoryError
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def free_cached(device: torch.device) -> None:
    """Gives back what torch keeps of the memory of `device` for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


class BatchLimit:
    """How many images one model computes at once: halved whenever memory runs out, for good.

    Args:
        model: On its device.
        announce: Receives a line when fewer images are computed from then on.
    """

    def __init__(self, model: Model, announce: Announce | None = None) -> None:
        self.model, self.announce = model, announce
        self.most: int | None = None
        self._largest = 0
        self._announced: int | None = None

    def run(self, count: int, compute: Callable[[slice], Any], shape: str = "") -> list[Any]:
        """The results of `compute` for slices that follow one another and cover `count` images.

        With an even batch size the slices are the batches of a run with half of it.

        Args:
            count: How many images there are, at least one.
            compute: Computes a slice of them; after memory ran out it is called for all again.
            shape: The size of an image in words, for the error.

        Raises:
            RunError: Not even one image fits.
        """

        def in_parts(size: int) -> list[Any]:
            return [compute(slice(at, min(at + size, count))) for at in range(0, count, size)]

        return self.fitting(count, in_parts, shape)

    def fitting(self, count: int, compute: Callable[[int], _T], shape: str = "") -> _T:
        """The result of `compute` with the largest batch size up to `count` that fits.

        For arguments and errors see `run`.
        """
        self._largest = max(self._largest, count)
        while True:
            size = min(count, self.most or count)
            try:
                result = compute(size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise self._too_large(shape) from error
            else:
                self._tell()
                return result
            # Out of the handler: the error holds the frames, and they the tensors.
            self.most = (self.most or self._largest) // 2
            while self.most >= size:
                self.most //= 2
            free_cached(self.model.device)

    def _tell(self) -> None:
        if self.announce is not None and self.most != self._announced:
            self._announced = self.most
            self.announce(
                f"Out of memory on {self.model.device}: `{self.model.facts.name}` goes on with "
                f"batches of {self.most}."
            )

    def _too_large(self, shape: str) -> RunError:
        of = f" of {shape}" if shape else ""
        return RunError(
            f"`{self.model.facts.name}` does not fit into the memory of {self.model.device}.",
            f"It ran out with a batch of one image{of}.",
            "Try `--precision bf16`, smaller images, or `--device cpu`, or end other programs that "
            "use this memory; the same command continues the run.",
        )
