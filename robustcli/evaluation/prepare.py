"""From settings to everything a run needs, cheapest checks first."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from robustcli.adapters.cache_paths import is_here
from robustcli.adapters.catalogue import CATALOGUE, ModelEntry
from robustcli.adapters.load import resolve
from robustcli.core.errors import RobustError, UsageError
from robustcli.core.listener import Listener
from robustcli.core.machine import usable_cores
from robustcli.core.names import file_name
from robustcli.core.ranks import Ranks
from robustcli.core.rundir import check_folder, has_record
from robustcli.evaluation.class_rows import Classification
from robustcli.evaluation.config import BLOCK_SIZE, EvalConfig
from robustcli.evaluation.describe import transform_record, versions
from robustcli.evaluation.device import choose_device, describe
from robustcli.evaluation.loader import ORIGINAL, Batch, Source
from robustcli.evaluation.mask_rows import Segmentation
from robustcli.evaluation.plan import Plan, parts_of
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.evaluation.store import Cell, Store
from robustcli.evaluation.task import Answering, Data, Task
from robustcli.transforms.registry import TransformCell
from robustcli.transforms.registry import resolve as resolve_transforms

# Which task the named models are for.


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
    check_folder(run)
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


# What a command would compute, download and take, without computing it.


_TRIAL_IMAGES = 4
_BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class Forecast:
    """What is to be done; `download_bytes` is four a parameter, `seconds` comes from a trial."""

    out: str
    images: int
    cells: list[str]
    models: list[str]
    predictions: int
    predictions_there: int
    download_bytes: int
    seconds: float

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """The same in lines."""
        return "\n".join(
            [
                f"Run:         {self.out}",
                f"Images:      {self.images:,}",
                f"Transforms:  {len(self.cells)} ({', '.join(self.cells)})",
                f"Models:      {', '.join(self.models)}",
                f"Predictions: {self.predictions - self.predictions_there:,} to compute, "
                f"{self.predictions_there:,} there",
                f"Download:    about {self.download_bytes / 1e6:,.0f} MB",
                f"Time:        about {self.seconds:,.0f} s on this machine, by a short trial",
            ]
        )


def forecast(config: EvalConfig, listener: Listener) -> Forecast:
    """The forecast for `config`. Nothing is downloaded and nothing is written.

    The trial runs the real work on a few images, classifiers with freshly initialised networks.
    """
    selection = select(config, listener)
    plan = _plan(config, selection)
    missing = plan.forwards
    if has_record(selection.run) and not config.fresh:
        missing = sum(piece.forwards for piece in plan.missing())
    return Forecast(
        out=str(selection.run),
        images=len(plan.images),
        cells=[
            c.transform if c.severity == 0 else f"{c.transform}:{c.severity}" for c in plan.cells
        ],
        models=list(plan.models),
        predictions=plan.forwards,
        predictions_there=plan.forwards - missing,
        download_bytes=_download(config),
        seconds=_seconds(config, selection, missing / max(1, plan.forwards)) if missing else 0.0,
    )


def _plan(config: EvalConfig, selection: Selection) -> Plan:
    run = selection.run
    new = max(BLOCK_SIZE, config.batch_size or 0)
    size = read_record(run).block_size if has_record(run) else new
    items, cells = selection.data.items, tuple(selection.cells)
    return Plan(Store(run), items, cells, selection.names, (ORIGINAL,), size)


def _download(config: EvalConfig) -> int:
    entries = [CATALOGUE.get(request.name) for request in config.models if not request.weights]
    absent = [e for e in entries if e is not None and _is_downloaded(e) and not is_here(e)]
    return sum(_BYTES_PER_PARAMETER * entry.parameters for entry in absent)


def _is_downloaded(entry: ModelEntry) -> bool:
    """Whether the weights come from somewhere: those of a segmenter are the user's own."""
    return entry.builder == "timm" or entry.weights_url is not None


def _seconds(config: EvalConfig, selection: Selection, share: float) -> float:
    """Seconds for `share` of the run: images are made by workers, models run on the device."""
    task, images = selection.task, len(selection.data.items)
    dataset = selection.data.record
    loaded = [task.trial_model(request) for request in config.models]
    models = {m.facts.name: m.to(selection.device, config.precision) for m in loaded}
    for model in models.values():
        model.try_out()
    trial = _trial(config, selection, models)
    cells = len(selection.cells)
    answering = cells * sum(
        _seconds_an_image(task.answering(m, dataset), trial) for m in models.values()
    )
    cores = usable_cores()
    on_cpu = selection.device.type == "cpu"
    both = trial.seconds + answering if on_cpu else max(trial.seconds, answering)
    per_image = both if cores == 1 else max(both / 2, trial.seconds, answering)
    return share * per_image * images


@dataclass(frozen=True)
class _Trial:
    """Seconds an image to decode it and make the inputs of all cells; one of these batches."""

    seconds: float
    batch: Batch[Any] | None


def _trial(config: EvalConfig, selection: Selection, models: dict[str, Any]) -> _Trial:
    """A few images, spread over the data, under every transform of a run without any rows."""
    items = selection.data.items
    few = items[:: max(1, len(items) // _TRIAL_IMAGES)][:_TRIAL_IMAGES]
    nowhere = Store(selection.run / "no such run")
    plan = Plan(nowhere, few, tuple(selection.cells), tuple(models), (), len(few))
    preparation = selection.task.preparation(models, selection.cells, config)
    started, kept = time.perf_counter(), None
    for batch in Source(parts_of(plan.missing(), len(few)), preparation):
        if isinstance(batch, RobustError):
            raise batch
        kept = kept or (batch if batch.image_ids else None)
    return _Trial((time.perf_counter() - started) / len(few), kept)


def _seconds_an_image(model: Answering, trial: _Trial) -> float:
    """Seconds an image to answer, from the second of two times."""
    if trial.batch is None:
        return 0.0
    model.rows(trial.batch)
    started = time.perf_counter()
    model.rows(trial.batch)
    return (time.perf_counter() - started) / len(trial.batch.image_ids)
