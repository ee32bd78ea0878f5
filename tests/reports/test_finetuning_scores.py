from pathlib import Path

import numpy as np
import pytest

from robustcli.evaluation.mask_scores import dice
from robustcli.reports.finetuning import Finetuning, read_finetuning
from robustcli.reports.finetuning_scores import (
    against_full,
    frozen_elements,
    pace,
    pace_before,
    seconds_ratio,
)
from tests.reports.finetune_runs import HELD, FinetunePlan, build_finetuning


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Finetuning:
    return read_finetuning(build_finetuning(tmp_path_factory.mktemp("run")))


def test_freezing_is_compared_with_full_on_the_same_images(found: Finetuning) -> None:
    one, freeze, full = against_full(found, "freeze"), found.of("freeze"), found.of("full")
    assert one is not None
    assert freeze is not None
    assert freeze.training.test is not None
    assert full is not None
    assert full.training.test is not None
    gained = dice(freeze.training.test.rows) - dice(full.training.test.rows)
    assert one.dice == pytest.approx(gained.mean()), "every image is its own group"
    assert one.low is not None
    assert one.high is not None
    assert one.low < one.dice < one.high < 0
    assert against_full(found, "full") is None
    assert against_full(found, "lora") is None


def test_time_is_that_after_the_freeze_over_that_of_full(found: Finetuning) -> None:
    assert seconds_ratio(found, "freeze") == pytest.approx(0.24 / 0.25, rel=0.02)
    assert seconds_ratio(found, "full") == 1.0
    assert seconds_ratio(found, "lora") is None


def test_the_middle_half_stands_around_the_median(found: Finetuning) -> None:
    freeze = found.of("freeze")
    assert freeze is not None
    speed = pace(freeze)
    assert speed is not None
    seconds = freeze.steps["seconds"].to_numpy()[10:]
    before = pace_before(freeze)
    assert before is not None
    assert (speed.iterations, before.iterations) == (50, 10)
    assert before.median == pytest.approx(np.median(freeze.steps["seconds"].to_numpy()[:10]))
    expected = np.quantile(seconds, [0.25, 0.5, 0.75])
    assert (speed.low, speed.median, speed.high) == pytest.approx(tuple(expected))


def test_without_a_freeze_on_the_way_there_is_nothing_before_it(found: Finetuning) -> None:
    full = found.of("full")
    assert full is not None
    assert pace_before(full) is None


def test_what_stood_still_is_what_was_not_trained(found: Finetuning) -> None:
    assert [frozen_elements(run) for run in found.modes] == [0, 0, HELD]


def test_before_the_end_nothing_is_known(tmp_path: Path) -> None:
    found = read_finetuning(build_finetuning(tmp_path, FinetunePlan(unmeasured=("freeze",))))
    freeze = found.of("freeze")
    assert freeze is not None
    assert (pace(freeze), frozen_elements(freeze)) == (None, None)
    assert (seconds_ratio(found, "freeze"), against_full(found, "freeze")) == (None, None)
