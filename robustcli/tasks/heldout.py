"""Which part of the data is evaluated: what no model was trained on, unless the user says else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import weights_path
from robustcli.adapters.training_run import ClassifierHeader, header_beside, weights_in
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.mask_values import NONZERO
from robustcli.data.splits import read_splits
from robustcli.tasks.config import TaskConfig
from robustcli.tasks.record import EvaluatedPart, MasksRecord

# What a model was trained on, as far as its files tell, so that it is not tested on that.


SPLITS_FILE = "splits.csv"
MaskValues = tuple[str | None, str | None]
"""`--foreground` and `--ignore`, as a user types them."""


@dataclass(frozen=True)
class TrainingData:
    """The data of one training.

    Args:
        model: The model, as the user named it.
        digest: Of the list of images; None where the weights do not say it.
        parts: Which part each image was in, by id; empty where that file is not there.
        seen: Of some training images, by id, the SHA-256 of their files, where the weights say it.
        mask_values: `--foreground` and `--ignore` of the training, where it had them.
    """

    model: str
    digest: str | None
    parts: Mapping[str, str]
    seen: Mapping[str, str] = field(default_factory=dict)
    mask_values: MaskValues | None = None

    def overlaps(self, index: Dataset) -> bool:
        """Whether some images of `index` are among those of the training.

        Ids are paths inside the data set, so another name or place of its folder changes nothing.
        But `cat/001.jpg` may be another photo in other data: where files of that name can be
        compared with those of the training, these decide.
        """
        comparable = [sample for sample in index.samples if sample.image_id in self.seen]
        if comparable:
            return any(_hash(sample) == self.seen[sample.image_id] for sample in comparable)
        same_list = self.digest is not None and self.digest == index.digest
        return same_list or any(sample.image_id in self.parts for sample in index.samples)


def _hash(sample: Sample) -> str:
    try:
        return hashlib.sha256(sample.image.read()).hexdigest()
    except OSError:
        return ""


def training_data(request: ModelRequest) -> TrainingData | None:
    """What the model of `request` was trained on; None where nothing tells.

    The weights' own header names the data; `splits.csv` in the run's folder the parts, or a file of
    that ending beside bundled weights.
    """
    path = weights_path(request)
    if path is None:
        return None
    header = header_beside(weights_in(path))
    folders = [path, path.parent, path.parent.parent]  # RUN, RUN/FILE, RUN/checkpoints/FILE
    files = [path.with_suffix(f".{SPLITS_FILE}"), *(folder / SPLITS_FILE for folder in folders)]
    splits_file = next((file for file in files if file.is_file()), None)
    parts = {} if splits_file is None else read_splits(splits_file)
    if header is None and not parts:
        return None
    seen = header.seen if isinstance(header, ClassifierHeader) else {}
    digest = None if header is None else header.trained_on
    masks = next((v for v in map(mask_values_of, folders) if v is not None), None)
    return TrainingData(request.name, digest, parts, seen, masks)


def mask_values_of(run: Path) -> MaskValues | None:
    """The options that read the masks as the training in `run` read them; None for none."""
    try:
        masks_record = json.loads((run / "run.json").read_text(encoding="utf-8"))["dataset"].get(
            "masks"
        )
        masks = MasksRecord.model_validate(masks_record) if masks_record else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None  # no run, or a damaged one: whoever reads its record says so
    if masks is None:
        return None
    ignore = ",".join(masks.ignored) or None
    if masks.background is not None:  # the training told foreground by the masks' own two values
        return None if ignore is None else (None, ignore)
    return (NONZERO if masks.foreground is None else ",".join(masks.foreground)), ignore


def in_flags(values: MaskValues) -> str:
    """The two options as a user types them."""
    options = zip(("--foreground", "--ignore"), values, strict=True)
    return " ".join(f"{flag} {value}" for flag, value in options if value is not None)


def trainings_of(config: TaskConfig) -> list[TrainingData]:
    """What the models of `config` were trained on here; nothing is known of other weights."""
    trainings = [training_data(request) for request in config.models]
    if config.splits_of is not None:
        trainings.append(TrainingData(str(config.splits_of), None, read_parts(config.splits_of)))
    return [training for training in trainings if training is not None]


def read_parts(run: Path) -> Mapping[str, str]:
    """The part of each image id in the training run `run`; empty where it does not say.

    Raises:
        UsageError: Its `splits.csv` is damaged.
    """
    return read_splits(run / SPLITS_FILE) if (run / SPLITS_FILE).is_file() else {}


# Which part of the data is evaluated: what no model was trained on, unless the user says else.


@dataclass(frozen=True)
class ChosenPart:
    """Some images of the data, and which part of it they are."""

    index: Dataset
    split: EvaluatedPart


def choose_part(
    index: Dataset,
    split: Literal["auto"] | EvaluatedPart,
    trainings: Sequence[TrainingData],
    listener: Listener,
) -> ChosenPart:
    """The part of `index` to evaluate.

    `auto` takes the held-out test images where a model was trained on images of `index`, else the
    part that the owners of the data evaluate on, else all. With several such models these are the
    images that all of them held out. A named part is that of the trainings, where there are any,
    else the data's own.

    Args:
        index: The whole data set.
        split: As typed after `--split`.
        trainings: What the models were trained on.
        listener: Hears what was taken, and of test images that are none.

    Raises:
        UsageError: Which images are in the part is not known, or there are none.
    """
    overlapping = [training for training in trainings if training.overlaps(index)]
    if split == "auto" and not overlapping and index.evaluated is not None:
        part = _published_part(index, index.evaluated)
        listener.say(
            f"Only the {len(part.samples):,} {index.evaluated} images of `{index.name}` are used, "
            f"as published, of {len(index.samples):,} (`--split all` takes all)."
        )
        return ChosenPart(part, index.evaluated)
    if split == "all" or (split == "auto" and not overlapping):
        for training in overlapping:
            listener.say(
                f"`{training.model}` was trained on some of these images: the numbers flatter it."
            )
        return ChosenPart(index, "all")
    evaluated: EvaluatedPart = "test" if split == "auto" else split
    part = (
        _of_trainings(index, evaluated, overlapping)
        if overlapping
        else _published_part(index, evaluated)
    )
    if split == "auto":
        listener.say(
            f"`{overlapping[0].model}` was trained on this data: only the {len(part.samples)} of "
            f"{len(index.samples)} images that were held out for testing are used "
            "(`--split all` takes all)."
        )
    return ChosenPart(part, evaluated)


def _of_trainings(
    index: Dataset, split: EvaluatedPart, overlapping: Sequence[TrainingData]
) -> Dataset:
    for training in overlapping:
        if not training.parts:
            raise _unknown_parts(training)
    ids = frozenset(
        pair.image_id
        for pair in index.samples
        if all(training.parts.get(pair.image_id) == split for training in overlapping)
    )
    names = " and ".join(dict.fromkeys(f"`{training.model}`" for training in overlapping))
    if not ids:
        raise UsageError(
            f"No image of `{index.name}` is in the {split} part of {names}.",
            f"All {len(index.samples)} images here are others, or were used otherwise in training.",
            "Name other data, evaluate models of different splits in separate runs, or take "
            "everything with `--split all`.",
        )
    return _part(index, ids, f"{split} part of {names}")


def _published_part(index: Dataset, split: EvaluatedPart) -> Dataset:
    ids = frozenset(pair.image_id for pair in index.samples if pair.split == split)
    if not ids:
        splits = sorted({pair.split for pair in index.samples if pair.split is not None})
        raise UsageError(
            f"`--split {split}` finds no images in `{index.name}`.",
            f"The data has {', '.join(splits)}."
            if splits
            else "The data is not split, and no model was trained on it.",
            "Leave out `--split`, or name data with the folders or the column that tell.",
        )
    return _part(index, ids, f"{split} part of the data's own split")


def _part(index: Dataset, ids: frozenset[str], subset: str) -> Dataset:
    return index.part(ids, f"{index.subset}, {subset}" if index.subset else subset)


def _unknown_parts(training: TrainingData) -> UsageError:
    return UsageError(
        f"Which images `{training.model}` has not seen is not known.",
        "Its weights say that it was trained on this data, but the `splits.csv` of that training "
        "is not beside them.",
        "Name the folder of the training run (`--model RUN`), copy its `splits.csv` beside the "
        "weights, or take all images with `--split all`.",
    )
