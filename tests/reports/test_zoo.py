"""Several trainings: published and measured numbers, tests, caveats, and the common report."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from robustcli.core.errors import UsageError
from robustcli.evaluation.record import EVALUATION
from robustcli.reports import zoo_page
from robustcli.reports.pages import write_page
from robustcli.reports.training_findings import read_training
from robustcli.reports.training_page import training_report
from robustcli.reports.zoo_findings import Zoo, ZooRow
from robustcli.reports.zoo_page import zoo_report, zoo_text
from robustcli.training.record import ADDED, TRAINING, seed_folder
from tests.reports.compared import rows_of
from tests.reports.mask_runs import UNUSUAL_MASKS
from tests.reports.page_parts import assert_golden, assert_states, line_of, section
from tests.reports.seeded_runs import build_class_seeds
from tests.reports.train_runs import (
    CLASSIFIERS,
    TrainPlan,
    build_class_training,
    build_training,
    three_classifiers,
)

pytestmark = pytest.mark.usefixtures("blank_figures")


def build_zoo(folder: Path, *plans: TrainPlan) -> Zoo:
    """Writes a training per plan to `folder`/run-0, run-1, ..."""
    runs = enumerate(plans or (TrainPlan(),))
    return Zoo([read_training(build_training(folder / f"run-{n}", plan)) for n, plan in runs])


def training_of(rows: list[ZooRow]) -> list[str]:
    return [row.label for row in rows if row.training is not None]


def test_own_rows_stand_where_the_paper_has_the_network_others_below(tmp_path: Path) -> None:
    plans = TrainPlan(model="vmunet", parameters=27), TrainPlan(model="unet")
    zoo = build_zoo(tmp_path, *plans)
    rows = zoo.rows
    assert len(rows) == 14
    assert (rows[0].label, rows[0].training) == ("unet", zoo.trainings[1])
    assert (rows[-1].label, rows[-1].printed, rows[-1].parameters) == ("vmunet", None, 27)
    assert training_of(rows) == ["unet", "vmunet"]


def test_seeds_of_a_training_are_announced(tmp_path: Path) -> None:
    run = build_class_seeds(tmp_path / "seeds")
    seeds = [read_training(seed_folder(run, seed)) for seed in range(2)]
    other = read_training(build_class_training(tmp_path / "other"))
    hint = "**Several seeds of a training.**"
    assert hint in zoo_text(Zoo([*seeds, other]))
    assert hint not in zoo_text(Zoo([seeds[0], other]))


def test_several_trainings_of_a_network_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [build_training(tmp_path / name) for name in ("x/run", "y/run", "z")]
    trainings = [read_training(run) for run in runs]
    rows = Zoo(trainings).rows
    assert training_of(rows) == [
        "ulvm_v5 (x/run)",
        "ulvm_v5 (y/run)",
        f"ulvm_v5 ({tmp_path.name}/z)",
    ]
    assert len(rows) == 15
    assert Zoo(trainings[2:]).label(trainings[2]) == "ulvm_v5"


@pytest.mark.parametrize(
    ("plan", "is_outside"),
    [
        (TrainPlan(base=0.86), False),
        (TrainPlan(base=0.7), True),
        (TrainPlan(base=0.5, groups=1), False),  # no interval, so nothing is outside
    ],
)
def test_a_difference_is_marked_where_the_printed_dice_is_outside_the_interval(
    tmp_path: Path, plan: TrainPlan, is_outside: bool
) -> None:
    row = build_zoo(tmp_path, plan).rows[5]
    assert row.difference == row.score.dice - 0.8633
    assert row.is_outside is is_outside


def test_otsu_has_one_line_per_set_of_held_out_images(tmp_path: Path) -> None:
    zoo = build_zoo(tmp_path, TrainPlan(), TrainPlan(model="unet"))
    assert [baseline.images for baseline in zoo.baselines] == [""]
    record = tmp_path / "run-1" / "baseline" / "run.json"
    record.write_text(record.read_text().replace("cd" * 32, "ef" * 32))
    other_zoo = Zoo([zoo.trainings[0], read_training(tmp_path / "run-1")])
    assert [baseline.images for baseline in other_zoo.baselines] == [
        *("images of ulvm_v5", "images of unet")
    ]
    test = zoo.trainings[1].baseline
    assert test is not None
    data = test.findings.record.dataset.model_copy(update={"masks": UNUSUAL_MASKS})
    findings = replace(
        test.findings, record=test.findings.record.model_copy(update={"dataset": data})
    )
    read_otherwise = replace(zoo.trainings[1], baseline=replace(test, findings=findings))
    assert len(Zoo([zoo.trainings[0], read_otherwise]).baselines) == 2


def test_the_page_of_several_trainings(tmp_path: Path) -> None:
    plans = (TrainPlan(model="unet"), TrainPlan(model="ulvm", protocol="paper"))
    runs = [build_training(tmp_path / plan.model, plan) for plan in plans]
    page = zoo_report(runs, tmp_path / "out")
    assert_golden(page.markdown, "zoo")
    assert list(page.results["model"]) == ["unet", "ulvm"]


def test_the_pages_of_other_states(tmp_path: Path) -> None:
    """Of trainings of `ulvm_v5`, as described, beside a usual training of `unet`."""
    plain = TrainPlan(model="unet")
    other_data = {"digest": "00" * 32, "images": 9, "demonstration": True}
    published = TrainPlan(protocol="paper", epochs=100)
    states: dict[str, tuple[TrainPlan, ...]] = {
        "the paper's protocol": (TrainPlan(protocol="paper"),),
        "another seed": (TrainPlan(record={"seed": 1}),),
        "a demonstration set of other images": (TrainPlan(dataset=other_data),),
        "three epochs": (TrainPlan(epochs=3),),
        "not measured yet": (TrainPlan(measured=False),),
        "not begun": (TrainPlan(measured=False, finished=0),),
        "a recipe that accumulates, unet twice": (TrainPlan(recipe={"accumulate": 2}), plain),
        "other versions": (TrainPlan(record={"versions": {"torch": "2.7.0"}}),),
        "energy was measured": (TrainPlan(record={"energy_joules": 7200.0}),),
        "a dice inside the interval": (TrainPlan(base=0.86),),
        "a network that is not in the paper": (TrainPlan(model="vmunet"),),
        "the published experiment and others": (published, TrainPlan(model="ulvm")),
    }
    pages = {
        name: zoo_text(build_zoo(tmp_path / str(n), *plans, plain))
        for n, (name, plans) in enumerate(states.items())
    }
    complete = zoo_text(build_zoo(tmp_path / "complete", TrainPlan(), plain))
    assert "**" not in complete.split("\n## ")[0]
    assert_states(complete, pages, "zoo-states")


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables drawing, which takes most of the time; captions remain."""
    for name in ("draw_by_epoch", "draw_costs"):
        monkeypatch.setattr(zoo_page, name, lambda *_: None)


