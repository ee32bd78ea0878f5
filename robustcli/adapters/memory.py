"""Handling of out-of-memory errors: the batch size is reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from robustcli.adapters.model import Model
from robustcli.core.errors import RunError

Announce = Callable[[str], None]
_T = TypeVar("_T")
_TEXTS = (
    "out of memory",  # CUDA, HIP, MPS, and NCCL and Triton below them
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",  # torch's CPU allocator on Windows
    "Failed to allocate memory",  # onnxruntime
    "unable to allocate",  # NumPy's message in exceptions of other libraries
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Unable to find a valid cuDNN algorithm",  # all need more memory than is free
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means out of memory, by its class or (for some libraries) its message.

    Source: `lightning.pytorch.utilities.memory.is_oom_error`, with cuBLAS, NumPy, MPS and
    onnxruntime, whose errors are no RuntimeErrors.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):  # also NumPy's error
        return True
    is_candidate = isinstance(error, RuntimeError) or type(error).__module__.startswith(
        "onnxruntime"
    )
    return is_candidate and any(text in str(error) for text in _TEXTS)


def free_cached(device: torch.device) -> None:
    """Releases the memory of `device` that torch caches."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


class BatchLimit:
    """Batch size limit of one model; halved permanently at each out-of-memory error.

    Args:
        model: The model, already on its device.
        announce: Receives a message after each reduction.
    """

    def __init__(self, model: Model, announce: Announce | None = None) -> None:
        self.model, self.announce = model, announce
        self.most: int | None = None
        self._largest = 0
        self._announced: int | None = None

    def run(self, count: int, compute: Callable[[slice], Any], shape: str = "") -> list[Any]:
        """The results of `compute` for consecutive slices that cover `count` images.

        If the batch size is even, the slices after a reduction are the batches of a run with half
        the batch size.

        Args:
            count: Number of images, at least 1.
            compute: Computes a slice; called for all slices again after an out-of-memory error.
            shape: Size of an image in words, for the error message.

        Raises:
            RunError: A single image does not fit into memory.
        """

        def in_parts(size: int) -> list[Any]:
            return [compute(slice(at, min(at + size, count))) for at in range(0, count, size)]

        return self.fitting(count, in_parts, shape)

    def fitting(self, count: int, compute: Callable[[int], _T], shape: str = "") -> _T:
        """The result of `compute` with the largest batch size up to `count` that fits into memory.

        See `run` for arguments and errors.
        """
        self._largest = max(self._largest, count)
        while True:
            size = min(count, self.most or count)
            try:
                result = compute(size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise self._too_large(shape) from error
            else:
                self._tell()
                return result
            # Outside of the handler: the exception references frames, and these reference tensors.
            self.most = (self.most or self._largest) // 2
            while self.most >= size:
                self.most //= 2
            free_cached(self.model.device)

    def _tell(self) -> None:
        if self.announce is not None and self.most != self._announced:
            self._announced = self.most
            self.announce(
                f"Out of memory on {self.model.device}: `{self.model.facts.name}` continues with "
                f"batches of {self.most}."
            )

    def _too_large(self, shape: str) -> RunError:
        of = f" of {shape}" if shape else ""
        return RunError(
            f"`{self.model.facts.name}` does not fit into the memory of {self.model.device}.",
            f"The memory ran out with a batch of one image{of}.",
            "Try `--precision bf16`, smaller images, or `--device cpu`, or stop other programs "
            "that use this memory; the same command continues the run.",
        )
