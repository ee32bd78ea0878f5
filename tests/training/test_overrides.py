"""Overrides of a recipe, and which of them are refused."""

from __future__ import annotations

from typing import Any

import pytest

from robustcli.core.errors import UsageError
from robustcli.training.config import TrainConfig
from robustcli.training.overrides import check_protocol, class_recipe, recipe_of
from robustcli.training.recipes import listed_classes


def test_the_window_is_the_networks() -> None:
    recipe = class_recipe(TrainConfig("x"), 224)
    assert (recipe.name, recipe.window, recipe.optimizer, recipe.clip) == (
        "classes", 224, "AdamW", 1.0,
    )  # fmt: skip
    assert recipe.loss == "smoothed-cross-entropy"


def test_overrides_and_the_quick_one() -> None:
    config = TrainConfig(
        "x", recipe="classes-light", quick=True, lr=0.1, aug="Strong", precision="bf16"
    )
    recipe = class_recipe(config, 32)
    assert recipe.name == "classes-light quick"
    assert (recipe.epochs, recipe.images_per_epoch, recipe.batch_size) == (2, 512, 32)
    assert (recipe.lr, recipe.augmentation, recipe.precision) == (0.1, "strong", "bf16")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"loss": "dice"}, "`dice`"),
        ({"aug": "heavy"}, "`heavy`"),
        ({"recipe": "nnunet"}, "`nnunet`"),
        ({"lr": 0}, "out of range"),
    ],
)
def test_what_has_no_meaning_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        class_recipe(TrainConfig("x", **said), 32)


def test_a_protocol_of_masks_is_refused() -> None:
    check_protocol(TrainConfig("x"))
    with pytest.raises(UsageError, match="`--protocol paper` does not go with classifiers"):
        check_protocol(TrainConfig("x", protocol="paper"))


def test_every_row_is_listed() -> None:
    assert [name for name, _, _ in listed_classes()] == [
        "--recipe classes",
        "--recipe classes-light",
    ]


def recipe(**said: Any) -> Any:
    config = TrainConfig(model="unet", **said)
    return recipe_of(config, "unet", "some data")


def test_what_is_said_counts_and_the_rest_is_the_recipes() -> None:
    plain = recipe()
    changed = recipe(
        epochs=3, lr=0.5, batch_size=6, accumulate=2, loss="Dice", aug="STRONG", window=96,
        clip=2.5, patience=4, precision="bf16",
    )  # fmt: skip
    assert (changed.epochs, changed.lr, changed.batch_size, changed.accumulate) == (3, 0.5, 6, 2)
    assert (changed.loss, changed.augmentation, changed.window) == ("dice", "strong", 96)
    assert (changed.clip, changed.patience, changed.precision) == (2.5, 4, "bf16")
    assert (changed.optimizer, changed.schedule) == (plain.optimizer, plain.schedule)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"lr": 0.0}, "`--lr 0.0` is out of range"),
        ({"lr": float("nan")}, "`--lr nan` is out of range"),
        ({"batch_size": -1}, "`--batch-size -1` is out of range"),
        ({"loss": "dise"}, "No loss is called `dise`"),
        ({"aug": "ligt"}, "No augmentation is called `ligt`"),
        ({"protocol": "paper", "aug": "light"}, "`--aug light` does not go with `--protocol pap"),
        ({"protocol": "paper", "patience": 3}, "`--patience 3` does not go with `--protocol pap"),
        ({"protocol": "paper", "recipe": "nnunet"}, "`--recipe nnunet` does not go with `--proto"),
        ({"recipe": "nnunett"}, "No recipe is called `nnunett`"),
        ({"recipe": "nnunet", "loss": "dice"}, "`--loss dice` does not go with `--recipe nnunet"),
        ({"recipe": "nnunet", "aug": "light"}, "`--aug light` does not go with `--recipe nnunet"),
        ({"recipe": "nnunet", "accumulate": 2}, "`--accumulate 2` does not go with `--recipe nn"),
        ({"recipe": "nnunet", "patience": 2}, "`--patience 2` does not go with `--recipe nnunet"),
    ],
)
def test_what_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(**said)


def test_the_paper_may_be_told_to_augment_nothing() -> None:
    assert recipe(protocol="paper", aug="none").augmentation == "none"


def test_our_recipe_by_name_takes_what_nnunets_does_not() -> None:
    assert recipe(recipe="patient", loss="dice", accumulate=2, patience=3).loss == "dice"


def test_a_recipe_by_name_can_be_shortened_and_slowed() -> None:
    found = recipe(recipe="nnunet", epochs=24, lr=0.02, clip=1.0, precision="bf16")
    assert (found.name, found.epochs, found.lr, found.clip) == ("nnunet", 24, 0.02, 1.0)
    assert (found.precision, found.optimizer) == ("bf16", "SGD")
