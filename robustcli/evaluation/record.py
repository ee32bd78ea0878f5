"""`run.json`: what a run was made of. These Pydantic models are the file format."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from robustcli.core.errors import UsageError
from robustcli.core.io import write_bytes, write_text
from robustcli.evaluation.store import model_folder
from robustcli.nnunet.normalisation import NnUNetInference

SCHEMA_VERSION = 1
FILE_NAME = "run.json"
Split = Literal["all", "train", "val", "test"]


class Record(BaseModel):
    """A part of `run.json`; unknown keys are an error, so that a newer file is not misread."""

    model_config = ConfigDict(extra="forbid")


Kind = TypeVar("Kind", bound=Record)


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
    `nnunet` is there where the network predicts as nnU-Net's do.
    """

    window: int
    channels: Literal["rgb", "bgr", "grey"]
    threshold: float
    overlap: float
    nnunet: NnUNetInference | None = None


class ModelRecord(Record):
    """One model of the run, under the name that rows and tables carry."""

    name: str
    family: str
    builder: str
    arguments: dict[str, Any] = {}
    parameters: int
    weights: str
    weights_sha256: str
    pretraining: str
    untrained: bool = False
    label_space: str
    preprocessing: PreprocessingRecord | MaskPreprocessingRecord
    view: str
    scan_backend: str | None = None


class TransformRecord(Record):
    """One cell of the run's transform axis: a transform at one severity (0: its full range)."""

    name: str
    severity: int
    family: str
    geometric: bool
    parameters: dict[str, Any]
    assumed: bool


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

    `contents` is the hash of what their files hold (`data.decode.contents_digest`); runs of older
    versions have none.

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
    tolerance: int | None = None
    masks: MasksRecord | None = None

    @model_serializer(mode="wrap")
    def _known_to_older_versions(self, rest: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = rest(self)
        for name in ("contents", "tolerance", "masks"):
            if told.get(name, 0) is None:
                del told[name]
        return told


class RunRecord(Record):
    """All of `run.json`; `command` holds every command that worked on it, a line each.

    `task`, `grouping` (what a group is: patient, photo, image) and `split` (the part of the data
    that was evaluated) are written for segmenters only.
    """

    schema_version: int = SCHEMA_VERSION
    task: Literal["cls", "seg"] = "cls"
    command: str
    status: Literal["running", "complete", "partial", "failed"]
    created: datetime
    updated: datetime
    seed: int
    apply_at: Literal["original", "crop"]
    precision: Literal["fp32", "bf16", "fp16"]
    block_size: int
    dataset: DatasetRecord
    models: list[ModelRecord]
    transforms: list[TransformRecord]
    versions: dict[str, str]
    device: str
    grouping: str | None = None
    split: Split | None = None


def write_record(run: Path, record: RunRecord) -> None:
    """Writes `RUN/run.json` durably."""
    # Older versions refuse keys that they do not know; what they can read stays as it was.
    absent = {"task", "grouping", "split"} if record.task == "cls" else None
    write_text(run / FILE_NAME, record.model_dump_json(indent=2, exclude=absent) + "\n")


def read_record(run: Path) -> RunRecord:
    """The record of the run in directory `run`.

    Raises:
        UsageError: There is no run there, or its file is damaged or of another schema version.
    """
    path = run / FILE_NAME
    if not path.is_file():
        raise UsageError(
            f"`{run}` is not a run.",
            f"It holds no `{FILE_NAME}`.",
            "Name a folder that `--out` made.",
        )
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise UsageError(
            f"`{path}` cannot be read.",
            f"It does not fit schema version {SCHEMA_VERSION}: {error.errors()[0]['msg']} "
            f"at {'.'.join(str(part) for part in error.errors()[0]['loc'])}.",
            "Use the `robust` version that wrote it, or start a new run with another `--out`.",
        ) from error


def read_record_of(run: Path, kind: type[Kind], what: str, command: str) -> Kind:
    """The record in directory `run` of another kind of run than an evaluation.

    Args:
        run: The directory.
        kind: Its model.
        what: What it is the record of, in words.
        command: What makes such runs.

    Raises:
        UsageError: There is none, or its file is damaged or of another kind.
    """
    path = run / FILE_NAME
    if not path.is_file():
        raise UsageError(
            f"`{run}` is not a run.", f"It holds no `{FILE_NAME}`.", "Name a folder of `--out`."
        )
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"`{path}` is not the record of {what}.",
            f"{first['msg']} at {'.'.join(str(part) for part in first['loc'])}.",
            f"Name a folder that `{command}` made with this version.",
        ) from error


# `RUN/panels/panels.json`: which images of a segmenter's run are shown, and why.


FOLDER = "panels"
PANELS_FILE = "panels.json"
Rank = Literal["best", "median", "worst"]


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
    rank: Rank
    number: int
    image_id: str
    group: str
    dice: float

    def folder(self, run: Path) -> Path:
        """Where `image.png`, `truth.png` (0 and 255) and `prediction.png` are.

        `prediction.png` is the foreground probability times 255. All three have the image's own
        size, or are reduced alike.
        """
        return model_folder(run / FOLDER, "", self.model) / f"{self.rank}-{self.number}"


_PANELS = TypeAdapter(list[Panel])


def read_panels(run: Path) -> list[Panel]:
    """The panels of a run, model by model, best first; none where nothing was drawn."""
    path = run / FOLDER / PANELS_FILE
    return _PANELS.validate_json(path.read_bytes()) if path.is_file() else []


def write_panels(run: Path, panels: list[Panel]) -> None:
    """Writes `RUN/panels/panels.json` durably."""
    write_bytes(run / FOLDER / PANELS_FILE, _PANELS.dump_json(panels, indent=2) + b"\n")
