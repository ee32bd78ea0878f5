"""Dice and its relatives of masks with several classes, against libraries and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_dice, compute_iou
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index
from torchmetrics.functional.segmentation import hausdorff_distance

from robustcli.data.mask_values import IGNORED
from robustcli.metrics.columns import cell_numbers
from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.mask_scores import (
    MOST_CONFUSED,
    any_class_rows,
    class_dice,
    class_rows,
    compare_masks_with_clean,
    counts_of,
    dice,
    group_dice,
    has_classes,
    iou,
    mask_scores,
    pixel_confusion,
    pooled_scores,
    scores_of_classes,
)
from robustcli.metrics.paired import mask_difference
from robustcli.tasks.segmentation import mask_row

CLASSES, SHAPE = 3, (12, 14)
BOOTSTRAP = Bootstrap(0, draws=200)


def masks(seed: int, count: int = 6, *, noise: float = 0.3) -> tuple[NDArray[Any], NDArray[Any]]:
    """True masks of blocks of classes, and predictions that differ in a share of the pixels."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, CLASSES + 1, (count, 3, 2)).astype(np.uint8)
    true = blocks.repeat(4, axis=1).repeat(7, axis=2)
    wrong = rng.random(true.shape) < noise
    return np.where(wrong, rng.integers(0, CLASSES + 1, true.shape), true).astype(np.uint8), true


def rows_of(
    predicted: NDArray[Any], true: NDArray[Any], groups: str = "aabbcc", classes: int = CLASSES
) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"image_id": f"{n}.png", "group": group, **mask_row(p, t, classes=classes)}
            for n, (p, t, group) in enumerate(zip(predicted, true, groups, strict=True))
        ]
    ).assign(predicted_near=np.nan, true_near=np.nan)


