"""Top-1, top-5, drops and image measures, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from robustcli.metrics.class_scores import accuracy, compare_with_clean, image_change


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
    assert numbers.drop_low is not None
    assert numbers.drop_high is not None
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
    assert paired.drop_high is not None
    assert apart.drop_high is not None
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
