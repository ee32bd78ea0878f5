"""Format of the run folders of one training, and of several seeds of a training or fine-tuning.

A training:

RUN/run.json             `TrainRecord`
RUN/splits.csv           image_id, group, split
RUN/earlier_splits.csv   training, image_id, split: of the trainings of the initial weights
RUN/metrics.csv          one line per finished epoch: the columns of VALIDATIONS
RUN/checkpoints/         last.ckpt, best.ckpt (for resuming; replaced atomically)
RUN/weights.safetensors  the selected weights; the header has all settings to use them
RUN/paper.parquet        protocol `paper` only: rows of the test set, the columns of PAPER
RUN/test/                evaluation of the selected weights on the held-out images (`robust eval`)
RUN/baseline/            the same evaluation of Otsu's threshold

Several seeds:

RUN/run.json             `SeedsRecord`
RUN/seed-0/, ...         a training, or a fine-tuning (`finetuning.record`), per seed
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from robustcli.core.machine import versions_with_earlier, with_earlier
from robustcli.core.names import TaskName, network_words
from robustcli.core.rundir import BaseRunRecord, DeviceName, Record, RunKind, changed_fields
from robustcli.tasks.record import DatasetRecord, dataset_differences
from robustcli.training.recipes import EXTENDABLE, Patchwise, Photowise, Protocol, Recipe


@dataclass(frozen=True)
class Validation:
    """The validation scores in `metrics.csv`.

    Args:
        columns: Their columns.
        score: The column whose highest value determines the best epoch.
    """

    columns: tuple[str, ...]
    score: str
    word: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns of `metrics.csv`."""
        return (*_BEFORE, *self.columns, "waiting_share", "val_seconds")


ADDED = ("val_f1", "val_seconds")
"""Columns of `metrics.csv` that older versions did not write."""
_BEFORE = ("epoch", "step", "seconds", "lr", "train_loss", "grad_norm", "val_loss")
VALIDATIONS: dict[Literal["cls", "seg"], Validation] = {
    "cls": Validation(("val_top1", "val_f1"), "val_top1", "top-1"),
    "seg": Validation(("val_dice", "val_iou"), "val_dice", "dice"),
}
"""Per epoch, counted from 1: optimizer steps so far, seconds of the epoch with its validation,
learning rate of the last step, means over batches and steps (gradient norms before clipping), dice
and IoU pooled within each group and averaged over groups, the share of the training time spent
waiting for data, and the seconds of the validation. Classifiers have validation top-1 and macro F1
instead of dice and IoU."""
AVERAGED = "val_dice_ema"
"""Additional column of recipes with `patches`: the moving average of `val_dice`. `val_dice` and
`val_iou` are then pooled over the pixels of the validation patches (nnU-Net's pseudo dice)."""
PAPER = ("image_id", "intersection", "predicted", "target", "overlap", "union")
"""Per image, in the order of evaluation: sums of p*t, p and t (t can be soft), and the number of
pixels where both or either of p and t are above 0."""


class RecipeRecord(Record):
    """The recipe of a training after all overrides; see `Recipe` for the fields.

    `images_per_epoch` is None if an epoch is a pass over all training images. `patches` is set for
    epochs of random patches (nnU-Net), `photos` for classifier recipes that differ from ours.
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
        """The record of `recipe`, without its `decision`, which `TrainRecord` has in words."""
        fields = asdict(recipe)
        fields.pop("decision")
        return cls(**fields)


class SplitRecord(Record):
    """Counts of a part of the data: images, groups and, for segmenters, images without foreground.

    `absent` lists the mask classes without a pixel in the part; None if no class is absent.
    `unscored` is the number of images whose mask is ignored entirely; None if there is none.
    """

    images: int
    groups: int
    empty: int | None = None
    absent: list[str] | None = None
    unscored: int | None = None


class SpeedRecord(Record):
    """Time to a target accuracy; all times are those of training steps.

    Args:
        target: Validation top-1 to reach, a fraction.
        reached_epoch: The first epoch that reached it, counted from 1; None if none did.
        seconds_to_target: Time of all steps up to that epoch; None if it was not reached.
        seconds_to_target_warm: The same without the first batch of each process.
        seconds: Time of all steps.
        warm_up_seconds: Time of the first batch of each process.
        images: Number of training images over all steps, with repetitions.
        images_per_second: Throughput without the first batches.
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
    """The content of a training's `run.json`.

    `protocol` is set for segmenters; `faults` lists the known faults of the procedure; `decision`
    describes in words how outputs become predictions. `split_seed` is the seed of the data split;
    None if it is `seed`. `multiply_adds` counts the network's operations for one image of the
    recipe's window (`models.multiply_adds`); None in runs of older versions.
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
    device: DeviceName
    devices: int = 1
    scan_backend: str | None = None
    threads: int
    peak_memory_bytes: int | None = None
    energy_joules: float | None = None
    speed: SpeedRecord | None = None

    @property
    def parts_seed(self) -> int:
        """The seed of the data split."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def network(self) -> str:
        """Name of the network in reports; a control has the ablated part in its name."""
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
    """One sentence per setting of `new` that would give other weights than `old`."""
    yield from dataset_differences(old.dataset, new.dataset, "`--data`, `--limit`, `--seed`")
    yield from changed_fields(old, new, _FLAGS)
    yield from recipe_differences(old.recipe, new.recipe)
    yield from _epochs(old.recipe, new.recipe)


