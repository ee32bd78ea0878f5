"""Samples: the same image, window and change wherever and whenever they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resize

from robustcli.data.mask_values import IGNORED
from robustcli.training.batches.cache import Decoded
from robustcli.training.batches.samples import (
    TrainingSamples,
    ValidationSamples,
    WholeSamples,
    collate,
)
from tests.training.pairs import decoded

IDS = ("a", "b", "c", "d")
PIXELS = decoded(4)


def training(
    ids: Sequence[str] = IDS, pixels: Sequence[Decoded] = PIXELS, augmentation: str = "none"
) -> TrainingSamples:
    return TrainingSamples(ids, pixels, 24, augmentation, seed=7)


def test_a_sample_is_a_window_of_its_image() -> None:
    sample = training()[0, 2]
    assert (sample.image_id, sample.number) == ("c", 2)
    assert (sample.image.shape, sample.mask.shape) == ((3, 24, 24), (1, 24, 24))
    image = torch.from_numpy(PIXELS[2].image).permute(2, 0, 1)
    windows = image.unfold(1, 24, 1).unfold(2, 24, 1)
    found = (windows == sample.image[:, None, None]).flatten(3).all(3).all(0)
    assert found.sum() == 1
    top, left = (int(i) for i in found.nonzero()[0])
    mask = torch.from_numpy(PIXELS[2].mask)[top : top + 24, left : left + 24]
    assert torch.equal(sample.mask[0], mask)


def test_neither_order_nor_place_in_the_list_matters() -> None:
    usual, reversed_ = (
        training(augmentation="strong"),
        training(IDS[::-1], PIXELS[::-1], "strong"),
    )
    late = [usual[1, 3], usual[0, 0], usual[1, 1]][2]
    again = reversed_[1, 2]
    assert late.image_id == again.image_id == "b"
    assert torch.equal(late.image, again.image)
    assert torch.equal(late.mask, again.mask)
    assert not torch.equal(late.image, usual[2, 1].image)


def test_validation_sees_every_pixel_once() -> None:
    samples = ValidationSamples(IDS, PIXELS, 20)
    seen = np.zeros(len(IDS), int)
    foreground = np.zeros(len(IDS), int)
    for number in range(len(samples)):
        sample = samples[number]
        place = IDS.index(sample.image_id)
        assert sample.number == number
        seen[place] += int(sample.counted.sum())
        foreground[place] += int((sample.mask.bool() & sample.counted).sum())
    assert seen.tolist() == [40 * 48] * 4
    assert foreground.tolist() == [int(one.mask.sum()) for one in PIXELS]


def test_whole_images_are_resized_as_torchvision_0_15_did() -> None:
    sample = WholeSamples(IDS, PIXELS, 31)[1]
    image = torch.from_numpy(PIXELS[1].image).permute(2, 0, 1).float() / 255
    mask = torch.from_numpy(PIXELS[1].mask)[None].float()
    assert torch.allclose(sample.image, resize(image, [31, 31], antialias=False), atol=1e-6)
    assert torch.allclose(sample.mask, resize(mask, [31, 31], antialias=False), atol=1e-6)
    assert sample.mask[(sample.mask > 0) & (sample.mask < 1)].numel() > 0


def test_images_of_the_right_size_stay_as_they_are() -> None:
    pixels = decoded(1, 32, 32)
    sample = WholeSamples(("x",), pixels, 32)[0, 0]
    assert torch.equal(sample.image * 255, torch.from_numpy(pixels[0].image).permute(2, 0, 1))
    assert set(sample.mask.unique().tolist()) == {0.0, 1.0}


def test_a_batch_keeps_what_its_samples_are() -> None:
    samples = [training()[0, place] for place in (3, 1)]
    batch = collate(samples)
    assert batch.ids == ["d", "b"]
    assert batch.numbers.tolist() == [3, 1]
    assert torch.equal(batch.images[1], samples[1].image)
    assert batch.masks.shape == batch.counted.shape == (2, 1, 24, 24)


@pytest.mark.parametrize("augmentation", ["none", "light", "strong"])
def test_ignored_pixels_do_not_count(augmentation: str) -> None:
    mask = PIXELS[0].mask.copy()
    mask[:, 30:] = IGNORED
    marked = [Decoded(PIXELS[0].image, mask)]
    trained = [training(("a",), marked, augmentation)[epoch, 0] for epoch in range(20)]
    assert any((~sample.counted).any() for sample in trained)
    for sample in trained:
        assert set(sample.mask.unique().tolist()) <= {0, 1, IGNORED}
        assert torch.equal(sample.counted, sample.mask != IGNORED)
    windows = [ValidationSamples(("a",), marked, 24)[i] for i in range(4)]
    assert sum(int(sample.counted.sum()) for sample in windows) == (mask != IGNORED).sum()
