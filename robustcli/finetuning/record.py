"""`run.json` of a fine-tuning, and the other files that it leaves; these models are the format.

OUT/run.json           what follows here
OUT/gradients.parquet  the profile: a row per iteration and tensor (`gradients`)
OUT/frozen.csv         a line per tensor: the columns of FROZEN
OUT/MODE/              a training run (`record.TrainRecord`) for each of MODES that was trained,
                       with `iterations.csv` (the columns of STEPS), `costs.json` (ModeCosts) and,
                       of a U-Mamba, `nnunet/`, a results folder as nnU-Net's U-Mamba has it
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from robustcli.core.io import write_text
from robustcli.evaluation.record import FILE_NAME, read_record_of
from robustcli.tasks.record import DatasetRecord, Record

Mode = Literal["scratch", "full", "freeze", "lora"]
MODES: tuple[Mode, ...] = get_args(Mode)
PROFILE, DECISIONS, ITERATIONS, COSTS = (
    "gradients.parquet", "frozen.csv", "iterations.csv", "costs.json"
)  # fmt: skip
NNUNET = "nnunet"
FROZEN = ("name", "shape", "count", "mamba", "statistic", "frozen", "why")
"""Per tensor: `shape` as `3x8x3x3`, elements, whether it belongs to a state-space block, the rule's
statistic (empty where it never had a gradient), and the decision with its reason."""
STEPS = ("iteration", "seconds", "trainable")
SWEEP_FILE, SWEPT = "sweep.csv", "sweep"  # SWEPT: a folder with a training run per rule
_SWEPT = (
    *("scope", "threshold", "quantile", "pattern", "frozen_share"),
    *("seconds_ratio", "seconds_ratio_low", "seconds_ratio_high"),
)
SWEEPS: dict[Literal["cls", "seg"], tuple[str, ...]] = {
    "cls": (*_SWEPT, "top1", "top1_low", "top1_high"),
    "seg": (*_SWEPT, "dice", "dice_low", "dice_high"),
}
SWEEP = SWEEPS["seg"]
"""Per rule: what is frozen, the share of the elements that is, the time of a step over that of full
fine-tuning, and the dice (of a classifier the top-1) on the held-out images."""


class RuleRecord(Record):
    """What was frozen by; see `selection.FreezeRule`."""

    threshold: float | None
    quantile: float | None
    pattern: str | None
    kind: Literal["mean_abs", "rms", "max_abs", "abs_mean"]
    relative: bool
    scope: Literal["mamba", "all"]


class SavingRecord(Record):
    """What freezing saves by count; see `freezing.Saving`. Operations are of a training step."""

    parameters: int
    frozen: int
    optimizer_bytes: int
    optimizer_bytes_saved: int
    flops: int
    flops_saved: int


class ModeCosts(Record):
    """What a mode cost, at the end of its training.

    Args:
        trainable: Elements that were still trained.
        optimizer_bytes: Of the tensors that the optimizer kept.
        peak_memory_bytes: Of training since the last freeze; None where the system does not tell.
    """

    trainable: int
    optimizer_bytes: int
    peak_memory_bytes: int | None


class FinetuneRecord(Record):
    """All of a fine-tuning's `run.json`; `command` holds every command that worked on it."""

    schema_version: int = 1
    kind: Literal["finetune"] = "finetune"
    task: Literal["cls", "seg"] = "seg"
    command: str
    status: Literal["running", "complete", "failed"]
    created: datetime
    updated: datetime
    seed: int
    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    parameters: int
    pretrained: str  # in words
    pretrained_sha256: str | None
    heads: list[str]  # beginnings of names: new in this task, never frozen
    dataset: DatasetRecord
    modes: list[Mode]
    rule: RuleRecord
    profile: str  # `measured`, the file that it was read from, or `none`: frozen by name at once
    profile_sha256: str | None = None
    profile_iterations: int
    epochs: int
    iterations: int
    saving: SavingRecord | None = None
    device: str


def write_finetune_record(run: Path, record: FinetuneRecord) -> None:
    """Writes `OUT/run.json` durably."""
    # Older versions refuse keys that they do not know; of segmenters they can read all.
    absent = {"task"} if record.task == "seg" else None
    write_text(run / FILE_NAME, record.model_dump_json(indent=2, exclude=absent) + "\n")


def read_finetune_record(run: Path) -> FinetuneRecord:
    """The record of the fine-tuning in directory `run`.

    Raises:
        UsageError: There is none, or its file is damaged or of another kind of run.
    """
    return read_record_of(run, FinetuneRecord, "a fine-tuning", "robust finetune")
