"""The constants of nnU-Net's training."""

from __future__ import annotations

from dataclasses import fields

from robustcli.training.named_recipes import NAMED_RECIPES
from robustcli.training.nnunet.patchwise import Patchwise


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
