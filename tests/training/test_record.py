"""The record and the folder of a training: the settings that may change on resuming."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from robustcli.tasks.record import DatasetRecord
from robustcli.training.config import TrainConfig
from robustcli.training.recipes import (
    NAMED_RECIPES,
    Patchwise,
    recipe_for,
    recipe_named,
    shortened_recipe,
)
from robustcli.training.record import TRAINING, RecipeRecord, TrainRecord, read_train_record


def record(recipe: dict[str, Any] | None = None, **overrides: Any) -> TrainRecord:
    fields: dict[str, Any] = {
        "loss": "dice", "optimizer": "Adam", "lr": 0.1, "weight_decay": 0.0, "batch_size": 4,
        "schedule": "constant", "accumulate": 1, "epochs": 5, "clip": None, "window": 64,
        "augmentation": "none", "patience": None, "precision": "fp32", "expected_dice": None,
        "source": "ours",
    }  # fmt: skip
    defaults: dict[str, Any] = {
        "command": "first", "status": "running", "created": datetime(2026, 1, 1, tzinfo=UTC),
        "updated": datetime(2026, 1, 1, tzinfo=UTC), "seed": 0, "protocol": "paper",
        "model": "unet", "family": "unet", "parameters": 1, "initial_weights": "none",
        "initial_weights_sha256": "0", "grouping": "image", "splits": {}, "decision": "x",
        "versions": {}, "device": "cpu", "threads": 1,
        "dataset": DatasetRecord(
            name="d", location="here", label_space="foreground", classes=2, images=9,
            images_available=9, subset=None, demonstration=False, digest="00",
        ),
    }  # fmt: skip
    return TrainRecord(**(defaults | overrides), recipe=RecipeRecord(**(fields | (recipe or {}))))


def changed_settings(old: TrainRecord, new: TrainRecord) -> list[str]:
    return list(TRAINING.differences(old, new))


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"seed": 1}, "`--seed` was 0, now it is 1"),
        ({"protocol": "patient"}, "`--protocol` was paper, now it is patient"),
        ({"model": "ulvm"}, "`--model` was unet"),
        ({"devices": 2}, "`--devices` was 1"),
        ({"initial_weights_sha256": "1"}, "`--weights`, `--untrained`"),
        ({"recipe": {"batch_size": 8}}, "`--batch-size` was 4, now it is 8"),
        ({"recipe": {"precision": "bf16"}}, "`--precision` was fp32"),
        ({"recipe": {"augmentation": "light"}}, "`--aug` was none, now it is light"),
        ({"recipe": {"loss": "bce"}}, "`--loss` was dice, now it is bce"),
        ({"recipe": {"images_per_epoch": 7}}, "`--quick`"),
        ({"recipe": {"epochs": 4}}, "finished epochs cannot be undone"),
        ({"recipe": {"patches": Patchwise(), "name": "nnunet"}}, "`--recipe` was , now it is nnun"),
    ],
)
def test_changed_settings_that_affect_the_weights_are_named(
    change: dict[str, Any], flag: str
) -> None:
    names = changed_settings(record(), record(**change))
    assert len(names) == 1
    assert flag in names[0]


def test_more_epochs_are_no_difference_with_a_constant_rate() -> None:
    assert changed_settings(record(), record({"epochs": 9})) == []
    cosine = {"schedule": "warmup-cosine"}
    names = changed_settings(record(cosine), record(cosine | {"epochs": 9}))
    assert "`--epochs` was 5, now it is 9: the learning rate of its schedule" in names[0]


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"threads": 4}, {"versions": {"a": "1"}}])
def test_settings_that_affect_rounding_only_are_no_difference(change: dict[str, Any]) -> None:
    assert changed_settings(record(), record(**change)) == []


def open_records(run: Path, *records: TrainRecord) -> TrainRecord:
    for each_record in records:
        result = TRAINING.open(run, each_record, fresh=False)
    return result


def test_resuming_keeps_the_start_and_the_costs(tmp_path: Path) -> None:
    original = record(peak_memory_bytes=5, energy_joules=2.0, weights_sha256="w")
    later_date = datetime(2026, 2, 1, tzinfo=UTC)
    merged = open_records(tmp_path, original, record(command="second", created=later_date))
    assert merged.command == "first\nsecond"
    assert merged.created == original.created
    assert (merged.peak_memory_bytes, merged.energy_joules, merged.weights_sha256) == (5, 2.0, "w")
    assert open_records(tmp_path, record(command="second")).command == "first\nsecond"
    assert read_train_record(tmp_path).command == "first\nsecond"


def test_patches_are_unchanged_after_reading() -> None:
    patched = record({"patches": Patchwise(7)})
    reread = TrainRecord.model_validate_json(patched.model_dump_json())
    assert changed_settings(reread, patched) == []
    assert "or its plan differs" in changed_settings(record({"patches": Patchwise(8)}), patched)[0]


def test_decoded_images_of_a_killed_process_go(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "pixels-1").write_text("x")
    with TRAINING.held(tmp_path):
        assert not (tmp_path / "cache").exists()


def test_a_finished_training_is_unchanged_unless_it_gets_more_epochs(tmp_path: Path) -> None:
    assert open_records(tmp_path, record()).status == "running"
    with TRAINING.closing(tmp_path):
        pass
    before = (tmp_path / "run.json").read_bytes()
    assert open_records(tmp_path, record(command="again")).status == "complete"
    assert (tmp_path / "run.json").read_bytes() == before
    assert open_records(tmp_path, record({"epochs": 7})).status == "running"
    assert read_train_record(tmp_path).recipe.epochs == 7


def test_fresh_removes_the_runs_own_files_only(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    open_records(tmp_path, record(seed=5))
    TRAINING.open(tmp_path, record(seed=6), fresh=True)
    assert read_train_record(tmp_path).seed == 6
    TRAINING.discard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_default_is_nnunets_own() -> None:
    """Source: the specification's section on U-Mamba's training."""
    recipe = NAMED_RECIPES["nnunet"]
    spec = recipe.patches
    assert spec == Patchwise()
    assert (spec.iterations, spec.validation_iterations, spec.oversampling) == (250, 50, 0.33)
    assert (spec.momentum, spec.exponent, spec.batch_dice, spec.ema) == (0.99, 0.9, True, 0.9)
    assert (spec.most_patch, spec.most_batch) == (None, None)
    assert [channel.scheme for channel in spec.channels] == ["zscore"] * 3
    assert (recipe.epochs, recipe.lr, recipe.weight_decay, recipe.clip) == (1000, 1e-2, 3e-5, 12)
    assert (recipe.optimizer, recipe.schedule, recipe.loss) == ("SGD", "poly", "ce-minus-dice")


def test_the_light_recipe_differs_in_amounts_only() -> None:
    full, light = NAMED_RECIPES["nnunet"], NAMED_RECIPES["nnunet-light"]
    assert light.epochs * light.patches.iterations < full.epochs * full.patches.iterations
    amounts = {"iterations", "validation_iterations", "most_patch", "most_batch"}
    different = {
        field.name
        for field in fields(Patchwise)
        if getattr(light.patches, field.name) != getattr(full.patches, field.name)
    }
    assert different == amounts
    for name in ("lr", "weight_decay", "clip", "optimizer", "loss", "augmentation", "schedule"):
        assert getattr(light, name) == getattr(full, name)
    assert "ours" in light.source
    assert all(name == recipe.name for name, recipe in NAMED_RECIPES.items())


def test_a_written_record_is_read_unchanged(tmp_path: Path) -> None:
    first = record(faults=["a"], arguments={"features": [1, 2]})
    TRAINING.write(tmp_path, first)
    assert read_train_record(tmp_path) == first


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
    "changes",
    [
        {"seed": 1}, {"protocol": "paper"}, {"untrained": True}, {"weights": Path("w")},
        {"model_args": {"widths": 3}},
    ],
)  # fmt: skip
def test_settings_that_affect_the_weights_change_the_folder(changes: dict[str, object]) -> None:
    changed = replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert changed.directory(PATIENT, "d") != CONFIG.directory(PATIENT, "d")


def test_data_and_recipe_change_the_folder() -> None:
    assert CONFIG.directory(PATIENT, "d", 2) != CONFIG.directory(PATIENT, "d")
    assert replace(CONFIG, devices=2).directory(PATIENT, "d", 2) == CONFIG.directory(
        PATIENT, "d", 2
    )
    assert CONFIG.directory(PATIENT, "d") != CONFIG.directory(PATIENT, "e")
    assert CONFIG.directory(PATIENT, "d") != CONFIG.directory(replace(PATIENT, lr=1), "d")


@pytest.mark.parametrize("changes", [{"fresh": True}, {"workers": 3}, {"device": "cpu"}])
def test_settings_without_effect_on_weights_keep_the_folder(changes: dict[str, object]) -> None:
    changed = replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert changed.directory(PATIENT, "d") == CONFIG.directory(PATIENT, "d")


def test_fields_of_some_recipes_keep_the_folders_of_others() -> None:
    """The folder has the name it had before patches and classifier settings existed."""
    settings = asdict(PATIENT)
    del settings["patches"], settings["photos"]
    identity = ["unet", {}, None, False, "patient", 0, 1, "d", settings]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    assert CONFIG.directory(PATIENT, "d").name == f"train-unet-{digest}"
    quick_recipe = shortened_recipe(recipe_named("nnunet", "unet"))
    default_patches = replace(quick_recipe, patches=Patchwise())
    assert CONFIG.directory(quick_recipe, "d") != CONFIG.directory(default_patches, "d")


def test_the_folder_does_not_depend_on_epochs_that_may_be_extended() -> None:
    assert CONFIG.directory(PAPER, "d") == CONFIG.directory(replace(PAPER, epochs=200), "d")
    assert CONFIG.directory(PATIENT, "d") != CONFIG.directory(replace(PATIENT, epochs=200), "d")
