"""Resolves the names in the settings of an evaluation, once, before any computation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from robustcli.adapters.catalogue import ModelEntry, ModelRequest
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.foreign import foreign_kind
from robustcli.adapters.load import check_has_weights, entry_of, names_run
from robustcli.adapters.model import Model
from robustcli.adapters.training_run import WEIGHTS
from robustcli.core.errors import UsageError, UsageErrors
from robustcli.core.listener import Listener
from robustcli.core.machine import check_opencv, versions
from robustcli.core.names import file_name
from robustcli.core.ranks import Ranks
from robustcli.core.rundir import check_folder
from robustcli.data.sources import check_data_exists
from robustcli.evaluation.config import BLOCK_SIZE, EvalConfig
from robustcli.evaluation.device import choose_device, device_name, unused_gpu
from robustcli.evaluation.gates import Gate, GateScope, check_gates, parse_gates
from robustcli.evaluation.published_corruptions import bind_published, find_published
from robustcli.evaluation.record import EVALUATION, RunRecord, read_record, transform_record
from robustcli.tasks.base import Data, Task
from robustcli.tasks.classification import ClassificationTask
from robustcli.tasks.record import ModelRecord
from robustcli.tasks.segmentation import SegmentationTask
from robustcli.transforms.base import Cell, Transform
from robustcli.transforms.plugins import from_file
from robustcli.transforms.registry import IDENTITY, TransformCell, resolve_transforms

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


def new_record(evaluation: Evaluation, models: Mapping[str, Model]) -> RunRecord:
    """The record of a new run, with status `running`."""
    config, task, data = evaluation.config, evaluation.task, evaluation.data
    now = datetime.now(UTC)
    return RunRecord(
        task=task.name,
        command=config.command,
        status="running",
        created=now,
        updated=now,
        seed=config.seed,
        apply_at=config.apply_at,
        precision=config.precision,
        block_size=evaluation.block_size,
        dataset=data.record,
        models=[task.model_record(model, config) for model in models.values()],
        transforms=[transform_record(cell) for cell in evaluation.cells.values()],
        versions=versions(),
        device=device_name(evaluation.device),
        grouping=data.grouping,
        split=data.split,
    )


def look_up(config: EvalConfig, listener: Listener, place: Ranks | None = None) -> Evaluation:
    """Resolves the images, transforms, models, device and folder of `config`.

    `listener` receives a message for each default; `place` determines the device of this process.

    Raises:
        UsageError: A named model, transform or data set does not exist, or settings do not match;
            the message shows all wrong settings that can be found without reading the data.
    """
    entries: list[ModelEntry] = []
    errors = UsageErrors()
    with errors:
        _check_quick(config)
    with errors:
        gates = parse_gates(config.fail_under, config.fail_drop)
    with errors:
        published = find_published(config.published)
        cells = resolve_transforms(config.transforms, config.severities, config.plugins, published)
    for request in config.models:
        with errors:
            entries.append(entry_of(request, offline=config.offline))
            check_has_weights(request, entries[-1])
    if config.data is not None:
        with errors:
            check_data_exists(config.data, masks={entry.task for entry in entries} == {"seg"})
    with errors:
        device = choose_device(config.device, place)
    check_opencv()
    errors.check()
    usual_names = tuple(entry.name for entry in entries)
    names = distinct_names(config.models, usual_names)
    task = task_of(entries)
    task.check(config)
    cell_keys = tuple(Cell(c.transform.name, c.severity) for c in cells)
    check_gates(gates, GateScope(task.name, names, cell_keys))
    config = task.with_defaults(config, listener)
    if note := unused_gpu(config.device, device):
        listener.say(note)
    for note in _without_effect(config, [cell.transform for cell in cells]):
        listener.say(note)
    data = task.open(config, listener)
    run = config.directory(f"{data.record.digest} {data.record.contents}")
    check_folder(run)
    if config.fresh:
        EVALUATION.check_kept(run, config.inputs)
    names = distinct_names(config.models, usual_names, () if config.fresh else _recorded(run))
    config = replace(config, models=called(config.models, names, usual_names, listener.say))
    by_cell = bind_published(cells, data.dataset)
    return Evaluation(config, task, data, by_cell, names, device, run, gates)


def _without_effect(config: EvalConfig, transforms: Sequence[Transform]) -> Iterator[str]:
    """Yields a note for each option about transforms that none of `transforms` uses."""
    names = {transform.name for transform in transforms}
    sources: list[tuple[str, Path, Sequence[Transform]]] = [
        *(("--plugin", path, from_file(path)) for path in config.plugins),
        *(("--published", path, find_published((path,))) for path in config.published),
    ]
    for option, path, defined in sources:
        if names.isdisjoint(transform.name for transform in defined):
            listed = ", ".join(f"`{transform.name}`" for transform in defined[:3])
            more = f" and {len(defined) - 3} more" if len(defined) > 3 else ""
            yield (
                f"`{option} {path}` has no effect: no `--transform` selects one of its transforms "
                f"({listed}{more})."
            )
    if config.severities and all(transform == IDENTITY for transform in transforms):
        yield "`--severity` has no effect: only untransformed images (`identity`) are evaluated."


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


# Names of the models, which are unique in the rows, tables and folders of a run.
#
# The name of a training run, or of a file with a network or Python code, is the last part of its
# path. If several names would be equal (the seeds of two trainings, one mode of two fine-tunings),
# as many parts of each path are used as are needed to distinguish them: `A/seed-0` and `B/seed-0`.
# A model that is already in the folder of the run keeps its name.


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
    recorded_names = _recorded_names(requests, paths, names, recorded)
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
    """Path of the training run or file that a model is named after; None for other models.

    The path of Python code ends with the name in it: `/home/me/net.py:build`.
    """
    if foreign_kind(request) in ("torchscript", "onnx") or _is_code_in_file(request):
        return Path(request.name).expanduser().resolve()
    is_run = request.module is None and request.weights is None and names_run(request.name)
    return Path(request.name).resolve() if is_run else None


def _is_code_in_file(request: ModelRequest) -> bool:
    return foreign_kind(request) == "import" and request.name.rpartition(":")[0].endswith(".py")


def _recorded_names(
    requests: Sequence[ModelRequest], paths: Sequence[Path | None], names: Sequence[str],
    recorded: Sequence[ModelRecord],
) -> Mapping[int, str]:  # fmt: skip
    """By index of a model, its name in the folder of the run; without models that are not there.

    A copy of a training run has the name of the original.
    """
    by_path = {Path(model.weights).resolve(): model for model in recorded}
    recorded_names = {}
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        if path is None:
            continue
        if _is_code_in_file(requests[number]):  # its weights may be of another file
            builder = f"import:{requests[number].name}"
            same = next((model for model in recorded if model.builder == builder), None)
            if same is not None:
                recorded_names[number] = same.name
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
