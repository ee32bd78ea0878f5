"""How classifiers are trained: rows of data, which need no torch to be listed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from robustcli.training.recipes import Recipe

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


def quick(recipe: Recipe) -> Recipe:
    """The shortest of its kind that shows something."""
    return replace(
        recipe, name=f"{recipe.name} quick", epochs=_QUICK_EPOCHS, images_per_epoch=_QUICK_IMAGES
    )


def listed_classes() -> Iterator[tuple[str, str, Recipe]]:
    """Every row with what the user types and how its data are split."""
    for name, recipe in CLASS_RECIPES.items():
        yield f"--recipe {name}", "by class", recipe
