"""From settings to everything a run needs, cheapest checks first."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from robustcli.adapters.classifier import Classifier
from robustcli.adapters.load import load_classifier, resolve
from robustcli.core.errors import UsageError
from robustcli.data.index import ImageIndex
from robustcli.data.open import open_index
from robustcli.data.subset import take
from robustcli.evaluation.config import BLOCK_SIZE, EvalConfig
from robustcli.evaluation.describe import dataset_record, model_record, transform_record, versions
from robustcli.evaluation.device import choose_device, describe
from robustcli.evaluation.listener import Listener
from robustcli.evaluation.plan import Plan
from robustcli.evaluation.record import FILE_NAME, RunRecord, read_record, write_record
from robustcli.evaluation.resume import joined
from robustcli.evaluation.store import Cell, Store
from robustcli.transforms.registry import TransformCell
from robustcli.transforms.registry import resolve as resolve_transforms

_FOLDERS = ("predictions", "inputs", "skipped", "sessions", "samples", "figures")
_FILES = (FILE_NAME, "results.csv", "results.json", "report.md", "report.html")


@dataclass(frozen=True)
class Selection:
    """What was asked for, looked up but not loaded: no weights, no pixels."""

    index: ImageIndex
    cells: dict[Cell, TransformCell]
    names: tuple[str, ...]
    device: torch.device
    run: Path


def select(config: EvalConfig, listener: Listener) -> Selection:
    """The images, transforms, models and folder that `config` names.

    Raises:
        UsageError: Something named does not exist or does not fit together.
    """
    cells = resolve_transforms(config.transforms, config.severities, config.plugins)
    names = tuple(resolve(request.name).name for request in config.models)
    _check_distinct(names)
    device = choose_device(config.device)
    whole = open_index(
        config.data,
        model_label_space=_label_space(config),
        label_space=config.label_space,
        labels=config.labels,
    )
    index = take(whole, per_class=config.per_class, limit=config.limit, seed=config.seed)
    if config.data is None:
        kind = " (a demonstration set)" if index.demonstration else ""
        listener.say(
            f"No --data: using {index.name}{kind}, {len(index.images)} images, {index.location}."
        )
    run = config.directory(index.digest)
    _check_folder(run)
    by_cell = {Cell(c.transform.name, c.severity): c for c in cells}
    return Selection(index, by_cell, names, device, run)


def load_models(config: EvalConfig, selection: Selection) -> dict[str, Classifier]:
    """The classifiers by name, on their device."""
    loaded = [
        load_classifier(request, seed=config.seed, offline=config.offline)
        for request in config.models
    ]
    return {c.facts.name: c.to(selection.device, config.precision) for c in loaded}


def open_run(config: EvalConfig, selection: Selection, models: dict[str, Classifier]) -> RunRecord:
    """The record of the run, new or going on, written to its folder with status `running`.

    Raises:
        UsageError: The folder holds a run with other settings, or something else.
    """
    run, now = selection.run, datetime.now(UTC)
    if config.fresh and (run / FILE_NAME).is_file():
        _empty(run)
    at_crop = config.apply_at == "crop"
    new = RunRecord(
        command=config.command,
        status="running",
        created=now,
        updated=now,
        seed=config.seed,
        apply_at=config.apply_at,
        precision=config.precision,
        block_size=max(BLOCK_SIZE, config.batch_size or 0),
        dataset=dataset_record(selection.index),
        models=[model_record(model, at_crop=at_crop) for model in models.values()],
        transforms=[transform_record(cell) for cell in selection.cells.values()],
        versions=versions(),
        device=describe(selection.device),
    )
    if (run / FILE_NAME).is_file():
        new = joined(run, read_record(run), new)
    write_record(run, new)
    return new


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


def make_plan(record: RunRecord, selection: Selection, models: dict[str, Classifier]) -> Plan:
    """What this command is to compute: its own models and transforms, not the run's others."""
    views = {m.name: m.view for m in record.models}
    return Plan(
        Store(selection.run),
        selection.index.images,
        tuple(selection.cells),
        tuple(models),
        tuple(sorted({views[name] for name in models})),
        record.block_size,
    )


def _label_space(config: EvalConfig) -> str:
    spaces = {resolve(request.name).label_space for request in config.models}
    if config.label_space is None and len(spaces) > 1:
        raise UsageError(
            "The models do not tell the same classes apart.",
            f"They are made for {' and '.join(sorted(spaces))}.",
            "Evaluate them in separate runs.",
        )
    return config.label_space or spaces.pop()


def _check_distinct(names: tuple[str, ...]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(
            f"`--model {twice.pop()}` was given twice.",
            "",
            "Use two runs to compare two weights of one model.",
        )
