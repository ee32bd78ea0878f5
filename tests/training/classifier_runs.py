"""Trainings of classifiers of seconds: a very small VMamba on photos of three colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustcli.training.config import TrainConfig

TINY: dict[str, Any] = {"depths": [1, 1], "dim": 8}


def tiny(data: Path | str | None, out: Path, **said: Any) -> TrainConfig:
    """A training of three epochs of two or three steps."""
    usual: dict[str, Any] = {
        "model": "vmamba-pico", "model_args": TINY, "epochs": 3, "batch_size": 10,
        "device": "cpu", "lr": 0.01,
    }  # fmt: skip
    place = None if data is None else str(data)
    return TrainConfig(data=place, out=out, **{**usual, **said})
