"""Short fine-tunings: a very small pretrained U-Mamba on a dozen discs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robustcli.adapters import networks
from robustcli.adapters.training_run import WeightsHeader, write_weights
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.selection import FreezeRule
from robustcli.models.umamba import UMamba
from robustcli.training.config import TrainConfig

HALF_RULE = FreezeRule(quantile=0.5, scope="all")
MakeConfig = Callable[..., FinetuneConfig]
TINY: dict[str, Any] = {"features": [4, 8], "strides": [1, 2], "patch_size": [16, 16]}
_TRAINING = {"epochs", "lr", "limit", "window", "fresh", "seed", "aug", "precision", "protocol",
             "devices", "model", "model_args", "data", "patience", "quick", "recipe",
             "ablate"}  # fmt: skip


def network(seed: int = 7, **changes: Any) -> UMamba:
    torch.manual_seed(seed)
    built = networks.create("umamba", {**TINY, **changes})
    assert isinstance(built, UMamba)
    return built


def write_pretrained(path: Path, seed: int = 7, **changes: Any) -> Path:
    """Writes the weights of `network` with the header of a training."""
    header = WeightsHeader(
        model="umamba", arguments={**TINY, **changes}, window=16, channels="rgb", threshold=0.5,
        protocol="patient", trained_on="elsewhere", images_sha256="0" * 64,
    )  # fmt: skip
    write_weights(path, network(seed, **changes).state_dict(), header)
    return path


def tiny_tuning(data: Path, out: Path, pretrained: Path | None, **overrides: Any) -> FinetuneConfig:
    """Returns the settings of three epochs of three steps per mode, two of them profiled."""
    defaults: dict[str, Any] = {"epochs": None if "iterations" in overrides else 3, "lr": 0.01}
    settings = {**defaults, **overrides}
    training = {name: settings.pop(name) for name in list(settings) if name in _TRAINING}
    training.setdefault("recipe", None if training.get("protocol") == "paper" else "patient")
    training = {"model": "umamba", "window": 16, "data": str(data), **training}
    config = TrainConfig(out=out, batch_size=4, device="cpu", **training)
    rule = settings.get("rule")
    profiled = None if rule is not None and rule.pattern is not None else 2
    return FinetuneConfig(config, pretrained, **{"profile_iterations": profiled, **settings})
