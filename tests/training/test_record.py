"""The record and the folder of a training: what may continue in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from robustcli.core.errors import UsageError
from robustcli.tasks.record import DatasetRecord
from robustcli.training.config import TrainConfig
from robustcli.training.recipes import NAMED_RECIPES, Patchwise, recipe_for, recipe_named
from robustcli.training.record import TRAINING, RecipeRecord, TrainRecord, read_train_record


def record(recipe: dict[str, Any] | None = None, **said: Any) -> TrainRecord:
    how: dict[str, Any] = {
        "loss": "dice", "optimizer": "Adam", "lr": 0.1, "weight_decay": 0.0, "batch_size": 4,
        "schedule": "constant", "accumulate": 1, "epochs": 5, "clip": None, "window": 64,
        "augmentation": "none", "patience": None, "precision": "fp32", "expected_dice": None,
        "source": "ours",
    }  # fmt: skip
    usual: dict[str, Any] = {
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
    return TrainRecord(**(usual | said), recipe=RecipeRecord(**(how | (recipe or {}))))


def said(old: TrainRecord, new: TrainRecord) -> list[str]:
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
        ({"recipe": {"images_per_epoch": 7}}, "`--quick`"),
        ({"recipe": {"epochs": 4}}, "finished epochs cannot be undone"),
        ({"recipe": {"patches": Patchwise(), "name": "nnunet"}}, "`--recipe` was , now it is nnun"),
    ],
)
def test_what_decides_the_weights_is_named(change: dict[str, Any], flag: str) -> None:
    found = said(record(), record(**change))
    assert len(found) == 1
    assert flag in found[0]


def test_more_epochs_are_no_difference_with_a_constant_rate() -> None:
    assert said(record(), record({"epochs": 9})) == []
    cosine = {"schedule": "warmup-cosine"}
    found = said(record(cosine), record(cosine | {"epochs": 9}))
    assert "`--epochs` was 5, now it is 9: the learning rate of its schedule" in found[0]


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"threads": 4}, {"versions": {"a": "1"}}])
def test_what_decides_rounding_only_is_none(change: dict[str, Any]) -> None:
    assert said(record(), record(**change)) == []


def opened(run: Path, *records: TrainRecord) -> TrainRecord:
    for one in records:
        now = TRAINING.open(run, one, fresh=False)
    return now


def test_the_message_says_what_to_do(tmp_path: Path) -> None:
    opened(tmp_path, record())
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(UsageError, match="holds a training with other settings") as caught:
        opened(tmp_path, record(seed=3))
    assert "another `--out`" in caught.value.todo


def test_going_on_keeps_the_beginning_and_the_costs(tmp_path: Path) -> None:
    old = record(peak_memory_bytes=5, energy_joules=2.0, weights_sha256="w")
    later = datetime(2026, 2, 1, tzinfo=UTC)
    new = opened(tmp_path, old, record(command="second", created=later))
    assert new.command == "first\nsecond"
    assert new.created == old.created
    assert (new.peak_memory_bytes, new.energy_joules, new.weights_sha256) == (5, 2.0, "w")
    assert opened(tmp_path, record(command="second")).command == "first\nsecond"
    assert read_train_record(tmp_path).command == "first\nsecond"


def test_patches_are_the_same_when_read_back() -> None:
    own = record({"patches": Patchwise(7)})
    again = TrainRecord.model_validate_json(own.model_dump_json())
    assert said(again, own) == []
    assert "or its plan differs" in said(record({"patches": Patchwise(8)}), own)[0]


def test_decoded_images_of_a_killed_process_go(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "pixels-1").write_text("x")
    with TRAINING.held(tmp_path):
        assert not (tmp_path / "cache").exists()


def test_a_finished_one_is_left_as_it_is_unless_it_gets_more_epochs(tmp_path: Path) -> None:
    assert opened(tmp_path, record()).status == "running"
    with TRAINING.closing(tmp_path):
        pass
    before = (tmp_path / "run.json").read_bytes()
    assert opened(tmp_path, record(command="again")).status == "complete"
    assert (tmp_path / "run.json").read_bytes() == before
    assert opened(tmp_path, record({"epochs": 7})).status == "running"
    assert read_train_record(tmp_path).recipe.epochs == 7


def test_fresh_removes_the_runs_own_files_only(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    opened(tmp_path, record(seed=5))
    TRAINING.open(tmp_path, record(seed=6), fresh=True)
    assert read_train_record(tmp_path).seed == 6
    TRAINING.discard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_default_is_nnunets_own() -> None:
    """Source: the specification's section on U-Mamba's training."""
    recipe = NAMED_RECIPES["nnunet"]
    own = recipe.patches
    assert own == Patchwise()
    assert (own.iterations, own.validation_iterations, own.oversampling) == (250, 50, 0.33)
    assert (own.momentum, own.exponent, own.batch_dice, own.ema) == (0.99, 0.9, True, 0.9)
    assert (own.most_patch, own.most_batch) == (None, None)
    assert [channel.scheme for channel in own.channels] == ["zscore"] * 3
    assert (recipe.epochs, recipe.lr, recipe.weight_decay, recipe.clip) == (1000, 1e-2, 3e-5, 12)
    assert (recipe.optimizer, recipe.schedule, recipe.loss) == ("SGD", "poly", "ce-minus-dice")


def test_the_light_one_differs_in_amount_only_and_says_so() -> None:
    full, light = NAMED_RECIPES["nnunet"], NAMED_RECIPES["nnunet-light"]
    assert full.patches is not None
    assert light.patches is not None
    assert light.epochs * light.patches.iterations < full.epochs * full.patches.iterations
    amounts = {"iterations", "validation_iterations", "most_patch", "most_batch"}
    other = {
        field.name
        for field in fields(Patchwise)
        if getattr(light.patches, field.name) != getattr(full.patches, field.name)
    }
    assert other == amounts
    for name in ("lr", "weight_decay", "clip", "optimizer", "loss", "augmentation", "schedule"):
        assert getattr(light, name) == getattr(full, name)
    assert "ours" in light.source
    assert all(name == recipe.name for name, recipe in NAMED_RECIPES.items())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    one = record(faults=["a"], arguments={"features": [1, 2]})
    TRAINING.write(tmp_path, one)
    assert read_train_record(tmp_path) == one


def test_another_file_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "eval"}')
    with pytest.raises(UsageError, match="is not the record of a training"):
        read_train_record(tmp_path)


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
    """The name is that of before there were patches or settings of classifiers alone."""
    how = asdict(PATIENT)
    del how["patches"], how["photos"]
    said = ["unet", {}, None, False, "patient", 0, 1, "d", how]
    short = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]
    assert CONFIG.directory(PATIENT, "d").name == f"train-unet-{short}"
    fewer = recipe_named("nnunet", "unet", quick=True)
    full = replace(fewer, patches=Patchwise())
    assert CONFIG.directory(fewer, "d") != CONFIG.directory(full, "d")


def test_more_epochs_find_it_where_they_may_be_added() -> None:
    assert CONFIG.directory(PAPER, "d") == CONFIG.directory(replace(PAPER, epochs=200), "d")
    assert CONFIG.directory(PATIENT, "d") != CONFIG.directory(replace(PATIENT, epochs=200), "d")
