"""From what the user typed to the recipe of the run, with every override checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from robustcli.core.errors import UsageError
from robustcli.training.batches.augmentations import augmentation_name
from robustcli.training.config import TrainConfig
from robustcli.training.losses import loss_name
from robustcli.training.named_recipes import recipe_named
from robustcli.training.recipes import OWN, Recipe, recipe_for

_OVERRIDES = {
    "epochs": "epochs", "lr": "lr", "batch_size": "batch_size", "accumulate": "accumulate",
    "loss": "loss", "aug": "augmentation", "window": "window", "clip": "clip",
    "patience": "patience",
}  # fmt: skip
"""Field of the settings to field of the recipe."""
_NOT_OF_THE_PAPER = {
    "aug": "it augments nothing",
    "patience": "it takes the last epoch, whatever validation says",
}


_NOT_OF_NNUNET = ("loss", "aug", "accumulate", "patience")


def recipe_of(config: TrainConfig, model: str, data: str) -> Recipe:
    """The recipe for network `model` on the data set `data`, with the overrides of `config`.

    Raises:
        UsageError: An override is unknown, out of range, or against the protocol.
    """
    said = _said(config)
    if config.protocol == "paper":
        _check_paper(said)
    changes = given(config)
    if config.recipe is None:
        recipe = recipe_for(model, config.protocol, data, quick=config.quick)
    else:
        recipe = recipe_named(config.recipe, model, quick=config.quick)
        _check_named(config, recipe, said)
    if "loss" in changes:
        changes["loss"] = loss_name(changes["loss"])
    if "augmentation" in changes:
        changes["augmentation"] = augmentation_name(changes["augmentation"])
    return replace(recipe, **changes, precision=config.precision)


def given(config: TrainConfig) -> dict[str, Any]:
    """The fields of the recipe that `config` overrides.

    Raises:
        UsageError: A number is not above 0.
    """
    return {_OVERRIDES[name]: value for name, value in _said(config).items()}


def _said(config: TrainConfig) -> dict[str, Any]:
    every = {name: getattr(config, name) for name in _OVERRIDES}
    said = {name: value for name, value in every.items() if value is not None}
    _check_numbers(said)
    return said


def _check_numbers(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if not isinstance(value, str) and not value > 0:
            flag = name.replace("_", "-")
            raise UsageError(f"`--{flag} {value}` is out of range.", "It must be above 0.")


def _check_paper(given: dict[str, Any]) -> None:
    for name, why in _NOT_OF_THE_PAPER.items():
        if name in given and given[name] != "none":
            raise UsageError(
                f"`--{name} {given[name]}` does not go with `--protocol paper`.",
                f"That protocol is done as the paper did it: {why}.",
                f"Leave out `--{name}`, or use `--protocol patient`.",
            )


def _check_named(config: TrainConfig, recipe: Recipe, given: dict[str, Any]) -> None:
    if config.protocol == "paper":
        raise UsageError(
            f"`--recipe {config.recipe}` does not go with `--protocol paper`.",
            "That protocol has each network's own published recipe.",
            "Leave out one of the two.",
        )
    for name in _NOT_OF_NNUNET:
        if name in given and recipe.patches is not None:
            raise UsageError(
                f"`--{name} {given[name]}` does not go with `--recipe {config.recipe}`.",
                "It trains as nnU-Net does, with its own loss and augmentation, a step per batch, "
                "to the last epoch.",
                f"Leave out `--{name}`, or use `--recipe {OWN}`.",
            )
