"""From what the user typed to the recipe of a classifier, with every override checked."""

from __future__ import annotations

from dataclasses import replace

from robustcli.core.errors import UsageError
from robustcli.core.names import find
from robustcli.data.mask_values import check_no_masks
from robustcli.training.classification.crops import crops_name
from robustcli.training.classification.rows import CLASS_RECIPES, SMOOTHINGS, quick
from robustcli.training.config import TrainConfig
from robustcli.training.recipes import Recipe
from robustcli.training.settings import given


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
        loss = changes["loss"]
        changes["loss"] = find(loss, SMOOTHINGS, kind="loss", listing="docs/train-cls.md")
    if "augmentation" in changes:
        changes["augmentation"] = crops_name(changes["augmentation"])
    wanted = config.recipe or next(iter(CLASS_RECIPES))
    name = find(
        wanted, CLASS_RECIPES, kind="recipe of classifiers", listing="robust list recipes"
    )  # fmt: skip
    recipe = quick(CLASS_RECIPES[name]) if config.quick else CLASS_RECIPES[name]
    return replace(recipe, **changes, precision=config.precision)


def check_protocol(config: TrainConfig) -> None:
    """Raises UsageError where a way of splitting, reading and scoring masks is asked for."""
    if config.protocol != "patient":
        raise UsageError(
            f"`--protocol {config.protocol}` does not go with classifiers.",
            "It is a way of splitting and scoring images with masks.",
            "Leave it out: classifiers are split by image, class by class.",
        )
    check_no_masks(config.foreground, config.ignore)
