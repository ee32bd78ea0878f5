"""Macro F1, precision and recall of classes, and the confusion matrix, against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import f1_score, precision_recall_fscore_support

from robustcli.metrics.class_scores import (
    class_outcomes,
    confusion_matrix,
    macro_f1,
    macro_f1_with_interval,
)
from robustcli.metrics.intervals import Bootstrap


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
    assert single is not None
    assert (single.n, single.f1_low, single.f1_high) == (1, None, None)


def test_the_interval_is_that_of_resampled_images() -> None:
    rows = answers()
    score = macro_f1_with_interval(rows, Bootstrap(0))
    assert score is not None
    random, resamples = np.random.default_rng(1), []
    target, prediction = rows["target"].to_numpy(), rows["prediction"].to_numpy()
    for _ in range(2000):
        drawn = random.integers(0, len(rows), len(rows))
        resamples.append(macro_f1(target[drawn], prediction[drawn]))
    # The ends of 2,000 resamples vary with a standard deviation of about 0.002.
    expected = np.percentile(resamples, [2.5, 97.5])
    assert [score.f1_low, score.f1_high] == pytest.approx(expected.tolist(), abs=0.008)


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
