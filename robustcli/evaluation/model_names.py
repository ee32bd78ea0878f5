"""Unique names of the models of one run, used in rows, tables and folders.

The name of a training run or a file is the last part of its path. If several names would be equal
(the seeds of two trainings, one mode of two fine-tunings), as many parts of each path are used as
are needed to distinguish them: `A/seed-0` and `B/seed-0`. A model that is already in the folder of
the run keeps its name.
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
    """Names of the models of `requests` such that each has a separate folder in the run.

    The names do not depend on the order of the models.

    Args:
        requests: The models of one command.
        names: The usual name of each model, without regard to the other models.
        recorded: The models that are already in the folder of the run.

    Raises:
        UsageError: A model is given twice, or two names differ only in characters that file names
            cannot contain.
    """
    paths = [_path_of(request) for request in requests]
    recorded_names = _recorded_names(paths, names, recorded)
    taken = {_key(model.name) for model in recorded} - set(map(_key, recorded_names.values()))
    current = [recorded_names.get(number, name) for number, name in enumerate(names)]
    lengths = [1] * len(names)
    while True:
        counts = Counter(map(_key, current)) + Counter(taken)
        for number, path in enumerate(paths):
            ambiguous = counts[_key(current[number])] > 1 and number not in recorded_names
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
    """`requests` with `names`; reports names that differ from `usual_names` to `say`."""
    changed = {n: name for n, name in enumerate(names) if name != usual_names[n]}
    if changed:
        listed = ", ".join(f"`{name}`" for name in changed.values())
        say(
            "The paths of several models end with the same name. In rows and tables they are "
            f"called {listed}."
        )
    return tuple(replace(r, called=changed.get(n, r.called)) for n, r in enumerate(requests))


def _path_of(request: ModelRequest) -> Path | None:
    """Path of the training run or file that a model is named after; None for other models."""
    if foreign_kind(request) in ("torchscript", "onnx"):
        return Path(request.name).resolve()
    is_run = request.module is None and request.weights is None and names_run(request.name)
    return Path(request.name).resolve() if is_run else None


def _recorded_names(
    paths: Sequence[Path | None], names: Sequence[str], recorded: Sequence[ModelRecord]
) -> Mapping[int, str]:
    """By index of a model, its name in the folder of the run; without models that are not there.

    A copy of a training run has the name of the original.
    """
    by_path = {Path(model.weights).resolve(): model for model in recorded}
    recorded_names = {}
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        if path is None:
            continue
        weights = path / WEIGHTS if path.is_dir() else path
        namesake = next((model for model in recorded if model.name == name), None)
        if weights in by_path:
            recorded_names[number] = by_path[weights].name
        elif namesake is not None and _replaces(weights, namesake, paths):
            recorded_names[number] = name
    return recorded_names


def _replaces(weights: Path, model: ModelRecord, paths: Sequence[Path | None]) -> bool:
    """Whether the file `weights` takes over the rows of the recorded `model`.

    True if the recorded file no longer exists, or if `weights` is a copy of it. That the weights
    are equal is checked again when the record is compared.
    """
    recorded = Path(model.weights)
    if recorded.resolve().parent in paths:
        return False
    if not recorded.exists():
        return True
    return weights.name == WEIGHTS and state_digest(read_weights(weights)) == model.weights_sha256


def _key(name: str) -> str:
    """Key that must be unique: the name of the folder in lower case."""
    return file_name(name).lower()


def _check_distinct(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"`--model {name}` was given twice.",
                "",
                "Use two runs to compare different weights of one model.",
            )
    folders: dict[str, str] = {}
    for name in names:
        first_name = folders.setdefault(_key(name), name)
        if first_name != name:
            raise UsageError(
                f"`--model {first_name}` and `--model {name}` would use the same folder in the "
                "run.",
                "Characters that are not allowed in file names are replaced by `-`, and some file "
                "systems ignore upper and lower case.",
                "Evaluate them in two runs.",
            )
