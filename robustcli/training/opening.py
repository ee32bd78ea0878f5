"""The folder of a training: one process group at a time, new or going on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustcli.core.errors import UsageError, errors_of
from robustcli.core.ownership import owned
from robustcli.evaluation.record import FILE_NAME
from robustcli.tasks.record import contents_that_differ, masks_that_differ
from robustcli.training.recipes import EXTENDABLE
from robustcli.training.record import (
    RecipeRecord,
    TrainRecord,
    read_train_record,
    write_train_record,
)

# Going on with a training: the same settings, or an error that names the one that differs.


_OF_RUN = {
    "model": "--model",
    "arguments": "--model-arg",
    "protocol": "--protocol",
    "seed": "--seed",
    "devices": "--devices",
    "initial_weights_sha256": "the weights it starts from (--weights, --untrained)",
}
_OF_RECIPE = {
    "loss": "--loss", "optimizer": "optimizer", "lr": "--lr", "weight_decay": "weight decay",
    "schedule": "schedule", "batch_size": "--batch-size", "accumulate": "--accumulate",
    "images_per_epoch": "images per epoch (--quick)", "clip": "--clip", "window": "--window",
    "augmentation": "--aug", "patience": "--patience", "precision": "--precision",
    "paper_batch": "images pooled for a dice value",
}  # fmt: skip


def joined(run: Path, old: TrainRecord, new: TrainRecord) -> TrainRecord:
    """`new` as the continuation of `old`: with its beginning, its commands and its costs so far.

    Raises:
        UsageError: A setting that decides the weights differs; the message names it.
    """
    check_same(run, "training", differences(old, new))
    return new.model_copy(
        update={
            "command": all_commands(old.command, new.command),
            "created": old.created,
            "weights_sha256": old.weights_sha256,
            "peak_memory_bytes": old.peak_memory_bytes,
            "energy_joules": old.energy_joules,
        }
    )


def check_same(run: Path, kind: str, found: Iterator[str]) -> None:
    """Nothing where `found` is empty.

    Args:
        run: The folder.
        kind: What it holds, in a word.
        found: What differs, in words.

    Raises:
        UsageError: Something differs; the message has the first.
    """
    difference = next(found, None)
    if difference is not None:
        raise UsageError(
            f"`{run}` holds a {kind} with other settings.",
            difference,
            "Use another `--out` (or none, for a folder of its own), or discard it with `--fresh`.",
        )


def all_commands(old: str, new: str) -> str:
    """The lines of `old`, and `new` where it is not among them."""
    return "\n".join(dict.fromkeys([*old.splitlines(), new]))


def is_done(old: TrainRecord, new: TrainRecord) -> bool:
    """Whether `old` is finished, and `new` asks for no more epochs."""
    return old.status == "complete" and new.recipe.epochs == old.recipe.epochs


def differences(old: TrainRecord, new: TrainRecord) -> Iterator[str]:
    """What of `new` would lead to other weights than `old` began with, in words."""
    if old.dataset.digest != new.dataset.digest:
        yield (
            f"Its images are others: {old.dataset.images} of `{old.dataset.name}`, now "
            f"{new.dataset.images} of `{new.dataset.name}` (`--data`, `--limit`, `--seed`)."
        )
    yield from contents_that_differ(old.dataset, new.dataset)
    yield from masks_that_differ(old.dataset, new.dataset)
    yield from fields_that_differ(old, new, _OF_RUN)
    yield from recipes_that_differ(old.recipe, new.recipe)
    yield from _epochs(old.recipe, new.recipe)


def recipes_that_differ(old: RecipeRecord, new: RecipeRecord) -> Iterator[str]:
    """Which settings of a recipe are others, its length aside, in words."""
    if old.patches != new.patches:
        yield f"`--recipe` was {old.name}, now it is {new.name} (or its plan is another)."
    yield from fields_that_differ(old, new, _OF_RECIPE)


def fields_that_differ(old: Any, new: Any, flags: dict[str, str]) -> Iterator[str]:
    """Which of two records' fields are others, in words; `flags` names what sets each."""
    for field, flag in flags.items():
        before, now = getattr(old, field), getattr(new, field)
        if before != now:
            yield f"`{flag}` was {before}, now it is {now}."


def _epochs(old: RecipeRecord, new: RecipeRecord) -> Iterator[str]:
    changed = f"`--epochs` was {old.epochs}, now it is {new.epochs}"
    if new.epochs < old.epochs:
        yield f"{changed}: epochs cannot be taken back."
    elif new.epochs > old.epochs and old.schedule not in EXTENDABLE:
        yield (
            f"{changed}: the learning rate of its schedule `{old.schedule}` is a function of the "
            "length of the whole training."
        )


FOLDERS = ("checkpoints", "cache", "tensorboard", "test", "baseline", "figures", "panels")
FILES = (
    *(FILE_NAME, "splits.csv", "metrics.csv", "weights.safetensors", "paper.parquet"),
    *("results.csv", "results.json", "report.md", "report.html"),
)


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Makes the folder and holds it.

    Raises:
        RunError: Another process works there, or the folder cannot be made.
    """
    with owned(run):
        _remove_leftovers(run)
        yield


def _remove_leftovers(run: Path) -> None:
    """What a killed process left: half-written files, decoded images."""
    shutil.rmtree(run / "cache", ignore_errors=True)
    for folder in (run, run / "checkpoints"):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def open_training(run: Path, new: TrainRecord, *, fresh: bool) -> bool:
    """Writes the record of a training that begins or goes on; False where it is finished.

    Raises:
        UsageError: The folder holds a training with other settings.
    """
    if fresh:
        empty(run)
    if (run / FILE_NAME).is_file():
        old = read_train_record(run)
        new = joined(run, old, new)
        if is_done(old, new):
            return False
    write_train_record(run, new)
    return True


def empty(run: Path) -> None:
    """Removes what a training consists of, and nothing that somebody else put there."""
    for name in FOLDERS:
        shutil.rmtree(run / name, ignore_errors=True)
    for name in FILES:
        (run / name).unlink(missing_ok=True)


def update(run: Path, **changes: Any) -> None:
    """Writes the record of `run` anew with `changes`."""
    record = read_train_record(run)
    now = datetime.now(UTC)
    write_train_record(run, record.model_copy(update={**changes, "updated": now}))


@contextmanager
def closing(run: Path) -> Iterator[None]:
    """Sets the status of `run` on leaving: `complete`, or `failed` where an error ended it."""
    try:
        with errors_of(run):
            yield
    except Exception:
        update(run, status="failed")
        raise
    update(run, status="complete")
