"""Compilation of functions by numba at their first call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

KernelT = TypeVar("KernelT", bound=Callable[..., Any])


def reads(dtype: str, dimensions: int) -> str:
    """Numba's type of a contiguous read-only array, such as an array on top of `bytes`."""
    return f"Array({dtype}, {dimensions}, 'C', True)"


def compiled(*signatures: str) -> Callable[[KernelT], KernelT]:
    """Decorator that compiles a function for the types `signatures`, in numba's notation.

    The first call imports numba and compiles the function. The result is stored in numba's cache;
    without a writable cache folder or with a full disk, each process compiles again. Numba's
    `fastmath` is off, so each operation rounds as in NumPy.
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
