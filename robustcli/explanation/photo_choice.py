"""Selects the photos to explain: by id, by class, at random, or those with the largest loss."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from robustcli.core.errors import RunError, UsageError
from robustcli.core.names import TaskName, canonical, nearest
from robustcli.data.dataset import Sample
from robustcli.data.labels import LabelSpace
from robustcli.evaluation.store import Store
from robustcli.explanation.config import DEFAULT_WORST, ExplainConfig
from robustcli.explanation.record import ChoiceRecord, ChoiceRule
from robustcli.metrics.columns import PIXEL_COLUMNS
from robustcli.metrics.mask_scores import dice
from robustcli.transforms.base import CLEAN, Cell

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
