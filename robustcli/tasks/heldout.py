"""Selects the split to evaluate; by default the images that no model was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.foreign import sidecar_of
from robustcli.adapters.load import header_for, weights_path
from robustcli.adapters.training_run import Header, header_beside, weights_in
from robustcli.core.errors import UsageError
from robustcli.core.io import parse_json
from robustcli.core.listener import Listener
from robustcli.core.names import counted
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.mask_classes import ClassTable, in_pairs
from robustcli.data.mask_values import NONZERO
from robustcli.data.sources import check_data_exists, find_default
from robustcli.data.splits import EARLIER_SPLITS, read_earlier_splits, read_splits
from robustcli.tasks.base import ConfigT, TaskConfig
from robustcli.tasks.record import EvaluatedPart, MasksRecord, class_table

SPLITS_FILE = "splits.csv"
MaskValues = tuple[str | None, str | None, ClassTable | None]
"""`--foreground` and `--ignore` as on the command line, and the classes of `--classes`."""


@dataclass(frozen=True)
class TrainingData:
    """The data of one training.

    Args:
        model: The model's name as typed by the user.
        digest: Digest of the training images; None if the weights do not record it.
        parts: The split of each image by id; empty if `splits.csv` is missing.
        file_hashes: SHA-256 of the files of some training images by id, if recorded.
        mask_values: `--foreground`, `--ignore` and the classes of the training, if it used them.
        data: The data set as a value of `--data`; None if the folder of the run is not at hand.
        earlier: The trainings of the initial weights, the last one first.
        of_initial: Whether this is a training of the initial weights of `model`.
    """

    model: str
    digest: str | None
    parts: Mapping[str, str]
    file_hashes: Mapping[str, str] = field(default_factory=dict)
    mask_values: MaskValues | None = None
    data: str | None = None
    earlier: tuple[TrainingData, ...] = ()
    of_initial: bool = False

    @property
    def subject(self) -> str:
        """What was trained, for messages."""
        return f"`{self.model}` (its initial weights)" if self.of_initial else f"`{self.model}`"

    def overlaps(self, dataset: Dataset) -> bool:
        """Whether `dataset` contains images of the training.

        Ids are paths relative to the data set, so the location of the data set does not matter.
        Because `cat/001.jpg` may be a different image in another data set, file hashes are compared
        if they are known for files of these names.
        """
        hashed = [sample for sample in dataset.samples if sample.image_id in self.file_hashes]
        if hashed:
            return any(_hash(sample) == self.file_hashes[sample.image_id] for sample in hashed)
        if self.digest is not None and self.digest == dataset.digest:
            return True
        return any(sample.image_id in self.parts for sample in dataset.samples)


def _hash(sample: Sample) -> str:
    try:
        return hashlib.sha256(sample.image.read()).hexdigest()
    except OSError:
        return ""


def training_data(request: ModelRequest) -> TrainingData | None:
    """The training data of the model of `request`; None if unknown.

    The header of the weights identifies the data; `splits.csv` in the run's folder (or a file with
    that suffix next to bundled weights) contains the splits. For an exported model, its sidecar
    file contains both. Both also describe the trainings of the initial weights.
    """
    sidecar = sidecar_of(request)
    if sidecar is not None:
        header = header_for(request)
        training = _training_data(request, header, sidecar.splits, sidecar.mask_values, None)
        return _with_earlier(training, header, sidecar.earlier_splits)
    path = weights_path(request)
    if path is None:
        return None
    header = header_beside(weights_in(path))
    folders = [path, path.parent, path.parent.parent]  # RUN, RUN/FILE, RUN/checkpoints/FILE
    splits_file = _file_of_run(path, folders, SPLITS_FILE)
    parts: Mapping[str, str] = {} if splits_file is None else read_splits(splits_file)
    masks = next((v for v in map(mask_values_of, folders) if v is not None), None)
    data = next((v for v in map(_data_of, folders) if v is not None), None)
    training = _training_data(request, header, parts, masks, data)
    earlier_file = _file_of_run(path, folders, EARLIER_SPLITS)
    earlier = () if earlier_file is None else read_earlier_splits(earlier_file)
    return _with_earlier(training, header, earlier)


def _file_of_run(weights: Path, folders: Sequence[Path], name: str) -> Path | None:
    """The file `name` of the run of `weights`, or that with this suffix next to them."""
    files = [weights.with_suffix(f".{name}"), *(folder / name for folder in folders)]
    return next((file for file in files if file.is_file()), None)


def _with_earlier(
    training: TrainingData | None, header: Header | None, splits: Sequence[Mapping[str, str]]
) -> TrainingData | None:
    """`training` with those of its initial weights, of which `splits` are the splits if known."""
    if training is None or header is None:
        return training
    earlier = tuple(
        TrainingData(
            training.model,
            named.trained_on,
            splits[k] if k < len(splits) else {},
            named.seen,
            of_initial=True,
        )
        for k, named in enumerate(header.earlier)
    )
    return replace(training, earlier=earlier)


def _training_data(
    request: ModelRequest, header: Header | None, parts: Mapping[str, str],
    masks: MaskValues | None, data: str | None,
) -> TrainingData | None:  # fmt: skip
    if header is None and not parts:
        return None
    file_hashes = {} if header is None else header.seen
    digest = None if header is None else header.trained_on
    return TrainingData(request.name, digest, parts, file_hashes, masks, data)


def _recorded_dataset(run: Path) -> dict[str, Any] | None:
    """The data set in the record of the training in `run`; None without a readable record.

    The folder may be none of a run. If the record is damaged, reading it elsewhere reports that.
    """
    try:
        recorded = parse_json((run / "run.json").read_text(encoding="utf-8"))["dataset"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return recorded if isinstance(recorded, dict) else None


def _data_of(run: Path) -> str | None:
    """The data set of the training in `run` as a value of `--data`."""
    recorded = _recorded_dataset(run) or {}
    # The images of a demonstration set lie in the installed package, which may have moved.
    place = recorded.get("name" if recorded.get("demonstration") else "location")
    return place if isinstance(place, str) and place else None


def mask_values_of(run: Path) -> MaskValues | None:
    """The options with which the training in `run` read masks; None without such options."""
    plain = (_recorded_dataset(run) or {}).get("masks")
    try:
        masks = MasksRecord.model_validate(plain) if plain else None
    except ValueError:
        return None  # damaged; reading the record reports the damage
    if masks is None:
        return None
    ignore = ",".join(masks.ignored) or None
    if masks.classes is not None:
        return None, ignore, class_table(masks)
    if masks.background is not None:  # the training derived it from the two mask values
        return None if ignore is None else (None, ignore, None)
    foreground = NONZERO if masks.foreground is None else ",".join(masks.foreground)
    return foreground, ignore, None


def in_flags(values: MaskValues) -> str:
    """The options as command-line flags."""
    foreground, ignore, table = values
    classes = None if table is None else in_pairs(table)
    flags = (("--foreground", foreground), ("--ignore", ignore), ("--classes", classes))
    return " ".join(f"{flag} {value}" for flag, value in flags if value is not None)


def trainings_of(config: TaskConfig) -> list[TrainingData]:
    """The known training data of the models of `config`, with those of their initial weights.

    With `splits_of`, a training scores its own held-out images: its record states how many of them
    the initial weights have seen.
    """
    trainings = [training for training in map(training_data, config.models) if training is not None]
    if config.splits_of is not None:
        return [*trainings, TrainingData(str(config.splits_of), None, read_parts(config.splits_of))]
    return [each for training in trainings for each in (training, *training.earlier)]


def with_data_of_trainings(
    config: ConfigT, label_space: str, listener: Listener, *, masks: bool
) -> ConfigT:
    """Without `--data` and without a default of the user: the data that the models were trained on.

    Models whose training is unknown are ignored. If no training is known, `config` is returned
    unchanged, so that the default of the label space applies.

    Args:
        config: The settings.
        label_space: The label space of the models.
        listener: Receives the choice.
        masks: Whether the task needs masks.

    Raises:
        UsageError: The data of the trainings are missing, or differ.
    """
    if config.data is not None or config.dataset is not None:
        return config
    default = find_default(label_space)
    if default is not None and default.origin != "bundled":
        return config
    trained: dict[str, str] = {}
    for training in trainings_of(config):
        if training.data is not None:
            trained.setdefault(training.data, training.model)
    if not trained:
        return config
    (data, model), *others = trained.items()
    if others:
        raise UsageError(
            f"`--data` is not set, and `{model}` and `{others[0][1]}` were trained on different "
            "data.",
            f"The data were `{data}` and `{others[0][0]}`.",
            "Specify the images with `--data`.",
        )
    try:
        check_data_exists(data, masks=masks)
    except UsageError as error:
        raise UsageError(
            f"`--data` is not set, and the data of the training `{model}` are missing.",
            f"They were in `{data}`.",
            "Specify the images with `--data`.",
        ) from error
    listener.say(f"`--data` is not set; using {data}, on which `{model}` was trained.")
    return replace(config, data=data)


def trainings_of_initial(request: ModelRequest) -> tuple[TrainingData, ...]:
    """The trainings of the weights `request`, from which a training starts; the last one first."""
    training = training_data(request)
    return () if training is None else (training, *training.earlier)


def used_before(trainings: Sequence[TrainingData], dataset: Dataset, held_out: Dataset) -> str:
    """States that initial weights were trained on images of `held_out`; else empty.

    Args:
        trainings: The trainings of the weights from which a new training starts.
        dataset: All images of the new training.
        held_out: Those of them that it does not train on.
    """
    overlapping = [training for training in trainings if training.overlaps(dataset)]
    if any(not training.parts for training in overlapping):
        return (
            "these weights were trained on this data, perhaps on held-out images: the scores can "
            "be too high"
        )
    used = sum(
        any(training.parts.get(sample.image_id) in ("train", "val") for training in overlapping)
        for sample in held_out.samples
    )
    of_all = f"{used} of {counted(len(held_out.samples), 'held-out image')}"
    return f"these weights were trained on {of_all}: the scores are too high" if used else ""


def read_parts(run: Path) -> Mapping[str, str]:
    """The split of each image id in the training run `run`; empty without `splits.csv`.

    Raises:
        UsageError: The `splits.csv` of the run is damaged.
    """
    return read_splits(run / SPLITS_FILE) if (run / SPLITS_FILE).is_file() else {}


@dataclass(frozen=True)
class ChosenPart:
    """The images to evaluate, and their split."""

    dataset: Dataset
    split: EvaluatedPart


def choose_part(
    dataset: Dataset,
    split: Literal["auto"] | EvaluatedPart,
    trainings: Sequence[TrainingData],
    listener: Listener,
) -> ChosenPart:
    """The part of `dataset` to evaluate.

    `auto` selects the held-out test images if a model was trained on images of `dataset` (for
    several of these models, the images that all of them held out), else the official evaluation
    split of the data, else all images. A named split is that of the trainings if they used images
    of `dataset`, else the official split of the data.

    Args:
        dataset: The complete data set.
        split: The value of `--split`.
        trainings: The training data of the models.
        listener: Receives the selection, and a warning if training images are evaluated.

    Raises:
        UsageError: The images of the split are unknown, or the split is empty.
    """
    overlapping = [training for training in trainings if training.overlaps(dataset)]
    if split == "auto" and not overlapping and dataset.evaluated is not None:
        part = _own_split(dataset, dataset.evaluated)
        listener.say(
            f"Only the {len(part.samples):,} {dataset.evaluated} images of the "
            f"{len(dataset.samples):,} images of `{dataset.name}` are used, as in the published "
            "evaluation (`--split all` uses all)."
        )
        return ChosenPart(part, dataset.evaluated)
    if split == "all" or (split == "auto" and not overlapping):
        for training in overlapping:
            listener.say(
                f"{training.subject} was trained on some of these images, so that its scores are "
                "too high."
            )
        return ChosenPart(dataset, "all")
    evaluated: EvaluatedPart = "test" if split == "auto" else split
    part = (
        _of_trainings(dataset, evaluated, overlapping)
        if overlapping
        else _own_split(dataset, evaluated)
    )
    if split == "auto":
        listener.say(
            f"{overlapping[0].subject} was trained on this data: only the {len(part.samples)} of "
            f"{len(dataset.samples)} images that were held out for testing are used (`--split "
            "all` uses all)."
        )
    return ChosenPart(part, evaluated)


def _of_trainings(
    dataset: Dataset, split: EvaluatedPart, overlapping: Sequence[TrainingData]
) -> Dataset:
    for training in overlapping:
        if not training.parts:
            raise _unknown_parts(training)
    ids = frozenset(
        sample.image_id
        for sample in dataset.samples
        if all(training.parts.get(sample.image_id) == split for training in overlapping)
    )
    by_path = {  # ./RUN is RUN
        (Path(training.model), training.of_initial): training.subject for training in overlapping
    }
    names = " and ".join(by_path.values())
    if not ids:
        raise UsageError(
            f"No image of `{dataset.name}` is in the {split} split of {names}.",
            f"All {len(dataset.samples)} images either do not belong to the training data, or are "
            "in another split.",
            "Use other data, evaluate models with different splits in separate runs, or use all "
            "images with `--split all`.",
        )
    return _part(dataset, ids, f"{split} split of {names}")


def _own_split(dataset: Dataset, split: EvaluatedPart) -> Dataset:
    ids = frozenset(sample.image_id for sample in dataset.samples if sample.split == split)
    if not ids:
        splits = sorted({sample.split for sample in dataset.samples if sample.split is not None})
        raise UsageError(
            f"`--split {split}` selects no images of `{dataset.name}`.",
            f"The data set has the splits {', '.join(splits)}."
            if splits
            else "The data set has no splits, and none of the models was trained on it.",
            "Omit `--split`, or use data with split folders or a column `split`.",
        )
    return _part(dataset, ids, f"{split} split of the data set")


def _part(dataset: Dataset, ids: frozenset[str], part: str) -> Dataset:
    return dataset.part(ids, f"{dataset.subset}, {part}" if dataset.subset else part)


def _unknown_parts(training: TrainingData) -> UsageError:
    name = EARLIER_SPLITS if training.of_initial else SPLITS_FILE
    return UsageError(
        f"It is not known which images {training.subject} was not trained on.",
        f"According to its weights it was trained on this data, but `{name}` of that training "
        "is not in the folder of the weights.",
        f"Pass the folder of the training run (`--model RUN`), copy its `{name}` into the "
        "folder of the weights, or use all images with `--split all`.",
    )
