"""Accuracy, F1 of classes and calibration, against scikit-learn, torchmetrics and by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from sklearn.metrics import confusion_matrix as sklearn_confusion
from torchmetrics.functional.classification import binary_calibration_error

from robustcli.metrics.class_scores import (
    BINS,
    FEWEST_CALIBRATED,
    Confusion,
    _area_of_groups,
    _resampled_f1,
    accuracy,
    calibration,
    class_outcomes,
    compare_with_clean,
    confusion_matrix,
    confusions,
    ece_interval,
    image_change,
    macro_f1,
    macro_f1_with_interval,
    reliability,
    risk_coverage_area,
)
from robustcli.metrics.intervals import Bootstrap


def rows(target: list[int], prediction: list[int], ids: list[str] | None = None) -> pd.DataFrame:
    names = ids or [f"photo-{i}" for i in range(len(target))]
    top5 = [np.array([p], dtype=np.int32) for p in prediction]
    return pd.DataFrame(
        {"image_id": names, "target": target, "prediction": prediction, "top5": top5}
    )


@pytest.mark.parametrize("classes", [3, 20])
def test_top1_and_top5_agree_with_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(1)
    scores, target = rng.normal(size=(400, classes)), rng.integers(0, classes, 400)
    best = np.argsort(-scores, axis=1)[:, :5].astype(np.int32)
    ours = accuracy(
        pd.DataFrame({"image_id": [""] * 400, "target": target, "prediction": best[:, 0]}).assign(
            top5=list(best)
        )
    )
    assert ours.n == 400
    assert ours.correct == accuracy_score(target, best[:, 0], normalize=False)
    assert ours.top1 == pytest.approx(accuracy_score(target, best[:, 0]))
    k = min(5, classes - 1)
    in_k = [t in row[:k] for t, row in zip(target, best, strict=True)]
    assert np.mean(in_k) == pytest.approx(
        top_k_accuracy_score(target, scores, k=k, labels=range(classes))
    )
    assert ours.top5 == pytest.approx(1.0 if classes == 3 else np.mean(in_k))


def test_no_rows_have_no_shares() -> None:
    numbers = accuracy(rows([], []))
    assert (numbers.n, numbers.correct) == (0, 0)
    assert {numbers.top1, numbers.top1_low, numbers.top1_high, numbers.top5} == {None}


def test_a_comparison_by_hand() -> None:
    clean = rows([0, 1, 2, 3, 4], [0, 1, 2, 3, 0])  # 4 of 5 right
    changed = rows([0, 1, 2, 3, 4], [0, 0, 0, 0, 4])  # 2 of 5 right
    numbers = compare_with_clean(clean, changed)
    assert numbers.clean_top1 == 0.8
    assert numbers.drop == pytest.approx(0.4)
    assert numbers.retention == pytest.approx(0.5)
    assert numbers.paired_n == 5
    assert numbers.drop_low < 0.4 < numbers.drop_high


def test_a_comparison_is_over_the_images_that_both_have_whatever_their_order() -> None:
    clean = rows([0, 1, 2], [0, 1, 0], ["a", "b", "c"])
    changed = rows([2, 9, 0, 9], [2, 9, 1, 9], ["c", "x", "a", "y"])
    numbers = compare_with_clean(clean, changed)
    assert numbers.paired_n == 2
    assert (numbers.clean_top1, numbers.drop, numbers.retention) == (0.5, 0.0, 1.0)


def test_the_interval_of_the_drop_uses_that_the_images_are_the_same() -> None:
    target = [0] * 100
    clean = rows(target, [0] * 80 + [1] * 20)
    paired = compare_with_clean(clean, rows(target, [0] * 70 + [1] * 30))
    apart = compare_with_clean(clean, rows(target, [1] * 30 + [0] * 70))
    assert paired.drop == apart.drop == pytest.approx(0.1)
    assert paired.drop_high < 0.18 < apart.drop_high


def test_retention_of_nothing_is_missing() -> None:
    numbers = compare_with_clean(rows([0, 1], [1, 0]), rows([0, 1], [0, 1]))
    assert (numbers.clean_top1, numbers.drop, numbers.retention) == (0.0, -1.0, None)


@pytest.mark.parametrize("ids", [[], ["other"]])
def test_without_shared_images_there_is_no_comparison(ids: list[str]) -> None:
    numbers = compare_with_clean(
        rows([0] * len(ids), [0] * len(ids), ids), rows([0], [0], ["mine"])
    )
    assert numbers.paired_n == 0
    assert {numbers.clean_top1, numbers.drop, numbers.retention, numbers.drop_low} == {None}


@pytest.mark.parametrize(
    ("changed", "psnr_db", "expected"),
    [
        ([True, True, False, True], [20.0, 30.0, np.inf, np.nan], (0.25, 25.0)),
        ([False] * 3, [np.inf] * 3, (1.0, None)),
        ([], [], (None, None)),
    ],
)
def test_psnr_is_the_mean_over_changed_images_of_the_same_size(changed, psnr_db, expected) -> None:
    change = image_change(pd.DataFrame({"changed": changed, "psnr_db": psnr_db}))
    assert (change.unchanged_share, change.psnr_db) == expected


# Classes: F1, precision, recall and confusions.


def answers(n: int = 200, classes: int = 8, right: float = 0.6) -> pd.DataFrame:
    """Rows in which class 3 is never predicted, and class 9 is predicted but never true."""
    random = np.random.default_rng(0)
    target = random.integers(0, classes, n)
    prediction = np.where(random.random(n) < right, target, random.integers(0, classes, n))
    prediction[prediction == 3] = 9
    return pd.DataFrame({"target": target, "prediction": prediction})


def test_every_class_is_scikit_learns() -> None:
    rows = answers()
    outcomes = class_outcomes(rows["target"].to_numpy(), rows["prediction"].to_numpy())
    labels = [line.target for line in outcomes]
    assert labels == sorted({*rows["target"], *rows["prediction"]})
    precision, recall, f1, n = precision_recall_fscore_support(
        rows["target"], rows["prediction"], labels=labels, zero_division=0
    )
    assert [line.n for line in outcomes] == n.tolist()
    assert [line.f1 for line in outcomes] == pytest.approx(f1.tolist())
    assert [line.precision or 0 for line in outcomes] == pytest.approx(precision.tolist())
    assert [line.recall or 0 for line in outcomes] == pytest.approx(recall.tolist())
    undefined = {line.target: (line.precision, line.recall) for line in outcomes}
    assert undefined[3][0] is None
    assert undefined[9][1] is None


@pytest.mark.parametrize("n", [1, 7, 200])
def test_the_mean_is_scikit_learns(n: int) -> None:
    target, prediction = (answers(n)[name].to_numpy() for name in ("target", "prediction"))
    expected = f1_score(target, prediction, average="macro", zero_division=0)
    assert macro_f1(target, prediction) == pytest.approx(expected)


def test_without_images_there_is_no_f1() -> None:
    nothing = np.array([], dtype=int)
    assert math.isnan(macro_f1(nothing, nothing))
    assert macro_f1_with_interval(answers()[:0], Bootstrap(0)) is None
    single = macro_f1_with_interval(answers()[:1], Bootstrap(0))
    assert (single.n, single.f1_low, single.f1_high) == (1, None, None)


def test_the_interval_is_that_of_resampled_images_without_bias() -> None:
    rows = answers()
    score = macro_f1_with_interval(rows, Bootstrap(0))
    random, resamples = np.random.default_rng(1), []
    target, prediction = rows["target"].to_numpy(), rows["prediction"].to_numpy()
    for _ in range(2000):
        drawn = random.integers(0, len(rows), len(rows))
        resamples.append(macro_f1(target[drawn], prediction[drawn]))
    # The ends of 2,000 resamples vary with a standard deviation of about 0.002.
    low, high = np.percentile(resamples, [2.5, 97.5])
    bias = score.f1 - np.mean(resamples)
    assert bias > 0.003
    assert [score.f1_low, score.f1_high] == pytest.approx([low + bias, high + 2 * bias], abs=0.008)


def test_intervals_of_the_macro_f1_of_many_classes_contain_the_true_one() -> None:
    """100 classes, of which 80 % of the images are right; the errors are in all other classes."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(20):
        target = random.integers(100, size=600)
        wrong = (target + random.integers(1, 100, size=600)) % 100
        prediction = np.where(random.random(600) < 0.8, target, wrong)
        rows = pd.DataFrame({"target": target, "prediction": prediction})
        score = macro_f1_with_interval(rows, Bootstrap(0))
        assert score.f1_low <= score.f1 <= score.f1_high
        covered += score.f1_low <= 0.8 <= score.f1_high
    assert covered >= 18  # percentiles are too low


