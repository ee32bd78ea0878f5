"""Silence for the warnings of single modules, in the calling thread alone.

`warnings.catch_warnings` changes the filters of the whole process (until Python 3.14). Two threads
that use it at once put each other's filters back: warnings can end up switched off for good, or
errors of a test suite (`filterwarnings = error`) lost. Nothing here touches a filter: inside the
named modules, the name `warnings` stands for an object that asks the calling thread first.
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
    """How many `silenced` contexts the calling thread is in, by module."""

    def __init__(self) -> None:
        self.depth: dict[str, int] = {}


_THREAD = _Thread()


class _Warnings:
    """What a silenced module knows as `warnings`: the real one, unless this thread wants silence.

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
        """`warnings.catch_warnings`; nothing in a silent thread, which has nothing to catch."""
        return nullcontext() if self._silent else warnings.catch_warnings(**keywords)

    def filterwarnings(self, *arguments: Any, **keywords: Any) -> None:
        """`warnings.filterwarnings`; a silent thread leaves the process's filters alone."""
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
        modules: Full names; one that cannot be imported is passed over.
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
