"""Resolves the names in the settings of an evaluation, once, before any computation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.load import entry_of
from robustcli.adapters.model import Model
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.ranks import Ranks
from robustcli.core.rundir import check_folder
from robustcli.evaluation.config import BLOCK_SIZE, EvalConfig
from robustcli.evaluation.device import choose_device
from robustcli.evaluation.gates import Gate, GateScope, check_gates, parse_gates
from robustcli.evaluation.model_names import called, distinct_names
from robustcli.evaluation.published_corruptions import bind_published, find_published
from robustcli.evaluation.record import read_record
from robustcli.tasks.base import Data, Task
from robustcli.tasks.classification import ClassificationTask
from robustcli.tasks.record import ModelRecord
from robustcli.tasks.segmentation import SegmentationTask
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import TransformCell, resolve_transforms

EVALUATION_TASKS: dict[str, type[Task[Any]]] = {
    task.name: task for task in (ClassificationTask, SegmentationTask)
}


def task_of(entries: Sequence[ModelEntry]) -> Task[Any]:
    """The common task of all `entries`; raises UsageError if their tasks differ."""
    first = {entry.task: entry for entry in reversed(entries)}
    if len(first) > 1:
        raise UsageError(
            "A classifier and a segmenter cannot be evaluated in the same run.",
            f"`{first['cls'].name}` needs images with classes, and `{first['seg'].name}` needs "
            "images with masks; their scores differ too.",
            "Evaluate them in separate runs.",
        )
    return EVALUATION_TASKS[entries[0].task]()


@dataclass(frozen=True)
class Evaluation:
    """An evaluation with resolved settings, without loaded weights and images.

    `device` is the device of this process; `gates` are limits for the metrics of the run.
    """

    config: EvalConfig
    task: Task[Any]
    data: Data
    cells: dict[Cell, TransformCell]
    names: tuple[str, ...]
    device: torch.device
    run: Path
    gates: tuple[Gate, ...] = ()

    @property
    def scope(self) -> GateScope:
        """The models and cells of this command, without others of the run."""
        return GateScope(self.task.name, self.names, tuple(self.cells))

    @property
    def block_size(self) -> int:
        """Number of images per block in a new run."""
        return max(BLOCK_SIZE, self.config.batch_size or 0)

    def ready(self, models: Iterable[Model]) -> dict[str, Model]:
        """Moves `models` to the device and tests each with a generated image; returns them by name.

        The test reports an unsuitable network before images are decoded or files are written.

        Raises:
            UsageError: A network cannot take the images that its preprocessing makes.
        """
        by_name = {m.facts.name: m.to(self.device, self.config.precision) for m in models}
        for model in by_name.values():
            model.try_out()
        return by_name


def look_up(config: EvalConfig, listener: Listener, place: Ranks | None = None) -> Evaluation:
    """Resolves the images, transforms, models, device and folder of `config`.

    `listener` receives a message for each default; `place` determines the device of this process.

    Raises:
        UsageError: A named model, transform or data set does not exist, or settings do not match.
    """
    _check_quick(config)
    gates = parse_gates(config.fail_under, config.fail_drop)
    published = find_published(config.published)
    cells = resolve_transforms(config.transforms, config.severities, config.plugins, published)
    entries = [entry_of(request, offline=config.offline) for request in config.models]
    usual_names = tuple(entry.name for entry in entries)
    names = distinct_names(config.models, usual_names)
    task = task_of(entries)
    task.check(config)
    cell_keys = tuple(Cell(c.transform.name, c.severity) for c in cells)
    check_gates(gates, GateScope(task.name, names, cell_keys))
    config = task.with_defaults(config, listener)
    device = choose_device(config.device, place)
    data = task.open(config, listener)
    run = config.directory(f"{data.record.digest} {data.record.contents}")
    check_folder(run)
    names = distinct_names(config.models, usual_names, () if config.fresh else _recorded(run))
    config = replace(config, models=called(config.models, names, usual_names, listener.say))
    by_cell = bind_published(cells, data.dataset)
    return Evaluation(config, task, data, by_cell, names, device, run, gates)


def _recorded(run: Path) -> Sequence[ModelRecord]:
    """The models of the evaluation in the folder `run`; none if no record can be read."""
    try:
        return read_record(run).models
    except UsageError:
        return ()  # if the folder has other contents, opening the run raises the error


def _check_quick(config: EvalConfig) -> None:
    for option, value in (("--limit", config.limit), ("--per-class", config.per_class)):
        if config.quick and value is not None:
            raise UsageError(
                f"`--quick` cannot be used with `{option}`.",
                "`--quick` determines the number of images from the allowed error.",
                f"Omit one of the two: `{option} {value}` without `--quick` uses exactly this "
                "number.",
            )
