"""Dice and its relatives, of one class and of several, against four libraries and by hand."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_dice, compute_iou
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, precision_score, recall_score
from torchmetrics.functional.classification import (
    binary_f1_score,
    binary_jaccard_index,
    multiclass_f1_score,
    multiclass_jaccard_index,
)
from torchmetrics.functional.segmentation import hausdorff_distance

from robustcli.data.mask_values import IGNORED
from robustcli.evaluation.cell_table import cell_numbers
from robustcli.metrics.columns import MASK_SCHEMA
from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.mask_scores import (
    MOST_CONFUSED,
    MaskScores,
    RelaxedScores,
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
    mask_scores_of,
    near,
    near_counts,
    pixel_confusion,
    pooled_scores,
    relaxed_scores,
)
from robustcli.metrics.paired import mask_difference
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
    assert scores.hd95_n == len(table) - 1


def test_what_cannot_be_given_is_none():
    scores = mask_scores(rows(("a", 0, 0, 0)).assign(hd95=np.nan, boundary_dice=np.nan), BOOTSTRAP)
    assert (scores.precision, scores.recall, scores.dice_foreground) == (None, None, None)
    assert (scores.hd95, scores.boundary_dice, scores.hd95_n) == (None, None, 0)
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


def test_tables_that_share_resamples_have_their_own_scores():
    generator = np.random.default_rng(0)
    tables = [
        rows(*((f"p{n % 5}", *map(int, generator.integers(0, 30, 3))) for n in range(12)))
        for _ in range(3)
    ]
    for scores, table in zip(mask_scores_of(tables, BOOTSTRAP), tables, strict=True):
        alone = mask_scores(table, BOOTSTRAP)
        assert astuple(scores) == pytest.approx(astuple(alone), nan_ok=True)
        ends = (scores.dice_low, scores.dice_high)
        assert BOOTSTRAP.mean(group_dice(table)) == pytest.approx(ends)


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


def test_a_transform_without_effect_on_some_groups_may_have_one_on_others():
    clean = rows(*((f"g{n}", 40, 5, 5) for n in range(8)))
    lost = compare_masks_with_clean(clean, clean.copy(), BOOTSTRAP)
    assert (lost.drop, lost.drop_low, lost.drop_high) == pytest.approx((0, -0.277, 0.277), abs=1e-3)
    itself = compare_masks_with_clean(clean, clean, BOOTSTRAP)
    assert (itself.drop, itself.drop_low, itself.drop_high) == (0, 0, 0), (
        "clean images lose nothing"
    )
    scores = mask_scores(clean, BOOTSTRAP)
    assert scores.dice_low < scores.dice < scores.dice_high
    assert scores.iou_low < scores.iou < scores.iou_high
    assert scores.dice_image_low < scores.dice_image < scores.dice_image_high


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


# Relaxed scores.


MASKS_RELAXED = hnp.arrays(bool, (2, 9, 12), elements=st.booleans(), fill=st.just(False))


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
    scores = relaxed_scores(pd.DataFrame([row]), BOOTSTRAP)
    assert (scores.precision, scores.recall) == expected
    assert (scores.precision_low, scores.recall_high) == (None, None), "one group"


def test_pixels_of_all_images_are_pooled():
    scores = relaxed_scores(
        rows_relaxed(("a", 10, 30, 0, 20, 10), ("b", 0, 10, 90, 10, 30)), BOOTSTRAP
    )
    assert scores.precision == pytest.approx(30 / 50)
    assert scores.recall == pytest.approx(40 / 100)


def test_intervals_resample_groups():
    many = rows_relaxed(*((f"g{n}", 50, 10, 20 + n, 52 + n % 7, 55 + n % 9) for n in range(24)))
    scores = relaxed_scores(many, BOOTSTRAP)
    assert scores.precision_low < scores.precision < scores.precision_high
    assert scores.recall_low < scores.recall < scores.recall_high
    paired = many.assign(group=[f"g{n // 2}" for n in range(24)])
    of_twos = relaxed_scores(paired, BOOTSTRAP)
    assert (of_twos.precision, of_twos.recall) == (scores.precision, scores.recall)
    assert of_twos.recall_low != scores.recall_low


def test_groups_without_pixels_neither_count_nor_spoil_the_interval():
    some = rows_relaxed(*((f"g{n}", 5, 5, 5, 5 + n, 6 + n) for n in range(4)))
    none = rows_relaxed(*((f"h{n}", 0, 0, 0, 0, 0) for n in range(8)))
    both = relaxed_scores(pd.concat([some, none]), BOOTSTRAP)
    assert both == relaxed_scores(some, BOOTSTRAP)
    alone = relaxed_scores(pd.concat([some.head(1), none]), BOOTSTRAP)
    assert (alone.precision, alone.precision_low) == (0.5, None), "one group with pixels"


def test_rows_without_the_counts_have_no_scores():
    known = rows_relaxed(("a", 5, 5, 5, 5, 5), ("b", 5, 5, 5, 5, 5))
    assert relaxed_scores(known.assign(true_near=np.nan), BOOTSTRAP) == RelaxedScores()
    known.loc[1, ["predicted_near", "true_near"]] = np.nan
    assert relaxed_scores(known, BOOTSTRAP) == RelaxedScores()


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


# Masks with several classes.


CLASSES = 3


def class_masks(
    seed: int, count: int = 6, *, noise: float = 0.3
) -> tuple[NDArray[Any], NDArray[Any]]:
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


def scores_of_classes(rows: pd.DataFrame) -> list[MaskScores]:
    return [mask_scores(of_class, BOOTSTRAP) for of_class in class_rows(rows)]


def one_hot(labels: NDArray[Any]) -> torch.Tensor:
    """(N, H, W) to (N, CLASSES + 1, H, W)."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), CLASSES + 1).movedim(-1, 1)


