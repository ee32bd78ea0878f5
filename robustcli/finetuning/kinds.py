"""Which kind of fine-tuning a model is for."""

from __future__ import annotations

from robustcli.adapters.entry import ModelEntry
from robustcli.finetuning.classifiers import Classifiers
from robustcli.finetuning.kind import Kind
from robustcli.finetuning.segmenters import Segmenters

KINDS: dict[str, type[Kind]] = {"cls": Classifiers, "seg": Segmenters}


def kind_of(entry: ModelEntry) -> Kind:
    """The kind of `entry`."""
    return KINDS[entry.task]()
