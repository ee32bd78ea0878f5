"""Segmenters: dice, pooled within groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd

from robustcli.evaluation.bootstrap import Bootstrap
from robustcli.evaluation.paired_masks import MaskDifference, mask_difference
from robustcli.reports.measure import DICE, Measure
from robustcli.reports.numbers import fraction, signed, with_range
from robustcli.reports.scoring.scoring import Scoring
from robustcli.training.record import VALIDATIONS, Validation


class DiceScoring(Scoring):
    """See the module."""

    measure: ClassVar[Measure] = DICE
    second: ClassVar[str] = "IoU"
    validation: ClassVar[Validation] = VALIDATIONS["seg"]
    axis: ClassVar[str] = "dice (0 to 1)"
    equal_words: ClassVar[str] = "0.01 of dice"
    equal_size: ClassVar[str] = "0.01"
    columns: ClassVar[tuple[str, ...]] = (
        *("n", "groups", "dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high"),
        *("dice_image", "dice_foreground", "precision", "recall"),
        *("relaxed_precision", "relaxed_precision_low", "relaxed_precision_high"),
        *("relaxed_recall", "relaxed_recall_low", "relaxed_recall_high"),
    )
    counts: ClassVar[tuple[str, ...]] = ("n", "groups")
    baseline_columns: ClassVar[tuple[str, ...]] = ("dice", "iou")
    baseline: ClassVar[str] = "otsu"
    floor_words: ClassVar[str] = "Otsu's threshold"
    per_group: ClassVar[bool] = True
    unit: ClassVar[str] = ""
    few_words: ClassVar[str] = (
        "the 95 % interval of a dice is up to {width} wide, and with so few a bootstrap interval "
        "tends to be too narrow: these numbers are a rough answer, and small differences between "
        "modes cannot be seen."
    )
    edge_words: ClassVar[str] = (
        "The interval is made by resampling and the test by flipping signs, so close to the edge "
        "they can disagree, and with few groups the interval tends to be too narrow"
    )
    score_note: ClassVar[str] = (
        "In brackets: 95 % bootstrap intervals over groups, of the differences paired ones. p: "
        "sign-flip test of the same differences, those of the groups' dice, averaged over groups."
    )

    def shown(self, numbers: Mapping[str, Any] | pd.Series) -> str:
        """See `Scoring.shown`."""
        return with_range(numbers["dice"], numbers["dice_low"], numbers["dice_high"])

    def second_shown(self, numbers: Mapping[str, Any] | pd.Series) -> str:
        """See `Scoring.second_shown`."""
        return with_range(numbers["iou"], numbers["iou_low"], numbers["iou_high"])

    def apart(self, value: float | None) -> str:
        """See `Scoring.apart`."""
        return signed(value)

    def width(self, value: float) -> str:
        """See `Scoring.width`."""
        return fraction(value)

    def difference(
        self, reference: pd.DataFrame, rows: pd.DataFrame, seed: int
    ) -> MaskDifference | None:
        """See `Scoring.difference`."""
        return mask_difference(reference, rows, Bootstrap(seed))

    def tested(self, group: str) -> tuple[str, str]:
        """See `Scoring.tested`."""
        return f"paired 95 % bootstrap interval over {group}s", f"sign-flip test over {group}s"
