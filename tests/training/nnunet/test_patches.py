"""What a batch is, and that nothing but its identity decides it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustcli.adapters.nnunet_normalise import Channel
from robustcli.core.errors import UsageError
from robustcli.training.nnunet.patches import Patches, Phase, Sampling, is_forced

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
    with pytest.raises(UsageError, match=r"(?s)nothing to learn from in the train images\..*5 im"):
        Patches(load, 5, (), SAMPLING, "train")
    with pytest.raises(UsageError, match="nothing to learn from in the val images"):
        Patches(load, 0, (), SAMPLING, "val")
