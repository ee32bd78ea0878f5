"""How classifiers are trained: rows of data, and which row serves when none is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from robustcli.core.errors import UsageError
from robustcli.core.names import find
from robustcli.training.classification.crops import crops_name
from robustcli.training.config import TrainConfig
from robustcli.training.recipes import Recipe
from robustcli.training.settings import check_shares, given

SMOOTHINGS = {"cross-entropy": 0.0, "smoothed-cross-entropy": 0.1}
"""Losses by name, and what each takes from the true class to spread over all.
Source: Szegedy et al., "Rethinking the Inception Architecture" (2016), section 7."""
_CLASSES = Recipe(
    "classes", "smoothed-cross-entropy", "AdamW", 5e-4, 0.05, "warmup-cosine", 64, 20, 0, "ours",
    clip=1.0, augmentation="light",
)  # fmt: skip
CLASS_RECIPES: dict[str, Recipe] = {
    "classes": _CLASSES,
    "classes-light": replace(
        _CLASSES, name="classes-light", batch_size=32, epochs=5, source="ours, for two CPU cores"
    ),
}
"""By name; the window is the network's own. The first serves where none is named."""
_QUICK_EPOCHS, _QUICK_IMAGES = 2, 512


def class_recipe(config: TrainConfig, window: int) -> Recipe:
    """The recipe with the overrides of `config`.

    Args:
        config: As typed.
        window: Side of what the network sees, in pixels.

    Raises:
        UsageError: An override is unknown or out of range.
    """
    changes = given(config)
    changes["window"] = window
    if "loss" in changes:
        changes["loss"] = find(changes["loss"], SMOOTHINGS, kind="loss", listing="docs/finetune.md")
    if "augmentation" in changes:
        changes["augmentation"] = crops_name(changes["augmentation"])
    name = find(
        config.recipe or _CLASSES.name, CLASS_RECIPES, kind="recipe of classifiers",
        listing="robust list recipes",
    )  # fmt: skip
    recipe = _quick(CLASS_RECIPES[name]) if config.quick else CLASS_RECIPES[name]
    recipe = replace(recipe, **changes, precision=config.precision)
    check_shares(config, recipe)
    return recipe


def check_protocol(config: TrainConfig) -> None:
    """Raises UsageError where a way of splitting and scoring masks is asked for."""
    if config.protocol != "patient":
        raise UsageError(
            f"`--protocol {config.protocol}` does not go with classifiers.",
            "It is a way of splitting and scoring images with masks.",
            "Leave it out: classifiers are split by image, class by class.",
        )


def listed_classes() -> Iterator[tuple[str, Recipe]]:
    """Every row with what the user types."""
    for name, recipe in CLASS_RECIPES.items():
        yield f"--recipe {name}", recipe


def _quick(recipe: Recipe) -> Recipe:
    return replace(
        recipe, name=f"{recipe.name} quick", epochs=_QUICK_EPOCHS, images_per_epoch=_QUICK_IMAGES
    )
