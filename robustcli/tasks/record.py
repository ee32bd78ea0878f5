"""The records of data and models in `run.json`; these Pydantic models define the file format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, TypeAdapter

from robustcli.adapters.catalogue import FOREGROUND
from robustcli.core.io import reading, write_bytes
from robustcli.core.names import model_folder
from robustcli.core.rundir import Record
from robustcli.data.dataset import Dataset
from robustcli.data.mask_classes import ClassLabel, ClassTable, colours_of
from robustcli.data.mask_values import MaskReading, shown_value
from robustcli.nnunet.normalisation import NnUNetInference
from robustcli.transforms.base import Cell

EvaluatedPart = Literal["all", "train", "val", "test"]
ListedT = TypeVar("ListedT", bound=Record)


class RecordList(Generic[ListedT]):
    """A JSON file in a run's folder that contains a list of records.

    Args:
        record: The class of the records.
        path: Path of the file, relative to the run's folder.
        remedy: Advice for the user if the file is damaged.
    """

    def __init__(self, record: type[ListedT], path: str, remedy: str) -> None:
        self._records, self._path, self._remedy = TypeAdapter(list[record]), path, remedy  # type: ignore[valid-type]

    def read(self, run: Path) -> list[ListedT]:
        """The records of `run`; an empty list without a file."""
        path = run / self._path
        if not path.is_file():
            return []
        with reading(path, self._remedy):
            return self._records.validate_json(path.read_bytes())

    def write(self, run: Path, records: list[ListedT]) -> None:
        """Writes the file durably."""
        write_bytes(run / self._path, self._records.dump_json(records, indent=2) + b"\n")


class MaskClassRecord(Record):
    """A class of masks: name, mask values in the notation of the command line, colour.

    If each class has separate files, `values` contains its name in the file names. `colour` is
    `#rrggbb` or None.
    """

    name: str
    values: list[str]
    colour: str | None = None


class MasksRecord(Record):
    """The meaning of mask values, if they are not the usual ones (0 and 1, or 0 and 255).

    Values have the notation of the command line (`128`, `#ff0000`). `foreground` is None for all
    values that are not 0 or ignored, `background` is None for all values that are not listed.
    `words` describes the same as a phrase. `classes` contains the classes 1 to K of masks with
    several classes, in order, else None.
    """

    foreground: list[str] | None
    background: list[str] | None
    ignored: list[str]
    channel: Literal["colour", "alpha"]
    words: str
    classes: list[MaskClassRecord] | None = None


class DatasetRecord(Record):
    """The images of a run; `digest` is the hash of their ids and labels in order.

    `contents` is the hash of the image files (`data.dataset.contents_digest`); None for runs of
    older versions. `answers` are the classes that models may predict, None for all; `members` lists
    the models' classes of each superclass, None without superclasses. `several_labels` is whether
    images have several true classes, as with ReaL labels. `tolerance` (pixels) is only written for
    data with relaxed scores, `masks` only if the mask values are not the usual ones.
    """

    name: str
    location: str
    label_space: str
    classes: int
    images: int
    images_available: int
    subset: str | None
    demonstration: bool
    digest: str
    contents: str | None = None
    answers: list[int] | None = None
    members: list[list[int]] | None = None
    several_labels: bool | None = None
    tolerance: int | None = None
    masks: MasksRecord | None = None

    @property
    def predicted_classes(self) -> int:
        """The number of classes that classifiers may predict."""
        return self.classes if self.answers is None else len(self.answers)

    @property
    def rules(self) -> list[str]:
        """Sentences on what a correct prediction is, if not the true one of all classes."""
        sentences = []
        if self.answers is not None:
            sentences.append(
                f"Models predict only the {len(self.answers):,} classes of the data: the softmax "
                "is computed over their logits."
            )
        if self.several_labels:
            sentences.append("A prediction of any true class of an image is correct.")
        return sentences

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """The names of the classes 1 to K of masks; empty for foreground and background."""
        return tuple(label.name for label in self._labels)

    @property
    def mask_colours(self) -> list[str]:
        """The colour, `#rrggbb`, of each class of masks."""
        return colours_of(len(self._labels), [label.colour for label in self._labels])

    @property
    def _labels(self) -> list[MaskClassRecord]:
        return [] if self.masks is None else self.masks.classes or []


def dataset_record(dataset: Dataset) -> DatasetRecord:
    """The record of `dataset`."""
    space, answers = dataset.label_space, dataset.answers
    return DatasetRecord(
        name=dataset.name,
        location=dataset.location,
        label_space=space.name if space else FOREGROUND,
        classes=len(space.ids) if space else _mask_classes(dataset.reading),
        images=len(dataset.samples),
        images_available=dataset.available,
        subset=dataset.subset,
        demonstration=dataset.demonstration,
        digest=dataset.digest,
        contents=dataset.contents,
        answers=None if answers is None else list(answers),
        members=None if dataset.members is None else [list(m) for m in dataset.members],
        several_labels=any(sample.also for sample in dataset.samples) or None,
        tolerance=dataset.tolerance,
        masks=_masks_record(dataset.reading),
    )


def _mask_classes(reading: MaskReading | None) -> int:
    """The number of mask classes, including background."""
    return 2 if reading is None or not reading.classes else len(reading.classes) + 1


def _masks_record(reading: MaskReading | None) -> MasksRecord | None:
    if reading is None or reading.is_standard:
        return None
    foreground, background = (
        None if values is None else [shown_value(value) for value in values]
        for values in (reading.foreground, reading.background)
    )
    return MasksRecord(
        foreground=foreground,
        background=background,
        ignored=[shown_value(value) for value in reading.ignored],
        channel=reading.channel,
        words=reading.words(),
        classes=_class_records(reading) or None,
    )


def _class_records(reading: MaskReading) -> list[MaskClassRecord]:
    values = [[shown_value(v) for v in of_class] for of_class in reading.class_values]
    values = values or [[key] for key in reading.class_files]
    return [
        MaskClassRecord(name=name, values=of_class, colour=colour or None)
        for name, of_class, colour in zip(reading.classes, values, reading.colours, strict=True)
    ]


def class_table(masks: MasksRecord) -> ClassTable:
    """The table of classes that `masks` records."""
    labels = [ClassLabel(value, "background") for value in masks.background or []]
    labels += [
        ClassLabel(key, label.name, label.colour or "")
        for label in masks.classes or []
        for key in label.values
    ]
    return ClassTable(tuple(labels), "the run's record")


def dataset_differences(old: DatasetRecord, new: DatasetRecord, options: str) -> Iterator[str]:
    """Yields a sentence for each difference of images, predicted classes, or mask values.

    `options` names the flags that select the images.
    """
    if old.digest != new.digest:
        before, now = (
            f"{record.images} of `{record.name}`{f' ({record.subset})' if record.subset else ''}"
            for record in (old, new)
        )
        yield f"Its images differ: {before}, now {now} ({options})."
    elif old.contents and old.contents != new.contents:
        yield (
            f"The files of `{new.location}` have changed since the run was started (`--data`)."
            if old.location == new.location
            else f"Its images were those of `{old.location}`; the files with the same names in "
            f"`{new.location}` have different contents (`--data`)."
        )
    if old.answers != new.answers:
        before, now = (
            "all of theirs" if record.answers is None else f"{len(record.answers)} of the data"
            for record in (old, new)
        )
        yield f"Models could predict other classes: {before}; now {now} (`--answers`)."
    if old.members != new.members:
        yield "The superclasses consist of different classes (`--data`)."
    if old.masks != new.masks:
        before, now = (
            "by default (0 and 1, or 0 and 255)" if record.masks is None else record.masks.words
            for record in (old, new)
        )
        yield (
            f"Its masks were read differently: {before}; now {now} (`--foreground`, `--ignore`, "
            "`--classes`)."
        )


class PreprocessingRecord(Record):
    """The preprocessing of classifiers: sizes in pixels, mean and std of values in [0, 1].

    A single mean and std means that the model takes greyscale images.
    """

    resize: int | None
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: Literal["center", "squash"] = "center"


class MaskPreprocessingRecord(Record):
    """The preprocessing of segmenters: window in pixels, threshold on the foreground probability.

    `window` is the side of a square, or height and width; 0 for complete images. `overlap` is the
    overlap of neighbouring windows as a share of the window. `nnunet` is set for networks with
    nnU-Net's inference, `mean` and `std` for networks with normalised input values.
    """

    window: int | tuple[int, int]
    channels: Literal["rgb", "bgr", "grey"]
    threshold: float
    overlap: float
    nnunet: NnUNetInference | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def window_in_words(self) -> str:
        """The side of a window, or its height and width."""
        return (
            " x ".join(map(str, self.window))
            if isinstance(self.window, tuple)
            else str(self.window)
        )


class ModelRecord(Record):
    """One model of the run; `name` identifies it in rows and tables.

    `notes` are what loading announced: assumptions, defaults, and deviations from the original.
    `code_sha256` is the hash of the Python file that builds it; None for other models, and in runs
    of older versions.
    """

    name: str
    family: str
    builder: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    parameters: int
    weights: str
    weights_sha256: str
    pretraining: str
    untrained: bool = False
    label_space: str
    preprocessing: PreprocessingRecord | MaskPreprocessingRecord
    view: str
    scan_backend: str | None = None
    code_sha256: str | None = None
    notes: list[str] = Field(default_factory=list)

    def code_differences(self, new: ModelRecord) -> Iterator[str]:
        """Yields a sentence if the Python file of the `new` record has changed."""
        if None not in (self.code_sha256, new.code_sha256) and self.code_sha256 != new.code_sha256:
            yield f"The Python file of `{self.builder.partition(':')[2]}` has changed."


class ModelCost(Record):
    """The cost of one model's forward passes: number of images (model inputs) and seconds."""

    images: int = 0
    seconds: float = 0.0