def zoo_of(runs: list[Path]) -> Zoo:
    return Zoo([read_training(run) for run in runs])


def test_every_pair_is_tested_and_adjusted_after_holm(tmp_path: Path) -> None:
    comparison = zoo_of(three_classifiers(tmp_path)).comparison
    table = comparison.verdicts()
    hits = {
        name: (rows["prediction"] == rows["target"]).to_numpy()
        for name in CLASSIFIERS
        for rows in [rows_of(tmp_path / name / "test", name)]
    }
    expected = []
    for first, second in combinations(CLASSIFIERS, 2):
        first_only = int((hits[first] & ~hits[second]).sum())
        second_only = int((~hits[first] & hits[second]).sum())
        expected.append(binomtest(first_only, first_only + second_only).pvalue)
    assert list(zip(table["first"], table["second"], strict=True)) == [
        *combinations(CLASSIFIERS, 2)
    ]
    assert table["p"].tolist() == pytest.approx(expected)
    order = np.argsort(expected)
    adjusted = np.maximum.accumulate(np.array(expected)[order] * [3, 2, 1])
    assert table["p_adjusted"].to_numpy(float)[order] == pytest.approx(np.minimum(adjusted, 1))
    best = comparison.sentences[0]
    assert best.startswith("`vim` has the highest top-1 of 3 trainings on the same 80 held-out")
    wins = int((table["outcome"] == "first ahead")[table["first"] == "vim"].sum())
    assert (f"ahead of {wins} of the 2 others" if wins else "No difference from any") in best


