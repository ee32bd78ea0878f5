"""The recipes that serve where the user names one: nnU-Net's own training, and a small one of it.

Source: nnU-Net v2.1.1, `nnUNetTrainer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from robustcli.core.names import find
from robustcli.training.nnunet.patchwise import Patchwise
from robustcli.training.recipes import OWN, Recipe, own_recipe
from robustcli.training.record import Protocol

_NNUNET = Recipe(
    "nnunet", "ce-minus-dice", "SGD", 1e-2, 3e-5, "poly", 12, 1000, 256,
    "nnU-Net v2.1.1, nnUNetTrainer; batch and window are the plan's",
    clip=12.0, augmentation="nnunet", patches=Patchwise(),
)  # fmt: skip
NAMED_RECIPES: dict[str, Recipe] = {
    "nnunet": _NNUNET,
    "nnunet-light": replace(
        _NNUNET, name="nnunet-light", batch_size=4, epochs=20, window=128,
        source="ours, for two CPU cores: nnU-Net v2.1.1 with fewer and smaller iterations, not "
        "what its published scores were trained with",
        patches=Patchwise(25, 10, most_patch=128, most_batch=4),
    ),
}  # fmt: skip
"""By name; batch and window are at most what a plan says, see `nnunet.planned`."""
_QUICK_EPOCHS, _QUICK_ITERATIONS, _QUICK_VALIDATION = 2, 25, 2


def recipe_named(name: str, model: str, *, quick: bool = False) -> Recipe:
    """The recipe called `name`.

    Args:
        name: One of NAMED_RECIPES, or `recipes.OWN`.
        model: Registered name of the network.
        quick: The shortest of its kind that shows something.

    Raises:
        UsageError: No recipe is called so; the message offers the nearest names.
    """
    names = (*NAMED_RECIPES, OWN)
    found = find(name, names, kind="recipe", listing="robust list recipes")
    if found == OWN:
        return own_recipe(model, quick=quick)
    return _shortened(NAMED_RECIPES[found]) if quick else NAMED_RECIPES[found]


def _shortened(recipe: Recipe) -> Recipe:
    assert recipe.patches is not None
    fewer = replace(
        recipe.patches, iterations=_QUICK_ITERATIONS, validation_iterations=_QUICK_VALIDATION
    )
    return replace(recipe, name=f"{recipe.name} quick", epochs=_QUICK_EPOCHS, patches=fewer)


def listed_by_name() -> Iterator[tuple[str, Protocol, Recipe]]:
    """Every row, as `recipes.listed` gives its own: here with what the user types."""
    for name, recipe in NAMED_RECIPES.items():
        yield f"--recipe {name}", "patient", recipe
