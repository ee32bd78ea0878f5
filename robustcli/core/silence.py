"""Silences warnings of single modules in the calling thread.

`warnings.catch_warnings` changes the filters of the whole process (until Python 3.14). Two threads
that use it at the same time restore each other's filters, which can switch warnings off for good or
lose errors of a test suite (`filterwarnings = error`). This module changes no filter: in the named
modules, the name `warnings` is bound to an object that checks the calling thread.
"""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

_INSTALLING = threading.Lock()


class _Thread(threading.local):
    """Number of active `silenced` contexts of the calling thread, by module."""

    def __init__(self) -> None:
        self.depth: dict[str, int] = {}


_THREAD = _Thread()


class _Warnings:
    """Replaces `warnings` in a silenced module; forwards calls unless this thread is silenced.

    Args:
        module: Name of the module.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    @property
    def _silent(self) -> bool:
        return bool(_THREAD.depth.get(self._module))

    def catch_warnings(self, **keywords: Any) -> Any:
        """`warnings.catch_warnings`; does nothing in a silenced thread."""
        return nullcontext() if self._silent else warnings.catch_warnings(**keywords)

    def filterwarnings(self, *arguments: Any, **keywords: Any) -> None:
        """`warnings.filterwarnings`; does nothing in a silenced thread."""
        if not self._silent:
            warnings.filterwarnings(*arguments, **keywords)

    def simplefilter(self, *arguments: Any, **keywords: Any) -> None:
        """`warnings.simplefilter`; see `filterwarnings`."""
        if not self._silent:
            warnings.simplefilter(*arguments, **keywords)

    def warn(
        self,
        message: Any,
        category: Any = None,
        stacklevel: int = 1,
        *remaining: Any,
        **keywords: Any,
    ) -> None:
        """`warnings.warn`, attributed to the same line as without this object."""
        if not self._silent:
            warnings.warn(message, category, stacklevel + 1, *remaining, **keywords)


@contextmanager
def silenced(*modules: str) -> Iterator[None]:
    """A context in which `warnings.warn`, called in one of `modules` by this thread, does nothing.

    Args:
        modules: Full module names; modules that cannot be imported are ignored.
    """
    for name in modules:
        _install(name)
    for name in modules:
        _THREAD.depth[name] = _THREAD.depth.get(name, 0) + 1
    try:
        yield
    finally:
        for name in modules:
            _THREAD.depth[name] -= 1


def _install(name: str) -> None:
    module = sys.modules.get(name)
    if module is None:
        try:
            module = importlib.import_module(name)
        except ImportError:
            return
    with _INSTALLING:
        if isinstance(vars(module).get("warnings"), ModuleType):
            vars(module)["warnings"] = _Warnings(name)
