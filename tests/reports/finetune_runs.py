"""Synthetic fine-tunings in the files of `robustcli.finetuning.record`."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from robustcli.finetuning.record import (
    COSTS,
    DECISION_COLUMNS,
    DECISIONS,
    FINETUNING,
    ITERATIONS,
    PROFILE,
    STEPS,
    SWEEP_FILE,
    SWEEPS,
    FinetuneRecord,
    Mode,
    ModeCosts,
    RuleRecord,
    SavingRecord,
)
from tests.builders import WHEN
from tests.reports.train_runs import TrainPlan, build_training, training_record

MAMBA = "mamba_layer.mamba."
TENSORS: tuple[tuple[str, tuple[int, ...], bool, float], ...] = (
    ("encoder.stem.conv1.weight", (16, 3, 3, 3), False, 3e-4),
    ("encoder.stem.conv1.bias", (16,), False, 2e-9),
    (f"{MAMBA}A_log", (64, 16), True, 2e-8),
    (f"{MAMBA}D", (64,), True, 4e-7),
    (f"{MAMBA}conv1d.weight", (64, 1, 4), True, 3e-6),
    (f"{MAMBA}in_proj.weight", (128, 32), True, 5e-5),
    ("decoder.seg_layers.0.weight", (1, 16, 1, 1), False, 4e-2),
)
"""Name, shape, whether it belongs to a state-space block, and the size of its gradients."""
THRESHOLD, TOTAL, HELD = 1e-6, 200_000, 64 * 16 + 64
SCALE: dict[str, float] = {"mean_abs": 1.0, "rms": 1.3, "max_abs": 6.0, "abs_mean": 0.2}
SECONDS: dict[str, float] = {"scratch": 0.25, "full": 0.25, "freeze": 0.24, "lora": 0.2}
BASE: dict[str, float] = {"scratch": 0.7, "full": 0.86, "freeze": 0.855, "lora": 0.8}


IMAGES = TrainPlan(model="umamba-pico", parameters=TOTAL, groups=8, images=8, grouping="image")


@dataclass(frozen=True)
class FinetunePlan:
    """The synthetic fine-tuning; `unmeasured` modes have started, `waiting` modes have not."""

    modes: tuple[Mode, ...] = ("scratch", "full", "freeze")
    unmeasured: tuple[Mode, ...] = ()
    waiting: tuple[Mode, ...] = ()
    tensors: tuple[tuple[str, tuple[int, ...], bool, float], ...] = TENSORS
    profiled: int = 10
    steps: int = 60
    epochs: int = 6
    rule: dict[str, object] = field(default_factory=dict)
    record: dict[str, object] = field(default_factory=dict)
    sweep: bool = False
    decided: bool = True
    training: TrainPlan = IMAGES


ROADS = FinetunePlan(training=replace(IMAGES, grouping="photo", dataset={"tolerance": 3}))


def build_finetuning(run: Path, plan: FinetunePlan = FinetunePlan()) -> Path:
    """Writes the fine-tuning that `plan` describes and returns its directory."""
    run.mkdir(parents=True, exist_ok=True)
    FINETUNING.write(run, finetune_record(plan))
    if plan.profiled:
        profile_rows(plan).to_parquet(run / PROFILE)
    if plan.decided:
        decisions(plan).to_csv(run / DECISIONS, index=False)
    for mode in plan.modes:
        if mode not in plan.waiting:
            _mode(run / mode, mode, plan)
    if plan.sweep:
        sweep_rows().to_csv(run / SWEEP_FILE, index=False)
    return run


def _mode(run: Path, mode: Mode, plan: FinetunePlan) -> None:
    is_done = mode not in plan.unmeasured
    finished_epochs = None if is_done else 2
    build_training(
        run,
        replace(
            plan.training,
            base=BASE[mode],
            measured=is_done,
            epochs=plan.epochs,
            finished=finished_epochs,
        ),
    )
    _spread_metrics(run / "metrics.csv", mode)
    if not is_done:
        return
    frozen_count = HELD if mode == "freeze" else 0
    costs = ModeCosts(
        trainable=TOTAL - frozen_count,
        optimizer_bytes=4 * (TOTAL - frozen_count),
        peak_memory_bytes=700 * 2**20 - 2**20 * (mode == "freeze"),
    )
    (run / COSTS).write_text(costs.model_dump_json())
    step_rows(mode, plan).to_csv(run / ITERATIONS, index=False)


def _spread_metrics(path: Path, mode: Mode) -> None:
    """Makes learning curves that differ between modes, with some negative losses."""
    table = pd.read_csv(path)
    table["val_dice"] *= BASE[mode]
    table["val_loss"] -= BASE[mode]
    table["seconds"] *= SECONDS[mode] / SECONDS["full"]
    table.to_csv(path, index=False)


def step_rows(mode: Mode, plan: FinetunePlan) -> pd.DataFrame:
    """Returns iteration times around SECONDS; before the freeze they are twice as long."""
    number = np.arange(1, plan.steps + 1)
    is_before_freeze = (number <= plan.profiled) & (mode == "freeze")
    seconds = SECONDS[mode] * (1 + 0.02 * np.sin(number)) * np.where(is_before_freeze, 2.0, 1.0)
    frozen_count = HELD * (mode == "freeze") * ~is_before_freeze
    table = {"iteration": number, "seconds": seconds, "trainable": TOTAL - frozen_count}
    return pd.DataFrame(table)[list(STEPS)]


def profile_rows(plan: FinetunePlan) -> pd.DataFrame:
    """Returns rows like `GradientProfile.rows`; A_log has no gradient in every third iteration."""
    rows = [
        {
            "name": name,
            "shape": list(shape),
            "mamba": mamba,
            "weight_rms": 0.5,
            "iteration": i,
            **{
                kind: 0.0 if name.endswith("A_log") and i % 3 == 2
                else scale * size * (1 + 0.3 * np.sin(i + len(name)))
                for kind, scale in SCALE.items()
            },
        }
        for i in range(plan.profiled)
        for name, shape, mamba, size in plan.tensors
    ]  # fmt: skip
    return pd.DataFrame(rows)


def decisions(plan: FinetunePlan) -> pd.DataFrame:
    """Applies the documented rule, as `finetune.decisions_file` writes it."""
    means: dict[str, float] = {}
    if plan.profiled:
        mean = profile_rows(plan).groupby("name")["mean_abs"].mean()
        means = dict(zip(mean.index, mean.tolist(), strict=True))
    rows = [
        (
            name, "x".join(map(str, shape)), int(np.prod(shape)), int(mamba), means.get(name, ""),
            int(mamba and size < THRESHOLD), _why(mamba, size),
        )
        for name, shape, mamba, size in plan.tensors
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(DECISION_COLUMNS))


def _why(mamba: bool, size: float) -> str:
    if not mamba:
        return "not in a state-space block"
    return "below 1e-06" if size < THRESHOLD else "not below 1e-06"


MEANS = ("mean_abs", 0, 5)  # the statistic of most rules of a sweep, and the selected epoch


def sweep_rows() -> pd.DataFrame:
    rows = [
        ("mamba", None, None, None, None, 0.0, 1.0, 0.99, 1.01, 20, *MEANS, 0.86, 0.82, 0.89),
        (
            "mamba",
            1e-6,
            None,
            None,
            None,
            0.005,
            0.97,
            0.95,
            0.99,
            20,
            "rms",
            1,
            5,
            0.855,
            0.81,
            0.89,
        ),
        ("all", None, 0.6, None, None, 0.4, 0.85, 0.8, 0.9, 20, *MEANS, 0.84, 0.8, 0.87),
        ("all", None, None, None, "encoder", 0.6, 0.7, 0.66, 0.74, 0, None, 0, 5, 0.83, None, None),
    ]
    return pd.DataFrame(rows, columns=list(SWEEPS["seg"]))


def finetune_record(plan: FinetunePlan) -> FinetuneRecord:
    rule = RuleRecord(
        threshold=THRESHOLD,
        quantile=None,
        pattern=None,
        kind="mean_abs",
        relative=False,
        scope="mamba",
    ).model_copy(update=plan.rule)
    is_complete = not plan.unmeasured and not plan.waiting
    record = FinetuneRecord(
        command="robust finetune umamba-pico --freeze-threshold 1e-6",
        status="complete" if is_complete else "running",
        created=WHEN,
        updated=WHEN,
        seed=0,
        model="umamba-pico",
        arguments={"num_classes": 1},
        parameters=TOTAL,
        pretrained="the bundled weights, pretrained on `nuclei-mini`, fluorescence",
        pretrained_sha256="ab" * 32,
        heads=["decoder.seg_layers."],
        dataset=training_record(plan.training).dataset,
        modes=list(plan.modes),
        rule=rule,
        profile="measured",
        profile_iterations=plan.profiled,
        epochs=plan.epochs,
        iterations=plan.steps,
        saving=SavingRecord(
            parameters=TOTAL,
            frozen=HELD,
            optimizer_bytes=4 * TOTAL,
            optimizer_bytes_saved=4 * HELD,
            flops=10**9,
            flops_saved=2 * 10**7,
        ),
        device="cpu (2 threads)",
    )
    return record.model_copy(update=plan.record)
