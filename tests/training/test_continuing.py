"""The folder of a training: which settings may continue in it, and what belongs to it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from robustcli.core.errors import UsageError
from robustcli.tasks.record import DatasetRecord
from robustcli.training.recipes import Patchwise
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
        ({"recipe": {"epochs": 4}}, "epochs cannot be taken back"),
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
    with pytest.raises(UsageError, match="holds a training with other settings") as caught:
        opened(tmp_path, record(), record(seed=3))
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
    assert "or its plan is another" in said(record({"patches": Patchwise(8)}), own)[0]


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
