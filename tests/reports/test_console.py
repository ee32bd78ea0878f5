"""The tables that commands print."""

from __future__ import annotations

from pathlib import Path

from robustcli.evaluation.cell_table import table
from robustcli.reports.evaluation_page import MODELS_ABREAST, evaluation_table
from robustcli.reports.finetuning_findings import read_finetuning
from robustcli.reports.finetuning_page import TENSORS_SHOWN, finetune_table
from robustcli.reports.pages import grid
from robustcli.reports.training_findings import read_training
from robustcli.reports.training_page import training_table
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.finetune_runs import MAMBA, FinetunePlan, build_finetuning
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.page_parts import assert_golden
from tests.reports.train_runs import TrainPlan, build_training


def test_the_tables_are_read_by_a_person(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21()[:4], *imagenet_c(severities=(2,))[:1])
    names = [f"m-{i}" for i in range(MODELS_ABREAST + 1)]
    roads = TrainPlan(protocol="paper", dataset={"tolerance": 3})
    tables = {
        **{
            f"{count} classifiers": evaluation_table(
                table(
                    build_run(
                        tmp_path / str(count),
                        RunPlan(models=list(map(model, names[:count])), transforms=cells),
                    )
                ),
                "cls",
            )
            for count in (1, 2, MODELS_ABREAST + 1)
        },
        **{
            name: evaluation_table(table(build_masks(tmp_path / name, plan)), "seg")
            for name, plan in {
                "a segmenter": MaskPlan(transforms=cells[:3]),
                "two segmenters": MaskPlan((segmenter("a"), segmenter("b")), cells[:3]),
                "one group": MaskPlan(transforms=cells[:2], groups=1),
            }.items()
        },
        **{
            name: training_table(read_training(build_training(tmp_path / name, plan)))
            for name, plan in {
                "a training": TrainPlan(),
                "the paper's protocol, with a tolerance": roads,
                "not measured yet": TrainPlan(measured=False),
            }.items()
        },
        **{
            name: finetune_table(read_finetuning(build_finetuning(tmp_path / name, plan)))
            for name, plan in {
                "a fine-tuning": FinetunePlan(),
                "a mode that is not measured yet": FinetunePlan(unmeasured=("freeze",)),
            }.items()
        },
    }
    page = "\n\n".join(f"=== {name}\n\n{text}" for name, text in tables.items())
    assert page.isascii()
    assert_golden(f"```text\n{page}\n```\n", "console")


def test_of_many_tensors_the_smallest_are_printed(tmp_path: Path) -> None:
    tensors = tuple((f"{MAMBA}{i}.D", (4,), True, 1e-9 * (i + 1)) for i in range(30))
    plan = FinetunePlan(modes=(), tensors=tensors)
    text = finetune_table(read_finetuning(build_finetuning(tmp_path, plan)))
    tensor_table, conclusion = text.split("\n\n")
    assert conclusion.startswith("By count, freezing saves 2.00 % of the convolutions")
    lines = tensor_table.splitlines()
    assert len(lines) == 2 + TENSORS_SHOWN + 1
    assert lines[-1] == "and 18 more tensors: see the report"


def test_a_run_without_results_is_announced(tmp_path: Path) -> None:
    plan = FinetunePlan(
        waiting=("scratch", "full", "freeze"), profiled=0, decided=False, record={"saving": None}
    )
    finetuning = read_finetuning(build_finetuning(tmp_path, plan))
    assert finetune_table(finetuning) == "Nothing is measured yet."


def test_numbers_are_to_the_right() -> None:
    lines = grid(("a", "b"), [("x", "1"), ("long name", "23")]).splitlines()
    assert lines[2] == "x            1"
    assert lines[3] == "long name   23"
