"""Outlines, against SciPy's erosion."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from robustcli.evaluation.outlines import COLOUR, outline, outlined, overlaid


@pytest.mark.parametrize("width", [1, 3])
def test_the_outline_is_what_an_erosion_takes_away(width):
    mask = np.random.default_rng(0).random((30, 25)) < 0.9
    expected = mask & ~binary_erosion(mask, iterations=width)
    assert np.array_equal(outline(mask, width), expected)


def test_only_the_outline_is_drawn_and_the_image_stays():
    image = np.full((20, 20, 3), 50, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    drawn = outlined(image, mask)
    coloured = (drawn == COLOUR).all(-1)
    assert np.array_equal(coloured, outline(mask))
    assert (drawn[~coloured] == 50).all()
    assert (image == 50).all()


def test_lines_grow_with_the_image():
    mask = np.zeros((1100, 1100), bool)
    mask[100:1000, 100:1000] = True
    drawn = outlined(np.zeros((1100, 1100, 3), np.uint8), mask)
    assert (drawn[500] == COLOUR).all(-1).sum() == 6, "three pixels on each side"


def test_an_overlay_tints_the_inside_and_nothing_else():
    image = np.full((20, 20, 3), 100, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    drawn = overlaid(image, mask)
    assert drawn[10, 10].tolist() == [139, 128, 78], "a quarter of the colour"
    assert (drawn[~mask] == 100).all()
