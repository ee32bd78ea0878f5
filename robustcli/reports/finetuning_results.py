"""The numbers of a fine-tuning for other programs: a line per mode that has begun."""

from __future__ import annotations

import pandas as pd

from robustcli.reports.finetuning import Finetuning, ModeRun
from robustcli.reports.finetuning_scores import against_full, frozen_elements, seconds_ratio

_MASKS = (
    *("n", "groups", "dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high"),
    *("dice_image", "dice_foreground", "precision", "recall"),
    *("relaxed_precision", "relaxed_precision_low", "relaxed_precision_high"),
    *("relaxed_recall", "relaxed_recall_low", "relaxed_recall_high"),
)
_COUNTS = (
    *("n", "groups", "epochs", "chosen_epoch", "iterations", "iterations_measured"),
    *("trainable", "frozen", "optimizer_bytes", "peak_memory_bytes"),
)
COLUMNS = (
    *("mode", "model", "dataset", "status"),
    *_MASKS,
    *("epochs", "chosen_epoch", "iterations", "iterations_measured"),
    *("seconds_per_iteration", "iterations_per_second", "seconds_ratio"),
    *("trainable", "frozen", "optimizer_bytes", "peak_memory_bytes", "training_seconds"),
    *("dice_minus_full", "dice_minus_full_low", "dice_minus_full_high", "dice_minus_full_p"),
    *("baseline_dice", "baseline_iou"),
)
_WORDS = COLUMNS[:4]


def finetuning_results(found: Finetuning) -> pd.DataFrame:
    """One row per mode with COLUMNS; a number that is not known is missing.

    Shares are fractions in [0, 1]; times are of the iterations after the freeze.
    """
    table = pd.DataFrame([_row(found, run) for run in found.modes], columns=list(COLUMNS))
    kinds = {name: "Int64" if name in _COUNTS else "Float64" for name in COLUMNS}
    return table.astype({name: kind for name, kind in kinds.items() if name not in _WORDS})


def _row(found: Finetuning, run: ModeRun) -> dict[str, object]:
    training, costs = run.training, run.costs
    row: dict[str, object] = {
        "mode": run.mode,
        "model": found.record.model,
        "dataset": found.record.dataset.name,
        "status": training.record.status,
        "epochs": training.epochs,
        "chosen_epoch": training.record.chosen_epoch,
        "iterations": int(training.metrics["step"].max()) if training.epochs else 0,
        "iterations_measured": len(run.steady),
        "training_seconds": training.seconds,
        "frozen": frozen_elements(run),
        **_times(found, run),
        **_scores(found, run),
    }
    if costs is not None:
        row |= costs.model_dump()
    return row


def _times(found: Finetuning, run: ModeRun) -> dict[str, object]:
    seconds = run.seconds_per_iteration
    return {
        "seconds_per_iteration": seconds,
        "iterations_per_second": 1 / seconds if seconds else None,
        "seconds_ratio": seconds_ratio(found, run.mode),
    }


def _scores(found: Finetuning, run: ModeRun) -> dict[str, object]:
    row: dict[str, object] = {}
    test, baseline, compared = (
        run.training.test,
        run.training.baseline,
        against_full(found, run.mode),
    )
    if test is not None:
        row |= {name: test.numbers[name] for name in _MASKS}
    if baseline is not None:
        row |= {f"baseline_{name}": baseline.numbers[name] for name in ("dice", "iou")}
    if compared is not None:
        row |= {"dice_minus_full": compared.dice, "dice_minus_full_p": compared.p}
        row |= {"dice_minus_full_low": compared.low, "dice_minus_full_high": compared.high}
    return row
