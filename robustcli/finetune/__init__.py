"""Training on Lightning: recipes as data, losses, resume, gradient statistics, freezing.

`robustcli.finetune` is this package and, like `robustcli.train`, a function: importing anything
from here puts the package in the function's place, so the package can be called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """The package as the function `robustcli.api.finetune`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `robustcli.api.finetune`."""
        return import_module("robustcli.api").finetune(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
