"""Which training task a model is for."""

from __future__ import annotations

from robustcli.adapters.entry import ModelEntry
from robustcli.training.classification.task import Classification
from robustcli.training.segmentation import Segmentation
from robustcli.training.task import TrainingTask

TASKS: dict[str, type[TrainingTask]] = {task.name: task for task in (Classification, Segmentation)}


def training_task(entry: ModelEntry) -> TrainingTask:
    """The task of training `entry`."""
    return TASKS[entry.task]()
