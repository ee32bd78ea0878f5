"""Results of a training and its scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from robustcli.core.errors import RunError
from robustcli.reports.pages import to_json, write_result_files
from robustcli.reports.training_findings import (
    TrainingFindings,
    gain,
    group_score,
    headline,
    paper_scores,
    pooled,
    read_training,
)
from robustcli.reports.training_page import SEGMENTER_COLUMNS, training_results
from robustcli.reports.zoo_findings import other_experiment, published, table_one
from robustcli.training.procedures.base import paper_rows as paper_rows_paper_scores
from tests.reports.train_runs import TrainPlan, build_training, paper_rows, training_record
from tests.training.test_losses import GOLDEN
from tests.training.test_losses import fixed_losses as fixed


def test_an_evaluation_without_rows_is_not_measured_yet(tmp_path: Path) -> None:
    build_training(tmp_path)
    for file in (tmp_path / "test").glob("predictions/**/*.parquet"):
        file.unlink()
    assert read_training(tmp_path).test is None


# Table I of "Mamba-Based Tumor Segmentation" as printed, and the counted parameters.
TABLE_I = {
    "umambabot_pp": (10_076_356, 0.8867),
    "umambabot": (9_813_700, 0.8799),
    "resnet18_seg": (13_930_497, 0.8648),
    "resnet50_seg": (42_909_633, 0.8672),
    "segformer": (17_782_913, 0.8454),
    "unet": (7_765_985, 0.8929),
    "ulvm": (49_457, 0.79955),
    "ulvm_v1": (217_165, 0.8409),
    "ulvm_v2": (42_737, 0.8243),
    "ulvm_v3": (176_453, 0.8109),
    "ulvm_v4": (1_135_309, 0.8548),
    "ulvm_v5": (703_885, 0.8633),
    "ulvm_v6": (769_677, 0.8628),
}


def test_all_thirteen_are_there_the_best_first() -> None:
    lines = table_one()
    assert {line.model: (line.parameters, line.dice) for line in lines} == TABLE_I
    assert [line.dice for line in lines] == sorted((d for _, d in TABLE_I.values()), reverse=True)


def test_a_network_that_is_not_in_the_paper_has_no_line() -> None:
    line = published("unet")
    assert line.iou == 0.8071
    assert published("vmunet") is None
    assert published("otsu") is None


@pytest.mark.parametrize(
    ("plan", "differences"),
    [
        (TrainPlan(protocol="paper", epochs=100), []),
        (TrainPlan(epochs=100), ["protocol patient instead of paper"]),
        (TrainPlan(protocol="paper", epochs=5), ["5 epochs instead of 100"]),
        (
            TrainPlan(protocol="paper", epochs=100, dataset={"name": "roads", "images": 60}),
            ["60 images of roads instead of the 3,929 slices of LGG"],
        ),
    ],
)
def test_differences_from_the_published_experiment_are_named(
    plan: TrainPlan, differences: list[str]
) -> None:
    assert other_experiment(training_record(plan)) == differences


def test_a_line_holds_own_and_published_numbers(tmp_path: Path) -> None:
    training = read_training(build_training(tmp_path / "a", TrainPlan(protocol="paper")))
    row = training_results([training]).iloc[0]
    assert list(row.index) == list(SEGMENTER_COLUMNS)
    assert (row["run"], row["model"], row["protocol"]) == ("a", "ulvm_v5", "paper")
    assert (row["params"], row["epochs"], row["chosen_epoch"]) == (703_885, 12, 11)
    assert (row["published_dice"], row["published_iou"]) == (0.8633, 0.7638)
    assert row["dice_low"] == training.test.numbers["dice_low"]
    assert row["baseline_dice"] == training.baseline.numbers["dice"]
    paper = pooled(training)
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
    write_result_files(tmp_path, table)
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


@pytest.fixture
def paper(tmp_path: Path) -> TrainingFindings:
    return read_training(build_training(tmp_path, TrainPlan(protocol="paper")))


def test_the_papers_statistic_is_the_mean_over_batches(paper: TrainingFindings) -> None:
    rows = paper_rows()
    dice, iou = [], []
    for start in (0, 16, 32):
        part = rows[start : start + 16]
        size = part["predicted"].sum() + part["target"].sum()
        if size:
            dice.append(2 * part["intersection"].sum() / size)
        iou.append(part["overlap"].sum() / part["union"].sum() if part["union"].sum() else 0.0)
    scores = pooled(paper)
    assert (scores.batches, scores.undefined, scores.batch) == (3, 1, 16)
    assert scores.score.dice == pytest.approx(np.mean(dice))
    assert scores.score.iou == pytest.approx(np.mean(iou))


def test_its_interval_is_over_batches(paper: TrainingFindings) -> None:
    scores = pooled(paper)
    low, mean, high = scores.score.iou_low, scores.score.iou, scores.score.iou_high
    # One of three batches has IoU 0: one resample in 27 contains only that batch.
    assert low == 0.0
    assert high == pytest.approx(1.5 * mean, rel=0.01)


def test_the_headline_is_that_of_the_protocol(tmp_path: Path, paper: TrainingFindings) -> None:
    scores = pooled(paper)
    assert headline(paper) == scores.score
    patient = read_training(build_training(tmp_path / "b"))
    assert headline(patient) == group_score(patient.test.numbers)
    assert pooled(patient) is None


def test_the_gain_compares_the_same_groups(tmp_path: Path) -> None:
    training = read_training(build_training(tmp_path))
    compared = gain(training)
    assert compared.drop == pytest.approx(
        training.baseline.numbers["dice"] - training.test.numbers["dice"]
    )
    assert compared.paired_groups == 8


needs_golden = pytest.mark.skipif(not GOLDEN.is_file(), reason="needs ../shared")


def golden() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(Path(GOLDEN).read_text())
    return result


def rows(predicted: Tensor, target: Tensor) -> pd.DataFrame:
    ids = [f"{i}" for i in range(len(predicted))]
    return pd.DataFrame(list(paper_rows_paper_scores(ids, predicted, target)))


@needs_golden
def test_a_batch_pooled() -> None:
    logits, target = fixed()
    by_logit = paper_scores(rows(logits >= 0.5, target), 4)
    assert by_logit.dice == pytest.approx(golden()["dice_batch[logit>=0.5]"], abs=1e-6)
    assert by_logit.iou == pytest.approx(golden()["iou_batch[logit>=0.5]"], abs=1e-6)
    by_probability = paper_scores(rows(logits.sigmoid() >= 0.5, target), 16)
    assert by_probability.dice == pytest.approx(golden()["dice_batch[prob>=0.5]"], abs=1e-6)
    assert by_probability.iou == pytest.approx(golden()["iou_batch[prob>=0.5]"], abs=1e-6)


@needs_golden
def test_batches_of_one_and_of_three_and_one() -> None:
    logits, target = fixed()
    table = rows(logits >= 0.5, target)
    dice_of_each = golden()["dice_each[logit>=0.5]"]
    assert paper_scores(table, 1).dice == pytest.approx(np.mean(dice_of_each), abs=1e-6)
    assert paper_scores(table, 1).iou == pytest.approx(
        np.mean(golden()["iou_each[logit>=0.5]"]), abs=1e-6
    )
    first, last = paper_scores(table[:3], 3), paper_scores(table[3:], 3)
    two_batches = paper_scores(table, 3)
    assert two_batches.batches == 2
    assert two_batches.dice == pytest.approx(
        (first.dice + last.dice) / 2
    )  # the smaller batch has the same weight


@needs_golden
def test_a_soft_mask_counts_softly_for_dice_and_whole_for_iou() -> None:
    logits, target = fixed()
    scores = paper_scores(rows(logits >= 0.5, 0.7 * target), 4)
    key = "(logit>=0.5, 0.7*target)"
    assert scores.dice == pytest.approx(golden()[f"dice_softmask{key}"], abs=1e-6)
    assert scores.iou == pytest.approx(golden()[f"iou_softmask{key}"], abs=1e-6)


def test_a_batch_without_anything_has_no_dice_and_an_iou_of_zero() -> None:
    empty_mask = torch.zeros(2, 1, 4, 4)
    only = paper_scores(rows(empty_mask.bool(), empty_mask), 2)
    assert math.isnan(only.dice)
    assert (only.iou, only.batches, only.undefined) == (0.0, 1, 1)
    full_mask = torch.ones(2, 1, 4, 4)
    scores = paper_scores(
        pd.concat([rows(empty_mask.bool(), empty_mask), rows(full_mask.bool(), full_mask)]), 2
    )
    assert scores == (1.0, 0.5, 2, 1)


@pytest.mark.parametrize("line", ["," * 10, "1,x" + "," * 9])
def test_a_table_of_epochs_without_numbers_is_named(tmp_path: Path, line: str) -> None:
    run = build_training(tmp_path / "run", TrainPlan())
    table = run / "metrics.csv"
    header = table.read_text("utf-8").splitlines()[0]
    table.write_text(f"{header}\n{line}\n", "utf-8")
    with pytest.raises(RunError, match=r"metrics\.csv` is damaged"):
        read_training(run)
