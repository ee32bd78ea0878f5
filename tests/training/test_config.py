"""Where a run goes when nobody says where."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from robustcli.training.config import TrainConfig
from robustcli.training.recipes import Patchwise, recipe_for, recipe_named

PATIENT = recipe_for("unet", "patient", "x")
PAPER = recipe_for("unet", "paper", "x")
CONFIG = TrainConfig(model="unet")


def test_out_is_taken_as_it_is() -> None:
    assert replace(CONFIG, out=Path("here")).directory(PATIENT, "d") == Path("here")


def test_the_folder_is_named_by_model_and_settings() -> None:
    folder = TrainConfig(model="smp:Unet/resnet34").directory(PATIENT, "d")
    assert folder.parent == Path("runs")
    assert folder.name.startswith("train-smp-Unet-resnet34-")


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1}, {"protocol": "paper"}, {"untrained": True}, {"weights": Path("w")},
        {"model_args": {"widths": 3}},
    ],
)  # fmt: skip
def test_what_changes_the_weights_changes_the_folder(other: dict[str, object]) -> None:
    changed = replace(CONFIG, **other)  # type: ignore[arg-type]
    assert changed.directory(PATIENT, "d") != CONFIG.directory(PATIENT, "d")


def test_data_and_recipe_change_it_too() -> None:
    assert CONFIG.directory(PATIENT, "d", 2) != CONFIG.directory(PATIENT, "d")
    assert replace(CONFIG, devices=2).directory(PATIENT, "d", 2) == CONFIG.directory(
        PATIENT, "d", 2
    )
    assert CONFIG.directory(PATIENT, "d") != CONFIG.directory(PATIENT, "e")
    assert CONFIG.directory(PATIENT, "d") != CONFIG.directory(replace(PATIENT, lr=1), "d")


@pytest.mark.parametrize("other", [{"fresh": True}, {"workers": 3}, {"device": "cpu"}])
def test_what_changes_nothing_finds_the_same_folder(other: dict[str, object]) -> None:
    changed = replace(CONFIG, **other)  # type: ignore[arg-type]
    assert changed.directory(PATIENT, "d") == CONFIG.directory(PATIENT, "d")


def test_what_only_some_recipes_have_leaves_other_folders_as_they_were() -> None:
    """The name is that of before there were patches."""
    how = asdict(PATIENT)
    del how["patches"]
    said = ["unet", {}, None, False, "patient", 0, 1, "d", how]
    short = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]
    assert CONFIG.directory(PATIENT, "d").name == f"train-unet-{short}"
    fewer = recipe_named("nnunet", "unet", quick=True)
    full = replace(fewer, patches=Patchwise())
    assert CONFIG.directory(fewer, "d") != CONFIG.directory(full, "d")


def test_more_epochs_find_it_where_they_may_be_added() -> None:
    assert CONFIG.directory(PAPER, "d") == CONFIG.directory(replace(PAPER, epochs=200), "d")
    assert CONFIG.directory(PATIENT, "d") != CONFIG.directory(replace(PATIENT, epochs=200), "d")
