"""Two classifiers on the same images, against scipy's and statsmodels' definitions by hand."""

from __future__ import annotations

from math import comb

import numpy as np
import pandas as pd
import pytest

from robustcli.evaluation.intervals import PairedCounts, paired_interval
from robustcli.evaluation.paired_classes import class_difference, mcnemar_p


def rows(right: list[int]) -> pd.DataFrame:
    ids = [f"{n:03}" for n in range(len(right))]
    return pd.DataFrame({"image_id": ids, "target": 1, "prediction": np.array(right)})


def test_the_difference_and_its_interval() -> None:
    reference, own = rows([1, 1, 1, 0, 0, 0, 0, 0]), rows([1, 1, 0, 1, 1, 1, 0, 0])
    found = class_difference(reference, own)
    assert found is not None
    assert (found.n, found.groups, found.value) == (8, 8, 2 / 8)
    assert (found.low, found.high) == paired_interval(PairedCounts(2, 3, 1, 2))
    assert found.p == mcnemar_p(3, 1)
    assert found.smallest_p == 2.0**-7


def test_the_order_of_the_rows_does_not_matter() -> None:
    reference, own = rows([1, 0, 1, 0]), rows([1, 1, 0, 1])
    assert class_difference(reference, own) == class_difference(reference, own[::-1])


def test_only_images_that_both_have_count() -> None:
    found = class_difference(rows([1, 0, 1, 0]), rows([1, 1]))
    assert found is not None
    assert (found.n, found.value) == (2, 0.5)
    assert class_difference(rows([1]), rows([1]).assign(image_id="other")) is None


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 0), (3, 1), (4, 4), (12, 30)])
def test_the_exact_test_counts_coin_flips(won: int, lost: int) -> None:
    n, k = won + lost, min(won, lost)
    expected = min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
    assert mcnemar_p(won, lost) == pytest.approx(expected)
