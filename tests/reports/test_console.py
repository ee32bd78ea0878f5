from __future__ import annotations

from pathlib import Path

from robustcli.evaluation.cell_table import table
from robustcli.metrics.intervals import wilson_interval
from robustcli.reports.evaluation_page import MODELS_ABREAST, evaluation_table
from robustcli.reports.finetuning_findings import read_finetuning
from robustcli.reports.finetuning_page import TENSORS_SHOWN, finetune_table
from robustcli.reports.pages import grid
from robustcli.reports.training_findings import read_training
from robustcli.reports.training_page import training_table
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.finetune_runs import MAMBA, FinetunePlan, build_finetuning
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.train_runs import TrainPlan, build_training


def printed_lines(run: Path, *models: str, **changes: object) -> list[str]:
    cells = (IDENTITY, *paper21()[:4], *imagenet_c(severities=(2,))[:1])
    plan = RunPlan(models=[model(name) for name in models], transforms=cells, images=100)
    return evaluation_table(table(build_run(run, plan)), "cls").splitlines()


def test_one_model_shows_counts_interval_and_drop(tmp_path: Path) -> None:
    lines = printed_lines(tmp_path, "vmamba-b")
    row = table(tmp_path).iloc[1]
    low, high = wilson_interval(int(row["correct"]), 100)
    assert lines[3].split() == [
        *("additive_gaussian_noise", str(row["correct"]), "of", "100", f"{row['correct']:.1f}"),
        *(f"{100 * low:.1f}-{100 * high:.1f}", f"{100 * row['drop']:.1f}"),
        f"{100 * row['retention']:.1f}",
    ]
    assert "c_gaussian_noise, severity 2" in "\n".join(lines)
    assert "\n".join(lines).isascii()


def test_models_stand_side_by_side_above_their_clean_best_and_worst(tmp_path: Path) -> None:
    lines = printed_lines(tmp_path, "vmamba-b", "swin-b")
    numbers = table(tmp_path)
    (line,) = [line for line in lines if line.startswith("affine")]
    scores = numbers.loc[numbers["transform"] == "affine", "top1"]
    assert line.split()[1::2] == [f"{100 * top1:.1f}" for top1 in scores]
    for line, name in zip(lines[-2:], ("vmamba-b", "swin-b"), strict=True):
        rows = numbers[numbers["model"] == name]
        worst_transform = rows.sort_values("top1").iloc[0]["transform"]
        assert line.startswith(f"{name}: {rows['correct'].iloc[0]} of 100 (identity), best ")
        assert f"worst {worst_transform}" in line


def test_many_models_are_printed_in_several_tables(tmp_path: Path) -> None:
    names = [f"m-{i}" for i in range(MODELS_ABREAST + 1)]
    text = "\n".join(printed_lines(tmp_path, *names))
    heads = [x.split()[5:] for x in text.splitlines() if x.startswith("top-1 % (95 % interval)")]
    assert heads == [names[:-1], names[-1:]]
    assert max(len(line) for line in text.splitlines()) <= 110


def test_a_segmenter_shows_dice_with_its_interval(tmp_path: Path) -> None:
    numbers = table(build_masks(tmp_path))
    lines = evaluation_table(numbers, "seg").splitlines()
    row = numbers.iloc[3]
    (line,) = [line for line in lines if line.startswith("crop ")]
    assert line.split() == [
        *("crop", f"{row['iou']:.3f}", f"{row['dice']:.3f}"),
        *(f"{row['dice_low']:.3f}-{row['dice_high']:.3f}", f"{row['drop']:.3f}"),
        f"{100 * row['retention']:.1f}",
    ]
    clean = numbers["dice"].iloc[0]
    assert lines[-1].startswith(f"ulvm_v5: dice {clean:.3f} on 24 images (identity), best ")
    assert "%" not in lines[-1]


