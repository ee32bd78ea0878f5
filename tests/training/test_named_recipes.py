"""Recipes that the user names."""

from __future__ import annotations

import pytest

from robustcli.core.errors import UsageError
from robustcli.training.named_recipes import NAMED_RECIPES, listed_by_name, recipe_named
from robustcli.training.recipes import describe, recipe_for


def test_a_recipe_by_its_name() -> None:
    assert recipe_named("NNUNET_light", "unet") is NAMED_RECIPES["nnunet-light"]
    with pytest.raises(UsageError, match="No recipe is called `nunet`"):
        recipe_named("nunet", "unet")


def test_quick_is_shorter_and_else_the_same() -> None:
    quick = recipe_named("nnunet", "unet", quick=True)
    assert (quick.name, quick.epochs) == ("nnunet quick", 2)
    assert quick.patches is not None
    assert (quick.patches.iterations, quick.patches.momentum) == (25, 0.99)


def test_our_own_has_a_name_too() -> None:
    assert recipe_named("patient", "vmunet") == recipe_for("vmunet", "patient", "x")
    assert recipe_named("patient", "unet", quick=True) == recipe_for(
        "unet", "patient", "x", quick=True
    )
    assert recipe_named("patient", "ulvm").epochs == 60  # on whatever data


def test_they_are_listed_as_they_are_typed() -> None:
    rows = list(listed_by_name())
    assert [name for name, _, _ in rows] == ["--recipe nnunet", "--recipe nnunet-light"]
    assert all(recipe is NAMED_RECIPES[name.split()[1]] for name, _, recipe in rows)


def test_iterations_in_the_line() -> None:
    line = describe(NAMED_RECIPES["nnunet"])
    assert "1000 epochs of 250 iterations, batch 12, window 256, ce-minus-dice loss, SGD" in line
