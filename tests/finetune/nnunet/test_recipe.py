"""The constants of nnU-Net's training."""

from __future__ import annotations

from robustcli.finetune.nnunet.recipe import RECIPES


def test_the_default_is_nnunets_own() -> None:
    """Source: the specification's section on U-Mamba's training."""
    full = RECIPES["nnunet"]
    assert (full.epochs, full.iterations, full.validation_iterations) == (1000, 250, 50)
    assert (full.lr, full.exponent, full.momentum, full.weight_decay) == (1e-2, 0.9, 0.99, 3e-5)
    assert (full.clip, full.oversampling, full.batch_dice, full.ema) == (12, 0.33, True, 0.9)
    assert full.most_patch is None


def test_the_light_one_differs_in_amount_only_and_says_so() -> None:
    full, light = RECIPES["nnunet"], RECIPES["nnunet-light"]
    assert light.epochs * light.iterations < full.epochs * full.iterations
    assert light.most_patch is not None
    for name in ("lr", "exponent", "momentum", "weight_decay", "clip", "oversampling", "ema"):
        assert getattr(light, name) == getattr(full, name)
    assert "ours" in light.source
    assert all(name == recipe.name for name, recipe in RECIPES.items())
