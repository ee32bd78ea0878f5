"""The recipe of a training with every override that the user typed, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from robustcli.core.errors import UsageError
from robustcli.core.names import find
from robustcli.data.mask_values import check_no_masks
from robustcli.training.config import TrainConfig
from robustcli.training.losses import loss_name
from robustcli.training.photos import crops_name
from robustcli.training.procedures import procedure_of
from robustcli.training.recipes import (
    CLASS_RECIPES,
    SMOOTHINGS,
    Recipe,
    quick,
    recipe_for,
    recipe_named,
)
from robustcli.training.samples import augmentation_name

_OVERRIDES = {
    "epochs": "epochs", "lr": "lr", "batch_size": "batch_size", "accumulate": "accumulate",
    "loss": "loss", "aug": "augmentation", "window": "window", "clip": "clip",
    "patience": "patience",
}  # fmt: skip
"""Field of the settings to field of the recipe."""


def recipe_of(config: TrainConfig, model: str, data: str) -> Recipe:
    """The recipe for network `model` on the data set `data`, with the overrides of `config`.

    Raises:
        UsageError: An override is unknown, out of range, or against the protocol.
    """
    if config.recipe is None:
        recipe = recipe_for(model, config.protocol, data, quick=config.quick)
    elif config.protocol == "paper":
        raise UsageError(
            f"`--recipe {config.recipe}` does not go with `--protocol paper`.",
            "That protocol has each network's own published recipe.",
            "Leave out one of the two.",
        )
    else:
        recipe = recipe_named(config.recipe, model, quick=config.quick)
    procedure_of(recipe).check_options(config, _given_options(config))
    changes = overridden_fields(config)
    if "loss" in changes:
        changes["loss"] = loss_name(changes["loss"])
    if "augmentation" in changes:
        changes["augmentation"] = augmentation_name(changes["augmentation"])
    return replace(recipe, **changes, precision=config.precision)


def overridden_fields(config: TrainConfig) -> dict[str, Any]:
    """The fields of the recipe that `config` overrides.

    Raises:
        UsageError: A number is not above 0.
    """
    return {_OVERRIDES[name]: value for name, value in _given_options(config).items()}


def _given_options(config: TrainConfig) -> dict[str, Any]:
    every = {name: getattr(config, name) for name in _OVERRIDES}
    given = {name: value for name, value in every.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, str) and not value > 0:
            flag = name.replace("_", "-")
            raise UsageError(f"`--{flag} {value}` is out of range.", "It must be above 0.")
    return given


# Classifiers.


def class_recipe(config: TrainConfig, window: int) -> Recipe:
    """The recipe with the overrides of `config`.

    Args:
        config: As typed.
        window: Side of what the network sees, in pixels.

    Raises:
        UsageError: An override is unknown or out of range.
    """
    changes = overridden_fields(config)
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
