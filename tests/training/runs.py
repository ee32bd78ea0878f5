"""Trainings of seconds: a very small U-Net on a dozen discs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustcli.training.config import TrainConfig

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
