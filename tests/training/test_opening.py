"""The folder of a training: whose it is, what is left over in it, what status it ends with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from robustcli.core.errors import RunError, UsageError
from robustcli.tasks.record import DatasetRecord
from robustcli.training.opening import (
    alone,
    closing,
    differences,
    empty,
    is_done,
    joined,
    open_training,
    update,
)
from robustcli.training.record import Patchwise, RecipeRecord, TrainRecord, read_train_record


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
    return list(differences(old, new))


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"seed": 1}, "`--seed` was 0, now it is 1"),
        ({"protocol": "patient"}, "`--protocol` was paper, now it is patient"),
        ({"model": "ulvm"}, "`--model` was unet"),
        ({"devices": 2}, "`--devices` was 1"),
        ({"initial_weights_sha256": "1"}, "--weights, --untrained"),
        ({"recipe": {"batch_size": 8}}, "`--batch-size` was 4, now it is 8"),
        ({"recipe": {"precision": "bf16"}}, "`--precision` was fp32"),
        ({"recipe": {"images_per_epoch": 7}}, "--quick"),
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


def test_the_message_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="`run` holds a training with other settings") as caught:
        joined(Path("run"), record(), record(seed=3))
    assert "another `--out`" in caught.value.todo


def test_going_on_keeps_the_beginning_and_the_costs() -> None:
    old = record(peak_memory_bytes=5, energy_joules=2.0, weights_sha256="w")
    later = datetime(2026, 2, 1, tzinfo=UTC)
    new = joined(Path("run"), old, record(command="second", created=later))
    assert new.command == "first\nsecond"
    assert new.created == old.created
    assert (new.peak_memory_bytes, new.energy_joules, new.weights_sha256) == (5, 2.0, "w")
    assert joined(Path("run"), new, record(command="second")).command == "first\nsecond"


def test_done_is_complete_and_no_more_epochs() -> None:
    complete = record(status="complete")
    assert is_done(complete, record())
    assert not is_done(complete, record({"epochs": 6}))
    assert not is_done(record(status="failed"), record())


def test_patches_are_the_same_when_read_back() -> None:
    own = record({"patches": Patchwise(7)})
    again = TrainRecord.model_validate_json(own.model_dump_json())
    assert said(again, own) == []
    assert "or its plan is another" in said(record({"patches": Patchwise(8)}), own)[0]


def test_one_training_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    with (
        alone(run),
        pytest.raises(RunError, match="Another process is working in"),
        alone(run),
    ):
        pass
    with alone(run):
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Cannot write"), alone(tmp_path / "file" / "run"):
        pass


def test_what_a_killed_process_left_goes_and_the_rest_stays(tmp_path: Path) -> None:
    checkpoints, cache = tmp_path / "checkpoints", tmp_path / "cache"
    for folder in (checkpoints, cache):
        folder.mkdir()
    kept = [tmp_path / "run.json", checkpoints / "last.ckpt"]
    left = [tmp_path / ".run.json.1-2.tmp", checkpoints / ".last.ckpt.1-2.tmp", cache / "pixels-1"]
    for file in kept + left:
        file.write_text("x")
    with alone(tmp_path):
        assert [file.exists() for file in kept] == [True, True]
        assert [file.exists() for file in left] == [False, False, False]


def test_a_new_one_is_written_and_a_finished_one_is_not_opened(tmp_path: Path) -> None:
    assert open_training(tmp_path, record(), fresh=False)
    with closing(tmp_path):
        assert read_train_record(tmp_path).status == "running"
    assert read_train_record(tmp_path).status == "complete"
    assert not open_training(tmp_path, record(), fresh=False)
    assert read_train_record(tmp_path).status == "complete"
    assert open_training(tmp_path, record({"epochs": 7}), fresh=False)
    assert read_train_record(tmp_path).recipe.epochs == 7


def test_an_error_leaves_it_failed_and_ctrl_c_running(tmp_path: Path) -> None:
    open_training(tmp_path, record(), fresh=False)
    with pytest.raises(KeyboardInterrupt), closing(tmp_path):
        raise KeyboardInterrupt
    assert read_train_record(tmp_path).status == "running"
    with pytest.raises(OSError, match="gone"), closing(tmp_path):
        raise OSError("gone")
    assert read_train_record(tmp_path).status == "failed"


def test_fresh_removes_the_runs_own_files_only(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    open_training(tmp_path, record(seed=5), fresh=False)
    assert open_training(tmp_path, record(seed=6), fresh=True)
    assert read_train_record(tmp_path).seed == 6
    empty(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_update_changes_what_it_names(tmp_path: Path) -> None:
    open_training(tmp_path, record(), fresh=False)
    update(tmp_path, chosen_epoch=3)
    found = read_train_record(tmp_path)
    assert (found.chosen_epoch, found.seed) == (3, 0)
    assert found.updated > record().updated
