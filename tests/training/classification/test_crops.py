"""Random parts of photos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.training.classification.crops import CROPS, Crops, _box, changed, crops_name


def test_a_part_is_drawn_from_its_generator_alone() -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    first, again, other = (
        changed(image, Crops(0.5), 32, "bilinear", np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert (first.shape, first.dtype) == ((3, 32, 32), torch.uint8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("least", [0.08, 0.5])
def test_the_area_of_a_part_is_between_its_limits(least: float) -> None:
    boxes = [_box(100, 140, Crops(least), np.random.default_rng(seed)) for seed in range(300)]
    shares = [height * width / 14_000 for _, _, height, width in boxes]
    assert least - 0.02 < min(shares) < least + 0.1
    assert 0.9 < max(shares) <= 1
    assert all(0 <= t <= 100 - h and 0 <= left <= 140 - w for t, left, h, w in boxes)


def test_what_fits_no_ratio_is_cut_in_the_middle() -> None:
    assert _box(300, 10, Crops(1.0), np.random.default_rng(0)) == (143, 0, 13, 10)


def test_half_of_the_parts_are_mirrored() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, :4] = 255
    left = [
        int(changed(image, Crops(1.0), 8, "bilinear", np.random.default_rng(s))[0, 4, 0]) > 127
        for s in range(200)
    ]
    assert 70 < sum(left) < 130


def test_names() -> None:
    assert crops_name("LIGHT") == "light"
    assert CROPS["none"] is None
    with pytest.raises(UsageError, match="`heavy`"):
        crops_name("heavy")
