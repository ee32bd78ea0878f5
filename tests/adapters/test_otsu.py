"""Otsu's threshold against scikit-image's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import filters
from torchmetrics.functional.classification import binary_accuracy

from robustcli.adapters.otsu import LUMINANCE, Otsu, threshold


def grey(values: NDArray[np.float64]) -> torch.Tensor:
    """An image (1, 3, H, W) whose channels are all `values` / 255."""
    return torch.from_numpy(values).float().div(255).expand(1, 3, *values.shape)


@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_is_scikit_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = rng.normal(rng.uniform(20, 110), 15, 700), rng.normal(rng.uniform(120, 230), 20, 300)
    levels = np.concatenate(parts).clip(0, 255).astype(np.uint8)
    levels[:2] = 0, 255  # scikit-image counts between the extremes, here always all 256 levels
    expected = filters.threshold_otsu(levels)  # type: ignore[no-untyped-call]
    assert threshold(torch.from_numpy(levels).long()) == expected


def test_the_smaller_side_is_the_foreground() -> None:
    bright = np.full((10, 10), 40.0)
    bright[2:5, 3:6] = 200
    for image in (bright, 255 - bright):
        found = Otsu()(grey(image))[0, 0]
        assert torch.equal(found, torch.from_numpy(bright == 200).float())


def test_of_equal_sides_the_brighter_one() -> None:
    half = np.zeros((4, 4))
    half[:, 2:] = 90
    assert float(binary_accuracy(Otsu()(grey(half))[0, 0], torch.from_numpy(half == 90))) == 1


@pytest.mark.parametrize("level", [0, 100, 255])
def test_an_image_of_one_brightness_has_no_foreground(level: int) -> None:
    found = Otsu()(grey(np.full((3, 5), float(level))))
    assert found.shape == (1, 1, 3, 5)
    assert not found.any()


def test_colours_count_by_their_luminance() -> None:
    image = torch.zeros(1, 3, 2, 2)
    image[0, 1, 0, 0] = 1  # green is brighter than blue
    image[0, 2, 1:] = 1
    assert sum(LUMINANCE) == pytest.approx(1)
    assert Otsu()(image)[0, 0].tolist() == [[1, 0], [0, 0]]


def test_every_image_has_its_own_threshold() -> None:
    rng = np.random.default_rng(0)
    one, other = (grey(rng.integers(0, top, (8, 9)).astype(float)) for top in (40, 255))
    both = Otsu()(torch.cat((one, other)))
    assert torch.equal(both, torch.cat((Otsu()(one), Otsu()(other))))
    assert set(both.unique().tolist()) == {0, 1}