PANELS_FOLDER, SAMPLES_FOLDER = "panels", "samples"
CaseRank = Literal["best", "median", "worst"]


class Panel(Record):
    """An untransformed image with its true and its predicted mask.

    With several classes, both masks are palette PNG files with class indices, 0 for background and
    255 for pixels to ignore.

    Args:
        model: Name of the model in the run.
        rank: Rank of the case by dice among the groups with foreground.
        number: Number within the rank, from 1; the most extreme (or most typical) case is first.
        image_id: The shown image.
        group: The group that the image represents.
        dice: The dice of the shown image.
    """

    model: str
    rank: CaseRank
    number: int
    image_id: str
    group: str
    dice: float

    def folder(self, run: Path) -> Path:
        """The folder of `image.png`, `truth.png` (0 and 255) and `prediction.png`.

        `prediction.png` is the foreground probability times 255. All three files have the original
        size of the image, or are reduced to the same smaller size.
        """
        return model_folder(run / PANELS_FOLDER, "", self.model) / f"{self.rank}-{self.number}"


_PANELS = RecordList(
    Panel, "panels/panels.json", "Remove the file and repeat the command: it draws the cases again."
)
read_panels, write_panels = _PANELS.read, _PANELS.write
"""Read and write the panels of a run, sorted by model, best first."""


