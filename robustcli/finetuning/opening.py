"""The folder of a fine-tuning: new, or going on with the same settings."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from robustcli.adapters.cache_paths import hash_state
from robustcli.core.errors import errors_of
from robustcli.evaluation.device import device_name
from robustcli.evaluation.record import FILE_NAME
from robustcli.finetuning.record import (
    COSTS,
    DECISIONS,
    ITERATIONS,
    MODES,
    NNUNET,
    PROFILE,
    SWEEP_FILE,
    SWEPT,
    FinetuneRecord,
    RuleRecord,
    read_finetune_record,
    write_finetune_record,
)
from robustcli.finetuning.setup import Setup
from robustcli.tasks.record import contents_that_differ, masks_that_differ
from robustcli.training.opening import (
    all_commands,
    check_same,
    empty,
    fields_that_differ,
    recipes_that_differ,
)
from robustcli.training.record import read_train_record
from robustcli.training.run_record import recipe_record

PROFILING = ".profiling"
"""Folder of the training that `--profile-only` begins; it does not stay."""
_OF_RUN = {
    "model": "the network", "arguments": "--model-arg", "seed": "--seed", "pretrained_sha256":
    "--pretrained (the weights)", "epochs": "--iterations (epochs)",
}  # fmt: skip
_OF_FREEZING = {
    "profile": "--profile", "profile_sha256": "--profile (its content)",
    "profile_iterations": "--profile-iterations",
}  # fmt: skip
_OF_RULE = {
    "pattern": "--freeze", "quantile": "--freeze-quantile", "relative": "--freeze-relative",
    "threshold": "the threshold (--freeze-threshold, --freeze-relative)",
    "scope": "--freeze-scope", "kind": "--statistic",
}  # fmt: skip


def finetune_record(setup: Setup, network: nn.Module) -> FinetuneRecord:
    """The record of a fine-tuning that begins.

    Args:
        setup: What is to be done.
        network: The network, for its size.
    """
    config, given, now = setup.config, setup.given, datetime.now(UTC)
    profile, by_name = config.profile, config.at_once
    return FinetuneRecord(
        task=setup.entry.task,
        command=config.training.command,
        status="running",
        created=now,
        updated=now,
        seed=config.training.seed,
        model=setup.entry.name,
        arguments=json.loads(json.dumps(dict(config.training.model_args))),
        parameters=sum(p.numel() for p in network.parameters()),
        pretrained=given.origin if given else _without(config.modes),
        pretrained_sha256=hash_state(dict(given.state)) if given else None,
        heads=list(setup.heads),
        dataset=setup.selection.task.facts(config.training, setup.selection, network).dataset,
        modes=list(config.modes),
        rule=RuleRecord(**asdict(config.rule)),
        profile="none" if by_name else str(profile or "measured"),
        profile_sha256=None if profile is None else _sha256(profile),
        profile_iterations=0 if by_name else setup.profile_iterations,
        epochs=setup.selection.recipe.epochs,
        iterations=setup.steps,
        device=device_name(setup.selection.on.device),
    )


def _without(modes: tuple[str, ...]) -> str:
    return "none" if modes == ("scratch",) else "encoder: ImageNet-1K"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def open_finetuning(setup: Setup, new: FinetuneRecord) -> FinetuneRecord:
    """Writes and returns the record of a fine-tuning that begins or goes on.

    Raises:
        UsageError: The folder holds another kind of run, or one with other settings.
    """
    run = setup.run
    if setup.config.training.fresh:
        discard(run)
    if (run / FILE_NAME).is_file():
        new = _joined(setup, read_finetune_record(run), new)
    write_finetune_record(run, new)
    return new


def discard(run: Path) -> None:
    """Removes what a fine-tuning consists of, and nothing that somebody else put there."""
    empty(run)
    for name in (PROFILE, DECISIONS, SWEEP_FILE):
        (run / name).unlink(missing_ok=True)
    for mode in MODES:
        empty(run / mode)
        for name in (ITERATIONS, COSTS):
            (run / mode / name).unlink(missing_ok=True)
    for folder in (PROFILING, SWEPT, *(f"{mode}/{NNUNET}" for mode in MODES)):
        shutil.rmtree(run / folder, ignore_errors=True)


def _joined(setup: Setup, old: FinetuneRecord, new: FinetuneRecord) -> FinetuneRecord:
    check_same(setup.run, "fine-tuning", _differences(setup, old, new))
    return new.model_copy(
        update={
            "command": all_commands(old.command, new.command),
            "created": old.created,
            "modes": [mode for mode in MODES if mode in (*old.modes, *new.modes)],
            "saving": old.saving,
        }
    )


def _differences(setup: Setup, old: FinetuneRecord, new: FinetuneRecord) -> Iterator[str]:
    """What of `new` would lead to other results than `old` began with, in words."""
    if old.dataset.digest != new.dataset.digest:
        yield (
            f"Its images are others: {old.dataset.images} of `{old.dataset.name}`, now "
            f"{new.dataset.images} of `{new.dataset.name}` (`--data`, `--limit`, `--seed`)."
        )
    yield from contents_that_differ(old.dataset, new.dataset)
    yield from masks_that_differ(old.dataset, new.dataset)
    yield from fields_that_differ(old, new, _OF_RUN)
    if "freeze" in old.modes or not old.modes:
        yield from fields_that_differ(old.rule, new.rule, _OF_RULE)
        yield from fields_that_differ(old, new, _OF_FREEZING)
    for mode in old.modes:
        if (setup.run / mode / FILE_NAME).is_file():
            recipe = read_train_record(setup.run / mode).recipe
            yield from recipes_that_differ(recipe, recipe_record(setup.selection.recipe))


def amend(run: Path, **changes: Any) -> None:
    """Writes the record of `run` anew with `changes`."""
    record = read_finetune_record(run)
    write_finetune_record(run, record.model_copy(update={**changes, "updated": datetime.now(UTC)}))


@contextmanager
def closing(run: Path) -> Iterator[None]:
    """Sets the status of `run` on leaving: `complete`, or `failed` where an error ended it."""
    try:
        with errors_of(run):
            yield
    except Exception:
        amend(run, status="failed")
        raise
    amend(run, status="complete")
