from pathlib import Path

from robustcli.reports.console_finetune import SHOWN, finetune_table
from tests.reports.finetune_runs import MAMBA, FinetunePlan, build_finetuning


def test_tensors_modes_costs_and_the_verdict_are_printed(tmp_path: Path) -> None:
    text = finetune_table(build_finetuning(tmp_path))
    tensors, scores, costs, words = text.split("\n\n")
    assert tensors.splitlines()[2].split() == [
        *("mamba_layer.mamba.A_log", "64x16", "1,024", "1.3e-08", "frozen", "below", "1e-06"),
    ]
    assert tensors.splitlines()[-1] == "and 3 more tensors: see the report"
    lines = [line.split() for line in scores.splitlines()[2:]]
    assert [line[0] for line in lines] == ["scratch", "full", "freeze", "otsu"]
    assert len(lines[1]) == 3, "full is not compared with itself"
    assert lines[2][3] == "-0.004"
    assert [line.split()[0] for line in costs.splitlines()[2:]] == ["scratch", "full", "freeze"]
    assert "0.240 s" in costs
    assert "After the freeze an iteration took 0.96 times as long" in words
    assert text.isascii()
    assert max(len(line) for line in text.split(words)[0].splitlines()) <= 100


def test_of_many_tensors_the_smallest_are_printed(tmp_path: Path) -> None:
    tensors = tuple((f"{MAMBA}{i}.D", (4,), True, 1e-9 * (i + 1)) for i in range(30))
    plan = FinetunePlan(modes=(), tensors=tensors)
    tensor_table, words = finetune_table(build_finetuning(tmp_path, plan)).split("\n\n")
    assert words.startswith("By count, freezing leaves out 2.00 % of the convolutions")
    lines = tensor_table.splitlines()
    assert len(lines) == 2 + SHOWN + 1
    assert lines[-1] == "and 18 more tensors: see the report"


def test_before_anything_is_measured_that_is_said(tmp_path: Path) -> None:
    plan = FinetunePlan(
        waiting=("scratch", "full", "freeze"),
        profiled=0,
        decided=False,
        record={"saving": None},
    )
    assert finetune_table(build_finetuning(tmp_path, plan)) == "Nothing is measured yet."


def test_a_mode_that_is_still_training_is_left_out(tmp_path: Path) -> None:
    plan = FinetunePlan(unmeasured=("freeze",))
    text = finetune_table(build_finetuning(tmp_path, plan))
    assert "\nfreeze " not in text
    assert "\nfull " in text
