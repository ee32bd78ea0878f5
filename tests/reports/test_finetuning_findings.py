"""Results of a fine-tuning, and its modes compared with full fine-tuning."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from robustcli.core.errors import UsageError
from robustcli.metrics.mask_scores import dice
from robustcli.reports.finetuning_findings import (
    FinetuningFindings,
    against_full,
    frozen_elements,
    pace,
    pace_before,
    read_finetuning,
    seconds_ratio,
)
from robustcli.reports.finetuning_page import SEGMENTER_MODE_COLUMNS, finetuning_results
from robustcli.reports.pages import to_json
from tests.reports.finetune_runs import HELD, ROADS, TENSORS, TOTAL, FinetunePlan, build_finetuning


def test_everything_that_a_run_leaves_is_read(tmp_path: Path) -> None:
    findings = read_finetuning(build_finetuning(tmp_path, FinetunePlan(sweep=True)))
    assert [run.mode for run in findings.modes] == ["scratch", "full", "freeze"]
    assert findings.decisions is not None
    assert findings.decisions["frozen"].tolist() == [False, False, True, True, False, False, False]
    assert findings.profile is not None
    assert len(findings.profile) == 10 * len(TENSORS)
    assert findings.sweep is not None
    assert len(findings.sweep) == 4
    assert not findings.is_partial


def test_steady_iterations_are_those_after_the_freeze(tmp_path: Path) -> None:
    findings = read_finetuning(build_finetuning(tmp_path))
    freeze, full = findings.of("freeze"), findings.of("full")
    assert freeze is not None
    assert full is not None
    assert set(freeze.steady["trainable"]) == {TOTAL - HELD}
    assert (len(freeze.steady), freeze.frozen_at) == (50, 10)
    assert freeze.seconds_per_iteration == pytest.approx(0.24, rel=0.02), (
        "0.48 s before the freeze must be ignored"
    )
    assert (len(full.steady), full.frozen_at) == (60, None)


def test_a_run_that_only_profiles_has_no_modes(tmp_path: Path) -> None:
    findings = read_finetuning(build_finetuning(tmp_path, FinetunePlan(modes=())))
    assert findings.modes == ()
    assert findings.training is None
    assert findings.decisions is not None


def test_an_unfinished_run_can_be_read(tmp_path: Path) -> None:
    plan = FinetunePlan(unmeasured=("full",), waiting=("freeze",), profiled=0, decided=False)
    findings = read_finetuning(build_finetuning(tmp_path, plan))
    assert [run.mode for run in findings.modes] == ["scratch", "full"]
    full = findings.of("full")
    assert full is not None
    assert (full.costs, full.seconds_per_iteration, full.frozen_at) == (None, None, None)
    assert findings.of("freeze") is None
    assert (findings.decisions, findings.profile, findings.sweep) == (None, None, None)
    assert findings.is_partial
    assert findings.training is not None
    assert findings.training.test is not None, "the measured mode has a score"


def test_a_folder_without_a_fine_tuning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        read_finetuning(tmp_path)


FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"


def test_a_line_holds_what_a_mode_gave_and_cost(tmp_path: Path) -> None:
    findings = read_finetuning(build_finetuning(tmp_path))
    table = finetuning_results(findings)
    assert list(table.columns) == list(SEGMENTER_MODE_COLUMNS)
    assert table["mode"].tolist() == ["scratch", "full", "freeze"]
    row, first = table.iloc[2], against_full(findings, "freeze")
    assert first is not None
    assert (row["n"], row["groups"]) == (8, 8)
    assert (row["trainable"], row["frozen"]) == (TOTAL - HELD, HELD)
    assert (row["optimizer_bytes"], row["iterations_measured"]) == (4 * (TOTAL - HELD), 50)
    assert row["iterations_per_second"] == pytest.approx(1 / row["seconds_per_iteration"])
    assert (row["dice_minus_full"], row["dice_minus_full_p"]) == (first.dice, first.p)
    assert (row["dice_minus_full_low"], row["dice_minus_full_high"]) == (first.low, first.high)
    assert row["dice_low"] < row["dice"] < row["dice_high"]
    assert row["baseline_dice"] < row["dice"]
    assert row["training_seconds"] == pytest.approx(6 * 4 * 0.24 / 0.25)


def test_what_is_missing_is_null_and_counts_stay_whole(tmp_path: Path) -> None:
    plan = FinetunePlan(unmeasured=("full",), waiting=("freeze",))
    table = finetuning_results(read_finetuning(build_finetuning(tmp_path, plan)))
    first, second = json.loads(to_json(table))
    assert isinstance(first["trainable"], int)
    assert first["dice_minus_full"] is None
    assert (second["dice"], second["trainable"], second["seconds_per_iteration"]) == (None,) * 3
    assert (second["status"], second["epochs"], second["iterations"]) == ("running", 2, 20)


def test_a_run_that_only_profiles_has_no_lines(tmp_path: Path) -> None:
    table = finetuning_results(read_finetuning(build_finetuning(tmp_path, FinetunePlan(modes=()))))
    assert to_json(table) == "[]\n"
    assert list(table.columns) == list(SEGMENTER_MODE_COLUMNS)


def test_every_column_is_documented() -> None:
    section = FORMATS.read_text(encoding="utf-8").split("## Fine-tuning")[1]
    column_names = set(re.findall(r"`([a-z_0-9]+)`", section))
    assert set(SEGMENTER_MODE_COLUMNS) <= column_names


def test_relaxed_numbers_are_of_data_with_a_tolerance(tmp_path: Path) -> None:
    findings = read_finetuning(build_finetuning(tmp_path, ROADS))
    assert findings.tolerance == 3
    row = finetuning_results(findings).iloc[1]
    assert row["relaxed_precision_low"] < row["relaxed_precision"] < row["relaxed_precision_high"]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> FinetuningFindings:
    return read_finetuning(build_finetuning(tmp_path_factory.mktemp("run")))


def test_freezing_is_compared_with_full_on_the_same_images(findings: FinetuningFindings) -> None:
    first, freeze, full = (
        against_full(findings, "freeze"),
        findings.of("freeze"),
        findings.of("full"),
    )
    assert first is not None
    assert freeze is not None
    assert freeze.training.test is not None
    assert full is not None
    assert full.training.test is not None
    gain = dice(freeze.training.test.rows) - dice(full.training.test.rows)
    assert first.dice == pytest.approx(gain.mean()), "every image is a group"
    assert first.low is not None
    assert first.high is not None
    assert first.low < first.dice < first.high < 0
    assert against_full(findings, "full") is None
    assert against_full(findings, "lora") is None


def test_time_is_that_after_the_freeze_over_that_of_full(findings: FinetuningFindings) -> None:
    assert seconds_ratio(findings, "freeze") == pytest.approx(0.24 / 0.25, rel=0.02)
    assert seconds_ratio(findings, "full") == 1.0
    assert seconds_ratio(findings, "lora") is None


def test_the_quartiles_surround_the_median(findings: FinetuningFindings) -> None:
    freeze = findings.of("freeze")
    assert freeze is not None
    speed = pace(freeze)
    assert speed is not None
    seconds = freeze.steps["seconds"].to_numpy()[10:]
    earlier_pace = pace_before(freeze)
    assert earlier_pace is not None
    assert (speed.iterations, earlier_pace.iterations) == (50, 10)
    assert earlier_pace.median == pytest.approx(np.median(freeze.steps["seconds"].to_numpy()[:10]))
    expected = np.quantile(seconds, [0.25, 0.5, 0.75])
    assert (speed.low, speed.median, speed.high) == pytest.approx(tuple(expected))


def test_without_a_freeze_during_training_there_is_no_earlier_pace(
    findings: FinetuningFindings,
) -> None:
    full = findings.of("full")
    assert full is not None
    assert pace_before(full) is None


def test_frozen_elements_are_counted(findings: FinetuningFindings) -> None:
    assert [frozen_elements(run) for run in findings.modes] == [0, 0, HELD]


def test_an_unfinished_mode_has_no_pace_and_frozen_elements(tmp_path: Path) -> None:
    findings = read_finetuning(build_finetuning(tmp_path, FinetunePlan(unmeasured=("freeze",))))
    freeze = findings.of("freeze")
    assert freeze is not None
    assert (pace(freeze), frozen_elements(freeze)) == (None, None)
    assert (seconds_ratio(findings, "freeze"), against_full(findings, "freeze")) == (None, None)
