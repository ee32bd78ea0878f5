"""Shifts, flips and RandAugment of batches of photos: random numbers and equal results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from robustcli.adapters.preprocessing import CIFAR10
from robustcli.core.errors import UsageError
from robustcli.core.seeds import below, identity_seed, stream_bits, stream_keys
from robustcli.training import shifts as module
from robustcli.training.datamodule import BatchSettings, Decoded, DecodedSubset
from robustcli.training.procedures.photos import photo_data
from robustcli.training.recipes import CLASS_RECIPES
from robustcli.training.samples import PhotoBatch, RandomCrops, WholePhotos
from robustcli.training.shifts import (
    SHIFTS,
    PhotoBatches,
    ResidentPhotos,
    draw,
    photo_augmentation_name,
    photo_keys,
    randaugmented,
    shifted,
)
from tests.imaginary_gpu import GPU, imaginary_gpu

RNG = np.random.default_rng(3)
VIEW16 = replace(CIFAR10, resize=16, crop=16)
SUBSET = DecodedSubset(
    [f"train/{number}.png" for number in range(11)],
    [
        Decoded(RNG.integers(0, 256, (16, 16 + 4 * (number % 2), 3), np.uint8))
        for number in range(11)
    ],
    [number % 3 for number in range(11)],
)
SAMPLES = [(0, 4), (0, 1), (2, 7), (2, 10)]


def test_the_stream_is_splitmix64() -> None:
    keys = np.array([1234567], np.uint64)
    # Source: the test values of Vigna's splitmix64.c at this seed, as printed on rosettacode.org.
    expected_stream = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert stream_bits(keys, 0, 3).tolist() == [expected_stream]
    assert stream_bits(keys, 1, 2).tolist() == [expected_stream[1:]]
    two_streams = stream_bits(np.array([1234567, 1234567], np.uint64), np.array([0, 2]), 1)
    assert two_streams[:, 0].tolist() == [expected_stream[0], expected_stream[2]]


def test_stream_keys_equal_identity_seeds() -> None:
    keys = stream_keys([("shift", 5, "a"), ("shift", 5, "b")])
    assert keys.tolist() == [identity_seed("shift", 5, "a"), identity_seed("shift", 5, "b")]


def test_integers_below_a_limit_are_as_likely() -> None:
    keys = stream_keys([(number,) for number in range(2000)])
    counts = np.bincount(below(stream_bits(keys, 0, 9), 9).ravel(), minlength=9)
    assert counts.sum() == 18000
    # Chi-square with 8 degrees of freedom: above 26.1 with a probability of 0.001.
    assert ((counts - 2000) ** 2 / 2000).sum() < 26.1


@pytest.mark.parametrize("name", ["shift", "shift-reflect"])
def test_a_shift_is_torchvisions_crop_of_the_padded_photo(name: str) -> None:
    shifts, keys = SHIFTS[name], photo_keys(SUBSET.ids, 1)
    images = RNG.integers(0, 256, (11, 16, 16, 3), np.uint8)
    moves = draw(keys, 3, shifts.pixels(16))
    mode = "constant" if name == "shift" else "reflect"
    for number, image in enumerate(shifted(images, moves, shifts)):
        tensor = torch.from_numpy(images[number].transpose(2, 0, 1).copy())
        padded = v2.functional.pad(tensor, [2, 2, 2, 2], padding_mode=mode)
        cropped = v2.functional.crop(
            padded, int(moves.down[number]), int(moves.across[number]), 16, 16
        )
        if moves.mirrored[number]:
            cropped = v2.functional.horizontal_flip(cropped)
        assert np.array_equal(image, cropped.numpy())
    assert len(set(moves.down.tolist())) > 1
    assert 0 < moves.mirrored.sum() < 11


def test_randaugment_is_torchvisions_by_the_photos_own_seed() -> None:
    images = RNG.integers(0, 256, (6, 3, 16, 16), np.uint8)
    seeds = photo_keys(SUBSET.ids[:6], 0) >> np.uint64(1)
    state = torch.get_rng_state()
    augmented = randaugmented(images, seeds, SHIFTS["randaugment"])
    assert torch.equal(torch.get_rng_state(), state)
    for number, seed in enumerate(seeds.tolist()):
        torch.manual_seed(seed)
        expected = v2.RandAugment(2, 9)(Image.fromarray(images[number].transpose(1, 2, 0)))
        assert np.array_equal(augmented[number], np.asarray(expected).transpose(2, 0, 1))
    torch.set_rng_state(state)
    assert sum(not np.array_equal(a, b) for a, b in zip(images, augmented, strict=True)) >= 3


def same_batch(first: PhotoBatch, second: PhotoBatch) -> bool:
    tensors = ("images", "targets", "numbers")
    return first.ids == second.ids and all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in tensors
    )


@pytest.mark.parametrize("name", ["shift", "shift-reflect"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shifts_on_the_device_equal_those_of_the_loader(name: str, channels: int) -> None:
    preprocessing = VIEW16.of_channels(channels)
    loaded = PhotoBatches(SUBSET, preprocessing, SHIFTS[name], 5).__getitems__(SAMPLES)
    resident = ResidentPhotos(SUBSET, preprocessing, SHIFTS[name], 5, torch.device("cpu"))[SAMPLES]
    assert loaded.images.shape == (4, channels, 16, 16)
    assert same_batch(loaded, resident)


def test_a_photo_is_drawn_by_seed_epoch_and_id_alone() -> None:
    photos = PhotoBatches(SUBSET, VIEW16, SHIFTS["randaugment"], 5)
    batch = photos.__getitems__(SAMPLES)
    for number, item in enumerate(SAMPLES):
        single_batch = photos[item]
        assert torch.equal(single_batch.images[0], batch.images[number])
    reversed_subset = DecodedSubset(SUBSET.ids[::-1], SUBSET.decoded[::-1], SUBSET.targets[::-1])
    reordered = PhotoBatches(reversed_subset, VIEW16, SHIFTS["randaugment"], 5)[0, 10 - 4]
    assert torch.equal(reordered.images[0], batch.images[0])
    for seed, epoch in ((6, 0), (5, 1)):
        other_draw = PhotoBatches(SUBSET, VIEW16, SHIFTS["randaugment"], seed)[epoch, 4]
        assert not torch.equal(other_draw.images[0], batch.images[0])


def test_without_shifts_photos_are_those_of_the_evaluation() -> None:
    unshifted, whole_photos = (PhotoBatches(SUBSET, VIEW16, None, 5), WholePhotos(SUBSET, VIEW16))
    crops = RandomCrops(SUBSET, VIEW16, "none", 5)
    resident = ResidentPhotos(SUBSET, VIEW16, None, 5, torch.device("cpu"))
    for number in range(11):
        assert torch.equal(unshifted[number].images[0], whole_photos[number].image)
        assert torch.equal(unshifted[2, number].images[0], crops[2, number].image)
        assert torch.equal(resident[[number]].images[0], whole_photos[number].image)
    assert unshifted.__getitems__([]).ids == resident[[]].ids == []


def test_batches_stay_on_the_device() -> None:
    with imaginary_gpu():
        photos = ResidentPhotos(SUBSET, VIEW16, SHIFTS["shift"], 5, GPU)
        batch = photos[SAMPLES]
        # An operation on tensors of two devices raises an error.
        assert (batch.images.float().mean((1, 2, 3)) + batch.targets).shape == (4,)
        assert batch.numbers.add(photos.targets[:4]).shape == (4,)


def test_constant_photos_are_known_on_the_device() -> None:
    black = [Decoded(np.zeros((16, 16, 3), np.uint8)), *SUBSET.decoded[1:]]
    subset = replace(SUBSET, decoded=black)
    batch = ResidentPhotos(subset, VIEW16, SHIFTS["shift"], 0, torch.device("cpu"))[
        [(0, 0), (0, 1)]
    ]
    assert batch.constant == (subset.ids[0],)


def batches(recipe: Any, workers: int, epoch: int) -> list[PhotoBatch]:
    data: Any = photo_data(recipe, SUBSET, SUBSET, VIEW16, BatchSettings(1, workers, least=2))
    loader = data.train_dataloader()
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
    return [*loader, *data.val_dataloader()]


@pytest.fixture(scope="module")
def serial() -> list[PhotoBatch]:
    return batches(replace(CLASS_RECIPES["fair"], batch_size=5, window=16), 0, 1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_batches_do_not_depend_on_the_number_of_workers(
    serial: list[PhotoBatch], workers: int
) -> None:
    recipe = replace(CLASS_RECIPES["fair"], batch_size=5, window=16)
    shared = batches(recipe, workers, 1)
    assert [len(batch.ids) for batch in shared] == [5, 3, 3, 5, 5, 1]
    assert all(same_batch(first, second) for first, second in zip(serial, shared, strict=True))


def test_the_device_gives_the_loaders_batches_in_every_epoch() -> None:
    fair = replace(CLASS_RECIPES["fair"], batch_size=5, window=16, augmentation="shift-reflect")
    speedrun = replace(CLASS_RECIPES["speedrun"], batch_size=5, window=16)
    first, second = (batches(speedrun, 0, epoch) for epoch in (0, 1))
    assert all(
        same_batch(on_device, loaded)
        for on_device, loaded in zip(second, batches(fair, 0, 1), strict=True)
    )
    assert not same_batch(first[0], second[0])


def test_images_that_do_not_fit_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    with pytest.raises(UsageError, match=r"only 0\.0 GB are free"):
        ResidentPhotos(SUBSET, VIEW16, SHIFTS["shift"], 0, torch.device("cpu"))


def test_augmentations_by_name() -> None:
    assert photo_augmentation_name("RANDAUGMENT") == "randaugment"
    assert photo_augmentation_name("light") == "light"
    with pytest.raises(UsageError, match="`heavy`"):
        photo_augmentation_name("heavy")
