"""Scores over seeds, against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustcli.metrics.intervals import Bootstrap, Interval
from robustcli.metrics.seed_scores import (
    WIDEST,
    joined_interval,
    reproduction,
    seed_difference,
    seed_scores,
    seeds_gap,
    single_range,
    t_interval,
    unit_scores,
    welch_interval,
)

SCORES = np.array([0.842, 0.86, 0.851, 0.848, 0.857])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_t_interval_is_scipys(count: int, confidence: float) -> None:
    values = SCORES[:count]
    expected = stats.t.interval(confidence, count - 1, values.mean(), stats.sem(values))
    assert t_interval(values, confidence) == pytest.approx(expected, abs=1e-12)


def test_one_more_value_is_expected_where_the_prediction_interval_says() -> None:
    half = stats.t.ppf(0.975, 4) * SCORES.std(ddof=1) * math.sqrt(1 + 1 / 5)
    mean = SCORES.mean()
    assert single_range(SCORES) == pytest.approx((mean - half, mean + half), abs=1e-12)


@pytest.mark.parametrize("values", [[0.5], [0.7, 0.7], [0.1 + 0.2, 0.3, 0.3]])
def test_values_without_spread_have_no_interval(values: list[float]) -> None:
    assert t_interval(np.array(values)) is None
    assert single_range(np.array(values)) is None
    assert seed_scores(values, None, Bootstrap(0)).over_seeds is None


def test_one_seed_has_the_interval_over_images_alone() -> None:
    units = np.array([[0.2], [0.6], [0.9], [0.4]])
    scores = seed_scores([float(units.mean())], units, Bootstrap(3))
    assert (scores.seeds, scores.units, scores.deviation) == (1, 4, None)
    assert (scores.over_seeds, scores.joint, scores.single) == (None, None, None)
    assert scores.over_units == Bootstrap(3).mean(units[:, 0])


def test_the_mean_and_both_intervals_are_of_the_same_seeds() -> None:
    rng = np.random.default_rng(0)
    units = np.clip(rng.normal(0.8, 0.1, (40, 1)) + rng.normal(0, 0.02, (40, 3)), 0, 1)
    scores = seed_scores(list(units.mean(axis=0)), units, Bootstrap(0))
    assert scores.mean == pytest.approx(units.mean())
    assert scores.deviation == pytest.approx(np.std(units.mean(axis=0), ddof=1))
    resampled = stats.bootstrap(
        (units.mean(axis=1),), np.mean, method="percentile", n_resamples=9_999, rng=1
    ).confidence_interval
    assert scores.over_units == pytest.approx(tuple(resampled), abs=0.003)
    sides = [scores.mean - scores.over_seeds.low, scores.mean - scores.over_units.low]
    assert scores.mean - scores.joint.low == pytest.approx(math.hypot(*sides))


def test_classifiers_resample_how_often_each_share_of_seeds_is_right() -> None:
    rng = np.random.default_rng(1)
    right = (rng.random((2_000, 4)) < rng.beta(4, 1, (2_000, 1))).astype(float)
    scores = seed_scores(list(right.mean(axis=0)), right, Bootstrap(0))
    per_image = right.mean(axis=1)
    half = 1.96 * per_image.std() / math.sqrt(len(per_image))  # the central limit theorem
    mean = per_image.mean()
    assert scores.over_units == pytest.approx((mean - half, mean + half), abs=0.0015)


def test_intervals_stay_within_scores() -> None:
    scores = seed_scores([0.99, 0.2], None, Bootstrap(0))
    assert scores.over_seeds == (0, 1)
    assert scores.over_units is None
    assert scores.joint is None


def test_a_unit_without_a_score_in_one_seed_counts_with_the_others() -> None:
    units = np.array([[0.4, np.nan], [0.8, 0.6], [np.nan, np.nan]])
    assert seed_scores([0.6, 0.6], units, Bootstrap(0)).units == 2


def test_the_joint_interval_covers_seeds_and_images() -> None:
    """Simulated: scores with an effect of the seed, of the image, and of both."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        seeds, images = rng.normal(0, 0.01, (1, 4)), rng.normal(0, 0.1, (60, 1))
        units = 0.5 + seeds + images + rng.normal(0, 0.05, (60, 4))
        scores = seed_scores(list(units.mean(axis=0)), units, Bootstrap(0, draws=400))
        hits += scores.joint.low <= 0.5 <= scores.joint.high
    assert 186 <= hits <= 200  # 95 % are 190; it is rather too wide


