"""How well vision models, state-space models above all, stand image transformations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "evaluate"]

if TYPE_CHECKING:
    from robustcli.api import Run, evaluate


def __getattr__(name: str) -> Any:
    """The functions of `robustcli.api`, imported on use: the command line starts at once."""
    if name in __all__:
        from robustcli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
