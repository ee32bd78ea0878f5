"""`run.json`: what a run was made of. These Pydantic models are the file format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter

from robustcli.core.io import write_bytes
from robustcli.core.rundir import BaseRunRecord, Record, RunKind, changed_fields
from robustcli.evaluation.store import model_folder
from robustcli.nnunet.normalisation import NnUNetInference

Split = Literal["all", "train", "val", "test"]


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

    `tolerance` (pixels) is that with which masks are compared, if any; `masks` is None where they
    are read as usual.
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
    tolerance: int | None = None
    masks: MasksRecord | None = None


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
    if old.masks != new.masks:
        before, now = (
            "as usual (0 and 1, or 0 and 255)" if one.masks is None else one.masks.words
            for one in (old, new)
        )
        yield f"Its masks were read otherwise: {before}; now {now} (`--foreground`, `--ignore`)."


class RunRecord(BaseRunRecord):
    """All of `run.json` of an evaluation.

    `grouping` (what a group is: patient, photo, image) and `split` (the part of the data that was
    evaluated) are those of segmenters.
    """

    task: Literal["cls", "seg"] = "cls"
    status: Literal["running", "complete", "partial", "failed"]
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


# What decides a row. Device, versions, workers and batch size change no more than rounding.
_FLAGS = {"seed": "`--seed`", "apply_at": "`--apply-at`", "precision": "`--precision`"}
_MODEL_FLAGS = {
    "builder": "`--model`",
    "weights_sha256": "the hash of the weights (`--weights`)",
    "arguments": "`--model-arg`",
    "preprocessing": "preprocessing (`--resize`, `--crop`, `--interpolation`, `--mean`, `--std`; "
    "of a segmenter: window, channels, threshold, overlap)",
    "untrained": "`--untrained`",
}


def _differences(old: RunRecord, new: RunRecord) -> Iterator[str]:
    options = "`--data`, `--per-class`, `--limit`, `--split`, `--seed`"
    yield from dataset_differences(old.dataset, new.dataset, options)
    yield from changed_fields(old, new, _FLAGS)
    known = {model.name: model for model in old.models}
    for model in new.models:
        if model.name in known:
            for text in changed_fields(known[model.name], model, _MODEL_FLAGS):
                yield f"Model `{model.name}`: {text}"
    parameters = {(t.name, t.severity): t.parameters for t in old.transforms}
    for cell in new.transforms:
        if parameters.get((cell.name, cell.severity), cell.parameters) != cell.parameters:
            yield f"The parameters of transform `{cell.name}` are other ones."


def _kept(old: RunRecord, new: RunRecord) -> dict[str, Any]:
    """The old models and transforms before the new ones, and what existing blocks were made with.

    A run that was begun before rows knew the tolerance goes on without: no cell is half of each.
    """
    names = {model.name for model in old.models}
    cells = {(t.name, t.severity) for t in old.transforms}
    return {
        "block_size": old.block_size,
        "dataset": new.dataset.model_copy(update={"tolerance": old.dataset.tolerance}),
        "models": [*old.models, *(m for m in new.models if m.name not in names)],
        "transforms": [
            *old.transforms,
            *(t for t in new.transforms if (t.name, t.severity) not in cells),
        ],
    }


EVALUATION = RunKind(
    RunRecord,
    "an evaluation",
    "robust eval",
    ("predictions", "inputs", "skipped", "sessions", "samples", "figures", "panels"),
    ("results.csv", "results.json", "report.md", "report.html"),
    _differences,
    _kept,
    interrupted="partial",
)
"""The run folders of `robust eval`."""


def read_record(run: Path) -> RunRecord:
    """The record of the evaluation in the folder `run`; raises as `RunKind.read` does."""
    return EVALUATION.read(run)


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
