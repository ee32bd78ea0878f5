"""The recipes against the table of the paper's notebooks, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robustcli.training.batches.augmentations import AUGMENTATIONS
from robustcli.training.losses import LOSSES
from robustcli.training.recipes import (
    BUNDLED,
    PAPER_RECIPES,
    PATIENT_RECIPES,
    Recipe,
    describe,
    listed,
    recipe_for,
)
from robustcli.training.schedules import SCHEDULES

UL = ("ulvm", *(f"ulvm_v{i}" for i in range(1, 7)))
TABLE = {
    "umambabot_pp": (64, "dice", "Adam", 3e-4, 0.0, 16, "logit", 256, 0.8867),
    "umambabot": (32, "dice", "Adam", 3e-4, 0.0, 16, "logit", 256, 0.8799),
    "resnet18_seg": (64, "dice", "Adam", 3e-4, 0.0, 16, "logit", 256, 0.8648),
    "resnet50_seg": (64, "dice", "Adam", 3e-4, 0.0, 16, "logit", 256, 0.8672),
    "unet": (64, "dice", "Adam", 3e-4, 0.0, 64, "logit", 256, 0.8929),
    "segformer": (16, "bce", "AdamW", 1e-4, 5e-5, 16, "probability", 224, 0.8454),
    "ulvm": (2, "bce-dice", "AdamW", 3e-4, 0.01, 16, "probability", 256, 0.79555),
    "ulvm_v1": (2, "bce-dice", "AdamW", 3e-4, 0.01, 16, "probability", 256, 0.8409),
    "ulvm_v2": (2, "bce-dice", "AdamW", 3e-4, 0.01, 16, "probability", 256, 0.8243),
    "ulvm_v3": (2, "bce-dice", "AdamW", 3e-4, 0.01, 16, "probability", 256, 0.8109),
    "ulvm_v4": (2, "bce-dice", "AdamW", 3e-4, 0.01, 16, "probability", 256, 0.8548),
    "ulvm_v5": (2, "bce-dice", "AdamW", 3e-4, 0.01, 16, "probability", 256, 0.8633),
    "ulvm_v6": (2, "bce-dice", "AdamW", 3e-4, 0.01, 16, "probability", 256, 0.8628),
}
EVERY = [*PAPER_RECIPES, *PATIENT_RECIPES, "vmunet", "umamba", "umamba-enc", "smp:Unet/resnet34"]


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_rows(name: str) -> None:
    r = recipe_for(name, "paper", "lgg")
    assert (
        r.batch_size, r.loss, r.optimizer, r.lr, r.weight_decay, r.paper_batch, r.decision,
        r.window, r.expected_dice,
    ) == TABLE[name]  # fmt: skip
    assert (r.epochs, r.schedule, r.augmentation, r.patience) == (100, "constant", "none", None)
    assert (r.clip, r.accumulate, r.images_per_epoch) == (None, 1, None)


def test_every_row_is_listed_with_what_it_is_for() -> None:
    rows = {(name, protocol): recipe for name, protocol, recipe in listed()}
    assert len(rows) == len(TABLE) + 1 + len(PATIENT_RECIPES) + 1
    for (name, protocol), recipe in rows.items():
        serves = "none of them" if name == "*" else name
        assert recipe_for(serves, protocol, "lgg") == recipe


def test_there_are_thirteen() -> None:
    assert set(PAPER_RECIPES) == set(TABLE)


@pytest.mark.parametrize("protocol", ["paper", "patient"])
@pytest.mark.parametrize("data", [BUNDLED, "lgg"])
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_every_network_has_one_that_exists(
    name: str, protocol: str, data: str, quick: bool
) -> None:
    r: Recipe = recipe_for(name, protocol, data, quick=quick)  # type: ignore[arg-type]
    assert r.loss in LOSSES
    assert r.schedule in SCHEDULES
    assert r.augmentation in AUGMENTATIONS
    assert (r.paper_batch is not None) == (protocol == "paper")
    assert ("quick" in r.name) == quick


@pytest.mark.parametrize("protocol", ["paper", "patient"])
def test_only_what_is_published_is_expected(protocol: str) -> None:
    assert recipe_for("vmunet", protocol, "lgg").expected_dice is None  # type: ignore[arg-type]
    assert recipe_for("unet", "patient", "lgg").expected_dice is None
    assert recipe_for("unet", "paper", "lgg", quick=True).expected_dice is None


def test_quick_is_shorter() -> None:
    for data in (BUNDLED, "lgg"):
        usual = recipe_for("ulvm_v5", "patient", data)
        quick = recipe_for("ulvm_v5", "patient", data, quick=True)
        assert quick.epochs < usual.epochs / 2


def test_a_recipe_in_a_line() -> None:
    recipe = replace(recipe_for("unet", "paper", "lgg"), images_per_epoch=128)
    assert describe(recipe) == (
        "Recipe `paper` (Crews and Whalen 2024, training notebooks): 100 epochs of 128 images, "
        "batch 64, window 256, dice loss, Adam at 0.0003, constant, augmentation none."
    )
