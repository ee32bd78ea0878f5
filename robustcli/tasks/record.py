"""What `run.json` says of data and models. These Pydantic models are the file format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter

from robustcli.adapters.catalogue import FOREGROUND
from robustcli.core.io import reading, write_bytes
from robustcli.core.names import model_folder
from robustcli.core.rundir import Record
from robustcli.data.dataset import Dataset
from robustcli.data.mask_values import MaskReading, shown_value
from robustcli.nnunet.normalisation import NnUNetInference
from robustcli.transforms.base import Cell

EvaluatedPart = Literal["all", "train", "val", "test"]


# Data.


class MasksRecord(Record):
    """How the masks of a data set are read, where it is not as usual (0 and 1, or 0 and 255).

    Values are as a user writes them (`128`, `#ff0000`); `foreground` is None for all that are not 0
    or ignored, `background` for all others. `words` says the same in a sentence.
    """

    foreground: list[str] | None
    background: list[str] | None
    ignored: list[str]
    channel: Literal["colour", "alpha"]
    words: str


class DatasetRecord(Record):
    """The images: how many, which, and the hash of their ids and labels in order.

    `contents` is the hash of what their files hold (`data.dataset.contents_digest`); runs of older
    versions have none.

    `answers` are the classes that models may answer with, where it is not all; `members` are, where
    the classes are superclasses, the models' classes that each consists of. `several_labels`:
    whether images have several true classes, as with ReaL labels.
    `tolerance` (pixels) is written only of data whose masks are compared with one, `masks` only
    where they are read in an unusual way.
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


def dataset_record(index: Dataset) -> DatasetRecord:
    """The record of the images."""
    return DatasetRecord(
        name=index.name,
        location=index.location,
        label_space=index.classes.name,
        classes=len(index.classes.ids),
        images=len(index.samples),
        images_available=index.available,
        subset=index.subset,
        demonstration=index.demonstration,
        digest=index.digest,
        contents=index.contents,
        answers=None if index.answers is None else list(index.answers),
        members=None if index.members is None else [list(one) for one in index.members],
        several_labels=any(sample.also for sample in index.samples) or None,
    )


def pairs_record(index: Dataset) -> DatasetRecord:
    """The record of images with masks, whose classes are background and foreground."""
    return DatasetRecord(
        name=index.name,
        location=index.location,
        label_space=FOREGROUND,
        classes=2,
        images=len(index.samples),
        images_available=index.available,
        subset=index.subset,
        demonstration=index.demonstration,
        digest=index.digest,
        contents=index.contents,
        tolerance=index.tolerance,
        masks=_masks_record(index.reading),
    )


def _masks_record(reading: MaskReading | None) -> MasksRecord | None:
    """The record of how masks are read; None for masks as nearly all are."""
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
    )


def dataset_differences(old: DatasetRecord, new: DatasetRecord, options: str) -> Iterator[str]:
    """Sentences that say which images, or which reading of masks, is another one.

    Args:
        old: Before.
        new: Now.
        options: The flags that choose the images.
    """
    if old.digest != new.digest:
        before, now = (
            f"{one.images} of `{one.name}`{f' ({one.subset})' if one.subset else ''}"
            for one in (old, new)
        )
        yield f"Its images are others: {before}, now {now} ({options})."
    elif old.contents and old.contents != new.contents:
        yield (
            f"The files of `{new.location}` were changed since it was begun (`--data`)."
            if old.location == new.location
            else f"Its images were those of `{old.location}`; the files of the same names in "
            f"`{new.location}` are others (`--data`)."
        )
    if old.answers != new.answers:
        before, now = (
            "all of theirs" if one.answers is None else f"{len(one.answers)} of the data"
            for one in (old, new)
        )
        yield f"Models answered with other classes: {before}; now {now} (`--answers`)."
    if old.members != new.members:
        yield "The superclasses that models answer with consist of other classes (`--data`)."
    if old.masks != new.masks:
        before, now = (
            "as usual (0 and 1, or 0 and 255)" if one.masks is None else one.masks.words
            for one in (old, new)
        )
        yield f"Its masks were read otherwise: {before}; now {now} (`--foreground`, `--ignore`)."


# Models.


class PreprocessingRecord(Record):
    """How a photo becomes the model's input: sizes in pixels, mean and std of values in [0, 1].

    One mean and one std say that the model gets greyscale images.
    """

    resize: int | None
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: Literal["center", "squash"] = "center"


