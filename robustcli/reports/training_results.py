"""The numbers of trainings for other programs: a line per run."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from robustcli.reports.published import published
from robustcli.reports.training import Training
from robustcli.reports.training_scores import pooled

_MASKS = (
    *("n", "groups", "dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high"),
    *("dice_image", "dice_image_low", "dice_image_high", "dice_foreground", "precision", "recall"),
    *("hd95", "boundary_dice"),
    *("relaxed_precision", "relaxed_precision_low", "relaxed_precision_high"),
    *("relaxed_recall", "relaxed_recall_low", "relaxed_recall_high"),
)
_PAPER = ("dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high")
_COUNTS = ("n", "groups", "params", "epochs", "chosen_epoch", "peak_memory_bytes", "weights_bytes")
COLUMNS = (
    *("run", "model", "protocol", "dataset", "status"),
    *_MASKS,
    *(f"paper_{name}" for name in _PAPER),
    *("params", "epochs", "chosen_epoch", "seconds", "peak_memory_bytes", "energy_joules"),
    *("weights_bytes", "published_dice", "published_iou", "baseline_dice", "baseline_iou"),
)
_WORDS = COLUMNS[:5]
CLASS_COLUMNS = (
    *("run", "model", "dataset", "status", "n", "correct", "top1", "top1_low", "top1_high"),
    *("top5", "params", "epochs", "chosen_epoch", "seconds", "peak_memory_bytes"),
    *("energy_joules", "weights_bytes", "baseline_top1"),
)


def training_results(trainings: Sequence[Training]) -> pd.DataFrame:
    """One row per training with COLUMNS; a number that is not known is missing.

    Shares are fractions in [0, 1]. `dice` and `iou` are pooled within groups (`protocol` patient),
    `paper_dice` and `paper_iou` over batches as the paper did.
    """
    table = pd.DataFrame([_row(training) for training in trainings], columns=list(COLUMNS))
    kinds = {name: "Int64" if name in _COUNTS else "Float64" for name in COLUMNS}
    return table.astype({name: kind for name, kind in kinds.items() if name not in _WORDS})


def _row(training: Training) -> dict[str, object]:
    record, line = training.record, published(training.record.model)
    return {
        "run": training.run.resolve().name,
        "model": record.model,
        "protocol": record.protocol,
        "dataset": record.dataset.name,
        "status": record.status,
        **_measured(training),
        "params": record.parameters,
        "epochs": training.epochs,
        "chosen_epoch": record.chosen_epoch,
        "seconds": training.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "energy_joules": record.energy_joules,
        "weights_bytes": training.weights_bytes,
        "published_dice": line.dice if line else None,
        "published_iou": line.iou if line else None,
    }


def _measured(training: Training) -> dict[str, object]:
    found: dict[str, object] = {}
    if training.test is not None:
        found |= {name: training.test.numbers[name] for name in _MASKS}
    if training.baseline is not None:
        found |= {f"baseline_{name}": training.baseline.numbers[name] for name in ("dice", "iou")}
    paper = pooled(training)
    if paper is not None:
        found |= {f"paper_{name}": getattr(paper.score, name) for name in _PAPER}
    return found


def class_results(training: Training) -> pd.DataFrame:
    """One row of a classifier's training with CLASS_COLUMNS; what is not known is missing."""
    record, test, floor = training.record, training.test, training.floor
    row = {
        "run": training.run.resolve().name,
        "model": record.model,
        "dataset": record.dataset.name,
        "status": record.status,
        **({} if test is None else {n: test.numbers[n] for n in training.scoring.columns}),
        "params": record.parameters,
        "epochs": training.epochs,
        "chosen_epoch": record.chosen_epoch,
        "seconds": training.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "energy_joules": record.energy_joules,
        "weights_bytes": training.weights_bytes,
        "baseline_top1": None if floor is None else floor["top1"],
    }
    table = pd.DataFrame([row], columns=list(CLASS_COLUMNS))
    counts = (*_COUNTS, "correct")
    kinds = {name: "Int64" if name in counts else "Float64" for name in CLASS_COLUMNS}
    return table.astype({name: kind for name, kind in kinds.items() if name not in _WORDS})
