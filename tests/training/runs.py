"""Short trainings: very small networks on a dozen discs or photos of three colours."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_training
from robustcli.training.recipes import NAMED_RECIPES, Patchwise, Recipe
from robustcli.training.trainer import KeepLastAndBest

SMALL_UNET = {"features": [4, 8]}


def _config(data: Path | str | None, out: Path, **settings: Any) -> TrainConfig:
    location = None if data is None else str(data)
    return TrainConfig(data=location, out=out, **{"device": "cpu", "epochs": 3, **settings})


def tiny_unet(data: Path, out: Path, **overrides: Any) -> TrainConfig:
    """Returns the settings of three epochs of three steps."""
    defaults = {
        "model": "unet",
        "model_args": SMALL_UNET,
        "window": 16,
        "batch_size": 4,
        "lr": 0.01,
    }
    return _config(data, out, **{**defaults, **overrides})


def words_of(file: Path) -> str:
    """Returns the text of a report in lower case, without embedded pictures."""
    return re.sub(r'base64,[^"]*', "", file.read_text(encoding="utf-8")).lower()


@dataclass
class Recorder:
    """A listener that records what it receives."""

    lines: list[str] = field(default_factory=list)
    total: int = 0
    done: int = 0

    def say(self, text: str) -> None:
        self.lines.append(text)

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        self.total, self.done = total, done

    def advance(self, count: int) -> None:
        self.done += count


class Interrupting(Recorder):
    """Raises KeyboardInterrupt after more than `after` images."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.done > self.after:
            raise KeyboardInterrupt


class Stopping(Interrupting):
    """Prints a line after more than `after` images, and waits to be killed."""

    def advance(self, count: int) -> None:
        try:
            super().advance(count)
        except KeyboardInterrupt:
            print("stopped", flush=True)  # noqa: T201
            time.sleep(600)


def kill_when_stopped(code: str, *arguments: object) -> None:
    """Runs `code` in a process and kills it when its `Stopping` listener prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "stopped\n"
        child.kill()


class _KilledError(Exception):
    pass


def killed_after_one_epoch(monkeypatch: pytest.MonkeyPatch, config: TrainConfig) -> None:
    """Runs a training that ends without cleaning up after its first epoch."""
    original_hook = KeepLastAndBest.on_train_epoch_end

    def killed(self: Any, trainer: Any, module: Any) -> None:
        original_hook(self, trainer, module)
        if trainer.current_epoch == 0:
            raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(KeepLastAndBest, "on_train_epoch_end", killed)
        with pytest.raises(_KilledError):
            run_training(config)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Returns the final weights of a training."""
    return dict(load_file(run / "weights.safetensors"))


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    """Returns the weights after the last epoch."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("network."): tensor for name, tensor in state.items()}


def same_state(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Returns whether two state dictionaries are bit-identical."""
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


Run = tuple[Path, Recorder]
"""The folder of a training and its listener."""


def recorded_training(config: TrainConfig) -> Run:
    """Runs a training; returns its folder and its listener."""
    listener = Recorder()
    return run_training(config, listener), listener


TINY_VMAMBA: dict[str, Any] = {"depths": [1, 1], "dim": 8}


def tiny_classifier(data: Path | str | None, out: Path, **overrides: Any) -> TrainConfig:
    """Returns the settings of three epochs of two or three steps."""
    defaults = {"model": "vmamba-pico", "model_args": TINY_VMAMBA, "batch_size": 10, "lr": 0.01}
    return _config(data, out, **{**defaults, **overrides})


TINY_UMAMBA = {"features": [4, 8], "strides": [1, 2], "patch_size": [16, 16]}
FEW_PATCHES = Patchwise(4, 2, most_patch=16, most_batch=3)
RECIPE: Recipe = replace(
    NAMED_RECIPES["nnunet-light"], epochs=3, batch_size=3, window=16, patches=FEW_PATCHES
)


def tiny_umamba(data: Path, out: Path, **overrides: Any) -> TrainConfig:
    """Returns the settings of three epochs; if `RECIPE` replaces `nnunet-light`, of four steps."""
    defaults = {
        "model": "umamba-pico", "model_args": TINY_UMAMBA, "recipe": "nnunet-light", "batch_size": 3
    }  # fmt: skip
    return _config(data, out, **{**defaults, **overrides})
