"""Decoded pixels and the batches of an epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robustcli.core.errors import RunError, UsageError
from robustcli.data.sources import Masks, open_dataset
from robustcli.training import datamodule
from robustcli.training.datamodule import (
    Batches,
    BatchSettings,
    DecodedSubset,
    EpochOrder,
    ImageData,
    ShareOfBatches,
    batch_sizes,
    decoded_once,
)
from robustcli.training.procedures import procedure_of
from robustcli.training.recipes import Recipe, recipe_for
from tests.training.images import decoded, disc, write_pairs

TRAIN = DecodedSubset([f"t{i}" for i in range(7)], decoded(7))
VAL = DecodedSubset(["v0", "v1"], decoded(2, 50, 30))


def data(*, workers: int = 0, whole_photos: bool = False, **changes: object) -> ImageData:
    recipe: Recipe = recipe_for("unet", "paper" if whole_photos else "patient", "x")
    recipe = replace(recipe, batch_size=3, window=24, **changes)  # type: ignore[arg-type]
    datamodule = procedure_of(recipe).data(TRAIN, VAL, BatchSettings(1, workers))
    assert isinstance(datamodule, ImageData)
    return datamodule


def test_an_epoch_is_every_image_once_the_last_batch_being_smaller() -> None:
    batches = list(data().train_dataloader())
    assert [len(batch.ids) for batch in batches] == [3, 3, 1]
    assert sorted(image for batch in batches for image in batch.ids) == TRAIN.ids


def test_a_shorter_epoch() -> None:
    assert sum(len(b.ids) for b in data(images_per_epoch=4).train_dataloader()) == 4


def test_validation_is_every_window_in_order() -> None:
    batches = list(data().val_dataloader())
    assert [i for batch in batches for i in batch.ids] == ["v0"] * 6 + ["v1"] * 6
    assert sum(int(batch.counted.sum()) for batch in batches) == 2 * 50 * 30


def test_samples_are_numbered_and_know_their_image() -> None:
    numbers = [n for batch in data().val_dataloader() for n in batch.numbers.tolist()]
    assert numbers == list(range(12))
    assert data().val_samples.places == [0] * 6 + [1] * 6
    assert data(whole_photos=True).val_samples.places == [0, 1]


@pytest.mark.parametrize(
    ("method", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.slow)]
)
def test_loader_processes_change_nothing(
    method: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datamodule, "start_method", lambda: method)
    without_workers, with_workers = (list(data(workers=n).train_dataloader()) for n in (0, workers))
    for first, second in zip(without_workers, with_workers, strict=True):
        assert first.ids == second.ids
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.masks, second.masks)


IDS = [f"image-{i}" for i in range(17)]


def order(epoch: int, *, ids: list[str] = IDS, seed: int = 0, **options: int | None) -> list[str]:
    sampler = EpochOrder(ids, seed, most=options.pop("most", None), **options)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert {e for e, _ in indices} == {epoch}
    assert len(indices) == len(sampler)
    return [ids[position] for _, position in indices]


def test_every_image_comes_once_an_epoch_in_another_order() -> None:
    orders = [order(epoch) for epoch in range(5)]
    assert all(sorted(order_of_epoch) == sorted(IDS) for order_of_epoch in orders)
    assert len({tuple(order_of_epoch) for order_of_epoch in orders}) == 5
    assert order(3) == orders[3]
    assert order(3, seed=1) != orders[3]


def test_the_order_on_disk_does_not_matter() -> None:
    assert order(2, ids=IDS[::-1]) == order(2)


def test_a_shorter_epoch_takes_other_images_each_time() -> None:
    first, second = order(0, most=5), order(1, most=5)
    assert len(first) == len(second) == 5
    assert set(first) != set(second)
    assert order(0)[:5] == first
    assert len(order(0, most=99)) == 17


def test_processes_share_an_epoch_equally() -> None:
    shares = [order(4, rank=rank, world=3) for rank in range(3)]
    assert {len(share) for share in shares} == {6}
    assert {image for share in shares for image in share} == set(IDS)
    assert [image for step in zip(*shares, strict=True) for image in step][:17] == order(4)


@pytest.mark.parametrize("size", range(1, 10))
def test_the_sizes_of_batches_for_every_number_of_images_around_them(size: int) -> None:
    for images in range(2, 4 * size + 3):
        default_sizes = batch_sizes(images, size)
        assert default_sizes == [size] * (images // size) + [images % size] * (images % size > 0)
        sizes = batch_sizes(images, size, least=2) if size > 1 else default_sizes
        assert sum(sizes) == images
        if size == 1:
            continue
        assert min(sizes) >= 2
        if default_sizes[-1] > 1:
            assert sizes == default_sizes  # documented batches are unchanged if possible
        elif size > 2:
            assert len(sizes) == len(default_sizes)
            assert max(sizes) <= size
            assert sizes[-2] - sizes[-1] in (0, 1)
        else:
            assert sizes == [2] * (len(default_sizes) - 2) + [3]


def test_batches_hold_the_order_of_their_sampler_and_tell_it_the_epoch() -> None:
    sampler = EpochOrder(IDS, 0, most=None)
    batches = Batches(sampler, 8, least=2)
    assert batches.sampler is sampler
    sampler.set_epoch(3)
    indices = list(batches)
    assert [len(batch) for batch in indices] == [8, 5, 4]
    assert len(batches) == 3
    assert [item for batch in indices for item in batch] == list(sampler)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_all_processes_take_equally_many_steps(world: int) -> None:
    for images in range(world * 2, 30):
        ids = [str(i) for i in range(images)]
        counts = {
            len(Batches(EpochOrder(ids, 0, most=None, rank=rank, world=world), 2, least=2))
            for rank in range(world)
        }
        assert len(counts) == 1


SIZES = st.integers(1, 40)


@given(count=SIZES, batch_size=SIZES, world=st.integers(1, 7), most=st.none() | SIZES)
def test_processes_take_equally_many_steps(
    count: int, batch_size: int, world: int, most: int | None
) -> None:
    """All ranks also get an equal number of batches in a training epoch."""
    ids = [f"image-{i}" for i in range(count)]
    orders = [EpochOrder(ids, 0, most=most, rank=rank, world=world) for rank in range(world)]
    drawn_shares = [list(item) for item in orders]
    assert {len(share) for share in drawn_shares} == {len(orders[0])}
    assert {-(-len(share) // batch_size) for share in drawn_shares} == {
        -(-len(orders[0]) // batch_size)
    }
    assert len({position for share in drawn_shares for _, position in share}) == min(
        most or count, count
    )
    shares = [list(ShareOfBatches(count, batch_size, rank=r, world=world)) for r in range(world)]
    assert {len(share) for share in shares} == {len(ShareOfBatches(count, batch_size, world=world))}


@given(count=SIZES, batch_size=SIZES, world=st.integers(1, 7))
def test_validation_samples_come_once_in_the_batches_of_one_process(
    count: int, batch_size: int, world: int
) -> None:
    shares = [list(ShareOfBatches(count, batch_size, rank=r, world=world)) for r in range(world)]
    batches = [batch for share in shares for batch in share if batch]
    assert sorted(batches) == list(ShareOfBatches(count, batch_size))
    assert sorted(number for batch in batches for number in batch) == list(range(count))


MASKS = Masks(surveyed=False)


@pytest.fixture
def data_cache(tmp_path: Path) -> Path:
    folder = write_pairs(tmp_path / "data", 3)
    image, mask = disc(99, 20, 50)
    Image.fromarray(image).save(folder / "images" / "odd.png")
    Image.fromarray(mask * 255).save(folder / "masks" / "odd.png")
    return folder


@pytest.mark.parametrize("budget", [None, 0, 32 * 32 * 4])
def test_the_pixels_are_those_of_the_files(
    data_cache: Path, tmp_path: Path, budget: int | None
) -> None:
    pairs = open_dataset(str(data_cache), MASKS).samples
    with decoded_once(pairs, tmp_path / "cache", budget=budget) as decoded:
        mapped = [isinstance(item.image.base, np.memmap) for item in decoded]
        assert set(mapped) == {budget is not None}
        for pair, item in zip(pairs, decoded, strict=True):
            image = np.asarray(Image.open(pair.image.path))
            mask = np.asarray(Image.open(pair.mask.path))
            assert np.array_equal(item.image, image)
            assert np.array_equal(item.mask * 255, mask)
    assert not (tmp_path / "cache").exists()


def test_the_mapped_file_goes_away_after_an_error_too(data_cache: Path, tmp_path: Path) -> None:
    pairs = open_dataset(str(data_cache), MASKS).samples
    context = decoded_once(pairs, tmp_path / "cache", budget=0)
    context.__enter__()
    assert list((tmp_path / "cache").iterdir())
    error = KeyError()
    assert not context.__exit__(KeyError, error, None)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_file_is_named(data_cache: Path, tmp_path: Path) -> None:
    pairs = open_dataset(str(data_cache), MASKS).samples
    (data_cache / "images" / "001.png").write_bytes(b"\x89PNG no more")
    with (
        pytest.raises(RunError, match=r"The pair `.*001.*` cannot be read"),
        decoded_once(pairs, tmp_path / "cache"),
    ):
        pass


def test_a_mask_of_another_size_is_refused(data_cache: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(data_cache / "masks" / "001.png")
    with (
        pytest.raises(UsageError, match="differ in size"),
        decoded_once(open_dataset(str(data_cache), MASKS).samples, tmp_path / "cache"),
    ):
        pass


def test_a_full_disk_is_told(data_cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.write_text("a file where the folder should be")
    with (
        pytest.raises(RunError, match="Cannot write"),
        decoded_once(open_dataset(str(data_cache), MASKS).samples, folder, budget=0),
    ):
        pass


def test_processes_share_the_memory(
    data_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = open_dataset(str(data_cache), MASKS).samples
    needed = 3 * 32 * 32 * 4 + 20 * 50 * 4
    monkeypatch.setattr(datamodule, "available_bytes", lambda: 2 * needed)
    for processes, mapped in ((1, False), (2, True)):
        with decoded_once(pairs, tmp_path / "cache", processes=processes) as decoded:
            assert isinstance(decoded[0].image.base, np.memmap) == mapped