@pytest.mark.parametrize(("images", "known"), [(14, False), (15, True)])
def test_the_macro_f1_of_few_images_per_class_has_no_interval(images: int, known: bool) -> None:
    target = np.arange(images) % 3
    rows = pd.DataFrame({"target": target, "prediction": np.where(target == 2, 1, target)})
    score = macro_f1_with_interval(rows, Bootstrap(0))
    assert (score.f1_low is not None) == (score.f1_high is not None) == known


def test_a_class_that_a_resample_lacks_is_no_part_of_its_mean() -> None:
    """Six classes of two images, five of them always right: most resamples lack a class."""
    target = np.repeat(np.arange(6), 2)
    prediction = np.where(target == 5, 0, target)
    random, resamples = np.random.default_rng(1), []
    for _ in range(4000):
        drawn = random.integers(0, len(target), len(target))
        resamples.append(macro_f1(target[drawn], prediction[drawn]))
    ours = _resampled_f1(target, prediction, Bootstrap(0))
    # The means of 2,000 and 4,000 resamples vary with a standard deviation of about 0.003.
    assert ours.mean() == pytest.approx(np.mean(resamples), abs=0.012)
    assert ours.std() == pytest.approx(np.std(resamples), rel=0.1)


def test_the_interval_depends_on_the_seed_and_not_on_the_order() -> None:
    rows = answers()
    score = macro_f1_with_interval(rows, Bootstrap(0))
    assert macro_f1_with_interval(rows[::-1], Bootstrap(0)) == score
    assert macro_f1_with_interval(rows, Bootstrap(1)) != score


