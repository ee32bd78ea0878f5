"""The folder of a run: opened, continued with the same settings or refused, closed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from robustcli.core.errors import UsageError
from robustcli.evaluation.record import FILE_NAME, RunRecord, read_record, write_record
from robustcli.tasks.record import ModelRecord, contents_that_differ, masks_that_differ

_FOLDERS = ("predictions", "inputs", "skipped", "sessions", "samples", "figures", "panels")
_FILES = (FILE_NAME, "results.csv", "results.json", "report.md", "report.html")


def check_run_folder(run: Path) -> None:
    """Raises UsageError where rows would be written among somebody's files."""
    if run.is_file():
        raise UsageError(f"`{run}` is a file.", "", "Name a folder with `--out`.")
    is_run = (run / FILE_NAME).is_file()
    if not is_run and run.is_dir() and any(p.name[0] != "." for p in run.iterdir()):
        raise UsageError(
            f"`{run}` is not empty and holds no run.", "", "Choose another folder with `--out`."
        )


def open_run(run: Path, new: RunRecord, *, fresh: bool) -> RunRecord:
    """Writes and returns the record of the run in `run`: `new`, or the old one going on.

    Args:
        run: The folder.
        new: What this command would make in an empty one.
        fresh: Whether to discard what is there.

    Raises:
        UsageError: The folder holds a run with other settings.
    """
    if fresh and (run / FILE_NAME).is_file():
        _empty(run)
    if (run / FILE_NAME).is_file():
        new = _joined(run, read_record(run), new)
    write_record(run, new)
    return new


def remove_leftovers(run: Path) -> None:
    """Removes half-written files of a process that was killed."""
    for path in run.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def _empty(run: Path) -> None:
    """Removes what a run consists of, and nothing that somebody else put there."""
    for name in _FOLDERS:
        shutil.rmtree(run / name, ignore_errors=True)
    for name in _FILES:
        (run / name).unlink(missing_ok=True)


def close_run(run: Path, status: Literal["complete", "partial", "failed"]) -> None:
    """Writes how the run in `run` ended, and when."""
    record = read_record(run)
    write_record(run, record.model_copy(update={"status": status, "updated": datetime.now(UTC)}))


# Continuing: the models and transforms of a run join, its other settings must be the same.


# What decides a row. Device, versions, workers and batch size change no more than rounding.
_OF_RUN = {"seed": "--seed", "apply_at": "--apply-at", "precision": "--precision"}
_OF_MODEL = {
    "builder": "--model",
    "weights_sha256": "--weights",
    "arguments": "--model-arg",
    "preprocessing": "preprocessing (of a segmenter: window, channels, threshold, overlap; else "
    "--resize, --crop, --interpolation, --mean, --std)",
    "untrained": "--untrained",
}


def _joined(run: Path, old: RunRecord, new: RunRecord) -> RunRecord:
    """`new` with the models and transforms of `old` that it lacks, first those of `old`.

    Raises:
        UsageError: A setting that decides existing rows differs; the message names it.
    """
    difference = next(_differences(old, new), None)
    if difference is not None:
        raise UsageError(
            f"`{run}` holds a run with other settings.",
            difference,
            "Use another `--out` (or none, for a folder of its own), or discard it with `--fresh`.",
        )
    # A run that was begun before rows knew the tolerance goes on without: no cell is half of each.
    dataset = new.dataset.model_copy(update={"tolerance": old.dataset.tolerance})
    names = {model.name for model in old.models}
    cells = {(t.name, t.severity) for t in old.transforms}
    return new.model_copy(
        update={
            "command": "\n".join(dict.fromkeys([*old.command.splitlines(), new.command])),
            "created": old.created,
            "block_size": old.block_size,
            "dataset": dataset,
            "models": [*old.models, *(m for m in new.models if m.name not in names)],
            "transforms": [
                *old.transforms,
                *(t for t in new.transforms if (t.name, t.severity) not in cells),
            ],
        }
    )


def _differences(old: RunRecord, new: RunRecord) -> Iterator[str]:
    if old.dataset.digest != new.dataset.digest:
        yield (
            f"Its list of images is another one: {old.dataset.images} of `{old.dataset.name}`"
            f"{_subset(old)}, now {new.dataset.images} of `{new.dataset.name}`{_subset(new)} "
            "(`--data`, `--per-class`, `--limit`, `--split`, `--seed`)."
        )
    yield from contents_that_differ(old.dataset, new.dataset)
    yield from masks_that_differ(old.dataset, new.dataset)
    for field, flag in _OF_RUN.items():
        if getattr(old, field) != getattr(new, field):
            yield f"`{flag}` was {getattr(old, field)}, now it is {getattr(new, field)}."
    known = {model.name: model for model in old.models}
    for model in new.models:
        if model.name in known:
            yield from _model_differences(known[model.name], model)
    parameters = {(t.name, t.severity): t.parameters for t in old.transforms}
    for cell in new.transforms:
        if parameters.get((cell.name, cell.severity), cell.parameters) != cell.parameters:
            yield f"The parameters of transform `{cell.name}` are other ones."


def _model_differences(old: ModelRecord, new: ModelRecord) -> Iterator[str]:
    for field, flag in _OF_MODEL.items():
        before, now = getattr(old, field), getattr(new, field)
        if before != now:
            yield f"`{old.name}`: {flag} differs ({_short(before)}, now {_short(now)})."


def _subset(record: RunRecord) -> str:
    return f" ({record.dataset.subset})" if record.dataset.subset else ""


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
