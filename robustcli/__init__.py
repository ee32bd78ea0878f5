"""How well vision models, state-space models above all, stand image transformations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "ExplanationRun",
    "Finetuning",
    "Run",
    "SeedFolder",
    "Training",
    "compare",
    "create_model",
    "evaluate",
    "explain",
    "export",
    "finetune",
    "predict",
    "publish",
    "train",
    "verify",
]

if TYPE_CHECKING:
    from robustcli.adapters.networks import create_model
    from robustcli.api import (
        ExplanationRun,
        Finetuning,
        Run,
        SeedFolder,
        Training,
        compare,
        evaluate,
        explain,
        export,
        finetune,
        predict,
        publish,
        train,
        verify,
    )
    from robustcli.reports.comparison import Comparison

_DOORS = {
    "Comparison": "reports.comparison",
    "ExplanationRun": "api",
    "Finetuning": "api",
    "Run": "api",
    "SeedFolder": "api",
    "Training": "api",
    "compare": "api",
    "create_model": "adapters.networks",
    "evaluate": "api",
    "explain": "api",
    "export": "api",
    "finetune": "api",
    "predict": "api",
    "publish": "api",
    "train": "api",
    "verify": "api",
}


def __getattr__(name: str) -> Any:
    """Imports public names at first use, so that the command line starts quickly."""
    if name in _DOORS:
        return getattr(import_module(f"robustcli.{_DOORS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
