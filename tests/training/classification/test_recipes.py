"""Recipes of classifiers."""

from __future__ import annotations

from typing import Any

import pytest

from robustcli.core.errors import UsageError
from robustcli.training.classification.recipes import check_protocol, class_recipe
from robustcli.training.classification.rows import listed_classes
from robustcli.training.config import TrainConfig


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