def one_hot(labels: NDArray[Any]) -> torch.Tensor:
    """(N, H, W) to (N, CLASSES + 1, H, W)."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), CLASSES + 1).movedim(-1, 1)


def test_each_image_is_scored_as_monai_scores_it():
    predicted, true = masks(0)
    rows = rows_of(predicted, true)
    both = one_hot(predicted), one_hot(true)
    expected = compute_dice(*both, include_background=False, ignore_empty=False)
    expected_iou = compute_iou(*both, include_background=False, ignore_empty=False)
    np.testing.assert_allclose(dice(rows), expected.mean(1), rtol=1e-6)
    np.testing.assert_allclose(iou(rows), expected_iou.mean(1), rtol=1e-6)
    for number, of_class in enumerate(class_rows(rows)):
        np.testing.assert_allclose(dice(of_class), expected[:, number], rtol=1e-6)


def test_all_pixels_pooled_are_torchmetrics_scores():
    predicted, true = masks(1)
    rows = rows_of(predicted, true, "aaaaaa")  # one group
    flat = torch.from_numpy(predicted).long(), torch.from_numpy(true).long()
    of_classes = {"num_classes": CLASSES + 1, "average": "none"}
    expected = multiclass_f1_score(*flat, **of_classes)[1:]
    expected_iou = multiclass_jaccard_index(*flat, **of_classes)[1:]
    scores = mask_scores(rows, BOOTSTRAP)
    assert scores.dice == pytest.approx(float(expected.mean()))
    assert scores.iou == pytest.approx(float(expected_iou.mean()))
    np.testing.assert_allclose(class_dice(rows), expected, rtol=1e-6)
    assert (scores.groups, scores.dice_low) == (1, None)
    np.testing.assert_allclose(
        [each.dice for each in scores_of_classes(rows, BOOTSTRAP)],
        expected,
        rtol=1e-6,
    )


def test_confusion_is_scikit_learns():
    predicted, true = masks(2)
    rows = rows_of(predicted, true)
    expected = confusion_matrix(true.ravel(), predicted.ravel(), labels=range(CLASSES + 1))
    np.testing.assert_array_equal(pixel_confusion(rows), expected)
    many = mask_row(predicted[0], true[0], classes=MOST_CONFUSED + 1)
    assert many["class_confusion"] is None


def test_ignored_pixels_are_counted_nowhere():
    predicted, true = masks(3)
    ignoring = true.copy()
    ignoring[:, :, :5] = IGNORED
    rows, cut = rows_of(predicted, ignoring), rows_of(predicted[:, :, 5:], true[:, :, 5:])
    np.testing.assert_array_equal(counts_of(rows), counts_of(cut))
    assert rows[["tp", "fp", "fn", "tn"]].equals(cut[["tp", "fp", "fn", "tn"]])
    assert (rows[["tp", "fp", "fn", "tn"]].sum(axis=1) == SHAPE[0] * (SHAPE[1] - 5)).all()


def test_scalar_columns_are_those_of_any_class():
    """A class that is taken for another is foreground all the same."""
    predicted, true = masks(4)
    rows = rows_of(predicted, true)
    for place, (p, t) in enumerate(zip(predicted > 0, true > 0, strict=True)):
        expected = mask_row(p, t)
        assert {name: rows[name][place] for name in ("tp", "fp", "fn", "tn")} == {
            name: expected[name] for name in ("tp", "fp", "fn", "tn")
        }
    any_class = any_class_rows(rows)
    assert not has_classes(any_class)
    assert mask_scores(any_class, BOOTSTRAP).dice == pytest.approx(
        float(np.mean([_pooled_dice(predicted > 0, true > 0, g) for g in ("aa", "bb", "cc")]))
    )


def _pooled_dice(p: NDArray[Any], t: NDArray[Any], group: str) -> float:
    members = [n for n, name in enumerate("aabbcc") if name == group[0]]
    return 2 * (p[members] & t[members]).sum() / (p[members].sum() + t[members].sum())


def test_distances_are_those_of_each_class():
    predicted, true = masks(5, noise=0.02)
    rows = rows_of(predicted, true)
    for place, (p, t) in enumerate(zip(predicted, true, strict=True)):
        for number in range(1, CLASSES + 1):
            selected = rows["class_hd95"][place][number - 1]
            if not ((p == number).any() and (t == number).any()):
                assert selected is None
                continue
            alone = mask_row(p == number, t == number)
            assert selected == alone["hd95"]
            assert rows["class_boundary_dice"][place][number - 1] == alone["boundary_dice"]
    # The distance to the farthest pixel, of torchmetrics, bounds that of 95 % of them.
    both = one_hot(predicted[:1]), one_hot(true[:1])
    farthest = float(hausdorff_distance(*both, CLASSES + 1, include_background=False).max())
    known = [value for value in rows["class_hd95"][0] if value is not None]
    assert max(known) <= farthest


def test_a_class_in_neither_mask_of_a_group_counts_one_and_a_false_alarm_nothing():
    true = np.zeros((3, 4, 4), np.uint8)
    true[:, 0] = 1
    predicted = true.copy()
    predicted[2, 3, 3] = 2  # class 2 is nowhere; one image has a false alarm
    rows = rows_of(predicted, true, "abc", classes=2)
    np.testing.assert_array_equal(group_dice(rows), [1.0, 1.0, 0.5])
    scores = mask_scores(rows, BOOTSTRAP)
    assert scores.dice == pytest.approx(2.5 / 3)
    assert scores.dice_foreground == 1.0  # only class 1 has true pixels
    first, second = scores_of_classes(rows, BOOTSTRAP)
    assert (first.dice, second.dice) == (1.0, pytest.approx(2 / 3))
    assert (first.recall, second.recall, second.precision) == (1.0, None, 0.0)


def test_means_over_classes_are_the_means_of_the_classes_numbers():
    predicted, true = masks(6)
    rows = rows_of(predicted, true)
    scores, single = mask_scores(rows, BOOTSTRAP), scores_of_classes(rows, BOOTSTRAP)
    for name in ("dice", "iou", "dice_image", "dice_foreground", "precision", "recall", "hd95"):
        expected = np.mean([getattr(item, name) for item in single])
        assert getattr(scores, name) == pytest.approx(expected), name


def test_intervals_resample_whole_groups():
    predicted, true = masks(7)
    rows = rows_of(predicted, true)
    scores = mask_scores(rows, BOOTSTRAP)
    drawn = BOOTSTRAP.means(group_dice(rows)[:, None])[:, 0]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (scores.dice_low, scores.dice_high) == (pytest.approx(low), pytest.approx(high))
    of_class = scores_of_classes(rows, BOOTSTRAP)[1]
    drawn = BOOTSTRAP.means(group_dice(class_rows(rows)[1])[:, None])[:, 0]
    assert of_class.dice_low == pytest.approx(np.percentile(drawn, 2.5))


def test_drop_and_paired_differences_are_of_the_mean_dice():
    predicted, true = masks(8)
    worse, _ = masks(9)
    before, after = rows_of(predicted, true), rows_of(worse, true)
    compared = compare_masks_with_clean(before, after, BOOTSTRAP)
    assert compared.drop == pytest.approx(group_dice(before).mean() - group_dice(after).mean())
    difference = mask_difference(before, after, BOOTSTRAP)
    assert difference is not None
    assert difference.dice == pytest.approx(-compared.drop)
    numbers = cell_numbers("seg", before, after, seed=0)
    assert numbers["drop"] == compared.drop


def test_one_class_gives_the_numbers_of_two_valued_masks():
    """The same masks, read as one class and as foreground, have the same scores throughout."""
    predicted, true = masks(10)
    several = rows_of(predicted % 2, true % 2, classes=1)
    plain = rows_of(predicted % 2 > 0, true % 2 > 0, classes=0)
    assert has_classes(several)
    assert not has_classes(plain)
    assert mask_scores(several, BOOTSTRAP) == mask_scores(plain, BOOTSTRAP)
    counts = counts_of(several)
    assert pooled_scores(counts, list("aabbcc")) == pooled_scores(counts[:, 0], list("aabbcc"))
