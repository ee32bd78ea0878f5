"""Compilation of functions by numba at their first call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from typing import Any, TypeVar
from unittest.mock import patch

KernelT = TypeVar("KernelT", bound=Callable[..., Any])


def reads(dtype: str, dimensions: int) -> str:
    """Numba's type of a contiguous read-only array, such as an array on top of `bytes`."""
    return f"Array({dtype}, {dimensions}, 'C', True)"


def import_compiled(module: str) -> Any:
    """Imports and returns `module`, whose functions are compiled by numba and stored in its cache.

    Without a writable cache folder, numba fails at the import; then the functions are not stored,
    and each process compiles them.
    """
    try:
        return import_module(module)
    except RuntimeError:
        from numba.core.dispatcher import Dispatcher

        with patch.object(Dispatcher, "enable_caching", lambda self: None):
            return import_module(module)


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
