"""Trainings of seconds, nnU-Net's way: a very small U-Mamba on a dozen discs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from robustcli.training.config import TrainConfig
from robustcli.training.recipes import NAMED_RECIPES, Patchwise, Recipe

TINY = {"features": [4, 8], "strides": [1, 2], "patch_size": [16, 16]}
FEW = Patchwise(4, 2, most_patch=16, most_batch=3)
RECIPE: Recipe = replace(
    NAMED_RECIPES["nnunet-light"], epochs=3, batch_size=3, window=16, patches=FEW
)


def tiny(data: Path, out: Path, **said: Any) -> TrainConfig:
    """A training of three epochs; with `RECIPE` in the place of `nnunet-light`, of four steps."""
    usual: dict[str, Any] = {
        "model": "umamba-pico", "model_args": TINY, "epochs": 3, "device": "cpu",
        "recipe": "nnunet-light", "batch_size": 3,
    }  # fmt: skip
    return TrainConfig(data=str(data), out=out, **{**usual, **said})
