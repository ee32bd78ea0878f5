"""The record of a training as a file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.training.recipes import NAMED_RECIPES, Patchwise
from robustcli.training.record import TRAINING, read_train_record
from tests.training.test_continuing import record


def test_the_default_is_nnunets_own() -> None:
    """Source: the specification's section on U-Mamba's training."""
    recipe = NAMED_RECIPES["nnunet"]
    own = recipe.patches
    assert own == Patchwise()
    assert (own.iterations, own.validation_iterations, own.oversampling) == (250, 50, 0.33)
    assert (own.momentum, own.exponent, own.batch_dice, own.ema) == (0.99, 0.9, True, 0.9)
    assert (own.most_patch, own.most_batch) == (None, None)
    assert [channel.scheme for channel in own.channels] == ["zscore"] * 3
    assert (recipe.epochs, recipe.lr, recipe.weight_decay, recipe.clip) == (1000, 1e-2, 3e-5, 12)
    assert (recipe.optimizer, recipe.schedule, recipe.loss) == ("SGD", "poly", "ce-minus-dice")


def test_the_light_one_differs_in_amount_only_and_says_so() -> None:
    full, light = NAMED_RECIPES["nnunet"], NAMED_RECIPES["nnunet-light"]
    assert full.patches is not None
    assert light.patches is not None
    assert light.epochs * light.patches.iterations < full.epochs * full.patches.iterations
    amounts = {"iterations", "validation_iterations", "most_patch", "most_batch"}
    other = {
        field.name
        for field in fields(Patchwise)
        if getattr(light.patches, field.name) != getattr(full.patches, field.name)
    }
    assert other == amounts
    for name in ("lr", "weight_decay", "clip", "optimizer", "loss", "augmentation", "schedule"):
        assert getattr(light, name) == getattr(full, name)
    assert "ours" in light.source
    assert all(name == recipe.name for name, recipe in NAMED_RECIPES.items())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    one = record(faults=["a"], arguments={"features": [1, 2]})
    TRAINING.write(tmp_path, one)
    assert read_train_record(tmp_path) == one


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        read_train_record(tmp_path)


def test_another_file_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "eval"}')
    with pytest.raises(UsageError, match="is not the record of a training"):
        read_train_record(tmp_path)
