"""The names of the models of one run: what rows, tables and folders call them.

A training run or a file is called by the last part of its path. Where several would be called
alike (the seeds of two trainings, one mode of two fine-tunings), each of them takes as many parts
of its path as tell it from the others: `A/seed-0` and `B/seed-0`. A model that the folder of the
run holds already keeps the name that it has there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.foreign import foreign_kind
from robustcli.adapters.load import names_run
from robustcli.adapters.training_run import WEIGHTS
from robustcli.core.errors import UsageError
from robustcli.core.names import file_name
from robustcli.tasks.record import ModelRecord


def distinct_names(
    requests: Sequence[ModelRequest], names: Sequence[str], recorded: Sequence[ModelRecord] = ()
) -> tuple[str, ...]:
    """The names of the models of `requests`, no two of which share a folder of the run.

    They do not depend on the order of the models.

    Args:
        requests: The models of one command.
        names: What each is called if it is the only model.
        recorded: The models that the folder of the run holds already.

    Raises:
        UsageError: A model is named twice, or two names differ only in what file names cannot hold.
    """
    paths = [_path_of(request) for request in requests]
    kept = _recorded_names(paths, names, recorded)
    taken = {_key(model.name) for model in recorded} - set(map(_key, kept.values()))
    current = [kept.get(number, name) for number, name in enumerate(names)]
    lengths = [1] * len(names)
    while True:
        counts = Counter(map(_key, current)) + Counter(taken)
        for number, path in enumerate(paths):
            ambiguous = counts[_key(current[number])] > 1 and number not in kept
            if path is None or not ambiguous or paths.count(path) > 1:
                continue
            lengths[number] += 1
            parts = path.parts[1:]  # without the root
            current[number] = "/".join(parts[-lengths[number] :])
        if counts == Counter(map(_key, current)) + Counter(taken):
            break
    _check_distinct(current)
    return tuple(current)


def called(
    requests: Sequence[ModelRequest], names: Sequence[str], usual_names: Sequence[str],
    say: Callable[[str], None],
) -> tuple[ModelRequest, ...]:  # fmt: skip
    """`requests` under `names`; `say` hears which of these are not their `usual_names`."""
    changed = {n: name for n, name in enumerate(names) if name != usual_names[n]}
    if changed:
        listed = ", ".join(f"`{name}`" for name in changed.values())
        say(f"Several models have the same last part of their path: rows and tables have {listed}.")
    return tuple(replace(r, called=changed.get(n, r.called)) for n, r in enumerate(requests))


def _path_of(request: ModelRequest) -> Path | None:
    """The training run or file by whose path a model is called; None for other models."""
    if foreign_kind(request) in ("torchscript", "onnx"):
        return Path(request.name).resolve()
    is_run = request.module is None and request.weights is None and names_run(request.name)
    return Path(request.name).resolve() if is_run else None


def _recorded_names(
    paths: Sequence[Path | None], names: Sequence[str], recorded: Sequence[ModelRecord]
) -> Mapping[int, str]:
    """By the number of a model, its name in the folder of the run, if it is there.

    A copy of a run goes on under the name of the original.
    """
    by_path = {Path(model.weights).resolve(): model for model in recorded}
    kept = {}
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        if path is None:
            continue
        weights = path / WEIGHTS if path.is_dir() else path
        namesake = next((model for model in recorded if model.name == name), None)
        if weights in by_path:
            kept[number] = by_path[weights].name
        elif namesake is not None and _replaces(weights, namesake, paths):
            kept[number] = name
    return kept


def _replaces(weights: Path, model: ModelRecord, paths: Sequence[Path | None]) -> bool:
    """Whether the file `weights` is to have the rows of the recorded `model`.

    So it is where that is no longer there, or is the run of which this one is a copy; that the
    weights are the same is checked again with the record.
    """
    recorded = Path(model.weights)
    if recorded.resolve().parent in paths:
        return False
    if not recorded.exists():
        return True
    return weights.name == WEIGHTS and state_digest(read_weights(weights)) == model.weights_sha256


def _key(name: str) -> str:
    """What two names must not have in common: their folder, where capital letters do not count."""
    return file_name(name).lower()


def _check_distinct(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"`--model {name}` was given twice.",
                "",
                "Use two runs to compare two weights of one model.",
            )
    folders: dict[str, str] = {}
    for name in names:
        first_name = folders.setdefault(_key(name), name)
        if first_name != name:
            raise UsageError(
                f"`--model {first_name}` and `--model {name}` would share a folder of the run.",
                "Characters that file names cannot have become `-`, and not every file system "
                "distinguishes capital letters.",
                "Evaluate them in two runs.",
            )
