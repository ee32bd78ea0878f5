from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robustcli.transforms.identity import IDENTITY


def test_the_same_pixels_in_an_array_of_its_own(picture: NDArray[np.uint8]) -> None:
    same = IDENTITY.apply(picture, seed=3, severity=0)
    np.testing.assert_array_equal(same, picture)
    assert not np.shares_memory(same, picture)


def test_it_has_one_strength_and_no_parameters() -> None:
    assert (IDENTITY.available(), IDENTITY.parameters(0)) == ((0,), {})
