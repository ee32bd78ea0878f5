"""The paired difference of two segmenters, against SciPy and by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustcli.evaluation.bootstrap import Bootstrap
from robustcli.evaluation.paired_masks import mask_difference
from tests.evaluation.test_sign_flip import theirs


def rows(groups, true, found, called_in_vain=0):
    table = pd.DataFrame({"group": groups, "tp": found})
    table["fp"] = called_in_vain
    table["fn"] = np.asarray(true) - table["tp"]
    table["image_id"] = [f"{n}.png" for n in range(len(table))]
    return table


def one_image_a_group(images=12, gain=6):
    generator = np.random.default_rng(2)
    true = generator.integers(60, 100, images)
    found = true - generator.integers(20, 40, images)
    names = [f"g{n:02d}" for n in range(images)]
    better = found + generator.integers(-8, 8, images) + gain
    return rows(names, true, found, 3), rows(names, true, np.clip(better, 0, true), 3)


def of_images(table):
    return (2 * table["tp"] / (2 * table["tp"] + table["fp"] + table["fn"])).to_numpy()


def test_single_images_are_compared_as_scipy_compares_them():
    full, freeze = one_image_a_group()
    found = mask_difference(full, freeze, Bootstrap(0))
    gained = of_images(freeze) - of_images(full)
    assert (found.n, found.groups) == (12, 12)
    assert found.dice == pytest.approx(gained.mean())
    assert found.p == pytest.approx(theirs(gained))
    expected = stats.bootstrap(
        (gained,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=3e-3)
    assert found.smallest_p == 2 / 2**12


def test_a_gain_one_way_is_a_loss_the_other_way():
    full, freeze = one_image_a_group()
    there, back = (
        mask_difference(*pair, Bootstrap(0)) for pair in [(full, freeze), (freeze, full)]
    )
    assert there.dice == pytest.approx(-back.dice)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    assert there.p == back.p


def test_images_of_a_group_are_flipped_together():
    """Four images in two groups cannot give a p below that of two units."""
    groups = ["a", "a", "b", "b"]
    full, freeze = rows(groups, [100] * 4, [50] * 4), rows(groups, [100] * 4, [90] * 4)
    found = mask_difference(full, freeze, Bootstrap(0))
    assert (found.n, found.groups, found.p, found.smallest_p) == (4, 2, 0.5, 0.5)


def test_rows_are_matched_by_image_and_not_by_place():
    full, freeze = one_image_a_group()
    mixed = freeze.sample(frac=1, random_state=3)
    assert mask_difference(full, mixed, Bootstrap(0)) == mask_difference(full, freeze, Bootstrap(0))
    part = mask_difference(full, freeze.iloc[:5], Bootstrap(0))
    assert (part.n, part.groups) == (5, 5)


def test_one_group_has_no_interval_and_no_p():
    full, freeze = rows(["a"] * 3, [9] * 3, [5] * 3), rows(["a"] * 3, [9] * 3, [6] * 3)
    found = mask_difference(full, freeze, Bootstrap(0))
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.dice > 0


def test_without_a_common_image_there_is_no_difference():
    full, freeze = one_image_a_group()
    elsewhere = freeze.assign(image_id="x" + freeze["image_id"])
    assert mask_difference(full, elsewhere, Bootstrap(0)) is None