class MaskPreprocessingRecord(Record):
    """How a segmenter sees an image: window in pixels, threshold on the foreground probability.

    `overlap` is the share of the window that neighbours have in common in an image that is larger;
    `nnunet` is there where the network predicts as nnU-Net's do, `mean` and `std` where values are
    shifted and scaled.
    """

    window: int
    channels: Literal["rgb", "bgr", "grey"]
    threshold: float
    overlap: float
    nnunet: NnUNetInference | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class ModelRecord(Record):
    """One model of the run, under the name that rows and tables carry."""

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


class ModelCost(Record):
    """What the forward passes of one model cost: images (model inputs) and seconds."""

    images: int = 0
    seconds: float = 0.0


# `RUN/panels/panels.json`: which images of a segmenter's run are shown, and why.


PANELS_FOLDER = "panels"
PANELS_FILE = "panels.json"
CaseRank = Literal["best", "median", "worst"]


class Panel(Record):
    """One image, untransformed, with its true and its predicted mask.

    Args:
        model: Its name in the run.
        rank: Among the groups with foreground, by dice.
        number: From 1, the most extreme (or the most typical) first.
        image_id: Of the shown image.
        group: That it stands for.
        dice: Of the shown image.
    """

    model: str
    rank: CaseRank
    number: int
    image_id: str
    group: str
    dice: float

    def folder(self, run: Path) -> Path:
        """Where `image.png`, `truth.png` (0 and 255) and `prediction.png` are.

        `prediction.png` is the foreground probability times 255. All three have the image's own
        size, or are reduced alike.
        """
        return model_folder(run / PANELS_FOLDER, "", self.model) / f"{self.rank}-{self.number}"


_PANELS = TypeAdapter(list[Panel])


def read_panels(run: Path) -> list[Panel]:
    """The panels of a run, model by model, best first; none where nothing was drawn."""
    path = run / PANELS_FOLDER / PANELS_FILE
    if not path.is_file():
        return []
    with reading(path, "Remove the file: repeating the command draws the cases again."):
        return _PANELS.validate_json(path.read_bytes())


def write_panels(run: Path, panels: list[Panel]) -> None:
    """Writes `RUN/panels/panels.json` durably."""
    write_bytes(run / PANELS_FOLDER / PANELS_FILE, _PANELS.dump_json(panels, indent=2) + b"\n")


# `RUN/samples/photos.json`: which images the pictures of transformed samples are of.


SAMPLES_FOLDER = "samples"
PHOTOS_FILE = "photos.json"


class SamplePhoto(Record):
    """An image of which the run keeps a small picture under every transform.

    Args:
        number: From 1. The first is that of the contact sheet.
        image_id: Its id.
        position: In the run's list of images, from 0; it says which block has its rows.
    """

    number: int
    image_id: str
    position: int

    def folder(self, run: Path) -> Path:
        """Where its pictures are."""
        samples = run / SAMPLES_FOLDER
        return samples if self.number == 1 else samples / f"photo-{self.number}"

    def picture(self, run: Path, cell: Cell) -> Path:
        """What the models see of it under `cell`."""
        return self.folder(run) / f"{cell.transform}-s{cell.severity}.png"

    def mask(self, run: Path, cell: Cell, model: str) -> Path:
        """What the segmenter `model` predicts for it under `cell`: 0 and 255."""
        folder = model_folder(self.folder(run) / "masks", "", model)
        return folder / f"{cell.transform}-s{cell.severity}.png"


_PHOTOS = TypeAdapter(list[SamplePhoto])


def read_sample_photos(run: Path) -> list[SamplePhoto]:
    """The photos of which a run keeps pictures; none in runs of older versions."""
    path = run / SAMPLES_FOLDER / PHOTOS_FILE
    if not path.is_file():
        return []
    with reading(path, "Remove the file: repeating the command chooses the photos again."):
        return _PHOTOS.validate_json(path.read_bytes())


def write_sample_photos(run: Path, photos: list[SamplePhoto]) -> None:
    """Writes `RUN/samples/photos.json` durably."""
    write_bytes(run / SAMPLES_FOLDER / PHOTOS_FILE, _PHOTOS.dump_json(photos, indent=2) + b"\n")
