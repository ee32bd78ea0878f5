"""How well vision models, state-space models above all, stand image transformations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "Training", "create_model", "evaluate", "train"]

if TYPE_CHECKING:
    from robustcli.adapters.create import create_model
    from robustcli.api import Run, Training, evaluate, train

_DOORS = {
    "Run": "api",
    "Training": "api",
    "create_model": "adapters.create",
    "evaluate": "api",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    """The package's functions, imported on use: the command line starts at once."""
    if name in _DOORS:
        return getattr(import_module(f"robustcli.{_DOORS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
