"""The recipes against the table of the paper's notebooks, row by row."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from robustcli.core.errors import UsageError
from robustcli.training.losses import LOSSES
from robustcli.training.recipes import (
    BUNDLED,
    EXTENDABLE,
    NAMED_RECIPES,
    PAPER_RECIPES,
    PATIENT_RECIPES,
    SCHEDULES,
    Recipe,
    constant,
    describe,
    listed,
    listed_by_name,
    recipe_for,
    recipe_named,
    warmup_cosine,
)
from robustcli.training.samples import AUGMENTATIONS


def test_a_recipe_by_its_name() -> None:
    assert recipe_named("NNUNET_light", "unet") is NAMED_RECIPES["nnunet-light"]
    with pytest.raises(UsageError, match="No recipe is called `nunet`"):
        recipe_named("nunet", "unet")


def test_quick_is_shorter_and_else_the_same() -> None:
    quick = recipe_named("nnunet", "unet", quick=True)
    assert (quick.name, quick.epochs) == ("nnunet quick", 2)
    assert quick.patches is not None
    assert (quick.patches.iterations, quick.patches.momentum) == (25, 0.99)


def test_our_own_has_a_name_too() -> None:
    assert recipe_named("patient", "vmunet") == recipe_for("vmunet", "patient", "x")
    assert recipe_named("patient", "unet", quick=True) == recipe_for(
        "unet", "patient", "x", quick=True
    )
    assert recipe_named("patient", "ulvm").epochs == 60  # on whatever data


def test_they_are_listed_as_they_are_typed() -> None:
    rows = list(listed_by_name())
    assert [name for name, _, _ in rows] == ["--recipe nnunet", "--recipe nnunet-light"]
    assert all(recipe is NAMED_RECIPES[name.split()[1]] for name, _, recipe in rows)


def test_iterations_in_the_line() -> None:
    line = describe(NAMED_RECIPES["nnunet"])
    assert "1000 epochs of 250 iterations, batch 12, window 256, ce-minus-dice loss, SGD" in line


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


def test_constant_is_one_however_long() -> None:
    assert {constant(step, total) for step in (0, 7, 99) for total in (100, 1000)} == {1.0}


def test_the_cosine_warms_up_peaks_and_ends_at_one_percent() -> None:
    factors = [warmup_cosine(step, 200) for step in range(200)]
    assert factors[0] == pytest.approx(1 / 10)
    assert factors[4] == pytest.approx(5 / 10)
    assert factors[9] == factors[10] == pytest.approx(1)
    assert factors[105] == pytest.approx((1 + 0.01) / 2)  # half way down
    assert warmup_cosine(200, 200) == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(factors[10:]))


def test_it_stays_at_the_end() -> None:
    assert warmup_cosine(300, 200) == warmup_cosine(200, 200)


def test_a_single_step_is_a_whole_one() -> None:
    assert warmup_cosine(0, 1) == 1


def test_only_what_ignores_the_length_may_be_extended() -> None:
    for name, factor in SCHEDULES.items():
        same = all(factor(step, 100) == factor(step, 150) for step in range(100))
        assert same == (name in EXTENDABLE)
