"""`Transform.apply_with_mask`: masks move as their image, and stay label maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robustcli.core.errors import UsageError
from robustcli.transforms.base import Transform
from robustcli.transforms.imagenet_c import IMAGENET_C
from robustcli.transforms.paper21 import PAPER21
from robustcli.transforms.registry import resolve, transforms

CHEAP = [one for one in transforms() if one.name not in ("piecewise_affine", "c_zoom_blur")]


@settings(max_examples=60, deadline=None)
@given(
    one=st.sampled_from(CHEAP),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
)
def test_masks_of_any_size_follow(one: Transform, height: int, width: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = draw.integers(0, 9, (height, width), dtype=np.uint8)
    kept = image.copy(), mask.copy()
    severity = one.available()[-1]
    changed, moved = one.apply_with_mask(image, mask, seed=seed, severity=severity)
    np.testing.assert_array_equal(changed, one.apply(image, seed=seed, severity=severity))
    assert (moved.shape, moved.dtype) == (changed.shape[:2], mask.dtype)
    assert set(np.unique(moved)) <= {0, *np.unique(mask)}
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(mask, kept[1])
    if not one.geometric:
        np.testing.assert_array_equal(moved, mask)
        assert not np.shares_memory(moved, mask)


@pytest.mark.parametrize(
    "one", [t for t in (*PAPER21, *IMAGENET_C) if t.geometric], ids=lambda one: str(one.name)
)
def test_a_mask_moves_as_the_image_that_shows_it(one: Transform) -> None:
    rows, columns = np.mgrid[0:90, 0:120]
    disc = (rows - 40) ** 2 + (columns - 45) ** 2 < 30**2
    image = np.repeat(disc[..., None] * np.uint8(255), 3, axis=2)
    moves = 0
    for seed in range(6):
        severity = one.available()[-1]
        changed, moved = one.apply_with_mask(image, disc, seed=seed, severity=severity)
        inside = _same_around(changed[..., 0] == 255)
        outside = _same_around(changed[..., 0] == 0)
        assert moved[inside].all()
        assert not moved[outside].any()
        assert inside.mean() + outside.mean() > 0.8
        moves += bool((moved != disc).any())
    assert moves == 6


@pytest.mark.parametrize("name", ["crop", "crop_and_pad", "perspective"])
def test_a_resized_mask_is_not_shifted_against_its_image(name: str) -> None:
    """Half a pixel more to one side than to the other would overstate a segmenter's loss."""
    one = next(t for t in PAPER21 if t.name == name)
    mask = np.zeros((256, 256), bool)
    mask[50:130, 60:150] = True
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    shifts = []
    for seed in range(8):
        changed, moved = one.apply_with_mask(image, mask, seed=seed, severity=0)
        shown = changed[..., 0] >= 128
        shifts.append(np.argwhere(shown).mean(0) - np.argwhere(moved).mean(0))
        assert (shown & moved).sum() / (shown | moved).sum() > 0.98
    assert np.abs(np.mean(shifts, 0)).max() < 0.2


def _same_around(holds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    around = [np.roll(holds, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return np.logical_and.reduce(around)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.int32, np.int64])
def test_a_mask_keeps_its_dtype_and_large_labels(dtype: type, picture: NDArray[np.uint8]) -> None:
    label = {np.bool_: 1, np.uint8: 255, np.uint16: 65535}.get(dtype, 2_000_000_000)
    mask = np.full(picture.shape[:2], label, dtype)
    for cell in resolve(["affine", "piecewise_affine", "crop_and_pad", "perspective"], None)[1:]:
        _, moved = cell.transform.apply_with_mask(picture, mask, seed=4, severity=0)
        assert moved.dtype == dtype
        assert set(np.unique(moved)) <= {0, mask.flat[0]}
        assert mask.flat[0] in moved


@pytest.mark.parametrize("mask", [np.zeros((48, 63), np.uint8), np.zeros((48, 64), np.float32)])
def test_a_mask_that_does_not_fit_is_refused(
    mask: NDArray[np.uint8], picture: NDArray[np.uint8]
) -> None:
    with pytest.raises(UsageError, match=r"`mask` does not fit its image"):
        PAPER21[1].apply_with_mask(picture, mask, seed=0, severity=0)
