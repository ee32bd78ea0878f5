"""The paired difference of two segmenters, against SciPy and by hand."""

from __future__ import annotations

from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustcli.metrics.intervals import Bootstrap, PairedCounts, paired_interval
from robustcli.metrics.paired import (
    EXACT_UP_TO,
    class_difference,
    mask_difference,
    mcnemar_p,
    sign_flip_p,
    smallest_p,
)


def rows(right: list[int]) -> pd.DataFrame:
    ids = [f"{n:03}" for n in range(len(right))]
    return pd.DataFrame({"image_id": ids, "target": 1, "prediction": np.array(right)})


def test_the_difference_and_its_interval() -> None:
    reference, frozen = rows([1, 1, 1, 0, 0, 0, 0, 0]), rows([1, 1, 0, 1, 1, 1, 0, 0])
    difference = class_difference(reference, frozen)
    assert (difference.n, difference.groups, difference.value) == (8, 8, 2 / 8)
    assert (difference.low, difference.high) == paired_interval(PairedCounts(2, 3, 1, 2))
    assert difference.p == mcnemar_p(3, 1)
    assert difference.smallest_p == 2.0**-7


def test_only_images_that_both_have_count_in_any_order() -> None:
    reference, frozen = rows([1, 0, 1, 0]), rows([1, 1, 0, 1])
    assert class_difference(reference, frozen) == class_difference(reference, frozen[::-1])
    difference = class_difference(rows([1, 0, 1, 0]), rows([1, 1]))
    assert (difference.n, difference.value) == (2, 0.5)
    assert class_difference(rows([1]), rows([1]).assign(image_id="other")) is None


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 0), (3, 1), (4, 4), (12, 30)])
def test_the_exact_test_counts_coin_flips(won: int, lost: int) -> None:
    n, k = won + lost, min(won, lost)
    expected = min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
    assert mcnemar_p(won, lost) == pytest.approx(expected)


def theirs(values):
    """Swapping the two members of a pair flips the sign of its difference."""
    return stats.permutation_test(
        (values, np.zeros(len(values))),
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue


@pytest.mark.parametrize("units", [2, 5, 10, 14])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_few_units_are_tested_exactly_as_scipy_does(units, shift):
    values = np.random.default_rng(units).normal(shift, 0.5, units)
    assert sign_flip_p(values) == pytest.approx(theirs(values), abs=1e-12)


def test_many_units_come_close_to_the_exact_value():
    values = np.random.default_rng(4).normal(0.12, 0.5, EXACT_UP_TO + 2)
    assert sign_flip_p(values) == pytest.approx(theirs(values), abs=0.015)
    assert sign_flip_p(values) == sign_flip_p(values)
    assert sign_flip_p(values, 1) != sign_flip_p(values, 2)


def test_units_without_a_difference_and_rounding_change_nothing():
    values = np.array([0.2, -0.1, 0.4, 0.3])
    assert sign_flip_p(np.concatenate([values, np.zeros(40)])) == sign_flip_p(values)
    assert sign_flip_p(np.zeros(5)) == 1.0
    assert sign_flip_p(np.array([0.1, 0.2, 0.3, -0.6])) == 1.0, "the sum is 0 but for rounding"


@pytest.mark.parametrize("units", [3, EXACT_UP_TO, EXACT_UP_TO + 20])
def test_the_smallest_p_is_that_of_differences_of_one_sign(units):
    assert sign_flip_p(np.linspace(1, 2, units)) == pytest.approx(smallest_p(units), rel=1e-12)


def rows_paired_masks(groups, true, predicted, called_in_vain=0):
    table = pd.DataFrame({"group": groups, "tp": predicted})
    table["fp"] = called_in_vain
    table["fn"] = np.asarray(true) - table["tp"]
    table["image_id"] = [f"{n}.png" for n in range(len(table))]
    return table


def one_image_a_group(images=12, gain=6):
    generator = np.random.default_rng(2)
    true = generator.integers(60, 100, images)
    predicted = true - generator.integers(20, 40, images)
    names = [f"g{n:02d}" for n in range(images)]
    better = predicted + generator.integers(-8, 8, images) + gain
    return rows_paired_masks(names, true, predicted, 3), rows_paired_masks(
        names, true, np.clip(better, 0, true), 3
    )


def of_images(table):
    return (2 * table["tp"] / (2 * table["tp"] + table["fp"] + table["fn"])).to_numpy()


def expanded_percentiles(n):
    """Hesterberg (2015), section 4.3."""
    tail = 100 * stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))
    return tail, 100 - tail


def test_single_images_are_compared_as_scipy_compares_them():
    full, freeze = one_image_a_group()
    gain = mask_difference(full, freeze, Bootstrap(0))
    gained = of_images(freeze) - of_images(full)
    assert (gain.n, gain.groups) == (12, 12)
    assert gain.value == pytest.approx(gained.mean())
    assert gain.p == pytest.approx(theirs(gained))
    expected = stats.bootstrap(
        (gained,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0),
        confidence_level=np.diff(expanded_percentiles(12)).item() / 100,
    ).confidence_interval  # fmt: skip
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high), abs=3e-3)
    assert gain.smallest_p == 2 / 2**12