def test_missing_parts_join_to_nothing() -> None:
    assert joined_interval(0.5, None, Interval(0, 1)) is None
    assert joined_interval(0.5, Interval(0.2, 0.9), Interval(0.1, 0.8)) == pytest.approx((0, 1))


def test_differences_are_paired_by_seed_as_scipys() -> None:
    full, frozen = SCORES, SCORES + np.array([0.01, -0.002, 0.004, 0.012, 0.003])
    result = stats.ttest_rel(frozen, full)
    difference = seed_difference(list(frozen), list(full))
    assert difference.value == pytest.approx(0.0054)
    assert difference.p == pytest.approx(result.pvalue)
    expected = result.confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx(tuple(expected))


def test_differences_without_spread_have_no_test() -> None:
    assert seed_difference([0.5], [0.4]).p is None
    equal = seed_difference([0.5, 0.7], [0.4, 0.6])
    assert equal.value == pytest.approx(0.1)
    assert (equal.low, equal.p) == (None, None)
    with pytest.raises(ValueError, match="same seeds, got 2 and 1"):
        seed_difference([0.5, 0.6], [0.4])


@pytest.mark.parametrize(
    ("published", "interval", "outcome"),
    [
        (0.863, Interval(0.842, 0.860), "not reproduced"),
        (0.8595, Interval(0.842, 0.860), "reproduced"),
        (0.842, Interval(0.842, 0.860), "reproduced"),
        (0.85, Interval(0.85 - 2 * WIDEST, 0.85 + 2 * WIDEST), "cannot be said"),
        (0.99, Interval(0.85 - 2 * WIDEST, 0.85 + 2 * WIDEST), "not reproduced"),
        (0.85, None, "cannot be said"),
    ],
)
def test_a_published_number_is_judged_by_the_interval_over_seeds(
    published: float, interval: Interval | None, outcome: str
) -> None:
    assert reproduction(published, interval) == outcome


def test_units_of_classifiers_are_images_in_one_order() -> None:
    rows = pd.DataFrame({"image_id": ["a", "b", "c"], "target": [0, 1, 2], "prediction": [0, 0, 2]})
    other = rows.iloc[[2, 0, 1]].assign(prediction=[2, 1, 1])  # c right, a wrong, b right
    units = unit_scores("cls", [rows, other])
    assert units.tolist() == [[1, 1], [1, 0], [0, 1]]
    apart = rows.assign(image_id=["x", "y", "z"])
    assert unit_scores("cls", [rows, apart]) is None


def test_units_of_segmenters_are_groups_with_their_pixels_pooled() -> None:
    rows = pd.DataFrame(
        {
            "image_id": ["a", "b", "c"], "group": ["q", "p", "q"],
            "tp": [1, 4, 3], "fp": [1, 0, 0], "fn": [0, 0, 2],
        }
    )  # fmt: skip
    units = unit_scores("seg", [rows, rows.assign(tp=0, fp=0, fn=0)])
    assert units == pytest.approx(np.array([[1.0, 1.0], [8 / 11, 1.0]]))


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (5, 3)])
def test_the_interval_of_two_means_is_welchs(sizes: tuple[int, int]) -> None:
    first, second = SCORES[: sizes[0]], SCORES[::-1][: sizes[1]] * 0.9
    result = stats.ttest_ind(first, second, equal_var=False)
    for confidence in (0.95, 0.99):
        expected = result.confidence_interval(confidence)
        assert welch_interval(first, second, confidence) == pytest.approx(tuple(expected))
    assert welch_interval(first[:1], second) is None
    assert welch_interval(np.full(3, 0.5), np.full(2, 0.4)) is None


def test_a_gap_is_paired_over_units_and_not_over_seeds() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.normal(0.7, 0.15, (50, 1))  # which both models share
    first = hardness + 0.03 + rng.normal(0, 0.01, (50, 3)) + [[0.002, 0, -0.002]]
    second = hardness + rng.normal(0, 0.01, (50, 4)) + [[0.001, 0, -0.001, 0]]
    gap = seeds_gap(first, second, Bootstrap(0))
    assert gap.difference == pytest.approx(first.mean() - second.mean())
    assert gap.over_units == Bootstrap(0).mean(first.mean(axis=1) - second.mean(axis=1))
    assert gap.over_units.high - gap.over_units.low < 0.01  # far less than the images' own spread
    assert gap.lead == "first ahead"
    assert seeds_gap(second, first, Bootstrap(0)).lead == "second ahead"
    assert seeds_gap(first, first, Bootstrap(0)).lead == "no difference shown"
    assert seeds_gap(first[:, :1], second, Bootstrap(0)).lead == "cannot be said"
