"""Looks up the model, the images and the transforms of an explanation.

The command line names them, as in an evaluation, or the record of a finished evaluation does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import answers_in, entry_of
from robustcli.adapters.model import Model
from robustcli.core.errors import RunError, UsageError
from robustcli.core.listener import Listener
from robustcli.core.names import TaskName, find, matching
from robustcli.core.rundir import check_folder, has_record
from robustcli.core.seeds import identity_seed
from robustcli.data.dataset import Sample
from robustcli.data.labels import LabelSpace
from robustcli.data.splits import take
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.device import choose_device
from robustcli.evaluation.look_up import look_up
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.explanation.config import ExplainConfig
from robustcli.explanation.photo_choice import class_index
from robustcli.tasks.base import Task
from robustcli.tasks.record import DatasetRecord, EvaluatedPart
from robustcli.transforms.base import CLEAN, Cell
from robustcli.transforms.registry import TransformCell
from robustcli.verification.recorded_run import (
    RecordedModels,
    StoredRows,
    VerifyConfig,
    find_images,
    find_transforms,
)
from robustcli.verification.row_comparison import COMPARISONS, EvaluationCheck


@dataclass(frozen=True)
class ExplainInputs:
    """The resolved inputs of an explanation; weights and pixels are not loaded yet.

    Args:
        config: The settings, with defaults filled in.
        task: Task of the model.
        name: Name of the model in rows and tables.
        family: Family of the model, see `ModelFacts`.
        request: How to load the model.
        load: Loads the model on the device.
        items: The images to select from, by id.
        cells: The transforms, by cell; the clean cell first.
        dataset: Record of the data set.
        split: Split of the data set that the images belong to, if it has splits.
        space: Label space of a classifier; None for segmenters.
        device: Device of this process.
        run: Folder of the explanation.
        source: Folder of a finished evaluation with predictions; None without one.
    """

    config: ExplainConfig
    task: Task[Any]
    name: str
    family: str
    request: ModelRequest
    load: Callable[[], Model]
    items: dict[str, Sample]
    cells: dict[Cell, TransformCell]
    dataset: DatasetRecord
    split: EvaluatedPart | None
    space: LabelSpace | None
    device: torch.device
    run: Path
    source: Path | None = None

    @property
    def changed_cells(self) -> tuple[Cell, ...]:
        """The cells of transformed images."""
        return tuple(cell for cell in self.cells if cell != CLEAN)


def explain_inputs(config: ExplainConfig, listener: Listener) -> ExplainInputs:
    """Resolves the names in `config`.

    Raises:
        UsageError: A setting names something that does not exist, or settings contradict each
            other.
        MachineError: The data or the weights of a finished run are not on this machine.
    """
    if config.source is not None:
        return _of_run(config, config.source, listener)
    if not config.models:
        raise UsageError(
            "`robust explain` needs a model or a finished run.",
            "",
            "Pass one: `--model NAME`, or the folder of an evaluation.",
        )
    if len(config.models) == 1:
        config = for_task(config, entry_of(config.models[0], offline=config.offline).task)
    _check(config)
    # With `--class`, `--limit` counts images of the class.
    opened = replace(config, limit=None) if config.class_name is not None else config
    evaluation = look_up(opened, listener)
    config = replace(config, out=evaluation.run)
    (request,) = config.models
    data = evaluation.data
    items = {item.image_id: item for item in data.items}
    space = answers_in(request) if evaluation.task.name == "cls" else None
    if config.class_name is not None:
        index = class_index(config.class_name, space, items.values())
        ids = frozenset(name for name, item in items.items() if item.target == index)
        assert data.dataset is not None, "classifiers have classes"
        part = take(data.dataset.part(ids, config.class_name), limit=config.limit, seed=config.seed)
        items = {item.image_id: item for item in part.samples}

    def load() -> Model:
        model = evaluation.task.load(request, seed=config.seed, offline=config.offline)
        return evaluation.ready([model])[model.facts.name]

    entry = entry_of(request, offline=config.offline)
    return ExplainInputs(
        config, evaluation.task, entry.name, entry.family, request, load, items, evaluation.cells,
        data.record, data.split, space, evaluation.device, evaluation.run,
    )  # fmt: skip


def for_task(config: ExplainConfig, task: TaskName) -> ExplainConfig:
    """`config` with the value of `--class` as `class_name`, or for segmenters as `mask_class`."""
    if task == "cls":
        return config
    return replace(config, class_name=None, mask_class=config.class_name)


def _check(config: ExplainConfig) -> None:
    if len(config.models) > 1:
        raise UsageError(
            "`robust explain` accepts only one model.",
            f"Got {len(config.models)}.",
            "Explain the same photos with each: repeat the command with `--image ID`.",
        )
    chosen = [("--worst", config.worst), ("--class", config.class_name), ("--limit", config.limit)]
    for option, value in chosen:
        if config.images and value is not None:
            raise UsageError(
                f"`--image` cannot be used with `{option}`.",
                "It selects the photos directly.",
                "Omit one of the two.",
            )


# Inputs from a finished evaluation.


def _of_run(config: ExplainConfig, run: Path, listener: Listener) -> ExplainInputs:
    if has_record(run / "test"):  # a training: its evaluation on held-out images
        run = run / "test"
    record = read_record(run)
    config = for_task(config, record.task)
    _check(config)
    name = _model_name(config, record, listener)
    verify = VerifyConfig(
        run, data=config.data, weights=config.moved, label_space=config.label_space,
        labels=config.labels, plugins=config.plugins, device=config.device,
        offline=config.offline,
    )  # fmt: skip
    stored = StoredRows(run, record)
    models = RecordedModels(run, record, verify)
    tolerance = COMPARISONS[record.task].tolerance(record.precision, "cpu", "cpu")
    check = EvaluationCheck(run, record.task, record.status, tolerance)
    items = find_images(stored, models, verify, check)
    known = find_transforms(stored, verify, check)
    cells = _chosen_cells(config, run, name, record, known, listener)
    recorded = next(model for model in record.models if model.name == name)
    request = models.requests[record.models.index(recorded)]
    device = choose_device(config.device)
    space = answers_in(request) if record.task == "cls" else None
    if config.class_name is not None:
        index = class_index(config.class_name, space, items.values())
        items = {key: item for key, item in items.items() if item.target == index}
    items = {key: item for key, item in items.items() if key not in stored.skipped}
    if config.limit is not None:
        drawn = sorted(items, key=lambda key: identity_seed("explain", record.seed, key))
        items = {key: items[key] for key in sorted(drawn[: config.limit])}
    transforms = tuple(cell.transform for cell in cells if cell != CLEAN)
    config = replace(
        config, models=(request,), transforms=transforms, seed=record.seed,
        apply_at=record.apply_at,
    )  # fmt: skip
    folder = config.directory(f"{record.dataset.digest} {record.dataset.contents}")
    check_folder(folder)

    def load() -> Model:
        loaded = models.loaded({name}, check)
        if name not in loaded:
            raise RunError(
                f"The weights of `{name}` are not those of the evaluation `{run}`.",
                "; ".join(difference.words for difference in check.differences),
                "Evaluate the model again, or pass the weights with `--weights FILE`.",
            )
        return loaded[name].to(device, "fp32")

    return ExplainInputs(
        config, models.task, name, recorded.family, request, load, items, cells, record.dataset,
        record.split, space, device, folder, run,
    )  # fmt: skip


def _model_name(config: ExplainConfig, record: RunRecord, listener: Listener) -> str:
    names = [model.name for model in record.models]
    if config.models:
        return find(
            config.models[0].name, names, kind="model of the run", listing="robust report RUN"
        )
    if len(names) > 1:
        listener.say(
            f"`--model` is not set; explaining `{names[0]}`, the first of {len(names)} in the run."
        )
    return names[0]


def _chosen_cells(
    config: ExplainConfig, run: Path, model: str, record: RunRecord,
    known: dict[Cell, TransformCell], listener: Listener,
) -> dict[Cell, TransformCell]:  # fmt: skip
    """The clean cell, and the cells that the user named or else the worst cell of the run."""
    changed = [cell for cell in known if cell != CLEAN]
    severities = config.severities
    if severities:
        changed = [cell for cell in changed if cell.severity in severities]
    names = list(dict.fromkeys(cell.transform for cell in changed))
    if config.transforms:
        named: set[str] = set()
        for pattern in config.transforms:
            named.update(_run_transforms(pattern, names, run))
        cells = [cell for cell in changed if cell.transform in named]
    else:
        cells = _worst_cell(run, model, record, changed, listener)
    return {CLEAN: known[CLEAN], **{cell: known[cell] for cell in cells}}


def _run_transforms(pattern: str, names: Sequence[str], run: Path) -> list[str]:
    return matching(pattern, names, kind="transform of the run", listing=f"robust report {run}")


def _worst_cell(
    run: Path, model: str, record: RunRecord, cells: Sequence[Cell], listener: Listener
) -> list[Cell]:
    """The cell with the lowest accuracy (of segmenters: dice) of the model."""
    if len(cells) <= 1:
        return list(cells)
    column = "top1" if record.task == "cls" else "dice"
    numbers = table(run)
    numbers = numbers[(numbers["model"] == model) & numbers[column].notna()]
    keys = [Cell(str(t), int(s)) for t, s in zip(numbers["transform"], numbers["severity"],
                                                 strict=True)]  # fmt: skip
    values = dict(zip(keys, numbers[column], strict=True))
    known = [cell for cell in cells if cell in values]
    if not known:
        return []
    worst = min(known, key=lambda cell: (values[cell], cell.transform, cell.severity))
    at = f" at severity {worst.severity}" if worst.severity else ""
    listener.say(
        f"`--transform` is not set; using `{worst.transform}`{at}, with the lowest {column} "
        f"({values[worst]:.1%})."
    )
    return [worst]
