"""Format of a fine-tuning's `run.json` and of the other files in its run folder.

OUT/run.json           `FinetuneRecord`
OUT/gradients.parquet  the profile: one row per iteration and tensor (`gradients`)
OUT/frozen.csv         one line per tensor: columns DECISION_COLUMNS
OUT/MODE/              a training run (`record.TrainRecord`) for each of MODES that was trained,
                       with `iterations.csv` (the columns of STEPS), `costs.json` (ModeCosts) and,
                       for U-Mambas, `nnunet/`, a results folder in nnU-Net's format
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
    DeviceName,
    Record,
    RunKind,
    changed_fields,
)
from robustcli.tasks.record import DatasetRecord, dataset_differences
from robustcli.training.record import FIRST_RESULTS, TRAINING, RecipeRecord, recipe_differences

Mode = Literal["scratch", "full", "freeze", "lora"]
MODES: tuple[Mode, ...] = get_args(Mode)
PROFILE, DECISIONS, ITERATIONS, COSTS = (
    "gradients.parquet", "frozen.csv", "iterations.csv", "costs.json"
)  # fmt: skip
NNUNET = "nnunet"
DECISION_COLUMNS = ("name", "shape", "count", "mamba", "statistic", "frozen", "why")
"""Per tensor: `shape` as `3x8x3x3`, number of elements, whether it belongs to a state-space block,
the rule's statistic (empty without a gradient), and the decision with its reason."""
STEPS = ("iteration", "seconds", "trainable")
SWEEP_FILE, SWEPT = "sweep.csv", "sweep"  # SWEPT: a folder with a training run per rule
AFTER_STEPS, CHOSEN_EPOCH = "after_steps", "chosen_epoch"
_SWEPT = (
    *("scope", "threshold", "quantile", "change", "pattern", "frozen_share"),
    *("seconds_ratio", "seconds_ratio_low", "seconds_ratio_high", AFTER_STEPS),
    *("statistic", "relative", CHOSEN_EPOCH),
)
SWEEPS: dict[Literal["cls", "seg"], tuple[str, ...]] = {
    "cls": (*_SWEPT, "top1", "top1_low", "top1_high"),
    "seg": (*_SWEPT, "dice", "dice_low", "dice_high"),
}
"""Per rule: the frozen tensors, their share of all elements, the time of a step relative to full
fine-tuning, the number of steps before freezing, the compared statistic and whether (1 or 0) it is
divided by the weight's root mean square, the epoch of the selected weights, and the dice (top-1 of
a classifier) on the held-out images."""
SWEEP_ADDED = {AFTER_STEPS: 0, "statistic": None, "relative": 0, CHOSEN_EPOCH: None}
"""Values of the columns that files of earlier versions lack."""


class RuleRecord(Record):
    """The freezing rule; see `selection.FreezeRule`."""

    threshold: float | None
    quantile: float | None
    pattern: str | None
    kind: Literal["mean_abs", "rms", "max_abs", "abs_mean", "change"]
    relative: bool
    scope: Literal["mamba", "all"]
    change: float | None = None


class SavingRecord(Record):
    """Counted savings of a set of frozen tensors.

    `optimizer_bytes` (the optimizer's state) and `flops` (convolutions and matrix products of one
    training step, without the scan) are those without freezing; the fields ending in `_saved` are
    the part that freezing saves.
    """

    parameters: int
    frozen: int
    optimizer_bytes: int
    optimizer_bytes_saved: int
    flops: int
    flops_saved: int


class ModeCosts(Record):
    """Costs of a mode, measured at the end of its training.

    Args:
        trainable: Number of trained elements.
        optimizer_bytes: Size of the optimizer's state.
        peak_memory_bytes: Peak of training since the last freeze; None if the system does not
            report it.
    """

    trainable: int
    optimizer_bytes: int
    peak_memory_bytes: int | None


class FinetuneRecord(BaseRunRecord):
    """The content of a fine-tuning's `run.json`.

    `pretrained` describes the origin of the weights in words; `heads` are name prefixes of the
    layers that are new in this task and never frozen; `profile` is `measured`, the path of the
    profile that was used, or `none` if a name pattern decides, and `profile_iterations` the number
    of its steps. `recipe` is None in runs of earlier versions. `split_seed`: see `TrainRecord`.
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
    recipe: RecipeRecord | None = None
    epochs: int
    iterations: int
    saving: SavingRecord | None = None
    device: DeviceName

    @property
    def network(self) -> str:
        """Name of the network in reports; a control has the ablated part in its name."""
        return network_words(self.model, self.arguments)


PROFILING = ".profiling"
"""Temporary folder of the training that `--profile-only` starts."""
_FLAGS = {
    "model": "The network",
    "arguments": "`--model-arg`",
    "seed": "`--seed`",
    "split_seed": "`--split-seed`",
    "pretrained_sha256": "The hash of the weights (`--pretrained`)",
    "epochs": "The number of epochs (`--iterations`, `--epochs`)",
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
    """One sentence per setting of `new` that would change the results of `old`.

    The rule may change as long as no trained mode and no stored decision depends on it.
    """
    yield from dataset_differences(old.dataset, new.dataset, "`--data`, `--limit`, `--seed`")
    yield from changed_fields(old, new, _FLAGS)
    if old.recipe is not None and new.recipe is not None:
        yield from recipe_differences(old.recipe, new.recipe)
    # After the recipe, because the number of profiled steps can depend on it.
    if "freeze" in old.modes or not old.modes or old.saving is not None:
        yield from changed_fields(old.rule, new.rule, _RULE_FLAGS)
        yield from changed_fields(old, new, _profile_flags(old, new))
    if "lora" in old.modes:
        yield from changed_fields(old, new, {"lora_layers": "`--lora-layers`"})


def _profile_flags(old: FinetuneRecord, new: FinetuneRecord) -> dict[str, str]:
    """The fields that describe the profile: the contents of a file, however its path is spelled."""
    if old.profile_sha256 and new.profile_sha256:
        return {"profile_sha256": "The hash of the profile (`--profile`)"}
    steps = {"profile_iterations": "`--profile-iterations`"} if new.profile == "measured" else {}
    return {"profile": "`--profile`", **steps}


def _kept_fields(old: FinetuneRecord, new: FinetuneRecord) -> dict[str, Any]:
    """Fields of the old record that stay: the trained modes and the savings."""
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
    _kept_fields,
    results=(PROFILE, DECISIONS, *(f"*/{name}" for name in FIRST_RESULTS)),
)
"""Defines the run folders of `robust finetune`."""


def read_finetune_record(run: Path) -> FinetuneRecord:
    """The record of the fine-tuning in the folder `run`; raises the errors of `RunKind.read`."""
    return FINETUNING.read(run)
