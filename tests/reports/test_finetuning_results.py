import json
import re
from pathlib import Path

import pytest

from robustcli.reports.finetuning import read_finetuning
from robustcli.reports.finetuning_results import COLUMNS, finetuning_results
from robustcli.reports.finetuning_scores import against_full
from robustcli.reports.results import to_json
from tests.reports.finetune_runs import HELD, ROADS, TOTAL, FinetunePlan, build_finetuning

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"


def test_a_line_holds_what_a_mode_gave_and_cost(tmp_path: Path) -> None:
    found = read_finetuning(build_finetuning(tmp_path))
    table = finetuning_results(found)
    assert list(table.columns) == list(COLUMNS)
    assert table["mode"].tolist() == ["scratch", "full", "freeze"]
    row, one = table.iloc[2], against_full(found, "freeze")
    assert one is not None
    assert (row["n"], row["groups"]) == (8, 8)
    assert (row["trainable"], row["frozen"]) == (TOTAL - HELD, HELD)
    assert (row["optimizer_bytes"], row["iterations_measured"]) == (4 * (TOTAL - HELD), 50)
    assert row["iterations_per_second"] == pytest.approx(1 / row["seconds_per_iteration"])
    assert (row["dice_minus_full"], row["dice_minus_full_p"]) == (one.dice, one.p)
    assert (row["dice_minus_full_low"], row["dice_minus_full_high"]) == (one.low, one.high)
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
    assert list(table.columns) == list(COLUMNS)


def test_every_column_is_documented() -> None:
    section = FORMATS.read_text(encoding="utf-8").split("## Fine-tuning")[1]
    named = set(re.findall(r"`([a-z_0-9]+)`", section))
    assert set(COLUMNS) <= named


def test_relaxed_numbers_are_of_data_with_a_tolerance(tmp_path: Path) -> None:
    found = read_finetuning(build_finetuning(tmp_path, ROADS))
    assert found.tolerance == 3
    row = finetuning_results(found).iloc[1]
    assert row["relaxed_precision_low"] < row["relaxed_precision"] < row["relaxed_precision_high"]
