"""Samples are functions of seed, epoch and image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import UsageError
from robustcli.training.photos import (
    CROPS,
    Crops,
    DecodedPhotos,
    Photo,
    TrainingSamples,
    ValidationSamples,
    _box,
    changed,
    collate,
    crops_name,
)


def test_a_part_is_drawn_from_its_generator_alone() -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    first, again, other = (
        changed(image, Crops(0.5), 32, "bilinear", np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert (first.shape, first.dtype) == ((3, 32, 32), torch.uint8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("least", [0.08, 0.5])
def test_the_area_of_a_part_is_between_its_limits(least: float) -> None:
    boxes = [_box(100, 140, Crops(least), np.random.default_rng(seed)) for seed in range(300)]
    shares = [height * width / 14_000 for _, _, height, width in boxes]
    assert least - 0.02 < min(shares) < least + 0.1
    assert 0.9 < max(shares) <= 1
    assert all(0 <= t <= 100 - h and 0 <= left <= 140 - w for t, left, h, w in boxes)


def test_what_fits_no_ratio_is_cut_in_the_middle() -> None:
    assert _box(300, 10, Crops(1.0), np.random.default_rng(0)) == (143, 0, 13, 10)


def test_half_of_the_parts_are_mirrored() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, :4] = 255
    left = [
        int(changed(image, Crops(1.0), 8, "bilinear", np.random.default_rng(s))[0, 4, 0]) > 127
        for s in range(200)
    ]
    assert 70 < sum(left) < 130


def test_names() -> None:
    assert crops_name("LIGHT") == "light"
    assert CROPS["none"] is None
    with pytest.raises(UsageError, match="`heavy`"):
        crops_name("heavy")


OWN = Preprocessing(resize=16, crop=16, interpolation="bilinear")
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
PART = DecodedPhotos(["a", "b"], [Photo(pixels) for pixels in PIXELS], [1, 0])


def test_epoch_and_id_decide_and_not_the_place() -> None:
    samples = TrainingSamples(PART, OWN, "light", seed=3)
    turned = DecodedPhotos(["b", "a"], PART.photos[::-1], [0, 1])
    again = TrainingSamples(turned, OWN, "light", seed=3)
    assert torch.equal(samples[0, 0].image, again[0, 1].image)
    assert not torch.equal(samples[0, 0].image, samples[1, 0].image)
    other = TrainingSamples(PART, OWN, "light", seed=4)
    assert not torch.equal(samples[0, 0].image, other[0, 0].image)


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    plain, seen = TrainingSamples(PART, OWN, "none", seed=3), ValidationSamples(PART, OWN)
    expected = torch.from_numpy(OWN.apply(PIXELS[1]).transpose(2, 0, 1).copy())
    assert torch.equal(plain[5, 1].image, seen[1].image)
    assert torch.equal(seen[1].image, expected)


def test_a_batch_keeps_ids_and_classes_together() -> None:
    seen = ValidationSamples(PART, OWN)
    batch = collate([seen[1], seen[0]])
    assert batch.images.shape == (2, 3, 16, 16)
    assert batch.ids == ["b", "a"]
    assert (batch.targets.tolist(), batch.numbers.tolist()) == ([0, 1], [1, 0])
