"""Batches of patches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.data.mask_values import IGNORED
from robustcli.training.batches.cache import Decoded
from robustcli.training.batches.loaders import Part
from robustcli.training.batches.samples import Batch
from robustcli.training.nnunet.data import PatchData, PatchOrder
from tests.training.nnunet.trainings import RECIPE
from tests.training.pairs import decoded

TRAIN = Part([f"t{i}" for i in range(7)], decoded(7))
VAL = Part(["v0", "v1"], decoded(2, 50, 30))


def data(*, seed: int = 1, workers: int = 0, val: Part = VAL) -> PatchData:
    return PatchData(TRAIN, val, RECIPE, seed=seed, workers=workers)


def epoch(made: PatchData, number: int, phase: str = "train") -> list[Batch]:
    loader = getattr(made, f"{phase}_dataloader")()
    loader.batch_sampler.sampler.set_epoch(number)
    return list(loader)


def test_an_epoch_is_so_many_full_batches_of_normalised_patches() -> None:
    batches = epoch(data(), 0)
    assert [len(batch.ids) for batch in batches] == [3] * 4
    assert {image for batch in batches for image in batch.ids} <= set(TRAIN.ids)
    one = batches[0]
    assert (one.images.shape, one.masks.shape) == ((3, 3, 16, 16), (3, 1, 16, 16))
    assert (one.images.dtype, one.masks.dtype) == (torch.float32, torch.uint8)
    assert one.images.min() < 0 < one.images.max()
    assert one.counted.all()


def test_validation_has_its_own_and_numbers_them() -> None:
    batches = epoch(data(), 0, "val")
    assert torch.cat([batch.numbers for batch in batches]).tolist() == list(range(6))
    assert {image for batch in batches for image in batch.ids} <= set(VAL.ids)


@pytest.mark.parametrize("phase", ["train", "val"])
def test_epoch_and_seed_are_all_that_counts(phase: str) -> None:
    made = data()
    first, second = epoch(made, 0, phase), epoch(made, 1, phase)
    again = epoch(data(workers=1), 1, phase)
    assert not torch.equal(first[0].images, second[0].images)
    for one, other in zip(second, again, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
    assert not torch.equal(epoch(data(seed=2), 1, phase)[0].images, second[0].images)


def test_the_last_of_a_batch_shows_foreground_in_validation() -> None:
    """In training, what is turned and flipped may lose it again."""
    bare = [replace(one, mask=one.mask * 0) for one in decoded(3)]
    mixed = Part(["a", "b", "c", "d"], [*bare, Decoded(decoded(4)[3].image, decoded(4)[3].mask)])
    batches = [b for n in range(5) for b in epoch(data(val=mixed), n, "val")]
    assert all(batch.masks[2].any() and batch.ids[2] == "d" for batch in batches)


def test_no_foreground_at_all_is_refused() -> None:
    bare = Part(["a"], [replace(one, mask=one.mask * 0) for one in decoded(1)])
    with pytest.raises(UsageError, match="nothing to learn from in the val images"):
        data(val=bare)


def test_the_order_is_numbers_with_the_epoch() -> None:
    order = PatchOrder(3)
    order.set_epoch(5)
    assert list(order) == [(5, 0), (5, 1), (5, 2)]
    assert len(order) == 3


def test_ignored_pixels_are_marked_and_are_no_foreground() -> None:
    """An image with pixels to ignore alone is never the one that must show foreground."""
    some = decoded(2, 64, 64)
    nothing = Decoded(some[0].image, np.zeros_like(some[0].mask))
    nothing.mask[:32] = IGNORED
    part = Part(["shown", "void"], [some[1], nothing])
    made = PatchData(part, part, RECIPE, seed=1, workers=0, ignores=True)
    assert made.train.patches._with_foreground == (0,)
    batches = epoch(made, 0) + epoch(made, 0, "val")
    assert any((batch.masks == IGNORED).any() for batch in batches)
    for batch in batches:
        assert set(batch.masks.unique().tolist()) <= {0, 1, IGNORED}
        assert torch.equal(batch.counted, batch.masks != IGNORED)
