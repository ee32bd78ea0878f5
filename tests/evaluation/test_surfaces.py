"""Distances of outlines, against MONAI on the whole image, and by hand."""

import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from robustcli.evaluation.surfaces import surface_distance


def discs(seed: int, shape: tuple[int, int] = (48, 61)) -> np.ndarray:
    """A few discs, some of them cut by the image's end."""
    generator, mask = np.random.default_rng(seed), np.zeros(shape, bool)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    for _ in range(3):
        y, x, r = generator.integers(0, shape[0]), generator.integers(0, shape[1]), 3 + seed % 5
        mask |= (rows - y) ** 2 + (columns - x) ** 2 <= r * r
    return mask


def of_monai(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    one, other = (torch.from_numpy(mask.copy())[None, None] for mask in (prediction, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            float(compute_hausdorff_distance(one, other, include_background=True, percentile=95)),
            float(compute_surface_dice(one, other, [2.0], include_background=True)),
        )


@pytest.mark.parametrize("seed", range(12))
def test_the_box_changes_nothing(seed):
    prediction, truth = discs(seed), discs(seed + 100)
    found = surface_distance(prediction, truth)
    assert (found.hd95, found.boundary_dice) == pytest.approx(of_monai(prediction, truth))


@pytest.mark.parametrize("seed", range(3))
def test_nor_does_it_for_noise_and_whole_images(seed):
    prediction = np.random.default_rng(seed).random((30, 22)) < 0.3
    for truth in (np.ones((30, 22), bool), np.eye(30, 22, dtype=bool)):
        found = surface_distance(prediction, truth)
        assert (found.hd95, found.boundary_dice) == pytest.approx(of_monai(prediction, truth))


def test_two_squares_that_lie_three_pixels_apart():
    prediction, truth = np.zeros((2, 20, 20), bool)
    prediction[5:10, 5:10], truth[5:10, 8:13] = True, True
    found = surface_distance(prediction, truth)
    assert found.hd95 == 3.0
    near = 2 * sum(
        min(abs(x - 8), abs(x - 12)) <= 2 or (y in (5, 9) and x >= 6) for x, y in outline_of(5)
    )
    assert found.boundary_dice == pytest.approx(near / 32)


def outline_of(first: int) -> list[tuple[int, int]]:
    """Column and row of the 16 outline pixels of the square from `first` to `first` + 4."""
    whole = [(x, y) for x in range(first, first + 5) for y in range(5, 10)]
    return [(x, y) for x, y in whole if x in (first, first + 4) or y in (5, 9)]


def test_a_mask_has_no_distance_to_itself():
    found = surface_distance(discs(1), discs(1))
    assert (found.hd95, found.boundary_dice) == (0.0, 1.0)


@pytest.mark.parametrize("empty", [(0,), (1,), (0, 1)])
def test_without_an_outline_there_is_no_distance(empty):
    masks = np.array([discs(1), discs(2)])
    masks[list(empty)] = False
    assert surface_distance(*masks) is None


def test_masks_that_are_views_are_left_as_they_are():
    mask = discs(4)
    before = mask.copy()
    surface_distance(mask[:, ::-1], mask)
    assert np.array_equal(mask, before)
