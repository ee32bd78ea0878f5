from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustcli.reports.training import Training, read_training
from robustcli.reports.training_scores import gain, group_score, headline, pooled
from tests.reports.train_runs import TrainPlan, build_training, paper_rows


@pytest.fixture
def paper(tmp_path: Path) -> Training:
    return read_training(build_training(tmp_path, TrainPlan(protocol="paper")))


def test_the_papers_statistic_is_the_mean_over_batches(paper: Training) -> None:
    rows = paper_rows()
    dice, iou = [], []
    for start in (0, 16, 32):
        part = rows[start : start + 16]
        size = part["predicted"].sum() + part["target"].sum()
        if size:
            dice.append(2 * part["intersection"].sum() / size)
        iou.append(part["overlap"].sum() / part["union"].sum() if part["union"].sum() else 0.0)
    found = pooled(paper)
    assert found is not None
    assert (found.batches, found.undefined, found.batch) == (3, 1, 16)
    assert found.score.dice == pytest.approx(np.mean(dice))
    assert found.score.iou == pytest.approx(np.mean(iou))


def test_its_interval_is_over_batches(paper: Training) -> None:
    found = pooled(paper)
    assert found is not None
    low, mean, high = found.score.iou_low, found.score.iou, found.score.iou_high
    assert low is not None
    assert mean is not None
    assert high is not None
    # One of three batches has IoU 0: a resample of it alone comes in one of 27 draws.
    assert low == 0.0
    assert high == pytest.approx(1.5 * mean, rel=0.01)


def test_the_headline_is_that_of_the_protocol(tmp_path: Path, paper: Training) -> None:
    found = pooled(paper)
    assert found is not None
    assert headline(paper) == found.score
    patient = read_training(build_training(tmp_path / "b"))
    assert patient.test is not None
    assert headline(patient) == group_score(patient.test.numbers)
    assert pooled(patient) is None


def test_nothing_is_claimed_of_what_was_not_measured(tmp_path: Path) -> None:
    for protocol in ("patient", "paper"):
        plan = TrainPlan(measured=False, protocol=protocol)
        training = read_training(build_training(tmp_path / protocol, plan))
        assert (headline(training), gain(training)) == (None, None)


def test_a_missing_interval_is_none() -> None:
    numbers = pd.Series({"dice": 0.5, "dice_low": np.nan, "dice_high": np.nan})
    score = group_score(pd.concat([numbers, numbers.rename(lambda n: n.replace("dice", "iou"))]))
    assert (score.dice, score.dice_low, score.dice_high) == (0.5, None, None)


def test_the_gain_compares_the_same_groups(tmp_path: Path) -> None:
    training = read_training(build_training(tmp_path))
    compared = gain(training)
    assert compared is not None
    assert training.test is not None
    assert training.baseline is not None
    assert compared.drop == pytest.approx(
        training.baseline.numbers["dice"] - training.test.numbers["dice"]
    )
    assert compared.paired_groups == 8
