import json
from pathlib import Path

import pandas as pd
import pytest

from robustcli.reports.results import to_json, write_results
from robustcli.reports.training import read_training
from robustcli.reports.training_results import COLUMNS, training_results
from robustcli.reports.training_scores import pooled
from tests.reports.train_runs import TrainPlan, build_training


def test_a_line_holds_own_and_published_numbers(tmp_path: Path) -> None:
    training = read_training(build_training(tmp_path / "a", TrainPlan(protocol="paper")))
    row = training_results([training]).iloc[0]
    assert list(row.index) == list(COLUMNS)
    assert (row["run"], row["model"], row["protocol"]) == ("a", "ulvm_v5", "paper")
    assert (row["params"], row["epochs"], row["chosen_epoch"]) == (703_885, 12, 11)
    assert (row["published_dice"], row["published_iou"]) == (0.8633, 0.7638)
    assert training.test is not None
    assert training.baseline is not None
    assert row["dice_low"] == training.test.numbers["dice_low"]
    assert row["baseline_dice"] == training.baseline.numbers["dice"]
    paper = pooled(training)
    assert paper is not None
    assert (row["paper_dice"], row["paper_iou_high"]) == (paper.score.dice, paper.score.iou_high)
    assert row["seconds"] == pytest.approx(48)


def test_what_is_missing_is_empty_and_null_and_counts_stay_whole(tmp_path: Path) -> None:
    runs = [
        build_training(tmp_path / "a"),
        build_training(tmp_path / "b", TrainPlan(model="vmunet", measured=False, finished=2)),
    ]
    table = training_results([read_training(run) for run in runs])
    first, second = json.loads(to_json(table))
    assert isinstance(first["chosen_epoch"], int)
    assert (second["chosen_epoch"], second["dice"], second["published_dice"]) == (None,) * 3
    assert second["epochs"] == 2
    write_results(tmp_path, table)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 3
    assert "nan" not in lines[2].lower()
    assert ".0," not in lines[1].split("complete")[1][:5]
    assert pd.read_csv(tmp_path / "results.csv")["params"].tolist() == [703_885, 703_885]


def test_relaxed_numbers_are_of_data_with_a_tolerance(tmp_path: Path) -> None:
    roads = build_training(tmp_path / "a", TrainPlan(dataset={"tolerance": 3}))
    runs = [read_training(run) for run in (roads, build_training(tmp_path / "b"))]
    first, second = json.loads(to_json(training_results(runs)))
    assert first["relaxed_recall_low"] < first["relaxed_recall"] < first["relaxed_recall_high"]
    assert (second["relaxed_precision"], second["relaxed_recall_high"]) == (None, None)
