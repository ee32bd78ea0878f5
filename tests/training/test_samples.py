"""Samples depend on seed, epoch and id only: windows, augmentation, shifts, RandAugment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize

from robustcli.adapters.preprocessing import CIFAR10, Preprocessing
from robustcli.adapters.segmenter import padded_to_window
from robustcli.core.draws import below, stream_bits, stream_keys
from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.data.mask_values import IGNORED
from robustcli.training import photo_samples as module
from robustcli.training.datamodule import BatchSettings, Decoded, DecodedSubset
from robustcli.training.mask_samples import (
    AUGMENTATIONS,
    AllWindows,
    RandomWindows,
    ResizedImages,
    augment,
    augmentation_name,
    collate_masks,
    random_place,
    tiles,
    window,
)
from robustcli.training.photo_samples import (
    CROPS,
    SHIFTS,
    Crops,
    PhotoBatch,
    PhotoBatches,
    ResidentPhotos,
    _crop_box,
    draw,
    photo_augmentation_name,
    photo_keys,
    randaugmented,
    random_crop,
    shifted,
)
from robustcli.training.procedures import procedure_of
from robustcli.training.recipes import CLASS_RECIPES
from tests.imaginary_gpu import GPU, imaginary_gpu
from tests.training.images import decoded, disc


def pair(number: int = 0, size: int = 48) -> tuple[Tensor, Tensor]:
    image, mask = disc(number, size, size)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)[None]


def disc_mask(image: Tensor) -> Tensor:
    """Detects the disc: it is reddish, the rest is grey or black."""
    redness = image[:1].float() - image[1:2].float()
    return redness > redness.max() / 2


def test_the_mask_moves_with_the_image() -> None:
    for seed in range(12):
        image, mask = augment(*pair(), name="light", seed=seed)
        assert torch.equal(disc_mask(image), mask.bool())


@pytest.mark.parametrize("seed", range(12))
def test_strong_augmentation_moves_image_and_mask_alike(seed: int) -> None:
    image, mask = augment(*pair(), name="strong", seed=seed)
    assert set(mask.unique().tolist()) == {0, 1}
    image_centre, mask_centre = (
        points[0].nonzero().float().mean(0) for points in (disc_mask(image), mask)
    )
    assert torch.allclose(
        image_centre, mask_centre, atol=1.0
    )  # pixels; blurring moves only the edge


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_keeps_types_and_sizes(name: str) -> None:
    image, mask = augment(*pair(), name=name, seed=3)
    assert type(image) is type(mask) is Tensor
    assert image.dtype == mask.dtype == torch.uint8
    assert (image.shape, mask.shape) == ((3, 48, 48), (1, 48, 48))


def test_all_eight_positions_of_a_square_come() -> None:
    mask = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)
    positions = {
        tuple(augment(mask.repeat(3, 1, 1), mask, name="light", seed=s)[1].flatten().tolist())
        for s in range(100)
    }
    assert len(positions) == 8


def test_augmentation_none_changes_nothing() -> None:
    image, mask = pair()
    augmented = augment(image, mask, name="none", seed=5)
    assert torch.equal(augmented[0], image)
    assert torch.equal(augmented[1], mask)


def test_augmentation_depends_on_its_seed_only_and_keeps_the_global_generator() -> None:
    torch.manual_seed(1)
    first = augment(*pair(), name="strong", seed=8)
    following = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(following, torch.rand(3))
    augment(*pair(1), name="strong", seed=9)
    repeated = augment(*pair(), name="strong", seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first, repeated, strict=True))
    other_sample = augment(*pair(), name="strong", seed=10)
    assert not torch.equal(first[0], other_sample[0])


def test_an_unknown_name() -> None:
    assert augmentation_name("Light") == "light"
    with pytest.raises(UsageError, match="No augmentation is called `heavy`"):
        augmentation_name("heavy")


IDS = ("a", "b", "c", "d")
PIXELS = decoded(4)


def training(
    ids: Sequence[str] = IDS, pixels: Sequence[Decoded] = PIXELS, augmentation: str = "none"
) -> RandomWindows:
    return RandomWindows(DecodedSubset(ids, pixels), 24, augmentation, seed=7)


def test_a_sample_is_a_window_of_its_image() -> None:
    sample = training()[0, 2]
    assert (sample.image_id, sample.number) == ("c", 2)
    assert (sample.image.shape, sample.mask.shape) == ((3, 24, 24), (1, 24, 24))
    image = torch.from_numpy(PIXELS[2].image).permute(2, 0, 1)
    windows = image.unfold(1, 24, 1).unfold(2, 24, 1)
    matches = (windows == sample.image[:, None, None]).flatten(3).all(3).all(0)
    assert matches.sum() == 1
    top_edge, left_edge = (int(i) for i in matches.nonzero()[0])
    mask = torch.from_numpy(PIXELS[2].mask)[top_edge : top_edge + 24, left_edge : left_edge + 24]
    assert torch.equal(sample.mask[0], mask)


def test_samples_do_not_depend_on_order_or_position() -> None:
    forwards, backwards = (
        training(augmentation="strong"),
        training(IDS[::-1], PIXELS[::-1], "strong"),
    )
    sample = [forwards[1, 3], forwards[0, 0], forwards[1, 1]][2]
    repeated = backwards[1, 2]
    assert sample.image_id == repeated.image_id == "b"
    assert torch.equal(sample.image, repeated.image)
    assert torch.equal(sample.mask, repeated.mask)
    assert not torch.equal(sample.image, forwards[2, 1].image)


def test_validation_sees_every_pixel_once() -> None:
    samples = AllWindows(DecodedSubset(IDS, PIXELS), 20)
    counts = np.zeros(len(IDS), int)
    foreground = np.zeros(len(IDS), int)
    for number in range(len(samples)):
        sample = samples[number]
        position = IDS.index(sample.image_id)
        assert sample.number == number
        counts[position] += int(sample.counted.sum())
        foreground[position] += int((sample.mask.bool() & sample.counted).sum())
    assert counts.tolist() == [40 * 48] * 4
    assert foreground.tolist() == [int(item.mask.sum()) for item in PIXELS]


def test_whole_images_are_resized_as_torchvision_0_15_did() -> None:
    sample = ResizedImages(DecodedSubset(IDS, PIXELS), 31)[1]
    image = torch.from_numpy(PIXELS[1].image).permute(2, 0, 1).float() / 255
    mask = torch.from_numpy(PIXELS[1].mask)[None].float()
    assert torch.allclose(sample.image, resize(image, [31, 31], antialias=False), atol=1e-6)
    assert torch.allclose(sample.mask, resize(mask, [31, 31], antialias=False), atol=1e-6)
    assert sample.mask[(sample.mask > 0) & (sample.mask < 1)].numel() > 0


def test_images_of_the_right_size_stay_as_they_are() -> None:
    pixels = decoded(1, 32, 32)
    sample = ResizedImages(DecodedSubset(("x",), pixels), 32)[0, 0]
    assert torch.equal(sample.image * 255, torch.from_numpy(pixels[0].image).permute(2, 0, 1))
    assert set(sample.mask.unique().tolist()) == {0.0, 1.0}


def test_a_batch_keeps_the_fields_of_its_samples() -> None:
    samples = [training()[0, position] for position in (3, 1)]
    batch = collate_masks(samples)
    assert batch.ids == ["d", "b"]
    assert batch.numbers.tolist() == [3, 1]
    assert torch.equal(batch.images[1], samples[1].image)
    assert batch.masks.shape == batch.counted.shape == (2, 1, 24, 24)


@pytest.mark.parametrize("augmentation", ["none", "light", "strong"])
def test_ignored_pixels_do_not_count(augmentation: str) -> None:
    mask = PIXELS[0].mask.copy()
    mask[:, 30:] = IGNORED
    marked = [Decoded(PIXELS[0].image, mask)]
    epoch_samples = [training(("a",), marked, augmentation)[epoch, 0] for epoch in range(20)]
    assert any((~sample.counted).any() for sample in epoch_samples)
    for sample in epoch_samples:
        assert set(sample.mask.unique().tolist()) <= {0, 1, IGNORED}
        assert torch.equal(sample.counted, sample.mask != IGNORED)
    windows = [AllWindows(DecodedSubset(("a",), marked), 24)[i] for i in range(4)]
    assert sum(int(sample.counted.sum()) for sample in windows) == (mask != IGNORED).sum()


SIZES = st.integers(1, 90)


@given(SIZES, SIZES, SIZES)
def test_every_pixel_counts_once(height: int, width: int, size: int) -> None:
    image: NDArray[Any] = np.arange(height * width).reshape(height, width)
    tiles_seen: list[NDArray[Any]] = []
    for tile in tiles(height, width, size):
        cut = window(image, tile.top, tile.left, size)
        assert cut.shape == (size, size)
        rows = slice(tile.first_row, tile.first_row + tile.rows)
        columns = slice(tile.first_column, tile.first_column + tile.columns)
        tiles_seen.append(cut[rows, columns].ravel())
    assert np.array_equal(np.sort(np.concatenate(tiles_seen)), np.arange(height * width))


@given(SIZES, SIZES, SIZES)
def test_there_are_no_more_windows_than_needed(height: int, width: int, size: int) -> None:
    assert len(list(tiles(height, width, size))) == -(-height // size) * -(-width // size)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 20), (20, 20), (9, 40)])
def test_a_small_image_is_padded_as_in_prediction(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    expected = padded_to_window(image, (20, 20)).image[:20, :20]
    assert np.array_equal(window(image, 0, 0, 20), expected)


def test_a_window_inside_is_the_image() -> None:
    image = np.arange(100, dtype=np.uint8).reshape(10, 10)
    assert np.array_equal(window(image, 2, 5, 4), image[2:6, 5:9])


def test_positions_depend_on_id_and_reach_every_corner() -> None:
    places = [random_place(12, 30, 10, 0, epoch, "a") for epoch in range(400)]
    assert places == [random_place(12, 30, 10, 0, epoch, "a") for epoch in range(400)]
    assert {top for top, _ in places} == {0, 1, 2}
    assert {left for _, left in places} == set(range(21))
    assert places != [random_place(12, 30, 10, 0, epoch, "b") for epoch in range(400)]


def test_a_small_image_has_one_place() -> None:
    assert random_place(5, 5, 10, "x") == (0, 0)


def test_a_crop_depends_on_its_generator_only() -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    first, repeated, other_parts = (
        random_crop(image, Crops(0.5), 32, "bilinear", np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert (first.shape, first.dtype) == ((3, 32, 32), torch.uint8)
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other_parts)


@pytest.mark.parametrize("least", [0.08, 0.5])
def test_the_area_of_a_part_is_between_its_limits(least: float) -> None:
    boxes = [_crop_box(100, 140, Crops(least), np.random.default_rng(seed)) for seed in range(300)]
    shares = [height * width / 14_000 for _, _, height, width in boxes]
    assert least - 0.02 < min(shares) < least + 0.1
    assert 0.9 < max(shares) <= 1
    assert all(0 <= t <= 100 - h and 0 <= left <= 140 - w for t, left, h, w in boxes)


def test_images_outside_of_all_ratios_are_cropped_in_the_centre() -> None:
    assert _crop_box(300, 10, Crops(1.0), np.random.default_rng(0)) == (143, 0, 13, 10)


def test_half_of_the_parts_are_mirrored() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, :4] = 255
    left_edges = [
        int(random_crop(image, Crops(1.0), 8, "bilinear", np.random.default_rng(s))[0, 4, 0]) > 127
        for s in range(200)
    ]
    assert 70 < sum(left_edges) < 130


VIEW16 = Preprocessing(resize=16, crop=16, interpolation="bilinear")
PIXELS_PHOTOS = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
SUBSET = DecodedSubset(["a", "b"], [Decoded(pixels) for pixels in PIXELS_PHOTOS], [1, 0])


def test_crops_depend_on_epoch_and_id_not_on_position() -> None:
    def images(subset: DecodedSubset, drawn: tuple[int, int], seed: int = 3) -> Tensor:
        return PhotoBatches(subset, VIEW16, CROPS["light"], seed)[drawn].images

    reversed_subset = DecodedSubset(["b", "a"], SUBSET.decoded[::-1], [0, 1])
    first = images(SUBSET, (0, 0))
    assert torch.equal(first, images(reversed_subset, (0, 1)))
    assert not torch.equal(first, images(SUBSET, (1, 0)))
    assert not torch.equal(first, images(SUBSET, (0, 0), seed=4))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_keeps_ids_and_classes_together(channels: int) -> None:
    photos = PhotoBatches(SUBSET, VIEW16.of_channels(channels), CROPS["light"], 3)
    batch = photos.__getitems__([(0, 1), (0, 0)])
    assert batch.images.shape == (2, channels, 16, 16)
    assert batch.ids == ["b", "a"]
    assert (batch.targets.tolist(), batch.numbers.tolist()) == ([0, 1], [1, 0])


RNG = np.random.default_rng(3)
SHIFTED_VIEW16 = replace(CIFAR10, resize=16, crop=16)
SHIFTED_SUBSET = DecodedSubset(
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
    shifts, keys = SHIFTS[name], photo_keys(SHIFTED_SUBSET.ids, 1)
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
    seeds = photo_keys(SHIFTED_SUBSET.ids[:6], 0) >> np.uint64(1)
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
    preprocessing = SHIFTED_VIEW16.of_channels(channels)
    loaded = PhotoBatches(SHIFTED_SUBSET, preprocessing, SHIFTS[name], 5).__getitems__(SAMPLES)
    resident = ResidentPhotos(SHIFTED_SUBSET, preprocessing, SHIFTS[name], 5, torch.device("cpu"))[
        SAMPLES
    ]
    assert loaded.images.shape == (4, channels, 16, 16)
    assert same_batch(loaded, resident)


def test_a_photo_is_drawn_by_seed_epoch_and_id_alone() -> None:
    photos = PhotoBatches(SHIFTED_SUBSET, SHIFTED_VIEW16, SHIFTS["randaugment"], 5)
    batch = photos.__getitems__(SAMPLES)
    for number, item in enumerate(SAMPLES):
        single_batch = photos[item]
        assert torch.equal(single_batch.images[0], batch.images[number])
    reversed_subset = DecodedSubset(
        SHIFTED_SUBSET.ids[::-1], SHIFTED_SUBSET.decoded[::-1], SHIFTED_SUBSET.targets[::-1]
    )
    reordered = PhotoBatches(reversed_subset, SHIFTED_VIEW16, SHIFTS["randaugment"], 5)[0, 10 - 4]
    assert torch.equal(reordered.images[0], batch.images[0])
    for seed, epoch in ((6, 0), (5, 1)):
        other_draw = PhotoBatches(SHIFTED_SUBSET, SHIFTED_VIEW16, SHIFTS["randaugment"], seed)[
            epoch, 4
        ]
        assert not torch.equal(other_draw.images[0], batch.images[0])


def test_without_shifts_photos_are_those_of_the_evaluation() -> None:
    loaded = PhotoBatches(SHIFTED_SUBSET, SHIFTED_VIEW16, None, 5)
    resident = ResidentPhotos(SHIFTED_SUBSET, SHIFTED_VIEW16, None, 5, torch.device("cpu"))
    for number, pixels in enumerate(SHIFTED_SUBSET.decoded):
        expected = torch.from_numpy(SHIFTED_VIEW16.apply(pixels.image)).permute(2, 0, 1)
        for batch in (loaded[number], loaded[2, number], resident[[number]]):
            assert torch.equal(batch.images[0], expected)
    assert loaded.__getitems__([]).ids == resident[[]].ids == []


def test_batches_stay_on_the_device() -> None:
    with imaginary_gpu():
        photos = ResidentPhotos(SHIFTED_SUBSET, SHIFTED_VIEW16, SHIFTS["shift"], 5, GPU)
        batch = photos[SAMPLES]
        # An operation on tensors of two devices raises an error.
        assert (batch.images.float().mean((1, 2, 3)) + batch.targets).shape == (4,)
        assert batch.numbers.add(photos.targets[:4]).shape == (4,)


def test_constant_photos_are_known_on_the_device() -> None:
    black = [Decoded(np.zeros((16, 16, 3), np.uint8)), *SHIFTED_SUBSET.decoded[1:]]
    subset = replace(SHIFTED_SUBSET, decoded=black)
    batch = ResidentPhotos(subset, SHIFTED_VIEW16, SHIFTS["shift"], 0, torch.device("cpu"))[
        [(0, 0), (0, 1)]
    ]
    assert batch.constant == (subset.ids[0],)


def batches(recipe: Any, workers: int, epoch: int) -> list[PhotoBatch]:
    settings = BatchSettings(1, workers, least=2)
    procedure = procedure_of(recipe)
    data: Any = procedure.photo_data(SHIFTED_SUBSET, SHIFTED_SUBSET, SHIFTED_VIEW16, settings)
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
        ResidentPhotos(SHIFTED_SUBSET, SHIFTED_VIEW16, SHIFTS["shift"], 0, torch.device("cpu"))


def test_augmentations_by_name() -> None:
    assert photo_augmentation_name("RANDAUGMENT") == "randaugment"
    assert photo_augmentation_name("light") == "light"
    with pytest.raises(UsageError, match="`heavy`"):
        photo_augmentation_name("heavy")
