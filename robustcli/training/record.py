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

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from robustcli.core.names import network_words
from robustcli.core.rundir import BaseRunRecord, Record, RunKind, changed_fields
from robustcli.tasks.record import DatasetRecord, dataset_differences
from robustcli.training.recipes import EXTENDABLE, Patchwise, Photowise, Protocol, Recipe


@dataclass(frozen=True)
class Validation:
    """What is logged of the validation images beside the loss.

    Args:
        columns: Of `metrics.csv`.
        score: The one of them that the best epoch has the highest value of.
    """

    columns: tuple[str, ...]
    score: str
    word: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns of `metrics.csv`."""
        return (*_BEFORE, *self.columns, "waiting_share", "val_seconds")


ADDED = ("val_f1", "val_seconds")
"""Columns of `metrics.csv` that trainings of older versions lack."""
_BEFORE = ("epoch", "step", "seconds", "lr", "train_loss", "grad_norm", "val_loss")
VALIDATIONS: dict[Literal["cls", "seg"], Validation] = {
    "cls": Validation(("val_top1", "val_f1"), "val_top1", "top-1"),
    "seg": Validation(("val_dice", "val_iou"), "val_dice", "dice"),
}
METRICS = VALIDATIONS["seg"].metrics
"""Per epoch, the first being 1: optimizer steps so far, seconds of this epoch with its validation,
learning rate of its last step, means over its batches and steps (gradient norms before clipping),
dice and IoU pooled within each group and averaged over groups, the share of the training time
that was spent waiting for data, and the seconds of the validation alone. Of classifiers, the share
of the validation images that are right and their macro F1 stand in place of dice and IoU."""
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
    so many random patches, nnU-Net's way; `photos` where a classifier's recipe differs from ours.
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
    photos: Photowise | None = None
    source: str

    @classmethod
    def of(cls, recipe: Recipe) -> RecipeRecord:
        """The record of `recipe`, whose `decision` the training's record has in words."""
        fields = asdict(recipe)
        fields.pop("decision")
        return cls(**fields)


class SplitRecord(Record):
    """One part of the data: images, groups, and a segmenter's images without any foreground.

    `absent` are the classes of masks with several of which the part shows no pixel, None for none.
    """

    images: int
    groups: int
    empty: int | None = None
    absent: list[str] | None = None


class SpeedRecord(Record):
    """How fast a training with a target was; the seconds are those of training steps alone.

    Args:
        target: Validation top-1, a fraction.
        reached_epoch: The first epoch after which it was reached, from 1; None if it was not.
        seconds_to_target: Of all steps up to then; None if it was not reached.
        seconds_to_target_warm: The same without the first batch of each process that trained.
        seconds: Of all steps.
        warm_up_seconds: Of the first batch of each process that trained.
        images: That were trained on, each as often as it was seen.
        images_per_second: Without the first batches.
    """

    target: float
    reached_epoch: int | None
    seconds_to_target: float | None
    seconds_to_target_warm: float | None
    seconds: float
    warm_up_seconds: float
    images: int
    images_per_second: float | None


