"""What a batch is, and that nothing but its identity decides it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustcli.core.errors import UsageError
from robustcli.nnunet.normalisation import Channel, fit
from robustcli.nnunet.patches import (
    Patches,
    Phase,
    Sampling,
    choose_corner,
    cut,
    foreground_pixel,
    is_forced,
    loader_patch,
)


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


SAMPLING = Sampling((16, 16), 6, 0.33, (Channel(),) * 3, seed=0)
WITH_FOREGROUND = (1, 3)


def load(index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Image `index` of 5; those with foreground have one pixel of it, so that chance misses it."""
    image = np.random.default_rng(index).integers(0, 255, (60, 50 + index, 3), dtype=np.uint8)
    mask = np.zeros(image.shape[:2], bool)
    if index in WITH_FOREGROUND:
        mask[10 * index, 12 * index] = True
    return image, mask


def patches(phase: Phase = "val", **changes: object) -> Patches:
    return Patches(load, 5, WITH_FOREGROUND, replace(SAMPLING, **changes), phase)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "forced"), [(12, 4), (6, 2), (2, 1), (3, 1), (49, 16), (1, 0), (4, 1)]
)
def test_the_last_third_of_a_batch_is_forced(batch: int, forced: int) -> None:
    """`round` rounds halves to even, as upstream; 12 * .67 = 8.04 are free."""
    places = [is_forced(place, batch, 0.33) for place in range(batch)]
    assert places == [False] * (batch - forced) + [True] * forced


def test_forced_patches_show_foreground_in_their_middle() -> None:
    for epoch in range(20):
        for place in (4, 5):
            patch = patches().patch(epoch, 0, place)
            assert patch.forced
            assert patch.index in WITH_FOREGROUND
            assert patch.labels[8, 8] == 1 or patch.labels.any()


def test_the_others_come_from_all_images_and_seldom_show_any() -> None:
    free = [patches().patch(epoch, 0, place) for epoch in range(40) for place in range(4)]
    assert not any(patch.forced for patch in free)
    assert {patch.index for patch in free} == set(range(5))
    assert sum(bool(patch.labels.any()) for patch in free) < 25


@pytest.mark.parametrize("phase", ["train", "val"])
def test_order_and_what_came_before_change_nothing(phase: Phase) -> None:
    one, other = patches(phase), patches(phase)
    identities = [(e, i, p) for e in range(2) for i in range(2) for p in range(6)]
    forwards = {identity: one.patch(*identity) for identity in identities}
    for identity in reversed(identities):
        again = other.patch(*identity)
        assert torch.equal(again.image, forwards[identity].image)
        assert torch.equal(again.labels, forwards[identity].labels)
    free = [patch.image for patch in forwards.values() if not patch.forced]
    assert len({image.numpy().tobytes() for image in free}) == len(free)


def test_a_batch_is_its_patches() -> None:
    images, labels = patches("train").batch(3, 7)
    assert images.shape == (6, 3, 16, 16)
    assert labels.shape == (6, 16, 16)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(images[5], patches("train").patch(3, 7, 5).image)


def test_the_seed_and_the_phase_are_part_of_the_identity() -> None:
    base = patches().patch(0, 0, 0).image
    assert not torch.equal(base, patches(seed=1).patch(0, 0, 0).image)
    drawn = [
        (patches("val").patch(e, 0, 0).index, patches("train").patch(e, 0, 0).index)
        for e in range(20)
    ]
    assert any(val != train for val, train in drawn)


def test_a_patch_is_normalised_with_the_whole_images_numbers() -> None:
    patch = patches().patch(0, 0, 0)
    image, _ = load(patch.index)
    values = (image[..., 0] - image[..., 0].mean()) / image[..., 0].std()
    windows = np.lib.stride_tricks.sliding_window_view(values, (16, 16))
    distance = np.abs(windows - patch.image[0].numpy()).max((2, 3))
    assert distance.min() < 1e-5


def test_an_image_smaller_than_the_patch_is_padded() -> None:
    small = Patches(
        lambda _: (np.full((5, 7, 3), 200, np.uint8), np.ones((5, 7), bool)),
        1, (0,), replace(SAMPLING, channels=(Channel("rgb_to_0_1"),) * 3), "val",
    )  # fmt: skip
    patch = small.patch(0, 0, 0)
    assert int(patch.labels.sum()) == 35
    assert torch.equal(patch.image[0] > 0, patch.labels > 0)
    assert patch.image.max() == pytest.approx(200 / 255)


def test_images_without_any_foreground_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"(?s)The train images cannot be used for training\..*5 im"
    ):
        Patches(load, 5, (), SAMPLING, "train")
    with pytest.raises(UsageError, match="The val images cannot be used for training"):
        Patches(load, 0, (), SAMPLING, "val")
