"""Pooled dice and IoU against scikit-learn's F1 and Jaccard."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score, jaccard_score

from robustcli.training.pooled import pooled_scores


def counts(said: NDArray[np.bool_], true: NDArray[np.bool_]) -> list[int]:
    return [int((said & true).sum()), int((said & ~true).sum()), int((~said & true).sum())]


def test_groups_are_pooled_then_averaged() -> None:
    rng = np.random.default_rng(0)
    said, true = rng.random((2, 6, 50)) < [[[0.4]], [[0.3]]]
    groups = ["x", "y", "x", "z", "y", "x"]
    found = pooled_scores(np.array([counts(s, t) for s, t in zip(said, true, strict=True)]), groups)
    members = [np.array([g == name for g in groups]) for name in "xyz"]
    dice = [f1_score(true[m].ravel(), said[m].ravel()) for m in members]
    iou = [jaccard_score(true[m].ravel(), said[m].ravel()) for m in members]
    assert found == pytest.approx((np.mean(dice), np.mean(iou)))


def test_a_group_without_anything_counts_one_and_a_false_alarm_nothing() -> None:
    found = pooled_scores(np.array([[0, 0, 0], [0, 5, 0], [3, 0, 0]]), ["a", "b", "c"])
    assert found == pytest.approx((2 / 3, 2 / 3))
