""""""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.reports.training_findings import read_training
from robustcli.training.record import METRICS
from tests.reports.train_runs import TrainPlan, build_training


def test_everything_that_a_finished_training_left_is_read(tmp_path: Path) -> None:
    training = read_training(build_training(tmp_path, TrainPlan(protocol="paper")))
    assert (training.epochs, training.seconds, training.is_partial) == (12, 48.0, False)
    assert training.test is not None
    assert training.baseline is not None
    assert training.paper is not None
    assert training.test.numbers["dice"] > training.baseline.numbers["dice"] > 0.5
    assert len(training.test.rows) == 24
    assert training.weights_bytes == 4 * 703_885 // 100


def test_a_training_that_has_not_begun_lacks_the_rest(tmp_path: Path) -> None:
    training = read_training(build_training(tmp_path, TrainPlan(measured=False, finished=0)))
    assert list(training.metrics.columns) == list(METRICS)
    found = (training.seconds, training.test, training.baseline, training.paper)
    assert found == (None, None, None, None)
    assert (training.epochs, training.weights_bytes, training.is_partial) == (0, None, True)


def test_an_evaluation_without_rows_is_not_measured_yet(tmp_path: Path) -> None:
    build_training(tmp_path)
    for file in (tmp_path / "test").glob("predictions/**/*.parquet"):
        file.unlink()
    assert read_training(tmp_path).test is None


def test_a_folder_without_a_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        read_training(tmp_path)
