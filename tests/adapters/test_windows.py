"""Images of any size through windows of one size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.adapters.windows import covered, padded

CPU = torch.device("cpu")
SIZES = [(1, 1), (1, 9), (2, 3), (7, 8), (8, 8), (8, 20), (31, 5)]


def image(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_padded_image_holds_the_original_in_its_middle(height: int, width: int) -> None:
    original = image(height, width)
    found = padded(original, 8)
    assert found.image.shape == (max(8, height), max(8, width), 3)
    cut = found.image[found.top : found.top + height, found.left : found.left + width]
    np.testing.assert_array_equal(cut, original)
    assert found.top == max(0, 8 - height) // 2
    assert found.left == max(0, 8 - width) // 2


def test_padding_is_a_reflection() -> None:
    row = np.repeat(np.arange(5, dtype=np.uint8)[None, :, None], 3, 2)
    assert padded(row, 9).image[4, :, 0].tolist() == [2, 1, 0, 1, 2, 3, 4, 3, 2]
    assert padded(row[:, :2], 8).image[0, :, 0].tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    assert set(padded(row[:, 4:], 8).image.flat) == {4}


def test_what_is_large_enough_is_left_alone() -> None:
    original = image(8, 9)
    assert padded(original, 8).image is original
    assert padded(original, 0).image is original


def by_hand(size: tuple[int, int], window: int, starts: tuple[list[int], list[int]]) -> Tensor:
    """The window's own coordinates, averaged with weights exp(-d^2 / 2 (window / 8)^2).

    As in the library, no weight is below a thousandth.
    """
    at = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    bell = torch.exp(-(at**2) / (2 * (window / 8) ** 2))
    weight, said = (bell[:, None] * bell).clamp(min=1e-3), at[:, None] + 10 * at
    total, norm = torch.zeros(2, *size, dtype=torch.float64)
    for top in starts[0]:
        for left in starts[1]:
            total[top : top + window, left : left + window] += weight * said
            norm[top : top + window, left : left + window] += weight
    found: Tensor = total / norm
    return found


def test_overlapping_windows_are_averaged_with_gaussian_weights() -> None:
    """Window 16, half overlap: starts at 0, 8, 16 of 32 and at 0, 8, 9 of 25 pixels."""

    def coordinates(windows: Tensor) -> Tensor:
        at = torch.arange(16.0) - 7.5
        return (at[:, None] + 10 * at).expand(len(windows), 1, 16, 16).clone()

    found = covered(torch.zeros(1, 3, 32, 25), 16, coordinates, overlap=0.5, batch=4, device=CPU)
    expected = by_hand((32, 25), 16, ([0, 8, 16], [0, 8, 9]))
    torch.testing.assert_close(found[0, 0].double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_no_more_windows_at_a_time_than_said(batch: int) -> None:
    seen: list[tuple[int, ...]] = []

    def brightness(windows: Tensor) -> Tensor:
        seen.append(tuple(windows.shape))
        return windows.mean(1, keepdim=True)

    images = torch.rand(2, 3, 20, 33, generator=torch.Generator().manual_seed(0))
    found = covered(images, 8, brightness, overlap=0.25, batch=batch, device=CPU)
    torch.testing.assert_close(found, images.mean(1, keepdim=True))
    assert {shape[1:] for shape in seen} == {(3, 8, 8)}
    assert max(shape[0] for shape in seen) <= batch
