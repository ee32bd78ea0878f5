"""Batches of training and validation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from robustcli.training.batches import serving
from robustcli.training.batches.loaders import Part, SegmentationData
from robustcli.training.recipes import Recipe, recipe_for
from tests.training.pairs import decoded

TRAIN = Part([f"t{i}" for i in range(7)], decoded(7))
VAL = Part(["v0", "v1"], decoded(2, 50, 30))


def data(*, workers: int = 0, whole: bool = False, **said: object) -> SegmentationData:
    recipe: Recipe = recipe_for("unet", "patient", "x")
    recipe = replace(recipe, batch_size=3, window=24, **said)  # type: ignore[arg-type]
    return SegmentationData(TRAIN, VAL, recipe, seed=1, whole=whole, workers=workers)


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
    assert data().val_images() == [0] * 6 + [1] * 6
    assert data(whole=True).val_images() == [0, 1]


def test_whole_images_where_the_paper_takes_them() -> None:
    (batch,) = data(whole=True).val_dataloader()
    assert batch.ids == ["v0", "v1"]
    assert batch.images.dtype == torch.float32


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_processes_change_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "start_method", lambda: method)
    alone, helped = (list(data(workers=n).train_dataloader()) for n in (0, 2))
    for one, other in zip(alone, helped, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
