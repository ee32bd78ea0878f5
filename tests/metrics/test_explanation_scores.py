"""Scores of explanations against SciPy, scikit-learn and numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import center_of_mass, distance_transform_edt
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import spearmanr
from sklearn.metrics import auc

from robustcli.metrics.explanation_scores import (
    ERRORS,
    FEWEST,
    POINTING_TOLERANCE,
    SCORES,
    box_region,
    centroid,
    centroid_shift,
    curve_area,
    error_summary,
    explanation_cells,
    field_sides,
    flip_contrasts,
    map_correlation,
    mean_scores,
    pointing_hit,
    sanity_summary,
)
from robustcli.metrics.intervals import Bootstrap, wilson_interval

BOOTSTRAP = Bootstrap(0)


def mean_score(values, bootstrap=BOOTSTRAP):
    return mean_scores(np.asarray(values, dtype=float)[:, None], bootstrap)[0]


def flip_contrast(values, flipped, bootstrap=BOOTSTRAP):
    return flip_contrasts(np.asarray(values, dtype=float)[:, None], flipped, bootstrap)[0]


def a_map(seed: int, height: int = 9, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(height, width))


@pytest.mark.parametrize("steps", [2, 3, 11, 225])
def test_the_area_is_scikit_learns(steps):
    scores = np.random.default_rng(steps).random((3, steps)).astype(np.float32)
    theirs = [auc(np.linspace(0, 1, steps), row) for row in scores]
    assert curve_area(scores) == pytest.approx(theirs)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 2, 2)])
def test_no_area_under_something_else_than_curves(shape):
    with pytest.raises(ValueError, match=r"\(N, S\)"):
        curve_area(np.zeros(shape))


def test_pointing_within_the_tolerance_by_the_distance_transform():
    region = box_region((3, 2, 6, 5), (20, 30))
    distance = distance_transform_edt(~region)
    for row in range(20):
        for column in range(0, 30, 3):
            relevance = np.zeros((20, 30))
            relevance[row, column] = 1
            expected = bool(distance[row, column] <= 4.0)
            assert pointing_hit(relevance, region, tolerance=4.0) is expected


def test_the_papers_tolerance_scales_with_the_map():
    region = np.zeros((448, 448), dtype=bool)
    region[0, 0] = True
    for column, hit in ((2 * POINTING_TOLERANCE, True), (2 * POINTING_TOLERANCE + 1, False)):
        relevance = np.zeros((448, 448))
        relevance[0, column] = 1
        assert pointing_hit(relevance, region) is hit


def test_the_first_of_several_largest_values_points():
    relevance, region = np.zeros((4, 4)), np.zeros((4, 4), dtype=bool)
    relevance[0, 0] = relevance[3, 3] = 1
    region[3, 3] = True
    assert pointing_hit(relevance, region, 0) is False
    assert pointing_hit(relevance[::-1, ::-1].copy(), region[::-1, ::-1], 0) is True


def test_a_map_that_points_nowhere_neither_hits_nor_misses():
    region = np.ones((3, 3), dtype=bool)
    assert pointing_hit(np.ones((3, 3)), region) is None
    assert pointing_hit(np.full((3, 3), np.nan), region) is None
    assert pointing_hit(np.eye(3), ~region) is None
    with pytest.raises(ValueError, match="differ in size"):
        pointing_hit(np.eye(3), np.ones((3, 4), dtype=bool))


def test_a_box_covers_the_pixels_whose_centres_are_inside():
    assert box_region((0.4, 1, 2.6, 2), (3, 4)).astype(int).tolist() == [
        [0, 0, 0, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]


@given(
    arrays(np.int8, (4, 5), elements=st.integers(-3, 3)),
    arrays(np.int8, (4, 5), elements=st.integers(-3, 3)),
)
def test_rank_correlation_with_ties_is_scipys(first, second):
    correlation = map_correlation(first.astype(np.float16), second.astype(np.float16))
    if len(np.unique(first)) == 1 or len(np.unique(second)) == 1:
        assert correlation is None
    else:
        theirs = spearmanr(first.ravel(), second.ravel()).statistic
        assert correlation == pytest.approx(theirs, abs=1e-12)


def test_rank_correlation_of_a_large_map_and_of_a_part_of_it():
    first, second = a_map(0, 60, 80), a_map(1, 60, 80) + a_map(0, 60, 80)
    where = a_map(2, 60, 80) > 0
    assert map_correlation(first, second) == pytest.approx(
        spearmanr(first.ravel(), second.ravel()).statistic
    )
    assert map_correlation(first, second, where) == pytest.approx(
        spearmanr(first[where], second[where]).statistic
    )
    assert map_correlation(first, first**3) == pytest.approx(1)
    assert map_correlation(first, -first) == pytest.approx(-1)


@pytest.mark.parametrize("bad", [np.zeros((9, 12)), np.full((9, 12), np.inf), a_map(0) * np.nan])
def test_a_constant_or_broken_map_has_no_correlation(bad):
    assert map_correlation(bad, a_map(0)) is None
    assert map_correlation(a_map(0), bad) is None
    assert map_correlation(a_map(0), a_map(1), np.zeros((9, 12), dtype=bool)) is None


def test_the_centroid_is_that_of_the_evidence_for_the_class():
    relevance = a_map(4)
    assert centroid(relevance) == pytest.approx(center_of_mass(np.clip(relevance, 0, None)))
    assert centroid(-np.abs(relevance)) is None
    assert centroid(np.full((2, 2), np.nan)) is None


def test_the_shift_is_a_share_of_the_diagonal():
    corner, opposite, near = (np.zeros((4, 5)) for _ in range(3))
    corner[0, 0] = opposite[3, 4] = near[3, 0] = 7
    assert centroid_shift(corner, opposite) == pytest.approx(1)
    assert centroid_shift(corner, near) == pytest.approx(3 / 5)
    assert centroid_shift(corner, corner) == 0
    assert centroid_shift(corner, np.zeros((4, 5))) is None
    assert centroid_shift(np.ones((1, 1)), np.ones((1, 1))) is None
    with pytest.raises(ValueError, match="differ in size"):
        centroid_shift(corner, np.ones((5, 4)))


@pytest.mark.parametrize(("height", "width"), [(9, 9), (8, 8), (7, 11)])
def test_the_side_of_a_receptive_field_by_growing_squares(height, width):
    influence = np.abs(a_map(height, height, width)) ** 3
    shorter = min(height, width)
    squares = {}
    for side in range(2 - shorter % 2, shorter + 1, 2):
        rows, columns = (slice((n - side) // 2, (n + side) // 2) for n in (height, width))
        squares[side / shorter] = influence[rows, columns].sum() / influence.sum()
    for share, side in field_sides(influence).items():
        assert side == min([s for s, inside in squares.items() if inside >= share], default=1)


def test_a_point_has_the_smallest_field_and_nothing_the_largest():
    point = np.zeros((9, 9))
    assert field_sides(point) == {0.5: 1, 0.95: 1}
    point[4, 4] = 1
    assert field_sides(point) == {0.5: 1 / 9, 0.95: 1 / 9}
    assert field_sides(np.ones((100, 100)))[0.5] == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_float16_maps_do_not_overflow():
    large = np.full((300, 300), 60_000, dtype=np.float16)
    assert centroid(large) == pytest.approx((149.5, 149.5))


def test_the_interval_of_a_mean_is_scipys_bootstrap_interval_with_many_photos():
    values = np.random.default_rng(0).exponential(size=400)
    mean = mean_score(values, Bootstrap(0))
    theirs = scipy_bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(1), n_resamples=9_999
    ).confidence_interval
    assert mean.value == pytest.approx(values.mean())
    assert (mean.low, mean.high) == pytest.approx(tuple(theirs), abs=0.01)


def test_unknown_values_count_for_nothing():
    assert mean_score([1.0, math.nan, 3.0], BOOTSTRAP).n == 2
    assert mean_score([1.0, math.nan, 3.0], BOOTSTRAP).value == 2
    assert mean_score([math.nan], BOOTSTRAP) == mean_score([], BOOTSTRAP)
    assert mean_score([], BOOTSTRAP).value is None
    assert mean_score([2.0, 3.0], BOOTSTRAP).low is None


def test_scores_together_are_as_alone():
    values = np.random.default_rng(0).normal(size=(20, 4))
    values[3, 1] = values[3, 2] = values[::2, 3] = np.nan
    flipped = np.arange(20) < 8
    alone = [mean_score(column) for column in values.T]
    together = mean_scores(values, BOOTSTRAP)
    assert [mean.n for mean in together] == [20, 19, 19, 10]
    ends = [(mean.value, mean.low, mean.high) for mean in together]
    # A product of more columns rounds otherwise.
    assert np.array(ends) == pytest.approx(np.array([(m.value, m.low, m.high) for m in alone]))
    for contrast, column in zip(flip_contrasts(values, flipped, BOOTSTRAP), values.T, strict=True):
        assert contrast.low == pytest.approx(flip_contrast(column, flipped).low)


def test_a_difference_is_shown_where_its_interval_excludes_zero():
    generator = np.random.default_rng(3)
    flipped = np.arange(60) < 25
    values = generator.normal(0.1, 0.02, 60) + 0.1 * flipped
    contrast = flip_contrast(values, flipped, BOOTSTRAP)
    assert (contrast.flipped.n, contrast.kept.n) == (25, 35)
    assert contrast.difference == pytest.approx(values[:25].mean() - values[25:].mean())
    assert contrast.shown
    assert contrast.low < contrast.difference < contrast.high
    assert not flip_contrast(generator.permutation(values), flipped, BOOTSTRAP).shown


def test_both_groups_are_resampled_independently():
    # Sorted, equally large groups: resampled alike, the difference would always be 0.
    values = np.tile(np.arange(20.0), 2)
    flipped = np.arange(40) < 20
    contrast = flip_contrast(values, flipped, BOOTSTRAP)
    expected = 1.96 * math.sqrt(2 * np.arange(20).var(ddof=1) / 20)
    assert (contrast.low, contrast.high) == pytest.approx((-expected, expected), rel=0.12)


def test_differences_by_chance_are_rarely_shown():
    generator = np.random.default_rng(1)
    few, draws = np.arange(30) < FEWEST, Bootstrap(0)
    shown = [flip_contrast(generator.normal(size=30), few, draws).shown for _ in range(300)]
    assert np.mean(shown) < 0.1  # 0.05 with 4 standard errors of 300 trials


def test_too_few_photos_show_no_difference():
    flipped = np.arange(30) < FEWEST - 1
    contrast = flip_contrast(np.where(flipped, 1.0, 0.0), flipped, BOOTSTRAP)
    assert (contrast.difference, contrast.low, contrast.shown) == (1.0, None, False)
    nobody = flip_contrast(np.ones(5), np.zeros(5, dtype=bool), BOOTSTRAP)
    assert (nobody.difference, nobody.kept.n) == (None, 5)


def test_errors_are_summarised_without_their_sign():
    errors = np.linspace(-1, 0, 101)
    summary = error_summary([*errors, math.nan])
    assert (summary.n, summary.largest) == (101, 1)
    assert (summary.median, summary.p95) == pytest.approx((0.5, 0.95))
    assert error_summary([math.nan]).median is None


def rows(n: int = 12) -> pd.DataFrame:
    """Rows of two methods under one transform, of which the second is without most scores."""
    frame = pd.DataFrame(
        {
            "model": "m", "transform": "perspective", "severity": 0, "view": "transformed",
            "target_kind": "true", "image_id": [f"{i}.png" for i in range(n)],
            "flipped": [i % 2 == 0 for i in range(n)],
            **{name: np.linspace(0, 1, n) for name in SCORES}, **dict.fromkeys(ERRORS, 0.25),
        }
    )  # fmt: skip
    frame["pointing_hit"] = pd.array([None, *[True] * (n - 1)], dtype=object)
    bare = frame.assign(**dict.fromkeys((*SCORES, *ERRORS)))
    return pd.concat([frame.assign(method="gradcam"), bare.assign(method="occlusion")])


def test_cells_are_made_of_rows():
    first, second = explanation_cells(rows(), BOOTSTRAP)
    assert first.key == ("m", "gradcam", "perspective", 0, "transformed", "true")
    assert (first.n, first.flipped) == (12, 6)
    assert first.means["insertion_auc"].value == pytest.approx(0.5)
    hits = first.means["pointing_hit"]
    assert (hits.n, hits.value) == (11, 1)
    assert (hits.low, hits.high) == wilson_interval(11, 11), "hits of all photos are not certain"
    assert first.contrasts["centroid_shift"].kept.n == 6
    assert first.errors["completeness_error"].p95 == 0.25
    assert second.key[1] == "occlusion"
    assert all(mean.n == 0 for mean in second.means.values())
    assert all(error.n == 0 for error in second.errors.values())


def test_the_sanity_of_a_method_is_a_mean_over_photos():
    frame = pd.DataFrame(
        {
            "method": ["a", "a", "a", "b"],
            "image_id": ["1", "1", "2", "1"],
            "sanity_similarity": [0.2, 0.4, 0.9, None],
        }
    )
    summary = sanity_summary(frame, BOOTSTRAP)
    assert set(summary) == {"a"}
    assert (summary["a"].n, summary["a"].value) == (2, pytest.approx((0.3 + 0.9) / 2))


def test_a_photo_counts_once_in_a_cell():
    frame = rows()
    with pytest.raises(ValueError, match=r"`3.png` has two rows"):
        explanation_cells(pd.concat([frame, frame[frame["image_id"] == "3.png"]]), BOOTSTRAP)
