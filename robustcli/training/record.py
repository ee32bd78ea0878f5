"""`run.json` of a training run, and the other files that it leaves; these models are the format.

RUN/run.json             what follows here
RUN/splits.csv           image_id, group, split
RUN/metrics.csv          a line per finished epoch: the columns of METRICS
RUN/checkpoints/         last.ckpt, best.ckpt (to go on with; replaced, never half written)
RUN/weights.safetensors  the chosen weights, with what is needed to use them in their header
RUN/paper.parquet        protocol `paper` only: rows of the test set, the columns of PAPER
RUN/test/                an evaluation of the chosen weights on the held-out images (`robust eval`)
RUN/baseline/            the same of Otsu's threshold
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from robustcli.core.io import write_text
from robustcli.evaluation.record import FILE_NAME, read_record_of
from robustcli.nnunet.normalisation import Channel
from robustcli.tasks.record import DatasetRecord, Record

# What nnU-Net's way of training has beside the fields of every recipe.
#
# Source: nnU-Net v2.1.1, `nnUNetTrainer`.


@dataclass(frozen=True)
class Patchwise:
    """Epochs of patches drawn at random, instead of passes over images.

    Args:
        iterations: Batches of an epoch, each an optimizer step.
        validation_iterations: Batches of a validation pass.
        momentum: Of SGD, with Nesterov's correction.
        exponent: Of the learning rate's decay by the epoch.
        oversampling: The share of a batch, at its end, that is sure to show foreground.
        batch_dice: Whether the loss pools its dice over the batch; the plan may say otherwise.
        ema: The share of the old value in the moving average of the dice on validation patches.
        most_patch: Largest side of a patch in pixels; None leaves it to the plan.
        most_batch: Largest batch; None leaves it to the plan.
        channels: How each input channel is normalised; the plan may say otherwise.
    """

    iterations: int = 250
    validation_iterations: int = 50
    momentum: float = 0.99
    exponent: float = 0.9
    oversampling: float = 0.33
    batch_dice: bool = True
    ema: float = 0.9
    most_patch: int | None = None
    most_batch: int | None = None
    channels: tuple[Channel, ...] = (Channel(), Channel(), Channel())


Protocol = Literal["patient", "paper"]


@dataclass(frozen=True)
class Validation:
    """What is logged of the validation images beside the loss.

    Args:
        columns: Of `metrics.csv`.
        score: The one of them that the best epoch has the highest value of.
        word: What that is, in a sentence.
    """

    columns: tuple[str, ...]
    score: str
    word: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns of `metrics.csv`."""
        return (*_BEFORE, *self.columns, "waiting_share")


_BEFORE = ("epoch", "step", "seconds", "lr", "train_loss", "grad_norm", "val_loss")
VALIDATIONS: dict[Literal["cls", "seg"], Validation] = {
    "cls": Validation(("val_top1",), "val_top1", "top-1"),
    "seg": Validation(("val_dice", "val_iou"), "val_dice", "dice"),
}
METRICS = VALIDATIONS["seg"].metrics
"""Per epoch, the first being 1: optimizer steps so far, seconds of this epoch with its validation,
learning rate of its last step, means over its batches and steps (gradient norms before clipping),
dice and IoU pooled within each group and averaged over groups, and the share of the training time
that was spent waiting for data. Of classifiers, the share of the validation images that are right
stands in place of dice and IoU."""
AVERAGED = "val_dice_ema"
"""One more column of recipes with `patches`: the moving average of `val_dice`, which is then (like
`val_iou`) of the epoch's validation patches, their pixels pooled: nnU-Net's pseudo dice."""
PAPER = ("image_id", "intersection", "predicted", "target", "overlap", "union")
"""Per image, in the order of evaluation: sums of p*t, p and t (t may be soft), and the pixels where
both or either of p and t are above 0."""


class RecipeRecord(Record):
    """How the network was trained, after all overrides; `expected_dice` and `source` as published.

    `images_per_epoch` is None where an epoch is a pass over all training images; `paper_batch` is
    how many images the paper pooled for one dice value. `patches` is there where an epoch is
    so many random patches, nnU-Net's way.
    """

    name: str = ""
    loss: str
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    batch_size: int
    accumulate: int
    epochs: int
    images_per_epoch: int | None = None
    clip: float | None
    window: int
    augmentation: str
    patience: int | None
    precision: Literal["fp32", "bf16", "fp16"]
    expected_dice: float | None = None
    paper_batch: int | None = None
    patches: Patchwise | None = None
    source: str


class SplitRecord(Record):
    """One part of the data: images, groups, and a segmenter's images without any foreground."""

    images: int
    groups: int
    empty: int | None = None


class TrainRecord(Record):
    """All of a training run's `run.json`; `command` holds every command that worked on it."""

    schema_version: int = 1
    kind: Literal["train"] = "train"
    task: Literal["cls", "seg"] = "seg"
    command: str
    status: Literal["running", "complete", "failed"]
    created: datetime
    updated: datetime
    seed: int
    protocol: Protocol | None = None  # of segmenters
    faults: list[str] = Field(default_factory=list)  # of the protocol, as documented
    model: str
    family: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    parameters: int
    initial_weights: str
    initial_weights_sha256: str
    dataset: DatasetRecord
    grouping: str
    splits: dict[Literal["train", "val", "test"], SplitRecord]
    recipe: RecipeRecord
    decision: str  # in words, such as "probability >= 0.5"
    chosen_epoch: int | None = None
    chosen_why: str | None = None
    weights_sha256: str | None = None
    versions: dict[str, str]
    device: str
    devices: int = 1
    scan_backend: str | None = None
    threads: int
    peak_memory_bytes: int | None = None
    energy_joules: float | None = None


_OF_SEGMENTERS: dict[str, Any] = {
    "protocol": True,
    "faults": True,
    "recipe": {"expected_dice", "paper_batch", "patches"},
    "splits": {"__all__": {"empty"}},
}
"""Keys that mean nothing to a classifier. Of segmenters, `task` is left out, as it was before there
were trainings of classifiers: older versions refuse keys that they do not know."""


def write_train_record(run: Path, record: TrainRecord) -> None:
    """Writes `RUN/run.json` durably."""
    lacking = _OF_SEGMENTERS if record.task == "cls" else {"task": True}
    write_text(run / FILE_NAME, record.model_dump_json(indent=2, exclude=lacking) + "\n")


def read_train_record(run: Path) -> TrainRecord:
    """The record of the training run in directory `run`.

    Raises:
        UsageError: There is no training run there, or its file is damaged.
    """
    return read_record_of(run, TrainRecord, "a training run", "robust train")
