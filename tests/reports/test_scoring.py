"""Scores of each task, their formats, and the most and least harmful transforms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustcli.evaluation.record import EVALUATION
from robustcli.reports.findings import WorstClass
from robustcli.reports.finetuning_page import columns
from robustcli.reports.render import document, report_page
from robustcli.reports.scoring import (
    DICE,
    SCORINGS,
    TOP1,
    Scoring,
    best_and_worst,
    extremes,
    mean_over_transforms,
    most_frequent,
    representatives,
    scoring_of,
)
from robustcli.training.record import SEEDS, TRAINING
from tests.reports.seeded_runs import build_class_seeds

CLASSES, MASKS = SCORINGS["cls"], SCORINGS["seg"]


def test_scores_with_their_intervals() -> None:
    row = {"n": 200, "top1": 0.805, "top1_low": 0.745, "top1_high": 0.854, "top5": 0.99}
    assert CLASSES.shown(row) == "80.5 % (74.5\N{EN DASH}85.4)"
    assert CLASSES.second_shown(row) == "99.0 %"
    masks = {"dice": 0.8, "dice_low": 0.7, "dice_high": 0.9, "iou": 0.6, "iou_low": 0.5,
             "iou_high": 0.7}  # fmt: skip
    assert MASKS.shown(masks) == "0.800 (0.700\N{EN DASH}0.900)"
    assert MASKS.second_shown(masks) == "0.600 (0.500\N{EN DASH}0.700)"


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True)])
def test_top5_is_shown_of_more_than_five_classes(tmp_path: Path, classes: int, shown: bool) -> None:
    run = build_class_seeds(tmp_path / "run")
    seeds = [run / "seed-0", run / "seed-1"]
    tests = [seed / "test" for seed in seeds]
    for place, kind in (
        *((seed, TRAINING) for seed in seeds), *((test, EVALUATION) for test in tests),
        (run, SEEDS),
    ):  # fmt: skip
        dataset = kind.read(place).dataset.model_copy(update={"classes": classes})
        kind.update(place, dataset=dataset)
    for place in (run, seeds[0], tests[0]):
        page = report_page(place)
        assert ("top-5" in page.markdown.lower()) == shown
        assert "top-5" not in page.terminal or shown
    assert ("top-5" in document(seeds[0], "latex")) == shown
    assert scoring_of("seg", EVALUATION.read(tests[0]).dataset).second == "IoU"


@pytest.mark.parametrize(
    ("scoring", "value", "expected"),
    [
        (CLASSES, 0.0123, "+1.2"),
        (CLASSES, -0.0001, "0.0"),
        (CLASSES, None, "\N{EN DASH}"),
        (MASKS, -0.0123, "-0.012"),
        (MASKS, 0.0001, "0.000"),
    ],
)
def test_differences_have_a_sign(scoring: Scoring, value: float | None, expected: str) -> None:
    assert scoring.gap_shown(value) == expected


def test_the_same_answer_always_reaches_the_share_of_the_largest_class() -> None:
    floor = most_frequent(pd.DataFrame({"target": [0, 1, 1, 2, 1]}))
    assert floor == {"n": 5, "top1": 0.6}
    assert CLASSES.shown(floor) == "60.0 %"
    assert CLASSES.second_shown(floor) == "\N{EN DASH}"


def test_a_line_of_a_sweep_has_the_precision_of_its_images() -> None:
    row = pd.Series({"top1": 0.8, "top1_low": 0.7, "top1_high": 0.9})
    assert CLASSES.shown_in(row, 5000) == "80.00 % (70.00\N{EN DASH}90.00)"


def test_no_column_of_a_classifier_is_about_masks() -> None:
    text = " ".join(
        (*columns(CLASSES), *CLASSES.validation.metrics, CLASSES.score_note, CLASSES.few_words)
    )
    assert "dice" not in text.lower()
    assert "iou" not in text
    assert "top1_minus_full" in columns(CLASSES)


def test_top1_is_told_in_percent_and_dice_as_a_fraction() -> None:
    assert (TOP1.show(0.5, 10), DICE.show(0.5, 10)) == ("50.0", "0.500")
    assert TOP1.show_range(0.25, 0.5, 10, "-") == "25.0-50.0"
    assert DICE.show_range(0.25, 0.5, 10, "-") == "0.250-0.500"
    assert (TOP1.title, DICE.title) == ("Top-1", "Dice")


def test_where_there_is_no_interval_its_ends_are_the_number() -> None:
    rows = pd.DataFrame(
        {"dice": [0.5, 0.6], "dice_low": [0.4, float("nan")], "dice_high": [0.7, float("nan")]}
    )
    low, high = DICE.ends(rows)
    assert (list(low), list(high)) == ([0.4, 0.6], [0.7, 0.6])


def table(top1: dict[tuple[str, int], float], model: str = "a") -> pd.DataFrame:
    keys = pd.DataFrame(list(top1), columns=["transform", "severity"])
    return keys.assign(model=model, top1=list(top1.values()))


def test_best_and_worst_by_the_mean_over_models_without_identity() -> None:
    first = table({("identity", 0): 0.99, **{(f"t{i}", 0): i / 20 for i in range(10)}})
    second = table({("identity", 0): 0.99, **{(f"t{i}", 0): i / 20 for i in range(10)}}, "b")
    second.loc[second["transform"] == "t5", "top1"] = 1.0
    extreme = extremes(pd.concat([first, second]), TOP1)
    assert [name for name, _ in extreme.best] == ["t5", "t9", "t8", "t7"]
    assert [name for name, _ in extreme.worst] == ["t0", "t1", "t2", "t3"]


def test_all_transforms_with_the_best_or_the_worst_score_are_named() -> None:
    rows = table({("identity", 0): 1.0, ("a", 0): 0.5, ("b", 0): 0.7, ("c", 0): 0.7, ("d", 0): 0.5})
    ends = best_and_worst(rows, TOP1)
    assert (ends.best, ends.worst) == ([("b", 0), ("c", 0)], [("a", 0), ("d", 0)])
    same = best_and_worst(rows.assign(top1=0.0), TOP1)
    assert (len(same.best), same.worst) == (4, [])


@pytest.mark.parametrize(("count", "best", "worst"), [(0, 0, 0), (1, 1, 0), (2, 1, 1), (7, 4, 3)])
def test_few_transforms_are_shared_out_without_repetition(
    count: int, best: int, worst: int
) -> None:
    extreme = extremes(
        table({("identity", 0): 1.0, **{(f"t{i}", 0): i / 9 for i in range(count)}}), TOP1
    )
    assert (len(extreme.best), len(extreme.worst)) == (best, worst)
    assert not set(extreme.best) & set(extreme.worst)


def test_a_transform_is_represented_by_its_full_range_else_by_its_highest_severity() -> None:
    rows = table({("blur", 0): 0.5, ("blur", 5): 0.1, ("snow", 1): 0.9, ("snow", 4): 0.2})
    chosen = representatives(rows)
    assert list(zip(chosen["transform"], chosen["severity"], strict=True)) == [
        ("blur", 0),
        ("snow", 4),
    ]


def test_the_mean_over_transforms_is_that_of_the_ranking() -> None:
    rows = table({("blur", 0): 0.5, ("blur", 5): 0.1, ("snow", 1): 0.9, ("snow", 4): 0.2})
    assert mean_over_transforms(rows, TOP1) == pytest.approx((0.5 + (0.9 + 0.2) / 2) / 2)
    begun = table({("blur", 0): 0.5, ("snow", 0): float("nan")})
    assert math.isnan(mean_over_transforms(begun, TOP1))


def test_a_transform_that_a_model_lacks_is_not_ranked() -> None:
    first = table({("blur", 0): 0.5, ("snow", 0): 0.9})
    second = table({("blur", 0): 0.5, ("snow", 0): float("nan")}, "b")
    extreme = extremes(pd.concat([first, second]), TOP1)
    assert (extreme.best, extreme.worst) == ([("blur", 0)], [])


def test_segmenters_are_ranked_by_dice() -> None:
    rows = table({("blur", 0): 0.5, ("snow", 0): 0.9}).assign(dice=[0.8, 0.3])
    assert extremes(rows, DICE).best == [("blur", 0)]


def test_all_worst_classes_are_named() -> None:
    assert (
        WorstClass(("a", "b"), 0.0, np.array([0.5, 0.9])).words
        == "a and b: 0.000 (clean 0.500 to 0.900)"
    )
    many = WorstClass(tuple("abcde"), 0.0, None)
    assert many.words == "a, b, c and 2 others: 0.000 (clean \N{EN DASH})"
