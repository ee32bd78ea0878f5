"""Which kind of fine-tuning a model is for."""

from __future__ import annotations

from robustcli.adapters.entry import ModelEntry
from robustcli.core.errors import UsageError
from robustcli.finetuning.kind import Kind
from robustcli.finetuning.segmenters import Segmenters

KINDS: dict[str, type[Kind]] = {"seg": Segmenters}


def kind_of(entry: ModelEntry) -> Kind:
    """The kind of `entry`."""
    if entry.task not in KINDS:
        raise UsageError(
            f"`{entry.name}` is a classifier.",
            "`robust finetune` takes segmenters, which say where something is.",
            "`robust list models` shows which models are segmenters.",
        )
    return KINDS[entry.task]()