class TrainRecord(BaseRunRecord):
    """All of a training run's `run.json`.

    `protocol` and `faults` (of the protocol, as documented) are those of segmenters; `decision`
    says in words what the network's answer is. `split_seed` chose the parts of the data; None where
    `seed` did. `multiply_adds` are those of the network for one image of the recipe's window
    (`models.multiply_adds`); None in runs of older versions.
    """

    kind: Literal["train"] = "train"
    task: Literal["cls", "seg"] = "seg"
    status: Literal["running", "complete", "failed"]
    seed: int
    split_seed: int | None = None
    protocol: Protocol | None = None
    faults: list[str] = Field(default_factory=list)
    model: str
    family: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    parameters: int
    multiply_adds: int | None = None
    initial_weights: str
    initial_weights_sha256: str
    dataset: DatasetRecord
    grouping: str
    splits: dict[Literal["train", "val", "test"], SplitRecord]
    recipe: RecipeRecord
    decision: str
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
    speed: SpeedRecord | None = None

    @property
    def parts_seed(self) -> int:
        """The seed that chose the parts of the data."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def network(self) -> str:
        """The network as reports name it: a control by what it lacks."""
        return network_words(self.model, self.arguments)


_FLAGS = {
    "model": "`--model`",
    "arguments": "`--model-arg`",
    "protocol": "`--protocol`",
    "seed": "`--seed`",
    "split_seed": "`--split-seed`",
    "devices": "`--devices`",
    "initial_weights_sha256": "The hash of the weights it starts from (`--weights`, `--untrained`)",
}
_RECIPE_FLAGS = {
    "loss": "`--loss`",
    "optimizer": "The optimizer",
    "lr": "`--lr`",
    "weight_decay": "The weight decay",
    "schedule": "The schedule of the learning rate",
    "batch_size": "`--batch-size`",
    "accumulate": "`--accumulate`",
    "images_per_epoch": "The number of images per epoch (`--quick`)",
    "clip": "`--clip`",
    "window": "`--window`",
    "augmentation": "`--aug`",
    "patience": "`--patience`",
    "precision": "`--precision`",
    "paper_batch": "The number of images pooled for a dice value",
}


def _differences(old: TrainRecord, new: TrainRecord) -> Iterator[str]:
    """Sentences on the settings of `new` that would lead to other weights than those of `old`."""
    yield from dataset_differences(old.dataset, new.dataset, "`--data`, `--limit`, `--seed`")
    yield from changed_fields(old, new, _FLAGS)
    yield from recipe_differences(old.recipe, new.recipe)
    yield from _epochs(old.recipe, new.recipe)


def recipe_differences(old: RecipeRecord, new: RecipeRecord) -> Iterator[str]:
    """Sentences on the settings of a recipe that differ, its length aside."""
    if old.patches != new.patches:
        yield f"`--recipe` was {old.name}, now it is {new.name} (or its plan is another)."
    if old.photos != new.photos:
        yield f"`--recipe` was {old.name}, now it is {new.name} (or `--target` is another)."
    yield from changed_fields(old, new, _RECIPE_FLAGS)


def _epochs(old: RecipeRecord, new: RecipeRecord) -> Iterator[str]:
    changed = f"`--epochs` was {old.epochs}, now it is {new.epochs}"
    if new.epochs < old.epochs:
        yield f"{changed}: epochs cannot be taken back."
    elif new.epochs > old.epochs and old.schedule not in EXTENDABLE:
        yield (
            f"{changed}: the learning rate of its schedule `{old.schedule}` is a function of the "
            "length of the whole training."
        )


def _kept(old: TrainRecord, new: TrainRecord) -> dict[str, Any]:
    """The costs so far; a complete training that gets no more epochs stays complete."""
    kept = {name: getattr(old, name) for name in _ACCUMULATED}
    if old.status == "complete" and new.recipe.epochs == old.recipe.epochs:
        kept["status"] = "complete"
    return kept


_ACCUMULATED = ("weights_sha256", "peak_memory_bytes", "energy_joules", "speed")
FIRST_RESULTS = ("checkpoints/*", "metrics.csv", "weights.safetensors")
"""Globs of what the first finished epoch of a training leaves."""
TRAINING = RunKind(
    TrainRecord,
    "a training",
    "robust train",
    ("checkpoints", "tensorboard", "test", "baseline", "figures", "panels"),
    (
        *("splits.csv", "metrics.csv", "weights.safetensors", "paper.parquet"),
        *("results.csv", "results.json", "classes.csv", "report.md", "report.html"),
    ),
    _differences,
    _kept,
    temporary=("cache",),
    results=FIRST_RESULTS,
)
"""The run folders of `robust train`."""


def read_train_record(run: Path) -> TrainRecord:
    """The record of the training in the folder `run`; raises as `RunKind.read` does."""
    return TRAINING.read(run)
