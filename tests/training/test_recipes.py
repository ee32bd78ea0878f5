"""Recipes: the paper's table, options that override values, and the study of learning rates."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from robustcli.core.errors import UsageError
from robustcli.training.classifier_training import class_recipe
from robustcli.training.config import TrainConfig
from robustcli.training.losses import LOSSES
from robustcli.training.mask_samples import AUGMENTATIONS
from robustcli.training.recipes import (
    BUNDLED,
    CLASS_RECIPES,
    EXTENDABLE,
    FAIR_RATES,
    NAMED_RECIPES,
    PAPER_RECIPES,
    PATIENT_RECIPES,
    SCHEDULES,
    Recipe,
    constant,
    describe_recipe,
    listed,
    recipe_for,
    recipe_named,
    shortened_recipe,
    warmup_cosine,
)
from robustcli.training.segmenter_training import mask_recipe


def test_a_recipe_by_its_name() -> None:
    assert recipe_named("NNUNET_light", "unet") is NAMED_RECIPES["nnunet-light"]
    with pytest.raises(UsageError, match="No recipe is called `nunet`"):
        recipe_named("nunet", "unet")


def test_a_quick_recipe_differs_in_its_length_only() -> None:
    is_quick = shortened_recipe(recipe_named("nnunet", "unet"))
    assert (is_quick.name, is_quick.epochs) == ("nnunet quick", 2)
    assert (is_quick.patches.iterations, is_quick.patches.momentum) == (25, 0.99)


def test_the_patient_recipe_can_be_named() -> None:
    assert recipe_named("patient", "vmunet") == recipe_for("vmunet", "patient", "x")
    assert shortened_recipe(recipe_named("patient", "unet")) == recipe_for(
        "unet", "patient", "x", quick=True
    )
    assert recipe_named("patient", "ulvm").epochs == 60  # for any data set


def test_recipes_are_listed_with_their_option() -> None:
    rows = {name: recipe for name, _, recipe in listed() if name.startswith("--recipe")}
    all_recipes = {**NAMED_RECIPES, **CLASS_RECIPES}
    families = {f"--recipe fair ({family})" for family in FAIR_RATES}
    assert rows.keys() - families == {f"--recipe {name}" for name in all_recipes}
    assert all(rows[f"--recipe {name}"] == recipe for name, recipe in all_recipes.items())
    assert all(name == recipe.name for name, recipe in all_recipes.items()), "listed by its name"


def test_a_recipe_line_contains_the_iterations() -> None:
    line = describe_recipe(NAMED_RECIPES["nnunet"])
    assert "1000 epochs of 250 iterations, batch 12, window 256, ce-minus-dice loss, SGD" in line


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
NETWORKS = [*PAPER_RECIPES, *PATIENT_RECIPES, "vmunet", "umamba", "umamba-enc", "smp:Unet/resnet34"]


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_rows(name: str) -> None:
    r = recipe_for(name, "paper", "lgg")
    assert (
        r.batch_size, r.loss, r.optimizer, r.lr, r.weight_decay, r.paper_batch, r.decision,
        r.window, r.expected_dice,
    ) == TABLE[name]  # fmt: skip
    assert (r.epochs, r.schedule, r.augmentation, r.patience) == (100, "constant", "none", None)
    assert (r.clip, r.accumulate, r.images_per_epoch) == (None, 1, None)


def test_every_recipe_is_listed_with_its_network_and_protocol() -> None:
    rows = {(name, p): recipe for name, p, recipe in listed() if name[0] != "-"}
    assert len(rows) == len(TABLE) + 1 + len(PATIENT_RECIPES) + 1
    for (name, protocol), recipe in rows.items():
        serves = "none of them" if name == "*" else name
        assert recipe_for(serves, protocol, "lgg") == recipe  # type: ignore[arg-type]


def test_the_paper_has_thirteen_recipes() -> None:
    assert set(PAPER_RECIPES) == set(TABLE)


def test_every_network_has_an_existing_recipe() -> None:
    settings = product(NETWORKS, ("paper", "patient"), (BUNDLED, "lgg"), (False, True))
    for name, protocol, data, is_quick in settings:
        r: Recipe = recipe_for(name, protocol, data, quick=is_quick)  # type: ignore[arg-type]
        assert r.loss in LOSSES
        assert r.schedule in SCHEDULES
        assert r.augmentation in AUGMENTATIONS
        assert (r.paper_batch is not None) == (protocol == "paper")
        assert ("quick" in r.name) == is_quick


@pytest.mark.parametrize("protocol", ["paper", "patient"])
def test_only_what_is_published_is_expected(protocol: str) -> None:
    assert recipe_for("vmunet", protocol, "lgg").expected_dice is None  # type: ignore[arg-type]
    assert recipe_for("unet", "patient", "lgg").expected_dice is None
    assert recipe_for("unet", "paper", "lgg", quick=True).expected_dice is None


def test_quick_recipes_are_shorter() -> None:
    for data in (BUNDLED, "lgg"):
        full_length = recipe_for("ulvm_v5", "patient", data)
        is_quick = recipe_for("ulvm_v5", "patient", data, quick=True)
        assert is_quick.epochs < full_length.epochs / 2


def test_a_recipe_in_a_line() -> None:
    recipe = replace(recipe_for("unet", "paper", "lgg"), images_per_epoch=128)
    assert describe_recipe(recipe) == (
        "Recipe `paper` (Crews and Whalen 2024, training notebooks): 100 epochs of 128 images, "
        "batch 64, window 256, dice loss, Adam at 0.0003, constant, augmentation none."
    )


def test_the_constant_schedule_is_one_for_any_length() -> None:
    assert {constant(step, total) for step in (0, 7, 99) for total in (100, 1000)} == {1.0}


def test_the_cosine_warms_up_peaks_and_ends_at_one_percent() -> None:
    factors = [warmup_cosine(step, 200) for step in range(200)]
    assert factors[0] == pytest.approx(1 / 10)
    assert factors[4] == pytest.approx(5 / 10)
    assert factors[9] == factors[10] == pytest.approx(1)
    assert factors[105] == pytest.approx((1 + 0.01) / 2)  # half of the schedule
    assert warmup_cosine(200, 200) == warmup_cosine(300, 200) == pytest.approx(0.01)
    assert warmup_cosine(0, 1) == 1
    assert all(a > b for a, b in pairwise(factors[10:]))


def test_only_schedules_that_ignore_the_length_may_be_extended() -> None:
    for name, factor in SCHEDULES.items():
        is_same = all(factor(step, 100) == factor(step, 150) for step in range(100))
        assert is_same == (name in EXTENDABLE)


def test_the_window_is_the_networks() -> None:
    recipe = class_recipe(TrainConfig("x"), 224, "x")
    assert (recipe.name, recipe.window, recipe.optimizer, recipe.clip) == (
        "classes", 224, "AdamW", 1.0,
    )  # fmt: skip
    assert recipe.loss == "smoothed-cross-entropy"


def test_a_quick_recipe_takes_overrides() -> None:
    config = TrainConfig(
        "x", recipe="classes-light", quick=True, lr=0.1, aug="Strong", precision="bf16"
    )
    recipe = class_recipe(config, 32, "x")
    assert recipe.name == "classes-light quick"
    assert (recipe.epochs, recipe.images_per_epoch, recipe.batch_size) == (2, 512, 32)
    assert (recipe.lr, recipe.augmentation, recipe.precision) == (0.1, "strong", "bf16")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loss": "dice"}, "`dice`"),
        ({"aug": "heavy"}, "`heavy`"),
        ({"lr": 0}, "out of range"),
    ],
)
def test_options_without_meaning_for_classifiers_are_refused(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        class_recipe(TrainConfig("x", **overrides), 32, "x")


def recipe(**overrides: Any) -> Any:
    config = TrainConfig(model="unet", **overrides)
    return mask_recipe(config, "unet", "some data")


def test_options_override_values_of_the_recipe() -> None:
    unchanged = recipe()
    changed = recipe(
        epochs=3, lr=0.5, batch_size=6, accumulate=2, loss="Dice", aug="STRONG", window=96,
        clip=2.5, patience=4, precision="bf16",
    )  # fmt: skip
    assert (changed.epochs, changed.lr, changed.batch_size, changed.accumulate) == (3, 0.5, 6, 2)
    assert (changed.loss, changed.augmentation, changed.window) == ("dice", "strong", 96)
    assert (changed.clip, changed.patience, changed.precision) == (2.5, 4, "bf16")
    assert (changed.optimizer, changed.schedule) == (unchanged.optimizer, unchanged.schedule)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lr": 0.0}, "`--lr 0.0` is out of range"),
        ({"lr": float("nan")}, "`--lr nan` is out of range"),
        ({"lr": float("inf")}, "`--lr inf` is out of range"),
        ({"clip": float("inf")}, "`--clip inf` is out of range"),
        ({"batch_size": -1}, "`--batch-size -1` is out of range"),
        ({"loss": "dise"}, "No loss is called `dise`"),
        ({"aug": "ligt"}, "No augmentation is called `ligt`"),
        (
            {"protocol": "paper", "aug": "light"},
            "`--aug light` cannot be used with `--protocol pap",
        ),
        (
            {"protocol": "paper", "patience": 3},
            "`--patience 3` cannot be used with `--protocol pap",
        ),
        (
            {"protocol": "paper", "recipe": "nnunet"},
            "`--recipe nnunet` cannot be used with `--proto",
        ),
        ({"recipe": "nnunett"}, "No recipe is called `nnunett`"),
        (
            {"recipe": "nnunet", "loss": "dice"},
            "`--loss dice` cannot be used with `--recipe nnunet",
        ),
        (
            {"recipe": "nnunet", "aug": "light"},
            "`--aug light` cannot be used with `--recipe nnunet",
        ),
        (
            {"recipe": "nnunet", "accumulate": 2},
            "`--accumulate 2` cannot be used with `--recipe nn",
        ),
        (
            {"recipe": "nnunet", "patience": 2},
            "`--patience 2` cannot be used with `--recipe nnunet",
        ),
    ],
)
def test_options_that_contradict_the_recipe_are_refused(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(**overrides)


def test_the_paper_may_be_told_to_augment_nothing() -> None:
    assert recipe(protocol="paper", aug="none").augmentation == "none"


def test_our_recipe_by_name_takes_what_nnunets_does_not() -> None:
    assert recipe(recipe="patient", loss="dice", accumulate=2, patience=3).loss == "dice"


def test_a_recipe_by_name_can_be_shortened_and_slowed() -> None:
    custom = recipe(recipe="nnunet", epochs=24, lr=0.02, clip=1.0, precision="bf16")
    assert (custom.name, custom.epochs, custom.lr, custom.clip) == ("nnunet", 24, 0.02, 1.0)
    assert (custom.precision, custom.optimizer) == ("bf16", "SGD")


STUDY = Path(__file__).parents[2] / "recipes" / "fair_learning_rates.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fair_learning_rates", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("scores", "following"),
    [
        ({3e-4: 0.1, 1e-3: 0.3, 3e-3: 0.2}, None),
        ({3e-4: 0.1, 1e-3: 0.2, 3e-3: 0.3}, 1e-2),
        ({3e-4: 0.3, 1e-3: 0.2, 3e-3: 0.1}, 1e-4),
        ({3e-2: 0.1, 1e-1: 0.3}, None),  # the last rate of the ladder
    ],
)
def test_the_grid_is_extended_where_the_best_is_at_its_edge(
    study: ModuleType, scores: dict[float, float], following: float | None
) -> None:
    assert study.next_rate(scores) == following


def test_no_image_is_in_two_parts(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "PER_CLASS", {"train": 2, "val": 1, "test": 1})
    archive = tmp_path / "photos.tar"
    with tarfile.open(archive, "w") as tar:
        for label in ("cat", "dog"):
            for number in (4, 0, 3, 1, 2):
                content = f"{label}{number}".encode()
                member = tarfile.TarInfo(f"train/{label}/{number}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for _ in range(2):  # the second time all results exist
        study.extract_parts(archive, tmp_path / "data")
        files = {
            path.relative_to(tmp_path / "data").as_posix(): path.read_text()
            for path in (tmp_path / "data").rglob("*.jpg")
        }
        assert files == {
            f"{part}/{label}/{number}.jpg": f"{label}{number}"
            for label in ("cat", "dog")
            for part, number in (("train", 0), ("train", 1), ("val", 2), ("test", 3))
        }