def test_equal_scores_have_no_single_best(tmp_path: Path) -> None:
    runs = [build_class_training(tmp_path / name) for name in "abc"]
    assert " and 2 others have the highest top-1 of 3 trainings" in zoo_text(zoo_of(runs))


def test_the_page_has_scores_costs_and_files(tmp_path: Path) -> None:
    runs = three_classifiers(tmp_path)
    page = zoo_report(runs, tmp_path / "out")
    write_page(page, tmp_path / "out")
    line = line_of(section(page.markdown, "All networks"), "`vim`")
    assert line[1:3] == ["3,000", "7.50 M"]
    # 3,143 images in epochs of 4.0 s, 0.5 s of which are validation.
    assert line[5:] == ["4.0 s", "898.0", "1.50 GiB"]
    training = read_training(runs[0])
    assert line[4].startswith(f"{training.macro_f1.f1:.3f} (")
    results = pd.read_csv(tmp_path / "out/results.csv")
    assert results["f1"].iloc[0] == pytest.approx(training.macro_f1.f1)
    assert results["multiply_adds"].tolist() == [7_500_000, 5_000_000, 2_500_000]
    assert results["images_per_second"].tolist() == pytest.approx([3143 / 3.5] * 3)
    assert results["train_seconds"].tolist() == [3.5] * 3
    assert results["chosen_val_f1"].iloc[0] < results["last_val_f1"].iloc[0]
    assert len(pd.read_csv(tmp_path / "out/verdicts.csv")) == 3
    figures = tmp_path / "out/figures"
    for name in ("score_over_costs", "score_by_epoch", "loss_by_epoch", "time_by_epoch"):
        assert f"figures/{name}.png" in page.markdown
        assert (figures / f"{name}.png").is_file()
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_other_held_out_images_are_marked_and_not_tested(tmp_path: Path) -> None:
    runs = three_classifiers(tmp_path)
    record = EVALUATION.read(runs[2] / "test")
    EVALUATION.update(
        runs[2] / "test", dataset=record.dataset.model_copy(update={"digest": "00" * 32})
    )
    comparison = zoo_of(runs).comparison
    assert [pairs.labels for pairs in comparison.sets] == [["vim", "vit"], ["resnet9"]]
    table = comparison.verdicts()
    assert [*table["first"], *table["second"]] == ["vim", "vit"]
    page = zoo_text(zoo_of(runs))
    assert "**Mixed held-out images.**" in page.split("\n## ")[0]
    text = section(page, "Which network is better")
    assert "`resnet9`: not compared with the trainings above" in text
    assert "The images, their classes or their order" in text


def test_other_training_images_are_marked_where_the_held_out_ones_are_the_same(
    tmp_path: Path,
) -> None:
    runs = three_classifiers(tmp_path)
    for run in runs:
        (run / "splits.csv").write_text("image_id,group,split\na,a,train\nb,b,test\n")
    assert "**Mixed data.**" not in zoo_text(zoo_of(runs))
    (runs[0] / "splits.csv").write_text("image_id,group,split\na,a,train\nb,b,train\n")
    assert "**Mixed data.**" in zoo_text(zoo_of(runs))
    assert len(zoo_of(runs).comparison.sets) == 1


