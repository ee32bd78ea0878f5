"""`run.json` of a fine-tuning, and the other files that it leaves; these models are the format.

OUT/run.json           what follows here
OUT/gradients.parquet  the profile: a row per iteration and tensor (`gradients`)
OUT/frozen.csv         a line per tensor: the columns of FROZEN
OUT/MODE/              a training run (`record.TrainRecord`) for each of MODES that was trained,
                       with `iterations.csv` (the columns of STEPS), `costs.json` (ModeCosts) and,
                       of a U-Mamba, `nnunet/`, a results folder as nnU-Net's U-Mamba has it
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from robustcli.core.names import network_words
from robustcli.core.rundir import (
    ERROR_FILES,
    RECORD_FILE,
    BaseRunRecord,
    Record,
    RunKind,
    changed_fields,
)
from robustcli.tasks.record import DatasetRecord, dataset_differences
from robustcli.training.record import FIRST_RESULTS, TRAINING

Mode = Literal["scratch", "full", "freeze", "lora"]
MODES: tuple[Mode, ...] = get_args(Mode)
PROFILE, DECISIONS, ITERATIONS, COSTS = (
    "gradients.parquet", "frozen.csv", "iterations.csv", "costs.json"
)  # fmt: skip
NNUNET = "nnunet"
DECISION_COLUMNS = ("name", "shape", "count", "mamba", "statistic", "frozen", "why")
"""Per tensor: `shape` as `3x8x3x3`, elements, whether it belongs to a state-space block, the rule's
statistic (empty where it never had a gradient), and the decision with its reason."""
STEPS = ("iteration", "seconds", "trainable")
SWEEP_FILE, SWEPT = "sweep.csv", "sweep"  # SWEPT: a folder with a training run per rule
AFTER_STEPS = "after_steps"
_SWEPT = (
    *("scope", "threshold", "quantile", "change", "pattern", "frozen_share"),
    *("seconds_ratio", "seconds_ratio_low", "seconds_ratio_high", AFTER_STEPS),
)
SWEEPS: dict[Literal["cls", "seg"], tuple[str, ...]] = {
    "cls": (*_SWEPT, "top1", "top1_low", "top1_high"),
    "seg": (*_SWEPT, "dice", "dice_low", "dice_high"),
}
SWEEP = SWEEPS["seg"]
"""Per rule: what is frozen, the share of the elements that is, the time of a step over that of full
fine-tuning, the steps before the freeze (a column that files of earlier versions lack: 0), and the
dice (of a classifier the top-1) on the held-out images."""


class RuleRecord(Record):
    """The rule of what is frozen; see `selection.FreezeRule`."""

    threshold: float | None
    quantile: float | None
    pattern: str | None
    kind: Literal["mean_abs", "rms", "max_abs", "abs_mean", "change"]
    relative: bool
    scope: Literal["mamba", "all"]
    change: float | None = None


class SavingRecord(Record):
    """What a set of frozen tensors saves by count.

    Bytes are those of the optimizer's state, and `flops` those of the convolutions and matrix
    products in one training step (the scan is not among them), each with nothing frozen, and what
    of them freezing leaves out.
    """

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


class FinetuneRecord(BaseRunRecord):
    """All of a fine-tuning's `run.json`.

    `pretrained` says in words where the weights come from; `heads` are the beginnings of the names
    of layers that are new in this task and never frozen; `profile` is `measured`, the file that it
    was read from, or `none` where names decide at once. `split_seed` is as in `TrainRecord`.
    """

    kind: Literal["finetune"] = "finetune"
    task: Literal["cls", "seg"] = "seg"
    status: Literal["running", "complete", "failed"]
    seed: int
    split_seed: int | None = None
    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    parameters: int
    pretrained: str
    pretrained_sha256: str | None
    heads: list[str]
    dataset: DatasetRecord
    modes: list[Mode]
    rule: RuleRecord
    profile: str
    profile_sha256: str | None = None
    profile_iterations: int
    lora_layers: list[str] = Field(default_factory=lambda: ["in_proj", "x_proj", "out_proj"])
    epochs: int
    iterations: int
    saving: SavingRecord | None = None
    device: str

    @property
    def network(self) -> str:
        """The network as reports name it: a control by what it lacks."""
        return network_words(self.model, self.arguments)


PROFILING = ".profiling"
"""Folder of the training that `--profile-only` begins; it does not stay."""
_FLAGS = {
    "model": "The network",
    "arguments": "`--model-arg`",
    "seed": "`--seed`",
    "split_seed": "`--split-seed`",
    "pretrained_sha256": "The hash of the weights (`--pretrained`)",
    "epochs": "The number of epochs (`--iterations`, `--epochs`)",
}
_FREEZING_FLAGS = {
    "profile": "`--profile`",
    "profile_sha256": "The hash of the profile (`--profile`)",
    "profile_iterations": "`--profile-iterations`",
}
_RULE_FLAGS = {
    "pattern": "`--freeze`",
    "quantile": "`--freeze-quantile`",
    "change": "`--freeze-change`",
    "relative": "`--freeze-relative`",
    "threshold": "The threshold (`--freeze-threshold`, `--freeze-relative`)",
    "scope": "`--freeze-scope`",
    "kind": "`--statistic`",
}


def _differences(old: FinetuneRecord, new: FinetuneRecord) -> Iterator[str]:
    """Sentences on the settings of `new` that would lead to other results than those of `old`.

    The rule may change as long as only modes were trained that freeze nothing.
    """
    yield from dataset_differences(old.dataset, new.dataset, "`--data`, `--limit`, `--seed`")
    yield from changed_fields(old, new, _FLAGS)
    if "freeze" in old.modes or not old.modes:
        yield from changed_fields(old.rule, new.rule, _RULE_FLAGS)
        yield from changed_fields(old, new, _FREEZING_FLAGS)
    if "lora" in old.modes:
        yield from changed_fields(old, new, {"lora_layers": "`--lora-layers`"})


def _kept(old: FinetuneRecord, new: FinetuneRecord) -> dict[str, Any]:
    """The modes so far, and what freezing saves."""
    modes = [mode for mode in MODES if mode in (*old.modes, *new.modes)]
    return {"modes": modes, "saving": old.saving}


_MODE_FOLDERS = (*TRAINING.folders, *TRAINING.temporary, NNUNET)
_MODE_FILES = (RECORD_FILE, ERROR_FILES, *TRAINING.files, ITERATIONS, COSTS)
FINETUNING = RunKind(
    FinetuneRecord,
    "a fine-tuning",
    "robust finetune",
    (
        *("figures", "panels", PROFILING, SWEPT),
        *(f"{mode}/{name}" for mode in MODES for name in _MODE_FOLDERS),
    ),
    (
        *("results.csv", "results.json", "report.md", "report.html"),
        *(PROFILE, DECISIONS, SWEEP_FILE),
        *(f"{mode}/{name}" for mode in MODES for name in _MODE_FILES),
    ),
    _differences,
    _kept,
    results=(PROFILE, DECISIONS, *(f"*/{name}" for name in FIRST_RESULTS)),
)
"""The run folders of `robust finetune`."""


def read_finetune_record(run: Path) -> FinetuneRecord:
    """The record of the fine-tuning in the folder `run`; raises as `RunKind.read` does."""
    return FINETUNING.read(run)
