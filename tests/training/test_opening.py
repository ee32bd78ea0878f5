"""The folder of a training: whose it is, what is left over in it, what status it ends with."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.core.errors import RunError
from robustcli.training.opening import alone, closing, empty, open_training, update
from robustcli.training.record import read_train_record
from tests.training.test_resume import record


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