@pytest.mark.usefixtures("without_pictures")
def test_an_older_run_lacks_numbers_and_nothing_is_made_up(tmp_path: Path) -> None:
    runs = three_classifiers(tmp_path)
    older_record = json.loads((runs[0] / "run.json").read_text())
    del older_record["multiply_adds"]
    (runs[0] / "run.json").write_text(json.dumps(older_record))
    metrics = pd.read_csv(runs[0] / "metrics.csv")
    metrics.drop(columns=list(ADDED)).to_csv(runs[0] / "metrics.csv", index=False)
    page = zoo_report(runs, tmp_path / "out")
    dash = "\N{EN DASH}"
    line = line_of(section(page.markdown, "All networks"), "`vim`")
    assert (line[2], line[5], line[6]) == (dash, "4.0 s", dash)
    missing_columns = ["multiply_adds", "train_seconds", "val_seconds", "images_per_second"]
    missing_columns += ["chosen_val_f1", "last_val_f1"]
    assert page.results.loc[0, missing_columns].isna().all()
    assert page.results.loc[1, missing_columns].notna().all()
    assert "Multiply-adds not recorded: vim." in page.markdown
    assert "Not recorded for vim." in page.markdown


@pytest.mark.usefixtures("without_pictures")
def test_what_is_not_measured_is_named(tmp_path: Path) -> None:
    runs = [*three_classifiers(tmp_path), build_class_training(tmp_path / "begun", measured=False)]
    TRAINING.update(runs[-1], model="resnet18")
    page = zoo_report(runs, tmp_path / "out").markdown
    assert "Not measured yet: `resnet18`." in page
    assert line_of(section(page, "All networks"), "`resnet18`")[3] == "not measured"


def test_a_training_that_is_not_evaluated_completely_prevents_no_test_of_the_others(
    tmp_path: Path,
) -> None:
    runs = three_classifiers(tmp_path)
    for block in (runs[0] / "test" / "predictions").rglob("block-000001.parquet"):
        block.unlink()
    TRAINING.update(runs[0], status="running")
    page = zoo_report(runs, tmp_path / "out")
    first, *others = CLASSIFIERS
    assert f"`{others[0]}` has the highest top-1 of 2 trainings" in page.markdown
    assert f"`{first}` (the score is that of 48 of 80 held-out images)" in page.markdown
    assert f"because not all held-out images are evaluated yet: `{first}`." in page.markdown
    assert "**" not in line_of(section(page.markdown, "All networks"), f"`{first}`")[3]
    assert ", 48 of 80 held-out images" in page.terminal
    own = training_report(runs[0]).markdown
    assert "The scores are those of 48 of 80 held-out images." in own


def test_segmenters_are_tested_by_group(tmp_path: Path) -> None:
    runs = [
        build_training(tmp_path / name, TrainPlan(model=name, base=base))
        for name, base in (("unet", 0.9), ("ulvm", 0.6))
    ]
    comparison = zoo_of(runs).comparison
    table = comparison.verdicts()
    assert (table["n"].item(), table["groups"].item()) == (24, 8)
    assert table["p"].item() == pytest.approx(2 / 2**8)  # all 8 differences have one sign
    page = zoo_text(zoo_of(runs))
    assert "of 24 held-out images" not in page
    assert "on the same 24 held-out images of 8 patients" in comparison.sentences[0]


def test_tasks_are_not_mixed_and_runs_not_overwritten(tmp_path: Path) -> None:
    runs = [*three_classifiers(tmp_path), build_training(tmp_path / "seg")]
    with pytest.raises(UsageError, match="cannot be compared in one table"):
        zoo_report(runs, tmp_path / "out")
    with pytest.raises(UsageError, match="overwrite the report of the run"):
        zoo_report(runs[:2], runs[3])
    assert not (tmp_path / "out").exists()
