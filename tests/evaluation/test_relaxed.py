"""Relaxed precision and recall, against every pair of pixels and by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robustcli.evaluation.bootstrap import Bootstrap
from robustcli.evaluation.relaxed import RelaxedScores, near, near_counts, relaxed_scores

MASKS = hnp.arrays(bool, (2, 9, 12), elements=st.booleans(), fill=st.just(False))
BOOTSTRAP = Bootstrap(0, draws=500)


def within(one: np.ndarray, other: np.ndarray, tolerance: int) -> int:
    """The pixels of `one` with any of `other` at most `tolerance` away: all pairs are tried."""
    mine, theirs = np.argwhere(one), np.argwhere(other)
    if not len(mine) or not len(theirs):
        return 0
    distances = np.linalg.norm(mine[:, None] - theirs[None], axis=-1)
    return int((distances.min(axis=1) <= tolerance).sum())


def rows(*counts: tuple[str, int, int, int, int, int]) -> pd.DataFrame:
    """Rows of images: group, tp, fp, fn, predicted_near, true_near."""
    names = ["group", "tp", "fp", "fn", "predicted_near", "true_near"]
    return pd.DataFrame(list(counts), columns=names)


@settings(max_examples=80, deadline=None)
@given(MASKS, st.sampled_from([0, 1, 2, 3, 5]))
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
    found, true = (int(mask.sum()) for mask in masks)
    tp = int((masks[0] & masks[1]).sum())
    row = {"group": "a", "tp": tp, "fp": found - tp, "fn": true - tp, **near_counts(*masks, 3)}
    scores = relaxed_scores(pd.DataFrame([row]), BOOTSTRAP)
    assert (scores.precision, scores.recall) == expected
    assert (scores.precision_low, scores.recall_high) == (None, None), "one group"


def test_pixels_of_all_images_are_pooled():
    scores = relaxed_scores(rows(("a", 10, 30, 0, 20, 10), ("b", 0, 10, 90, 10, 30)), BOOTSTRAP)
    assert scores.precision == pytest.approx(30 / 50)
    assert scores.recall == pytest.approx(40 / 100)


def test_intervals_resample_groups():
    many = rows(*((f"g{n}", 50, 10, 20 + n, 52 + n % 7, 55 + n % 9) for n in range(24)))
    scores = relaxed_scores(many, BOOTSTRAP)
    assert scores.precision_low < scores.precision < scores.precision_high
    assert scores.recall_low < scores.recall < scores.recall_high
    paired = many.assign(group=[f"g{n // 2}" for n in range(24)])
    of_twos = relaxed_scores(paired, BOOTSTRAP)
    assert (of_twos.precision, of_twos.recall) == (scores.precision, scores.recall)
    assert of_twos.recall_low != scores.recall_low


def test_groups_without_pixels_neither_count_nor_spoil_the_interval():
    some = rows(*((f"g{n}", 5, 5, 5, 5 + n, 6 + n) for n in range(4)))
    none = rows(*((f"h{n}", 0, 0, 0, 0, 0) for n in range(8)))
    both = relaxed_scores(pd.concat([some, none]), BOOTSTRAP)
    assert both == relaxed_scores(some, BOOTSTRAP)
    alone = relaxed_scores(pd.concat([some.head(1), none]), BOOTSTRAP)
    assert (alone.precision, alone.precision_low) == (0.5, None), "one group with pixels"


def test_rows_without_the_counts_have_no_scores():
    known = rows(("a", 5, 5, 5, 5, 5), ("b", 5, 5, 5, 5, 5))
    assert relaxed_scores(known.assign(true_near=np.nan), BOOTSTRAP) == RelaxedScores()
    known.loc[1, ["predicted_near", "true_near"]] = np.nan
    assert relaxed_scores(known, BOOTSTRAP) == RelaxedScores()