class SamplePhoto(Record):
    """A sample image; the run contains a small picture of it under every transform.

    Args:
        number: Number from 1; the contact sheet shows the first.
        image_id: Id of the image.
        position: Index in the run's list of images, which defines the block of its rows.
    """

    number: int
    image_id: str
    position: int

    def folder(self, run: Path) -> Path:
        """The folder of the pictures."""
        samples = run / SAMPLES_FOLDER
        return samples if self.number == 1 else samples / f"photo-{self.number}"

    def picture(self, run: Path, cell: Cell) -> Path:
        """The picture of the transformed image under `cell`."""
        return self.folder(run) / f"{cell.transform}-s{cell.severity}.png"

    def mask(self, run: Path, cell: Cell, model: str) -> Path:
        """The mask that the segmenter `model` predicts under `cell`, with values 0 and 255."""
        folder = model_folder(self.folder(run) / "masks", "", model)
        return folder / f"{cell.transform}-s{cell.severity}.png"


_PHOTOS = RecordList(
    SamplePhoto, "samples/photos.json",
    "Remove the file and repeat the command: it selects the photos again.",
)  # fmt: skip
read_sample_photos, write_sample_photos = _PHOTOS.read, _PHOTOS.write
"""Read and write the sample photos of a run; runs of older versions have none."""
