"""Windows: every pixel counts once, padding is prediction's, places hang on identity alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from robustcli.adapters.windows import padded
from robustcli.training.batches.windows import random_place, tiles, window

SIDES = st.integers(1, 90)


@given(SIDES, SIDES, SIDES)
def test_every_pixel_counts_once(height: int, width: int, side: int) -> None:
    image: NDArray[Any] = np.arange(height * width).reshape(height, width)
    counted: list[NDArray[Any]] = []
    for tile in tiles(height, width, side):
        seen = window(image, tile.top, tile.left, side)
        assert seen.shape == (side, side)
        rows = slice(tile.first_row, tile.first_row + tile.rows)
        columns = slice(tile.first_column, tile.first_column + tile.columns)
        counted.append(seen[rows, columns].ravel())
    assert np.array_equal(np.sort(np.concatenate(counted)), np.arange(height * width))


@given(SIDES, SIDES, SIDES)
def test_there_are_no_more_windows_than_needed(height: int, width: int, side: int) -> None:
    assert len(list(tiles(height, width, side))) == -(-height // side) * -(-width // side)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 20), (20, 20), (9, 40)])
def test_a_small_image_is_padded_as_in_prediction(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    expected = padded(image, 20).image[:20, :20]
    assert np.array_equal(window(image, 0, 0, 20), expected)


def test_a_window_inside_is_the_image() -> None:
    image = np.arange(100, dtype=np.uint8).reshape(10, 10)
    assert np.array_equal(window(image, 2, 5, 4), image[2:6, 5:9])


def test_places_hang_on_identity_and_reach_every_corner() -> None:
    places = [random_place(12, 30, 10, 0, epoch, "a") for epoch in range(400)]
    assert places == [random_place(12, 30, 10, 0, epoch, "a") for epoch in range(400)]
    assert {top for top, _ in places} == {0, 1, 2}
    assert {left for _, left in places} == set(range(21))
    assert places != [random_place(12, 30, 10, 0, epoch, "b") for epoch in range(400)]


def test_a_small_image_has_one_place() -> None:
    assert random_place(5, 5, 10, "x") == (0, 0)