def patients(seed, count=9):
    """Groups of one large and several small images, of which the other model finds more or less.

    It gains pixels of the large image of every group, and loses of the small ones in most: pooled
    dice and the images' own dice say opposite things.
    """
    generator = np.random.default_rng(seed)
    parts, others = [], []
    for number in range(count):
        small = int(generator.integers(1, 5))
        true = np.array([5000, *generator.integers(20, 60, small)])
        predicted = np.array([2500, *(true[1:] // 2)])
        gained = np.array([generator.integers(200, 900), *generator.integers(-15, 5, small)])
        names = [f"p{number}"] * len(true)
        parts.append(rows_paired_masks(names, true, predicted, 4))
        others.append(rows_paired_masks(names, true, np.clip(predicted + gained, 0, true), 4))
    first, second = (pd.concat(some, ignore_index=True) for some in (parts, others))
    ids = [f"{n}.png" for n in range(len(first))]
    return first.assign(image_id=ids), second.assign(image_id=ids)


def pooled_by_hand(table):
    """The dice of each group, written as the definition: a loop over groups."""
    of_groups = []
    for name in sorted(set(table["group"])):
        tp, fp, fn = (table.loc[table["group"] == name, c].sum() for c in ("tp", "fp", "fn"))
        of_groups.append(2 * tp / (2 * tp + fp + fn))
    return np.array(of_groups)


@pytest.mark.parametrize("seed", [0, 1])
def test_value_interval_and_p_are_of_one_statistic(seed):
    full, freeze = patients(seed)
    difference = mask_difference(full, freeze, Bootstrap(0))
    before, after = pooled_by_hand(full), pooled_by_hand(freeze)
    assert difference.value == pytest.approx(after.mean() - before.mean())
    test = stats.permutation_test(
        (after, before),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert difference.p == pytest.approx(test.pvalue, abs=1e-12)
    assert test.statistic == pytest.approx(difference.value)
    generator = np.random.default_rng(99)
    drawn = []
    for _ in range(10_000):
        taken = generator.integers(len(before), size=len(before))
        drawn.append(after[taken].mean() - before[taken].mean())
    # Another generator's 10,000 draws: a percentile of them varies by some % of the spread.
    expected = np.percentile(drawn, expanded_percentiles(len(before)))
    assert (difference.low, difference.high) == pytest.approx(expected, abs=0.1 * np.std(drawn))


def test_what_single_images_say_does_not_decide_the_p_of_pooled_dice():
    """All groups gain pooled dice, so p is the smallest; single images mostly lose."""
    full, freeze = patients(0)
    of_single = pd.Series(of_images(freeze) - of_images(full)).groupby(full["group"]).sum()
    difference = mask_difference(full, freeze, Bootstrap(0))
    assert difference.value > 0
    assert of_single.mean() < 0
    assert difference.p == difference.smallest_p == 2 / 2**9


def test_interval_and_test_agree_away_from_the_edge():
    """Interval and test of one statistic agree wherever p is not close to 0.05."""
    generator = np.random.default_rng(0)
    for gain in np.linspace(-12, 12, 9):
        full, freeze = one_image_a_group(14, gain=int(gain))
        order = generator.permutation(14)
        difference = mask_difference(full.iloc[order], freeze, Bootstrap(0))
        if not 0.01 < difference.p < 0.15:
            assert (difference.low > 0 or difference.high < 0) == (difference.p <= 0.05)


def test_a_gain_one_way_is_a_loss_the_other_way():
    full, freeze = one_image_a_group()
    gain, back = (mask_difference(*pair, Bootstrap(0)) for pair in [(full, freeze), (freeze, full)])
    assert gain.value == pytest.approx(-back.value)
    assert (gain.low, gain.high) == (
        pytest.approx(-back.high),
        pytest.approx(-back.low),
    )
    assert gain.p == back.p


def test_images_of_a_group_are_flipped_together():
    """Six images in three groups cannot give a p below that of three units."""
    groups = ["a", "a", "b", "b", "c", "c"]
    full, freeze = (rows_paired_masks(groups, [100] * 6, [tp] * 6) for tp in (50, 90))
    gain = mask_difference(full, freeze, Bootstrap(0))
    assert (gain.n, gain.groups, gain.p, gain.smallest_p) == (6, 3, 0.25, 0.25)


def test_two_groups_have_neither_an_interval_nor_a_p():
    groups = ["a", "a", "b", "b"]
    full, freeze = (rows_paired_masks(groups, [100] * 4, [tp] * 4) for tp in (50, 90))
    gain = mask_difference(full, freeze, Bootstrap(0))
    assert (gain.groups, gain.low, gain.high, gain.p) == (2, None, None, None)


def test_rows_are_matched_by_image_and_not_by_place():
    full, freeze = one_image_a_group()
    mixed = freeze.sample(frac=1, random_state=3)
    assert mask_difference(full, mixed, Bootstrap(0)) == mask_difference(full, freeze, Bootstrap(0))
    part = mask_difference(full, freeze.iloc[:5], Bootstrap(0))
    assert (part.n, part.groups) == (5, 5)


def test_one_group_has_no_interval_and_no_p():
    full, freeze = (rows_paired_masks(["a"] * 3, [9] * 3, [tp] * 3) for tp in (5, 6))
    difference = mask_difference(full, freeze, Bootstrap(0))
    assert (difference.low, difference.high, difference.p) == (None, None, None)
    assert difference.value > 0


def test_without_a_common_image_there_is_no_difference():
    full, freeze = one_image_a_group()
    elsewhere = freeze.assign(image_id="x" + freeze["image_id"])
    assert mask_difference(full, elsewhere, Bootstrap(0)) is None
