"""The settings of a fine-tuning, and the folder that they name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.rules import FreezeRule
from robustcli.training.config import TrainConfig

CONFIG = FinetuneConfig(TrainConfig("smp:Unet/resnet18"))
TRAINING = Path("runs/train-x-0a1b2c3d")


def test_without_more_it_is_the_documented_command() -> None:
    assert CONFIG.rule == FreezeRule(threshold=1e-6, scope="mamba", kind="mean_abs")
    assert CONFIG.modes == ("scratch", "full", "freeze")
    assert replace(CONFIG, mode="lora").modes == ("lora",)
    assert replace(CONFIG, profile_only=True).modes == ()


def test_the_folder_is_named_by_what_is_common_to_the_modes() -> None:
    usual = CONFIG.directory(TRAINING)
    assert usual.parent == Path("runs")
    assert usual.name.startswith("finetune-smp-Unet-resnet18-")
    assert replace(CONFIG, mode="full", profile_only=True).directory(TRAINING) == usual


@pytest.mark.parametrize(
    "other",
    [
        {"pretrained": Path("w")},
        {"rule": FreezeRule(quantile=0.3)},
        {"profile_iterations": 3},
        {"profile": Path("p")},
        {"iterations": 7},
    ],
)
def test_other_settings_have_another_folder(other: dict[str, object]) -> None:
    changed = replace(CONFIG, **other)  # type: ignore[arg-type]
    assert changed.directory(TRAINING) != CONFIG.directory(TRAINING)
    assert CONFIG.directory(Path("runs/train-y")) != CONFIG.directory(TRAINING)
    named = replace(changed, training=replace(CONFIG.training, out=Path("mine")))
    assert named.directory(TRAINING) == Path("mine")
