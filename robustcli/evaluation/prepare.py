"""From settings to everything a run needs, cheapest checks first."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from robustcli.adapters.load import resolve
from robustcli.core.errors import UsageError
from robustcli.core.names import file_name
from robustcli.core.ranks import Ranks
from robustcli.evaluation.config import BLOCK_SIZE, EvalConfig
from robustcli.evaluation.describe import transform_record, versions
from robustcli.evaluation.device import choose_device, describe
from robustcli.evaluation.listener import Listener
from robustcli.evaluation.plan import Plan
from robustcli.evaluation.record import FILE_NAME, RunRecord, read_record, write_record
from robustcli.evaluation.resume import joined
from robustcli.evaluation.store import Cell, Store
from robustcli.evaluation.task import Data, Task
from robustcli.evaluation.tasks import task_of
from robustcli.transforms.registry import TransformCell
from robustcli.transforms.registry import resolve as resolve_transforms

_FOLDERS = ("predictions", "inputs", "skipped", "sessions", "samples", "figures", "panels")
_FILES = (FILE_NAME, "results.csv", "results.json", "report.md", "report.html")


@dataclass(frozen=True)
class Selection:
    """What was asked for, looked up but not loaded: no weights, no pixels."""

    task: Task[Any]
    data: Data
    cells: dict[Cell, TransformCell]
    names: tuple[str, ...]
    device: torch.device
    run: Path


def select(config: EvalConfig, listener: Listener, place: Ranks | None = None) -> Selection:
    """The images, transforms, models, device and folder that `config` names.

    Args:
        config: The settings.
        listener: Who hears of defaults.
        place: Of this process among those that share the work, which decides its device.

    Raises:
        UsageError: Something named does not exist or does not fit together.
    """
    cells = resolve_transforms(config.transforms, config.severities, config.plugins)
    entries = [resolve(request.name) for request in config.models]
    names = tuple(entry.name for entry in entries)
    _check_distinct(names)
    task = task_of(entries)
    task.check(config)
    device = choose_device(config.device, place)
    data = task.open(config, listener)
    run = config.directory(data.record.digest)
    _check_folder(run)
    by_cell = {Cell(c.transform.name, c.severity): c for c in cells}
    return Selection(task, data, by_cell, names, device, run)


def load_models(config: EvalConfig, selection: Selection) -> dict[str, Any]:
    """The models by name, on their device."""
    loaded = [
        selection.task.load(request, seed=config.seed, offline=config.offline)
        for request in config.models
    ]
    models = {m.facts.name: m.to(selection.device, config.precision) for m in loaded}
    for model in models.values():
        model.try_out()  # what a network cannot take is said before anything is decoded or written
    return models


def new_record(config: EvalConfig, selection: Selection, models: dict[str, Any]) -> RunRecord:
    """The record of a run that begins now, with status `running`."""
    task, data, now = selection.task, selection.data, datetime.now(UTC)
    return RunRecord(
        task=task.name,
        command=config.command,
        status="running",
        created=now,
        updated=now,
        seed=config.seed,
        apply_at=config.apply_at,
        precision=config.precision,
        block_size=max(BLOCK_SIZE, config.batch_size or 0),
        dataset=data.record,
        models=[task.model_record(model, config) for model in models.values()],
        transforms=[transform_record(cell) for cell in selection.cells.values()],
        versions=versions(),
        device=describe(selection.device),
        grouping=data.grouping,
        split=data.split,
    )


def open_run(config: EvalConfig, run: Path, new: RunRecord) -> RunRecord:
    """Writes and returns the record of the run in `run`: `new`, or the old one going on.

    Raises:
        UsageError: The folder holds a run with other settings.
    """
    if config.fresh and (run / FILE_NAME).is_file():
        _empty(run)
    if (run / FILE_NAME).is_file():
        new = joined(run, read_record(run), new)
    write_record(run, new)
    return new


def remove_leftovers(run: Path) -> None:
    """Removes half-written files of a process that was killed."""
    for path in run.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def _check_folder(run: Path) -> None:
    """Raises UsageError where rows would be written among somebody's files."""
    if run.is_file():
        raise UsageError(f"`{run}` is a file.", "", "Name a folder with `--out`.")
    is_run = (run / FILE_NAME).is_file()
    if not is_run and run.is_dir() and any(p.name[0] != "." for p in run.iterdir()):
        raise UsageError(
            f"`{run}` is not empty and holds no run.", "", "Choose another folder with `--out`."
        )


def _empty(run: Path) -> None:
    """Removes what a run consists of, and nothing that somebody else put there."""
    for name in _FOLDERS:
        shutil.rmtree(run / name, ignore_errors=True)
    for name in _FILES:
        (run / name).unlink(missing_ok=True)


def make_plan(record: RunRecord, selection: Selection, models: dict[str, Any]) -> Plan:
    """What this command is to compute: its own models and transforms, not the run's others."""
    views = {m.name: m.view for m in record.models}
    return Plan(
        Store(selection.run),
        selection.data.items,
        tuple(selection.cells),
        tuple(models),
        tuple(sorted({views[name] for name in models})),
        record.block_size,
    )


def _check_distinct(names: tuple[str, ...]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(
            f"`--model {twice.pop()}` was given twice.",
            "",
            "Use two runs to compare two weights of one model.",
        )
    folders: dict[str, str] = {}
    for name in names:
        other = folders.setdefault(file_name(name).lower(), name)
        if other != name:
            raise UsageError(
                f"`--model {other}` and `--model {name}` would share a folder of the run.",
                "Characters that file names cannot have become `-`, and not every file system "
                "tells capital letters apart.",
                "Evaluate them in two runs.",
            )