def test_the_confusion_matrix_is_scikit_learns() -> None:
    rows = answers()
    classes, counts = confusion_matrix(rows["target"].to_numpy(), rows["prediction"].to_numpy())
    expected = sklearn_confusion(rows["target"], rows["prediction"], labels=classes)
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() == len(rows)


def test_confusions_of_classes():
    frame = pd.DataFrame({"target": [2, 2, 2, 0, 0, 1], "prediction": [2, 0, 0, 0, 1, 2]})
    assert confusions(frame, 2) == [Confusion(2, 0, 2), Confusion(0, 1, 1)]
    assert confusions(frame.iloc[:1], 5) == []


# Calibration.


BOOTSTRAP = Bootstrap(0)


def confident_rows(probability, right) -> pd.DataFrame:
    ids = [f"{n:04}" for n in range(len(right))]
    known = {"target": 1, "prediction": np.asarray(right, int)}
    return pd.DataFrame({"image_id": ids, **known, "probability": np.asarray(probability)})


def made_up(n: int) -> pd.DataFrame:
    generator = np.random.default_rng(n)
    confidence = generator.uniform(0.1, 1, n)
    return confident_rows(confidence, generator.random(n) < confidence**2)


def test_the_calibration_error_by_hand():
    # Two images in the bin at 0.95 (one right), one in that at 0.35 (right).
    scores = calibration(confident_rows([0.95, 0.95, 0.35], [1, 0, 1]), BOOTSTRAP)
    assert (scores.error, scores.confidence) == pytest.approx((1 / 3, 0.75))
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
    if scores.n >= FEWEST_CALIBRATED:
        assert scores.ece_low < scores.ece_high


def test_the_intervals_are_those_of_a_plain_bootstrap():
    frame = made_up(200)
    right = (frame["prediction"] == 1).to_numpy(float)
    squares = (frame["probability"].to_numpy() - right) ** 2
    taken = np.random.default_rng(1).integers(200, size=(10_000, 200))
    ends = np.percentile(squares[taken].mean(axis=1), [2.5, 97.5])
    scores = calibration(frame, BOOTSTRAP)
    assert (scores.brier_low, scores.brier_high) == pytest.approx(ends, abs=0.004)