def test_several_segmenters_stand_side_by_side(tmp_path: Path) -> None:
    models = (segmenter("a"), segmenter("b"))
    numbers = table(build_masks(tmp_path, MaskPlan(models=models)))
    lines = evaluation_table(numbers, "seg").splitlines()
    assert lines[0].split("  ")[0] == "dice (95 % interval)"
    (line,) = [line for line in lines if line.startswith("affine ")]
    dice = numbers.loc[numbers["transform"] == "affine", "dice"]
    assert line.split()[1::2] == [f"{value:.3f}" for value in dice]


def test_without_an_interval_the_table_is_plain_ascii_too(tmp_path: Path) -> None:
    text = evaluation_table(table(build_masks(tmp_path, MaskPlan(groups=1))), "seg")
    assert text.isascii()
    assert " - " in text


def test_a_training_stands_beside_otsu_and_the_paper(tmp_path: Path) -> None:
    run = build_training(tmp_path, TrainPlan(protocol="paper"))
    lines = training_table(read_training(run)).splitlines()[2:]
    numbers = [table(run / folder).iloc[0] for folder in ("test", "baseline")]
    for line, name, row in zip(lines, ("ulvm_v5", "otsu"), numbers, strict=False):
        assert line.split() == [
            *(name, f"{row['dice']:.3f}", f"{row['dice_low']:.3f}-{row['dice_high']:.3f}"),
            f"{row['dice_foreground']:.3f}",
            *(f"{row['iou']:.3f}", f"{row['iou_low']:.3f}-{row['iou_high']:.3f}", "patients"),
        ]
    assert lines[2].endswith("batches of 16")
    assert lines[3].split()[:4] == ["ulvm_v5,", "published", "0.8633", "0.7638"]
    assert training_table(read_training(run)).isascii()


def test_a_training_that_is_not_measured_shows_what_was_published(tmp_path: Path) -> None:
    run = build_training(tmp_path, TrainPlan(measured=False))
    assert len(training_table(read_training(run)).splitlines()) == 3


def test_a_training_on_roads_shows_the_relaxed_numbers(tmp_path: Path) -> None:
    plan = TrainPlan(protocol="paper", dataset={"tolerance": 3})
    lines = training_table(read_training(build_training(tmp_path, plan))).splitlines()
    row = table(tmp_path / "test").iloc[0]
    assert lines[0].endswith("relaxed precision    relaxed recall")
    expected = [f"{row['relaxed_precision']:.3f}", f"{row['relaxed_recall']:.3f}"]
    assert lines[2].split()[-2:] == expected
    assert "batches of 16" in lines[4]


def test_tensors_modes_costs_and_the_verdict_are_printed(tmp_path: Path) -> None:
    text = finetune_table(read_finetuning(build_finetuning(tmp_path)))
    tensors, scores, costs, conclusion = text.split("\n\n")
    assert tensors.splitlines()[2].split() == [
        *("mamba_layer.mamba.A_log", "64x16", "1,024", "1.3e-08", "frozen", "below", "1e-06")
    ]
    assert tensors.splitlines()[-1] == "and 3 more tensors: see the report"
    lines = [line.split() for line in scores.splitlines()[2:]]
    assert [line[0] for line in lines] == ["scratch", "full", "freeze", "otsu"]
    assert len(lines[1]) == 3, "`full` is not compared with itself"
    assert lines[2][3] == "-0.004"
    assert [line.split()[0] for line in costs.splitlines()[2:]] == ["scratch", "full", "freeze"]
    assert "0.240 s" in costs
    assert "After freezing, an iteration took 0.96 times as long" in conclusion
    assert text.isascii()
    assert max(len(line) for line in text.split(conclusion)[0].splitlines()) <= 100


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


def test_a_mode_that_is_still_training_is_left_out(tmp_path: Path) -> None:
    plan = FinetunePlan(unmeasured=("freeze",))
    text = finetune_table(read_finetuning(build_finetuning(tmp_path, plan)))
    assert "\nfreeze " not in text
    assert "\nfull " in text


def test_numbers_are_to_the_right() -> None:
    lines = grid(("a", "b"), [("x", "1"), ("long name", "23")]).splitlines()
    assert lines[2] == "x            1"
    assert lines[3] == "long name   23"
