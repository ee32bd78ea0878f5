"""Scores of trainings follow the same rules for every kind of scoring."""

from __future__ import annotations

import pandas as pd
import pytest

from robustcli.reports.finetuning_page import columns
from robustcli.reports.scoring import SCORINGS, Scoring, most_frequent

TOP1, DICE = SCORINGS["cls"], SCORINGS["seg"]


def test_scores_with_their_intervals() -> None:
    row = {"n": 200, "top1": 0.805, "top1_low": 0.745, "top1_high": 0.854, "top5": 0.99}
    assert TOP1.shown(row) == "80.5 % (74.5\N{EN DASH}85.4)"
    assert TOP1.second_shown(row) == "99.0 %"
    masks = {"dice": 0.8, "dice_low": 0.7, "dice_high": 0.9, "iou": 0.6, "iou_low": 0.5,
             "iou_high": 0.7}  # fmt: skip
    assert DICE.shown(masks) == "0.800 (0.700\N{EN DASH}0.900)"
    assert DICE.second_shown(masks) == "0.600 (0.500\N{EN DASH}0.700)"


@pytest.mark.parametrize(
    ("scoring", "value", "expected"),
    [
        (TOP1, 0.0123, "+1.2"),
        (TOP1, -0.0001, "0.0"),
        (TOP1, None, "\N{EN DASH}"),
        (DICE, -0.0123, "-0.012"),
        (DICE, 0.0001, "0.000"),
    ],
)
def test_differences_have_a_sign(scoring: Scoring, value: float | None, expected: str) -> None:
    assert scoring.gap_shown(value) == expected


def test_the_same_answer_always_reaches_the_share_of_the_largest_class() -> None:
    floor = most_frequent(pd.DataFrame({"target": [0, 1, 1, 2, 1]}))
    assert floor == {"n": 5, "top1": 0.6}
    assert TOP1.shown(floor) == "60.0 %"
    assert TOP1.second_shown(floor) == "\N{EN DASH}"


def test_a_line_of_a_sweep_has_the_precision_of_its_images() -> None:
    row = pd.Series({"top1": 0.8, "top1_low": 0.7, "top1_high": 0.9})
    assert TOP1.shown_in(row, 5000) == "80.00 % (70.00\N{EN DASH}90.00)"


def test_no_column_of_a_classifier_is_about_masks() -> None:
    text = " ".join((*columns(TOP1), *TOP1.validation.metrics, TOP1.score_note, TOP1.few_words))
    assert "dice" not in text.lower()
    assert "iou" not in text
    assert "top1_minus_full" in columns(TOP1)
