from pathlib import Path

from robustcli.reports.document import Figure
from robustcli.reports.finetuning import read_finetuning
from robustcli.reports.sections.finetune_sweep import saved, sweep
from tests.reports.finetune_runs import FinetunePlan, build_finetuning, sweep_rows
from tests.reports.sections.told import line_of, told

DASH = "\N{EN DASH}"


def test_every_rule_is_a_line(tmp_path: Path) -> None:
    run = build_finetuning(tmp_path, FinetunePlan(modes=(), sweep=True))
    page = told(sweep(read_finetuning(run), [Figure("figures/sweep.png", "Sweep.")]))
    assert line_of(page, "rule") == ["rule", "chosen from", "frozen %", "time saved %", "dice"]
    assert line_of(page, "`smallest 0.6`") == [
        *("`smallest 0.6`", "all tensors", "40.0", f"15.0 (10.0{DASH}20.0)"),
        f"0.840 (0.800{DASH}0.870)",
    ]
    assert line_of(page, "`encoder`")[-1] == "0.830"
    assert "![Sweep.](figures/sweep.png)" in page


def test_without_a_sweep_there_is_no_section(tmp_path: Path) -> None:
    run = build_finetuning(tmp_path, FinetunePlan(modes=()))
    assert sweep(read_finetuning(run), []) == []


def test_time_that_nobody_measured_is_a_dash() -> None:
    row = sweep_rows().iloc[1]
    assert saved(row.copy()) == f"3.0 (1.0{DASH}5.0)"
    row["seconds_ratio_low"] = None
    assert saved(row) == "3.0"
    row["seconds_ratio"] = None
    assert saved(row) == DASH
