"""Looks up the model, the images and the transforms of an explanation, and selects its photos.

The command line names them, as in an evaluation, or the record of a finished evaluation does.
Photos are selected by id, by class, at random, or those with the largest loss.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import answers_in, entry_of
from robustcli.adapters.model import Model
from robustcli.adapters.segmenter import Segmenter
from robustcli.core.errors import RunError, UsageError
from robustcli.core.listener import Listener
from robustcli.core.machine import check_opencv
from robustcli.core.names import TaskName, canonical, find, matching, nearest
from robustcli.core.ranks import Ranks
from robustcli.core.rundir import check_folder, has_record
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.labels import LabelSpace
from robustcli.data.splits import take
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.device import choose_device, unused_gpu
from robustcli.evaluation.look_up import EVALUATION_TASKS, look_up
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.evaluation.store import Store
from robustcli.explanation.config import DEFAULT_WORST, ExplainConfig, refuse_with_run
from robustcli.explanation.record import ChoiceRecord, ChoiceRule
from robustcli.metrics.columns import PIXEL_COLUMNS
from robustcli.metrics.mask_scores import dice
from robustcli.tasks.base import Task
from robustcli.tasks.record import DatasetRecord, EvaluatedPart
from robustcli.transforms.base import CLEAN, Cell
from robustcli.transforms.registry import TransformCell
from robustcli.verification.recorded_run import (
    RecordedModels,
    StoredRows,
    VerifyConfig,
    check_code,
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


def explain_inputs(
    config: ExplainConfig, listener: Listener, place: Ranks | None = None
) -> ExplainInputs:
    """Resolves the names in `config`; `place` determines the device of this process.

    Raises:
        UsageError: A setting names something that does not exist, or settings contradict each
            other.
        MachineError: The data or the weights of a finished run are not on this machine.
    """
    if config.source is not None:
        return _of_run(config, config.source, listener, place)
    if not config.models:
        raise UsageError(
            "`robust explain` needs a model or a finished run.",
            "",
            "Pass one: `--model NAME`, or the folder of an evaluation.",
        )
    if len(config.models) == 1:
        with suppress(UsageError):  # `look_up` raises it, with the errors of other settings
            config = for_task(config, entry_of(config.models[0], offline=config.offline).task)
    _check(config)
    # With `--class`, `--limit` counts images of the class.
    opened = replace(config, limit=None) if config.class_name is not None else config
    evaluation = look_up(opened, listener, place)
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
    of_transforms = {
        "--severity": bool(config.severities), "--apply-at": config.apply_at != "original",
    }  # fmt: skip
    for option, is_set in of_transforms.items():
        if is_set and not config.transforms and config.source is None:
            raise UsageError(
                f"`{option}` cannot be used without `--transform`.",
                "Without it, only untransformed photos are explained.",
                f"Add `--transform NAME`, or omit `{option}`.",
            )


def check_precision(config: ExplainConfig, choice: ChoiceRecord, source: Path | None) -> None:
    """Raises UsageError if `--precision` is set and nothing is evaluated to select photos."""
    if config.precision != "fp32" and (choice.rule != "worst" or source is not None):
        raise UsageError(
            f"`--precision {config.precision}` has no effect.",
            "It applies to the evaluation that finds the worst photos; maps are always computed in "
            "fp32. These photos are selected "
            + ("by the predictions of RUN." if choice.rule == "worst" else "without predictions."),
            "Omit it.",
        )


# Inputs from a finished evaluation.


def _of_run(
    config: ExplainConfig, run: Path, listener: Listener, place: Ranks | None
) -> ExplainInputs:
    if has_record(run / "test"):  # a training: its evaluation on held-out images
        run = run / "test"
    record = read_record(run)
    config = for_task(config, record.task)
    _check(config)
    EVALUATION_TASKS[record.task]().check(config)
    _check_recorded(config, run, record)
    name = _model_name(config, record, listener)
    verify = VerifyConfig(
        run, data=config.data, weights=config.moved, label_space=config.label_space,
        labels=config.labels, plugins=config.plugins, device=config.device,
        offline=config.offline, run_code=config.run_code,
    )  # fmt: skip
    stored = StoredRows(run, record)
    models = RecordedModels(run, record, verify)
    tolerance = COMPARISONS[record.task].tolerance(record.precision, "cpu", "cpu")
    check = EvaluationCheck(run, record.task, record.status, tolerance)
    check_code(stored, models, verify)
    items, dataset = find_images(stored, models, verify, check)
    known = find_transforms(stored, dataset, verify, check)
    cells = _chosen_cells(config, run, name, record, known, listener)
    recorded = next(model for model in record.models if model.name == name)
    request = models.requests[record.models.index(recorded)]
    device = choose_device(config.device, place)
    check_opencv()
    if note := unused_gpu(config.device, device):
        listener.say(note)
    space = answers_in(request) if record.task == "cls" else None
    if config.class_name is not None:
        index = class_index(config.class_name, space, items.values())
        items = {key: item for key, item in items.items() if item.target == index}
    items = {key: item for key, item in items.items() if key not in stored.skipped}
    if config.limit is not None:
        images = Dataset("run", str(run), tuple(items.values()), space)
        part = take(images, limit=config.limit, seed=record.seed)
        items = {item.image_id: item for item in part.samples}
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
        model = loaded[name]
        if isinstance(model, Segmenter):
            model.for_classes(record.dataset.mask_classes)
        return model.to(device, "fp32")

    return ExplainInputs(
        config, models.task, name, recorded.family, request, load, items, cells, record.dataset,
        record.split, space, device, folder, run,
    )  # fmt: skip


def _check_recorded(config: ExplainConfig, run: Path, record: RunRecord) -> None:
    """Raises UsageError for options other than those of the run, whose values are used."""
    options = {
        "--seed": (config.seed, record.seed, 0),
        "--apply-at": (config.apply_at, record.apply_at, "original"),
    }
    for option, (value, recorded, default) in options.items():
        if value not in (recorded, default):
            raise UsageError(
                f"`{option} {value}` cannot be used with this run.",
                f"`{run}` was computed with `{option} {recorded}`, and its photos are transformed "
                "and selected as in the run.",
                "Omit it, or explain the model with `--model NAME` instead of the run.",
            )
    of_data = {
        "--split": config.split != "auto", "--foreground": config.foreground is not None,
        "--ignore": config.ignore is not None, "--classes": config.mask_classes is not None,
        # Only in Python:
        "--quick": config.quick, "--per-class": config.per_class is not None,
        "--answers": config.answers != "auto", "--published": bool(config.published),
    }  # fmt: skip
    refuse_with_run(run, of_data, "how its images and masks are read")


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
    absent = [severity for severity in severities or () if severity not in
              {cell.severity for cell in changed}]  # fmt: skip
    if absent:
        known_ones = sorted({cell.severity for cell in known if cell.severity})
        raise UsageError(
            f"`{run}` has no transform at severity {absent[0]}.",
            f"Its severities are {', '.join(map(str, known_ones))}."
            if known_ones
            else "It contains no transform at a fixed severity.",
            "Choose one of them, or explain the model instead of its run: `--model NAME|RUN`.",
        )
    if config.transforms and not names:
        raise UsageError(
            f"`{run}` has no transform to explain.",
            "It contains predictions for untransformed images only.",
            "Omit `--transform`, or explain the model instead of its run: `--model NAME|RUN`.",
        )
    if config.transforms:
        named: set[str] = set()
        for pattern in config.transforms:
            named.update(
                matching(
                    pattern, names, kind="transform of the run", listing=f"robust report {run}"
                )
            )
        cells = [cell for cell in changed if cell.transform in named]
    else:
        cells = _worst_cell(run, model, record, changed, listener)
    return {CLEAN: known[CLEAN], **{cell: known[cell] for cell in cells}}


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


# The selection of photos.

_SHOWN = 3


def choice_of(config: ExplainConfig, source: Path | None) -> ChoiceRecord:
    """The rule by which `config` selects photos; by default, the worst predictions."""
    if config.images:
        return ChoiceRecord(rule="ids", count=len(config.images))
    if config.worst is None and (config.class_name is not None or config.limit is not None):
        rule: ChoiceRule = "class" if config.class_name is not None else "subset"
        return ChoiceRecord(rule=rule, count=config.limit, class_name=config.class_name)
    return ChoiceRecord(
        rule="worst", count=config.worst or DEFAULT_WORST, class_name=config.class_name,
        source=None if source is None else str(source),
    )  # fmt: skip


def mask_class_number(name: str, classes: Sequence[str]) -> int:
    """The number, from 1, of the segmenter class with the name or number `name`.

    Raises:
        UsageError: No class matches, or the segmenter only has foreground and background.
    """
    if not classes:
        raise UsageError(
            f"`--class {name}` cannot be used with this segmenter.",
            "It predicts foreground and background; its maps explain the foreground.",
            "Omit `--class`; select photos with `--image ID` or `--worst N`.",
        )
    numbers = {canonical(label): number for number, label in enumerate(classes, 1)}
    if canonical(name) in numbers:
        return numbers[canonical(name)]
    if name.isdecimal() and 1 <= int(name) <= len(classes):
        return int(name)
    close = nearest(name, classes)
    raise UsageError(
        f"No class is called `{name}`.",
        f"Did you mean {' or '.join(f'`{candidate}`' for candidate in close)}?" if close else "",
        f"Use one of {', '.join(f'`{label}`' for label in classes)}, or its number (1 to "
        f"{len(classes)}).",
    )


def class_index(name: str, space: LabelSpace | None, samples: Iterable[Sample]) -> int:
    """The index of the class `name`.

    Raises:
        UsageError: No class matches (the message lists the nearest names), or no image has the
            class.
    """
    assert space is not None, "classifiers have classes"
    index = space.index_of(name)
    if index is None:
        close = nearest(name, space.names) or nearest(name, space.ids)
        raise UsageError(
            f"No class is called `{name}`.",
            f"Did you mean {' or '.join(f'`{candidate}`' for candidate in close)}?" if close else
            f"The model has {len(space.ids)} classes ({space.name}).",
            f"Use one of {space.name}, such as `{space.names[0]}`.",
        )  # fmt: skip
    if not any(sample.target == index for sample in samples):
        raise UsageError(
            f"No image contains `{space.names[index]}`.",
            "The class exists, but the data (or the selected split) has no image of it.",
            "Choose another class, or other data with `--data`.",
        )
    return index


def named_images(names: Sequence[str], items: Mapping[str, Sample]) -> tuple[Sample, ...]:
    """The images with the ids `names`, in this order, without duplicates.

    Raises:
        UsageError: An id does not exist; the message lists the nearest ids.
    """
    unknown = [name for name in names if name not in items]
    if unknown:
        close = nearest(unknown[0], items) or _ending(unknown[0], items)
        suffix = f" (and {len(unknown) - 1} more of the requested ids)" if len(unknown) > 1 else ""
        raise UsageError(
            f"No image is called `{unknown[0]}`{suffix}.",
            f"Did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else
            f"The data set has {len(items):,} images, such as `{next(iter(items))}`.",
            "The id of an image is its path inside the data set; rows of predictions contain it.",
        )  # fmt: skip
    return tuple(items[name] for name in dict.fromkeys(names))


def _ending(name: str, items: Collection[str]) -> list[str]:
    """Ids with the same file name as `name`."""
    last = name.rpartition("/")[2]
    return [key for key in items if key.rpartition("/")[2] == last][:_SHOWN]


def worst_images(
    run: Path, model: str, task: TaskName, cells: Sequence[Cell], items: Mapping[str, Sample],
    count: int,
) -> tuple[Sample, ...]:  # fmt: skip
    """The `count` images whose score falls most under any of `cells`, in descending order.

    The score is the probability of the true class for classifiers, and the dice for segmenters; the
    fall is relative to the untouched image. Without `cells`, the images with the lowest score.

    Raises:
        RunError: The run does not contain the predictions.
    """
    store = Store(run)
    clean = _scores_of_cell(store, model, CLEAN, task)
    losses = [clean - _scores_of_cell(store, model, cell, task) for cell in cells] or [-clean]
    loss = pd.concat(losses, axis=1).max(axis=1, skipna=True).dropna()
    loss = loss[loss.index.isin(list(items))]
    if loss.empty:
        raise RunError(
            f"`{run}` has no predictions of `{model}` from which photos could be selected.",
            "The run is partial, or its images differ.",
            "Repeat its command, which computes what is missing, or select photos with `--image "
            "ID`.",
        )
    ordered = sorted(loss.items(), key=lambda pair: (-float(pair[1]), str(pair[0])))
    return tuple(items[str(name)] for name, _ in ordered[:count])


def _scores_of_cell(store: Store, model: str, cell: Cell, task: TaskName) -> pd.Series[float]:
    """The probability of the true class, or the dice, in [0, 1], by image id."""
    if task == "cls":
        rows = store.rows(model, cell, task, ["image_id", "target_probability"])
        return rows.set_index("image_id")["target_probability"].astype(float)
    rows = store.rows(model, cell, task, ["image_id", *PIXEL_COLUMNS])
    return pd.Series(dice(rows), index=rows["image_id"])
