"""Functions that numba compiles at their first call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

KernelT = TypeVar("KernelT", bound=Callable[..., Any])


def reads(dtype: str, dimensions: int) -> str:
    """The type of a contiguous array that a kernel only reads, such as one over `bytes`."""
    return f"Array({dtype}, {dimensions}, 'C', True)"


def compiled(*signatures: str) -> Callable[[KernelT], KernelT]:
    """A decorator that compiles a function for the types `signatures`, in numba's notation.

    Nothing is compiled, and numba not imported, before the first call. The result is kept in
    numba's cache; where that finds no folder or a full disk, each process compiles anew. Without
    numba's `fastmath`, each operation rounds as NumPy's does.
    """

    def decorate(function: KernelT) -> KernelT:
        @cache
        def kernel() -> Any:
            from numba import njit

            options = {"nogil": True, "error_model": "numpy"}
            try:
                return njit(list(signatures), cache=True, **options)(function)
            except (OSError, RuntimeError):
                return njit(list(signatures), **options)(function)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            return kernel()(*arguments)

        return call  # type: ignore[return-value]

    return decorate
