"""The record of a training as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.training.record import read_train_record, write_train_record
from tests.training.test_resume import record


def test_what_is_written_is_read(tmp_path: Path) -> None:
    one = record(faults=["a"], arguments={"features": [1, 2]})
    write_train_record(tmp_path, one)
    assert read_train_record(tmp_path) == one


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        read_train_record(tmp_path)


def test_another_file_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "eval"}')
    with pytest.raises(UsageError, match="is not the record of a training run"):
        read_train_record(tmp_path)
