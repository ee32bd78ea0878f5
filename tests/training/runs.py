"""Trainings of seconds: very small networks on a dozen discs or photos of three colours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robustcli.training.config import TrainConfig
from robustcli.training.recipes import NAMED_RECIPES, Patchwise, Recipe

SMALL = {"features": [4, 8]}


def small(data: Path, out: Path, **said: Any) -> TrainConfig:
    """A training of three epochs of three steps."""
    usual: dict[str, Any] = {
        "model": "unet", "model_args": SMALL, "epochs": 3, "window": 16, "batch_size": 4,
        "device": "cpu", "lr": 0.01,
    }  # fmt: skip
    return TrainConfig(data=str(data), out=out, **{**usual, **said})


def words_of(file: Path) -> str:
    """The text of a report's file in lower case, without pictures written as letters."""
    return re.sub(r'base64,[^"]*', "", file.read_text(encoding="utf-8")).lower()


@dataclass
class Heard:
    """A listener that remembers."""

    lines: list[str] = field(default_factory=list)
    total: int = 0
    done: int = 0

    def say(self, text: str) -> None:
        self.lines.append(text)

    def start(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def advance(self, count: int) -> None:
        self.done += count


Run = tuple[Path, Heard]
"""The folder of a training, and what its listener heard."""
TINY_VMAMBA: dict[str, Any] = {"depths": [1, 1], "dim": 8}


def tiny_classifier(data: Path | str | None, out: Path, **said: Any) -> TrainConfig:
    """A training of three epochs of two or three steps."""
    usual: dict[str, Any] = {
        "model": "vmamba-pico", "model_args": TINY_VMAMBA, "epochs": 3, "batch_size": 10,
        "device": "cpu", "lr": 0.01,
    }  # fmt: skip
    place = None if data is None else str(data)
    return TrainConfig(data=place, out=out, **{**usual, **said})


TINY_UMAMBA = {"features": [4, 8], "strides": [1, 2], "patch_size": [16, 16]}
FEW = Patchwise(4, 2, most_patch=16, most_batch=3)
RECIPE: Recipe = replace(
    NAMED_RECIPES["nnunet-light"], epochs=3, batch_size=3, window=16, patches=FEW
)


def tiny_umamba(data: Path, out: Path, **said: Any) -> TrainConfig:
    """A training of three epochs; with `RECIPE` in the place of `nnunet-light`, of four steps."""
    usual: dict[str, Any] = {
        "model": "umamba-pico", "model_args": TINY_UMAMBA, "epochs": 3, "device": "cpu",
        "recipe": "nnunet-light", "batch_size": 3,
    }  # fmt: skip
    return TrainConfig(data=str(data), out=out, **{**usual, **said})