@pytest.mark.parametrize("shift", [0, 0.05])
def test_intervals_of_calibration_errors_contain_the_true_and_the_printed_error(shift):
    generator, covered, above = np.random.default_rng(0), 0, 0
    for _ in range(60):
        confidence = generator.beta(2, 2, 200)
        right = generator.random(200) < confidence - shift
        scores = calibration(confident_rows(confidence, right), BOOTSTRAP)
        assert scores.ece_low <= scores.ece <= scores.ece_high
        covered += scores.ece_low <= shift <= scores.ece_high
        above += scores.ece_low > shift
    assert covered >= 54  # of 60; percentiles of the resamples contain an error of 0 in none or one
    assert above <= 4


def test_the_interval_of_a_calibration_error_by_hand():
    """With all images in one bin, the noise of each resample is one number."""
    noise = np.array([-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03, -0.3])
    gaps, draws = np.zeros(BINS), np.zeros((len(noise), BINS))
    gaps[3] = -0.1
    draws[:, 3] = gaps[3] + noise
    # |-t + noise| <= 0.1 up to t = 0.1 + noise; with noise -0.3 for no t, which counts as 0. The
    # resamples also allow t in the direction of the noise, where t <= 0.1 - noise.
    every = Bootstrap(0, confidence=1 - 1e-12)  # the ends are the smallest and the largest
    assert ece_interval(gaps, draws, every, 10**6) == pytest.approx((0.0, 0.4))
    middle = ece_interval(gaps, draws[1:-2], every, 10**6)
    assert middle == pytest.approx((0.08, 0.12))
    assert ece_interval(gaps, np.tile(gaps, (4, 1)), every, 100) == pytest.approx((0.1, 0.1))
    nothing = np.zeros(BINS)
    assert ece_interval(nothing, np.tile(nothing, (4, 1)), every, 100) == (0.0, 0.0)
    assert ece_interval(nothing, draws - gaps, every, 100).low == 0.0


def test_scores_of_images_that_are_all_right_are_no_certainty():
    rows = confident_rows(np.ones(50), np.ones(50))
    f1 = macro_f1_with_interval(rows, BOOTSTRAP)
    assert (f1.f1_low, f1.f1_high) == pytest.approx((0.943, 1), abs=1e-3)
    scores = calibration(rows, BOOTSTRAP)
    assert (scores.aurc, scores.aurc_low) == (scores.brier, scores.brier_low) == (0, 0)
    assert scores.aurc_high == scores.brier_high == pytest.approx(0.057, abs=1e-3)


@pytest.mark.parametrize(("images", "known"), [(99, False), (100, True)])
def test_calibration_errors_of_few_images_have_no_interval(images, known):
    scores = calibration(confident_rows(np.full(images, 0.8), np.arange(images) % 5 > 0), BOOTSTRAP)
    assert (scores.ece_low is not None) == known
    assert scores.brier_low is not None
    assert scores.aurc_low is not None


def test_a_probability_that_is_no_number_has_no_calibration():
    rows = confident_rows([0.9, np.nan], [True, False])
    assert calibration(rows, Bootstrap(0)) is None
    assert reliability(rows) == []


def test_one_image_has_no_interval_and_none_no_calibration():
    scores = calibration(confident_rows([0.8], [1]), BOOTSTRAP)
    assert (scores.ece_low, scores.brier_high) == (None, None)
    assert (scores.aurc, scores.aurc_low, scores.aurc_high) == (0, None, None)
    assert calibration(confident_rows([], []), BOOTSTRAP) is None


def test_the_bins_hold_all_images():
    frame = made_up(500)
    bins = reliability(frame)
    assert sum(b.n for b in bins) == 500
    assert sum(b.correct for b in bins) == (frame["prediction"] == 1).sum()
    error = sum(abs(b.correct - b.n * b.confidence) for b in bins) / 500
    assert error == pytest.approx(calibration(frame, BOOTSTRAP).ece)


def test_the_ends_of_the_bins():
    # 1 / 15 belongs to the first bin, and what is above 1 by rounding to the last.
    assert [
        b.n for b in reliability(confident_rows([0.0, 1 / 15, 1.0, 1.0000001], [0, 0, 1, 1]))
    ] == [2, 2]


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
