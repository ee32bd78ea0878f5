"""Where patches lie, and what they hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustcli.adapters.nnunet_normalise import Channel, fit
from robustcli.training.nnunet.cutting import choose_corner, cut, foreground_pixel, loader_patch


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("patch", "size"),
    [
        ((512, 512), (602, 602)),  # the specification's example
        ((256, 256), (301, 301)),
        ((384, 640), (631, 752)),  # 15 degrees: 384 cos + 640 sin = 536.6, over .85
        ((320, 448), (527, 527)),  # any angle, as at 90 degrees
    ],
)
def test_the_margin_for_rotation_and_scaling(patch: tuple[int, int], size: tuple[int, int]) -> None:
    assert loader_patch(patch) == size


def corners(shape: tuple[int, int], size: int, final: int) -> set[int]:
    rng = generator()
    drawn = [choose_corner(shape, (size, size), (final, final), None, rng) for _ in range(2000)]
    return {row for row, _ in drawn}


def test_without_margin_every_place_inside_is_drawn_and_none_else() -> None:
    assert corners((20, 20), 16, 16) == set(range(5))


def test_the_margin_may_lie_outside() -> None:
    # 4 pixels of margin, 2 on each side: from -2 to 20 + 2 - 20
    assert corners((20, 20), 20, 16) == set(range(-2, 3))


def test_a_small_image_is_padded_on_both_sides() -> None:
    assert corners((9, 9), 16, 16) == {-4, -3}
    assert corners((10, 10), 16, 16) == {-3}


def test_a_patch_lies_around_its_centre_but_not_above_or_left_of_the_lowest_place() -> None:
    rng = generator()
    size, final = (16, 16), (16, 16)
    assert choose_corner((40, 40), size, final, (20, 30), rng) == (12, 22)
    assert choose_corner((40, 40), size, final, (2, 39), rng) == (0, 31)  # beyond: padded, as there


def test_outside_of_the_image_pixels_are_zero_after_normalisation() -> None:
    image = generator().integers(0, 255, (6, 5, 3), dtype=np.uint8)
    labels = generator().integers(0, 3, (6, 5))
    normaliser = fit(image, [Channel()] * 3)
    pixels, truth = cut(image, labels, normaliser, (-2, 1), (10, 3))
    assert pixels.shape == (3, 10, 3)
    assert truth.dtype == torch.int64
    assert not pixels[:, :2].any()
    assert not pixels[:, 8:].any()
    assert not truth[:2].any()
    whole = normaliser(image)
    assert np.array_equal(pixels[:, 2:8].numpy(), whole[:, :, 1:4])
    assert np.array_equal(truth[2:8].numpy(), labels[:, 1:4])


def test_a_patch_beside_the_image_is_all_padding_on_that_side() -> None:
    image = np.full((4, 4, 1), 9, np.uint8)
    pixels, truth = cut(image, np.ones((4, 4), bool), fit(image, [Channel("none")]), (2, 2), (4, 4))
    assert pixels[0].numpy().tolist() == [[9, 9, 0, 0]] * 2 + [[0] * 4] * 2
    assert truth.numpy().tolist() == [[1, 1, 0, 0]] * 2 + [[0] * 4] * 2


def test_classes_are_drawn_evenly_however_small() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[:10], labels[15, 15], labels[19] = 1, 2, 9
    rng = generator()
    drawn = [foreground_pixel(labels, 9, forced=True, rng=rng) for _ in range(400)]
    found = [labels[place] for place in drawn if place is not None]
    assert len(found) == 400
    assert set(found) == {1, 2}
    assert 150 < found.count(2) < 250


def test_no_pixel_where_none_is_needed_or_none_is_there() -> None:
    rng = generator()
    assert foreground_pixel(np.ones((3, 3), bool), None, forced=False, rng=rng) is None
    assert foreground_pixel(np.zeros((3, 3), bool), None, forced=True, rng=rng) is None
    assert foreground_pixel(np.full((3, 3), 2), 2, forced=False, rng=rng) is None


def test_patches_lie_around_annotated_pixels_where_not_all_are() -> None:
    labels = np.full((9, 9), 2)
    labels[4, 7] = 0
    assert foreground_pixel(labels, 2, forced=False, rng=generator()) == (4, 7)