def recipe_differences(old: RecipeRecord, new: RecipeRecord) -> Iterator[str]:
    """One sentence per setting that differs between two recipes, except the number of epochs."""
    if old.patches != new.patches:
        yield f"`--recipe` was {old.name}, now it is {new.name} (or its plan differs)."
    if old.photos != new.photos:
        yield f"`--recipe` was {old.name}, now it is {new.name} (or `--target` differs)."
    yield from changed_fields(old, new, _RECIPE_FLAGS)


def _epochs(old: RecipeRecord, new: RecipeRecord) -> Iterator[str]:
    changed = f"`--epochs` was {old.epochs}, now it is {new.epochs}"
    if new.epochs < old.epochs:
        yield f"{changed}: finished epochs cannot be undone."
    elif new.epochs > old.epochs and old.schedule not in EXTENDABLE:
        yield (
            f"{changed}: the learning rate of its schedule `{old.schedule}` depends on the total "
            "number of epochs."
        )


def _kept_fields(old: TrainRecord, new: TrainRecord) -> dict[str, Any]:
    """Fields of the old record that stay: costs and, without further epochs, completeness."""
    kept_fields = {name: getattr(old, name) for name in _ACCUMULATED}
    kept_fields["versions"] = versions_with_earlier(old.versions, new.versions)
    kept_fields["device"] = with_earlier(old.device, new.device)
    if old.status == "complete" and new.recipe.epochs == old.recipe.epochs:
        kept_fields["status"] = "complete"
    return kept_fields


_ACCUMULATED = ("weights_sha256", "peak_memory_bytes", "energy_joules", "speed")
FIRST_RESULTS = ("checkpoints/*", "metrics.csv", "weights.safetensors")
"""Globs of the files that exist after the first finished epoch of a training."""
TRAINING = RunKind(
    TrainRecord,
    "a training",
    "robust train",
    ("checkpoints", "tensorboard", "test", "baseline", "figures", "panels"),
    (
        *("splits.csv", "earlier_splits.csv"),
        *("metrics.csv", "weights.safetensors", "paper.parquet"),
        *("results.csv", "results.json", "classes.csv", "report.md", "report.html"),
    ),
    _differences,
    _kept_fields,
    temporary=("cache",),
    results=FIRST_RESULTS,
)
"""Defines the run folders of `robust train`."""


def read_train_record(run: Path) -> TrainRecord:
    """The record of the training in the folder `run`; raises the errors of `RunKind.read`."""
    return TRAINING.read(run)


class SeedFailure(Record):
    """A seed that failed, with the reason in one line."""

    seed: int
    error: str


class SeedsRecord(BaseRunRecord):
    """The content of `run.json` in a folder with several seeds.

    `of` is the command. The seeds are `count` consecutive numbers from `seed`. `split_seed` is the
    seed of their common data split. `failures` are those of the last command in this folder.
    """

    kind: Literal["seeds"] = "seeds"
    of: Literal["train", "finetune"]
    task: TaskName
    status: Literal["running", "complete", "failed"]
    seed: int
    count: int
    split_seed: int
    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    dataset: DatasetRecord
    failures: list[SeedFailure] = Field(default_factory=list)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, in order."""
        return tuple(range(self.seed, self.seed + self.count))

    def folders(self, run: Path) -> dict[int, Path]:
        """The folder of each seed."""
        return {seed: seed_folder(run, seed) for seed in self.seeds}


def seed_folder(run: Path, seed: int) -> Path:
    """The run folder of `seed`."""
    return run / f"seed-{seed}"


_SEEDS_FLAGS = {
    "of": "The command",
    "model": "The network",
    "arguments": "`--model-arg`",
    "seed": "`--seed`",
    "split_seed": "`--split-seed`",
}


def _seeds_differences(old: SeedsRecord, new: SeedsRecord) -> Iterator[str]:
    """One sentence per setting that differs; a larger number of seeds is allowed."""
    yield from changed_fields(old, new, _SEEDS_FLAGS)
    options = "`--data`, `--limit`, `--split-seed`"
    yield from dataset_differences(old.dataset, new.dataset, options)


def _kept_seeds(old: SeedsRecord, new: SeedsRecord) -> dict[str, Any]:
    """Keeps all seeds of the old record."""
    return {"count": max(old.count, new.count)}


SEEDS = RunKind(
    SeedsRecord,
    "several seeds",
    "robust train --seeds N` or `robust finetune --seeds N",
    ("figures",),
    ("results.csv", "results.json", "report.md", "report.html"),
    _seeds_differences,
    _kept_seeds,
    results=tuple(f"seed-*/{depth}{name}" for depth in ("", "*/") for name in FIRST_RESULTS),
)
"""Defines the folders of `robust train --seeds` and `robust finetune --seeds`."""


def read_seeds_record(run: Path) -> SeedsRecord:
    """The record of the seeds in the folder `run`; raises the errors of `RunKind.read`."""
    return SEEDS.read(run)
