"""Dice and its relatives from pixel counts, against four libraries and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_dice, compute_iou
from numpy.typing import NDArray
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from robustcli.metrics.columns import MASK_SCHEMA
from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.mask_scores import (
    RelaxedScores,
    compare_masks_with_clean,
    dice,
    iou,
    mask_scores,
    near,
    near_counts,
    pooled_scores,
    relaxed_scores,
)
from robustcli.tasks.segmentation import mask_row

SHAPE = (7, 9)
MASKS = hnp.arrays(bool, (2, *SHAPE), elements=st.booleans())
BOOTSTRAP = Bootstrap(0, draws=200)


def rows(*counts: tuple[str, int, int, int], pixels: int = 100) -> pd.DataFrame:
    """Rows of images of `pixels`: group, tp, fp, fn."""
    return pd.DataFrame(
        {
            "image_id": [f"{number}.png" for number in range(len(counts))],
            "group": [count[0] for count in counts],
            "tp": [count[1] for count in counts],
            "fp": [count[2] for count in counts],
            "fn": [count[3] for count in counts],
            "tn": [pixels - sum(count[1:]) for count in counts],
            "hd95": [float(number) for number in range(len(counts))],
            "boundary_dice": [0.5] * len(counts),
            "predicted_near": np.nan,
            "true_near": np.nan,
        }
    )[MASK_SCHEMA.names]


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_any_two_masks_give_what_the_libraries_give(masks):
    prediction, truth = masks
    row = pd.DataFrame([{"image_id": "a", "group": "a", **mask_row(prediction, truth)}])
    assert row[["tp", "fp", "fn", "tn"]].sum(axis=1)[0] == prediction.size
    both_empty = not masks.any()
    tensors = [torch.from_numpy(mask.copy())[None, None] for mask in masks]
    expected = (1.0, 1.0) if both_empty else (
        float(compute_dice(*tensors, ignore_empty=False)),
        float(compute_iou(*tensors, ignore_empty=False)),
    )  # fmt: skip
    assert (dice(row)[0], iou(row)[0]) == pytest.approx(expected, abs=1e-6)
    if not both_empty:
        flat = [mask.ravel() for mask in (truth, prediction)]
        assert dice(row)[0] == pytest.approx(f1_score(*flat, zero_division=0.0))
        assert iou(row)[0] == pytest.approx(jaccard_score(*flat, zero_division=0.0))
        full = [torch.from_numpy(mask.astype(int)) for mask in masks]
        assert dice(row)[0] == pytest.approx(float(binary_f1_score(*full)), abs=1e-6)
        assert iou(row)[0] == pytest.approx(float(binary_jaccard_index(*full)), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(MASKS)
def test_precision_and_recall_are_those_of_scikit_learn_where_they_exist(masks):
    prediction, truth = masks
    row = pd.DataFrame([{"image_id": "a", "group": "a", **mask_row(prediction, truth, 0)}])
    scores = mask_scores(row, BOOTSTRAP)
    flat = [mask.ravel() for mask in (truth, prediction)]
    expected = (
        float(precision_score(*flat)) if prediction.any() else None,
        float(recall_score(*flat)) if truth.any() else None,
    )
    assert (scores.precision, scores.recall) == pytest.approx(expected)
    relaxed = (scores.relaxed_precision, scores.relaxed_recall)
    assert relaxed == pytest.approx(expected), "a tolerance of 0 relaxes nothing"


def test_pixels_are_pooled_within_groups_and_groups_count_alike():
    scores = mask_scores(rows(("a", 10, 0, 0), ("a", 0, 10, 10), ("b", 5, 5, 0)), BOOTSTRAP)
    of_a, of_b = 20 / 40, 10 / 15
    assert scores.dice == pytest.approx((of_a + of_b) / 2)
    assert scores.iou == pytest.approx((10 / 30 + 5 / 10) / 2)
    assert scores.dice_image == pytest.approx((1 + 0 + of_b) / 3)
    assert (scores.n, scores.groups) == (3, 2)


def test_nothing_there_and_nothing_found_is_right():
    scores = mask_scores(rows(("a", 0, 0, 0), ("b", 0, 1, 0), ("c", 8, 0, 2)), BOOTSTRAP)
    assert scores.dice == pytest.approx((1 + 0 + 16 / 18) / 3)
    assert scores.iou == pytest.approx((1 + 0 + 8 / 10) / 3)
    assert scores.dice_foreground == pytest.approx(16 / 18), "only `c` has foreground"
    assert (scores.precision, scores.recall) == (pytest.approx(8 / 9), pytest.approx(8 / 10))


def test_distances_are_taken_where_they_exist():
    table = rows(("a", 1, 0, 0), ("b", 1, 0, 0), ("c", 0, 0, 5), ("d", 1, 0, 0))
    table.loc[2, ["hd95", "boundary_dice"]] = np.nan
    table.loc[3, "boundary_dice"] = 0.8
    scores = mask_scores(table, BOOTSTRAP)
    assert scores.hd95 == 1.0, "the median of 0, 1 and 3"
    assert scores.boundary_dice == pytest.approx((0.5 + 0.5 + 0.8) / 3)


def test_what_cannot_be_given_is_none():
    scores = mask_scores(rows(("a", 0, 0, 0)).assign(hd95=np.nan, boundary_dice=np.nan), BOOTSTRAP)
    assert (scores.precision, scores.recall, scores.dice_foreground) == (None, None, None)
    assert (scores.hd95, scores.boundary_dice) == (None, None)
    assert (scores.relaxed_precision, scores.relaxed_recall_high) == (None, None)
    assert (scores.dice, scores.dice_low, scores.dice_high) == (1.0, None, None), "one group"
    assert mask_scores(rows(), BOOTSTRAP).dice is None


def test_intervals_hold_the_score_and_know_the_groups():
    many = [(f"g{n}", 50 + n % 40, 10, 5) for n in range(30)]
    apart = mask_scores(rows(*many), BOOTSTRAP)
    assert apart.dice_low < apart.dice < apart.dice_high
    assert apart.iou_low < apart.iou < apart.iou_high
    assert apart.dice_image_low < apart.dice_image < apart.dice_image_high
    assert apart.dice_image_low == pytest.approx(apart.dice_low), "each image is a group"
    paired = [(f"g{n // 2}", *counts) for n, (_, *counts) in enumerate(many)]
    of_twos = mask_scores(rows(*paired), BOOTSTRAP)
    assert of_twos.dice_image == pytest.approx(apart.dice_image)
    assert of_twos.dice_image_low != apart.dice_image_low


def test_the_drop_is_paired():
    clean = rows(*((f"g{n}", 40 + n, 5, 5) for n in range(20)))
    worse = clean.assign(tp=clean["tp"] - 20, fn=clean["fn"] + 20)
    lost = compare_masks_with_clean(clean, worse, BOOTSTRAP)
    assert lost.clean_dice == pytest.approx(dice(clean).mean())
    assert lost.drop == pytest.approx(dice(clean).mean() - dice(worse).mean())
    assert lost.retention == pytest.approx(dice(worse).mean() / dice(clean).mean())
    alone = mask_scores(worse, BOOTSTRAP)
    assert lost.drop_low < lost.drop < lost.drop_high
    assert lost.drop_high - lost.drop_low < alone.dice_high - alone.dice_low
    assert lost.paired_groups == 20


def test_only_images_that_both_have_are_compared():
    clean = rows(("a", 10, 0, 0), ("a", 0, 9, 9), ("b", 10, 0, 0))
    part = clean.iloc[[0]].assign(tp=5, fn=5)
    lost = compare_masks_with_clean(clean, part, BOOTSTRAP)
    assert (lost.clean_dice, lost.drop) == (1.0, pytest.approx(1 - 10 / 15))
    assert (lost.paired_groups, lost.drop_low) == (1, None)
    assert compare_masks_with_clean(clean, rows(), BOOTSTRAP).drop is None


def test_nothing_is_kept_of_nothing():
    zero = rows(("a", 0, 5, 5), ("b", 0, 5, 5))
    assert compare_masks_with_clean(zero, zero, BOOTSTRAP).retention is None


def test_the_order_of_rows_and_of_groups_changes_nothing():
    table = rows(*((f"g{n % 7}", n, 3, 4) for n in range(25)))
    shuffled = table.sample(frac=1, random_state=2)
    result, expected = (vars(mask_scores(item, BOOTSTRAP)) for item in (shuffled, table))
    assert result == pytest.approx(expected)


MASKS_RELAXED = hnp.arrays(bool, (2, 9, 12), elements=st.booleans(), fill=st.just(False))
BOOTSTRAP_RELAXED = Bootstrap(0, draws=500)


def within(first: np.ndarray, other: np.ndarray, tolerance: int) -> int:
    """The pixels of `one` with any of `other` at most `tolerance` away: all pairs are tried."""
    mine, theirs = np.argwhere(first), np.argwhere(other)
    if not len(mine) or not len(theirs):
        return 0
    distances = np.linalg.norm(mine[:, None] - theirs[None], axis=-1)
    return int((distances.min(axis=1) <= tolerance).sum())


def rows_relaxed(*counts: tuple[str, int, int, int, int, int]) -> pd.DataFrame:
    """Rows of images: group, tp, fp, fn, predicted_near, true_near."""
    names = ["group", "tp", "fp", "fn", "predicted_near", "true_near"]
    return pd.DataFrame(list(counts), columns=names)


@settings(max_examples=80, deadline=None)
@given(MASKS_RELAXED, st.sampled_from([0, 1, 2, 3, 5]))
def test_counts_are_those_of_all_pairs_of_pixels(masks, tolerance):
    prediction, truth = masks
    assert near_counts(prediction, truth, tolerance) == {
        "predicted_near": within(prediction, truth, tolerance),
        "true_near": within(truth, prediction, tolerance),
    }


def test_three_pixels_are_a_disk_and_reach_the_border():
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    assert near(mask, 3).sum() == 29
    assert near(mask, 3)[4, 7], "exactly three away"
    assert near(mask, 3)[2, 2]
    assert not near(mask, 3)[1, 5], "the root of 10"
    corner = near(np.pad(np.ones((1, 1), bool), ((0, 4), (0, 4))), 3)
    assert (corner[0, 3], corner[3, 0], corner.sum()) == (True, True, 11)


def test_views_of_other_arrays_count_alike():
    mask = np.zeros((12, 20), bool)
    mask[4, 2:9] = True
    assert (near(mask[:, ::-1].T, 3) == near(mask, 3)[:, ::-1].T).all()


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [(False, False, (None, None)), (False, True, (None, 0)), (True, False, (0, None)),
     (True, True, (1, 1))],
)  # fmt: skip
def test_nothing_and_everything(prediction, truth, expected):
    masks = [np.full((5, 6), full) for full in (prediction, truth)]
    result, true = (int(mask.sum()) for mask in masks)
    tp = int((masks[0] & masks[1]).sum())
    row = {"group": "a", "tp": tp, "fp": result - tp, "fn": true - tp, **near_counts(*masks, 3)}
    scores = relaxed_scores(pd.DataFrame([row]), BOOTSTRAP_RELAXED)
    assert (scores.precision, scores.recall) == expected
    assert (scores.precision_low, scores.recall_high) == (None, None), "one group"


def test_pixels_of_all_images_are_pooled():
    scores = relaxed_scores(
        rows_relaxed(("a", 10, 30, 0, 20, 10), ("b", 0, 10, 90, 10, 30)), BOOTSTRAP_RELAXED
    )
    assert scores.precision == pytest.approx(30 / 50)
    assert scores.recall == pytest.approx(40 / 100)


def test_intervals_resample_groups():
    many = rows_relaxed(*((f"g{n}", 50, 10, 20 + n, 52 + n % 7, 55 + n % 9) for n in range(24)))
    scores = relaxed_scores(many, BOOTSTRAP_RELAXED)
    assert scores.precision_low < scores.precision < scores.precision_high
    assert scores.recall_low < scores.recall < scores.recall_high
    paired = many.assign(group=[f"g{n // 2}" for n in range(24)])
    of_twos = relaxed_scores(paired, BOOTSTRAP_RELAXED)
    assert (of_twos.precision, of_twos.recall) == (scores.precision, scores.recall)
    assert of_twos.recall_low != scores.recall_low


def test_groups_without_pixels_neither_count_nor_spoil_the_interval():
    some = rows_relaxed(*((f"g{n}", 5, 5, 5, 5 + n, 6 + n) for n in range(4)))
    none = rows_relaxed(*((f"h{n}", 0, 0, 0, 0, 0) for n in range(8)))
    both = relaxed_scores(pd.concat([some, none]), BOOTSTRAP_RELAXED)
    assert both == relaxed_scores(some, BOOTSTRAP_RELAXED)
    alone = relaxed_scores(pd.concat([some.head(1), none]), BOOTSTRAP_RELAXED)
    assert (alone.precision, alone.precision_low) == (0.5, None), "one group with pixels"


def test_rows_without_the_counts_have_no_scores():
    known = rows_relaxed(("a", 5, 5, 5, 5, 5), ("b", 5, 5, 5, 5, 5))
    assert relaxed_scores(known.assign(true_near=np.nan), BOOTSTRAP_RELAXED) == RelaxedScores()
    known.loc[1, ["predicted_near", "true_near"]] = np.nan
    assert relaxed_scores(known, BOOTSTRAP_RELAXED) == RelaxedScores()


def counts(mask: NDArray[np.bool_], true: NDArray[np.bool_]) -> list[int]:
    return [
        int((mask & true).sum()),
        int((mask & ~true).sum()),
        int((~mask & true).sum()),
    ]


def test_groups_are_pooled_then_averaged() -> None:
    rng = np.random.default_rng(0)
    masks, true = rng.random((2, 6, 50)) < [[[0.4]], [[0.3]]]
    groups = ["x", "y", "x", "z", "y", "x"]
    scores = pooled_scores(
        np.array([counts(s, t) for s, t in zip(masks, true, strict=True)]), groups
    )
    members = [np.array([g == name for g in groups]) for name in "xyz"]
    dice = [f1_score(true[m].ravel(), masks[m].ravel()) for m in members]
    iou = [jaccard_score(true[m].ravel(), masks[m].ravel()) for m in members]
    assert scores == pytest.approx((np.mean(dice), np.mean(iou)))


def test_a_group_without_anything_counts_one_and_a_false_alarm_nothing() -> None:
    scores = pooled_scores(np.array([[0, 0, 0], [0, 5, 0], [3, 0, 0]]), ["a", "b", "c"])
    assert scores == pytest.approx((2 / 3, 2 / 3))
