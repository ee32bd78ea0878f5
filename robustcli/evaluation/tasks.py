"""Which task the named models are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robustcli.adapters.entry import ModelEntry
from robustcli.core.errors import UsageError
from robustcli.evaluation.classification import Classification
from robustcli.evaluation.segmentation import Segmentation
from robustcli.evaluation.task import Task

TASKS: dict[str, type[Task[Any]]] = {task.name: task for task in (Classification, Segmentation)}


def task_of(entries: Sequence[ModelEntry]) -> Task[Any]:
    """The one task of all `entries`.

    Raises:
        UsageError: They are for different tasks.
    """
    first = {entry.task: entry for entry in reversed(entries)}
    if len(first) > 1:
        raise UsageError(
            "A classifier and a segmenter do not go into one run.",
            f"`{first['cls'].name}` says what is in an image, `{first['seg'].name}` where it is: "
            "they need other data and have other numbers.",
            "Evaluate them in separate runs.",
        )
    return TASKS[entries[0].task]()