def test_each_image_is_scored_as_monai_scores_it():
    predicted, true = class_masks(0)
    rows = rows_of(predicted, true)
    both = one_hot(predicted), one_hot(true)
    expected = compute_dice(*both, include_background=False, ignore_empty=False)
    expected_iou = compute_iou(*both, include_background=False, ignore_empty=False)
    np.testing.assert_allclose(dice(rows), expected.mean(1), rtol=1e-6)
    np.testing.assert_allclose(iou(rows), expected_iou.mean(1), rtol=1e-6)
    for number, of_class in enumerate(class_rows(rows)):
        np.testing.assert_allclose(dice(of_class), expected[:, number], rtol=1e-6)


def test_all_pixels_pooled_are_torchmetrics_scores():
    predicted, true = class_masks(1)
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
        [each.dice for each in scores_of_classes(rows)],
        expected,
        rtol=1e-6,
    )


def test_confusion_is_scikit_learns():
    predicted, true = class_masks(2)
    rows = rows_of(predicted, true)
    expected = confusion_matrix(true.ravel(), predicted.ravel(), labels=range(CLASSES + 1))
    np.testing.assert_array_equal(pixel_confusion(rows), expected)
    many = mask_row(predicted[0], true[0], classes=MOST_CONFUSED + 1)
    assert many["class_confusion"] is None


def test_ignored_pixels_are_counted_nowhere():
    predicted, true = class_masks(3)
    ignoring = true.copy()
    ignoring[:, :, :5] = IGNORED
    rows, cut = rows_of(predicted, ignoring), rows_of(predicted[:, :, 5:], true[:, :, 5:])
    np.testing.assert_array_equal(counts_of(rows), counts_of(cut))
    assert rows[["tp", "fp", "fn", "tn"]].equals(cut[["tp", "fp", "fn", "tn"]])
    assert (rows[["tp", "fp", "fn", "tn"]].sum(axis=1) == true[0, :, 5:].size).all()


def test_scalar_columns_are_those_of_any_class():
    """A class that is taken for another is foreground all the same."""
    predicted, true = class_masks(4)
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
    predicted, true = class_masks(5, noise=0.02)
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
    first, second = scores_of_classes(rows)
    assert (first.dice, second.dice) == (1.0, pytest.approx(2 / 3))
    assert (first.recall, second.recall, second.precision) == (1.0, None, 0.0)


def test_means_over_classes_are_the_means_of_the_classes_numbers():
    predicted, true = class_masks(6)
    rows = rows_of(predicted, true)
    scores, single = mask_scores(rows, BOOTSTRAP), scores_of_classes(rows)
    for name in ("dice", "iou", "dice_image", "dice_foreground", "precision", "recall", "hd95"):
        expected = np.mean([getattr(item, name) for item in single])
        assert getattr(scores, name) == pytest.approx(expected), name


def test_intervals_resample_whole_groups():
    predicted, true = class_masks(7)
    rows = rows_of(predicted, true)
    scores = mask_scores(rows, BOOTSTRAP)
    drawn = BOOTSTRAP.means(group_dice(rows)[:, None])[:, 0]
    expected = BOOTSTRAP.ends(drawn, scores.groups)
    assert (scores.dice_low, scores.dice_high) == pytest.approx(expected)
    of_class = scores_of_classes(rows)[1]
    drawn = BOOTSTRAP.means(group_dice(class_rows(rows)[1])[:, None])[:, 0]
    assert of_class.dice_low == pytest.approx(BOOTSTRAP.ends(drawn, scores.groups).low)


def test_drop_and_paired_differences_are_of_the_mean_dice():
    predicted, true = class_masks(8)
    worse, _ = class_masks(9)
    before, after = rows_of(predicted, true), rows_of(worse, true)
    compared = compare_masks_with_clean(before, after, BOOTSTRAP)
    assert compared.drop == pytest.approx(group_dice(before).mean() - group_dice(after).mean())
    difference = mask_difference(before, after, BOOTSTRAP)
    assert difference.value == pytest.approx(-compared.drop)
    numbers = cell_numbers("seg", before, after, seed=0)
    assert numbers["drop"] == compared.drop


def test_one_class_gives_the_numbers_of_two_valued_masks():
    """The same masks, read as one class and as foreground, have the same scores throughout."""
    predicted, true = class_masks(10)
    several = rows_of(predicted % 2, true % 2, classes=1)
    plain = rows_of(predicted % 2 > 0, true % 2 > 0, classes=0)
    assert has_classes(several)
    assert not has_classes(plain)
    assert mask_scores(several, BOOTSTRAP) == mask_scores(plain, BOOTSTRAP)
    counts = counts_of(several)
    assert pooled_scores(counts, list("aabbcc")) == pooled_scores(counts[:, 0], list("aabbcc"))
