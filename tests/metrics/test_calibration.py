"""Calibration against scikit-learn, torchmetrics and sums by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error

from robustcli.metrics.calibration import (
    BINS,
    _area_of_groups,
    _resampled_areas,
    calibration,
    reliability,
    risk_coverage_area,
)
from robustcli.metrics.class_scores import ClassShare, Confusion, class_shares, confusions
from robustcli.metrics.intervals import Bootstrap, wilson_interval

BOOTSTRAP = Bootstrap(0)


def rows(probability, right) -> pd.DataFrame:
    ids = [f"{n:04}" for n in range(len(right))]
    known = {"target": 1, "prediction": np.asarray(right, int)}
    return pd.DataFrame({"image_id": ids, **known, "probability": np.asarray(probability)})


def made_up(n: int) -> pd.DataFrame:
    generator = np.random.default_rng(n)
    confidence = generator.uniform(0.1, 1, n)
    return rows(confidence, generator.random(n) < confidence**2)


def test_the_calibration_error_by_hand():
    # Two images in the bin at 0.95 (one right), one in that at 0.35 (right).
    scores = calibration(rows([0.95, 0.95, 0.35], [1, 0, 1]), BOOTSTRAP)
    assert scores.ece == pytest.approx(2 / 3 * abs(0.5 - 0.95) + 1 / 3 * abs(1 - 0.35))
    assert scores.brier == pytest.approx((0.05**2 + 0.95**2 + 0.65**2) / 3)
    assert scores.confidence == pytest.approx(0.75)


@pytest.mark.parametrize("n", [10, 300, 5000])
def test_calibration_agrees_with_torchmetrics_and_scikit_learn(n):
    frame = made_up(n)
    scores = calibration(frame, BOOTSTRAP)
    right = (frame["prediction"] == 1).to_numpy()
    confidence = frame["probability"].to_numpy()
    theirs = binary_calibration_error(
        torch.tensor(confidence), torch.tensor(right.astype(int)), n_bins=BINS, norm="l1"
    )
    assert scores.ece == pytest.approx(float(theirs), abs=1e-6)
    assert scores.brier == pytest.approx(brier_score_loss(right, confidence))
    assert scores.brier_low < scores.brier < scores.brier_high
    assert scores.ece_low < scores.ece_high


def test_the_intervals_are_those_of_a_plain_bootstrap():
    frame = made_up(200)
    right = (frame["prediction"] == 1).to_numpy(float)
    squares = (frame["probability"].to_numpy() - right) ** 2
    taken = np.random.default_rng(1).integers(200, size=(20_000, 200))
    ends = np.percentile(squares[taken].mean(axis=1), [2.5, 97.5])
    scores = calibration(frame, BOOTSTRAP)
    assert (scores.brier_low, scores.brier_high) == pytest.approx(ends, abs=0.004)
    theirs = [calibration(frame.iloc[t], Bootstrap(0, draws=2)).ece for t in taken[:200]]
    ends = np.percentile(theirs, [2.5, 97.5])
    assert (scores.ece_low, scores.ece_high) == pytest.approx(ends, abs=0.015)


def test_one_image_has_no_interval_and_none_no_calibration():
    scores = calibration(rows([0.8], [1]), BOOTSTRAP)
    assert (scores.ece_low, scores.brier_high) == (None, None)
    assert calibration(rows([], []), BOOTSTRAP) is None


def test_the_bins_hold_all_images():
    frame = made_up(500)
    bins = reliability(frame)
    assert sum(b.n for b in bins) == 500
    assert sum(b.correct for b in bins) == (frame["prediction"] == 1).sum()
    error = sum(abs(b.correct - b.n * b.confidence) for b in bins) / 500
    assert error == pytest.approx(calibration(frame, BOOTSTRAP).ece)


def test_the_ends_of_the_bins():
    # 1 / 15 belongs to the first bin, and what is above 1 by rounding to the last.
    assert [b.n for b in reliability(rows([0.0, 1 / 15, 1.0, 1.0000001], [0, 0, 1, 1]))] == [2, 2]


def test_the_area_under_the_risk_coverage_curve_by_hand():
    # The most confident is right, the second wrong, the third right: risks 0, 1/2, 1/3.
    area = risk_coverage_area(np.array([0.5, 0.9, 0.7]), np.array([False, False, True]))
    assert area == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_a_confidence_that_says_nothing_gives_the_error(wrong):
    assert risk_coverage_area(np.full(len(wrong), 0.4), np.array(wrong)) == pytest.approx(
        np.mean(wrong)
    )


@given(st.permutations(range(8)))
def test_the_order_of_rows_does_not_change_the_area(order):
    confidence = np.array([0.9, 0.9, 0.9, 0.5, 0.5, 0.4, 0.3, 0.3])
    wrong = np.array([0, 1, 0, 1, 1, 0, 1, 0], bool)
    area = risk_coverage_area(confidence[list(order)], wrong[list(order)])
    assert area == pytest.approx(risk_coverage_area(confidence, wrong))


def test_shares_and_confusions_of_classes():
    frame = pd.DataFrame({"target": [2, 2, 2, 0, 0, 1], "prediction": [2, 0, 0, 0, 1, 2]})
    assert class_shares(frame) == [ClassShare(0, 2, 1), ClassShare(1, 1, 0), ClassShare(2, 3, 1)]
    assert class_shares(frame)[2].interval == wilson_interval(1, 3)
    assert confusions(frame, 2) == [Confusion(2, 0, 2), Confusion(0, 1, 1)]
    assert confusions(frame.iloc[:1], 5) == []


def brute_force_areas(frame, draws):
    """Areas of resampled images, each computed on its own."""
    confidence = frame["probability"].to_numpy()
    wrong = (frame["prediction"] != 1).to_numpy()
    generator = np.random.default_rng(1)
    chosen = (generator.integers(0, len(frame), len(frame)) for _ in range(draws))
    return np.array([risk_coverage_area(confidence[item], wrong[item]) for item in chosen])


@pytest.mark.parametrize(("n", "ties"), [(40, False), (400, False), (400, True)])
def test_the_interval_of_the_area_is_that_of_resampled_images(n, ties):
    frame = made_up(n)
    if ties:
        frame["probability"] = frame["probability"].round(1)
    scores = calibration(frame, BOOTSTRAP)
    areas = brute_force_areas(frame, 3000)
    low, high = np.percentile(areas, [2.5, 97.5])
    # Both ends are quantiles, of 1,000 and 3,000 draws: their standard error is 0.08 and 0.05
    # standard deviations (sqrt(0.025 * 0.975 / draws) over the normal density), 0.1 together.
    allowed = 4 * 0.1 * areas.std()
    assert scores.aurc_low == pytest.approx(low, abs=allowed)
    assert scores.aurc_high == pytest.approx(high, abs=allowed)
    assert scores.aurc_low < scores.aurc < scores.aurc_high


def test_groups_of_equal_confidence_give_the_very_area():
    frame = made_up(300)
    confidence = frame["probability"].round(2).to_numpy()
    wrong = (frame["prediction"] != 1).to_numpy()
    levels = np.unique(-confidence, return_inverse=True)[1]
    counts = np.bincount(2 * levels + wrong, minlength=2 * levels.max() + 2).reshape(1, -1, 2)
    assert _area_of_groups(counts)[0] == pytest.approx(risk_coverage_area(confidence, wrong))


def test_the_interval_of_the_area_covers_the_true_area():
    # Confidence uniform on [0, 1], right with probability confidence: among the most confident
    # share c the error is c / 2, whose mean over c is 1/4.
    covered = 0
    for seed in range(200):
        generator = np.random.default_rng((7, seed))
        confidence = generator.random(250)
        wrong = generator.random(250) >= confidence
        areas = _resampled_areas(confidence, wrong, Bootstrap(seed, draws=200))
        low, high = np.percentile(areas, [2.5, 97.5])
        covered += low <= 0.25 <= high
    assert 178 <= covered <= 198  # of 190, with four standard deviations of 3


def test_one_image_has_no_interval_of_the_area():
    scores = calibration(rows([0.5], [1]), BOOTSTRAP)
    assert (scores.aurc, scores.aurc_low, scores.aurc_high) == (0, None, None)
