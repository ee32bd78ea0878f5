"""Several trainings: published and measured numbers, tests, caveats, and the common report."""

from __future__ import annotations

import json
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
from robustcli.reports.zoo_findings import Zoo, ZooComparison, ZooRow
from robustcli.reports.zoo_page import zoo_report, zoo_text
from robustcli.training.record import ADDED, TRAINING, seed_folder
from tests.reports.compared import rows_of
from tests.reports.page_parts import assert_golden, line_of, section
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
    assert row.score is not None
    assert row.score.dice is not None
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


def test_the_page_of_several_trainings(tmp_path: Path) -> None:
    plans = (TrainPlan(model="unet"), TrainPlan(model="ulvm", protocol="paper"))
    runs = [build_training(tmp_path / plan.model, plan) for plan in plans]
    page = zoo_report(runs, tmp_path / "out")
    assert_golden(page.markdown, "zoo")
    assert list(page.results["model"]) == ["unet", "ulvm"]


def test_trainings_that_have_not_begun_have_no_curves(tmp_path: Path) -> None:
    run = build_training(tmp_path / "a", TrainPlan(measured=False, finished=0))
    assert "Training progress" not in zoo_report([run], tmp_path / "out").markdown


def test_the_folder_of_a_training_is_not_overwritten(tmp_path: Path) -> None:
    run = build_training(tmp_path / "a")
    with pytest.raises(UsageError, match="would overwrite the report of that training"):
        zoo_report([run], run)


PLAIN = TrainPlan(model="unet")


def test_the_title_counts_trainings_and_names_data_and_protocol(tmp_path: Path) -> None:
    page = zoo_text(build_zoo(tmp_path, TrainPlan(), PLAIN))
    assert page.splitlines()[0] == (
        "# 2 trainings of the segmentation zoo: `kaggle_3m`, protocol patient"
    )
    assert "**" not in page.split("\n## ")[0]
    assert "Empty masks: an image (and a patient)" in page


@pytest.mark.parametrize(
    ("plan", "notice"),
    [
        (TrainPlan(protocol="paper"), "**Mixed protocols.**"),
        (TrainPlan(record={"seed": 1}), "**Mixed data.**"),
        (TrainPlan(dataset={"digest": "00" * 32}), "**Mixed data.**"),
        (TrainPlan(epochs=3), "**Mixed lengths.**"),
        (TrainPlan(measured=False), "**Partial runs.** Not finished: `ulvm_v5`."),
        (
            TrainPlan(dataset={"digest": "00" * 32, "images": 9, "demonstration": True}),
            "**Demonstration set.**",
        ),
    ],
)
def test_reasons_against_a_comparison_are_reported(
    tmp_path: Path, plan: TrainPlan, notice: str
) -> None:
    assert notice in zoo_text(build_zoo(tmp_path, plan, PLAIN)).split("\n## ")[0]


def test_each_recipe_has_its_line_and_each_command_is_shown_once(tmp_path: Path) -> None:
    trainings = build_zoo(tmp_path, TrainPlan(recipe={"accumulate": 2}), PLAIN, PLAIN)
    page = section(zoo_text(trainings), "## Recipes")
    assert line_of(page, "`ulvm_v5`") == [
        *("`ulvm_v5`", "kaggle_3m", "patient", "0", "patient", "bce-dice", "AdamW"),
        *("0.001, constant", "8 x 2", "3,143", "128 px", "light", "probability >= 0.5"),
        "cpu (2 threads)",
    ]
    assert line_of(page, "`unet (run-2)`")[8] == "8"
    repeat = section(zoo_text(trainings), "How to repeat it")
    assert repeat.count("robust train seg --model unet") == 1
    assert "Versions: robust 0.1.0, torch 2.6.0." in repeat


def test_different_versions_are_told_apart(tmp_path: Path) -> None:
    other_plan = TrainPlan(record={"versions": {"torch": "2.7.0"}})
    page = zoo_text(build_zoo(tmp_path, PLAIN, other_plan))
    assert "Versions of `unet`: robust 0.1.0, torch 2.6.0." in page
    assert "Versions of `ulvm_v5`: torch 2.7.0." in page


def published_part(zoo: Zoo) -> str:
    return section(zoo_text(zoo), "Published and measured")


def caveats(zoo: Zoo) -> list[str]:
    lines = published_part(zoo).splitlines()
    return [line for line in lines if line.startswith("- ")]


def test_trainings_that_differ_alike_from_the_published_ones_are_told_together(
    tmp_path: Path,
) -> None:
    published = TrainPlan(model="ulvm_v5", protocol="paper", epochs=100)
    plans = TrainPlan(model="unet"), TrainPlan(model="ulvm"), published, TrainPlan(model="vmunet")
    lines = caveats(build_zoo(tmp_path, *plans))
    assert lines[1] == (
        "- `unet`, `ulvm`: the experiment differs from the published one (protocol patient "
        "instead of paper; 12 epochs instead of 100), so the difference is not only due to the "
        "network."
    )
    assert lines[2].startswith("- `ulvm_v5`: the published experiment, except for seeds")
    assert not any("vmunet" in line for line in lines)


def test_known_misprints_of_the_paper_are_reported(tmp_path: Path) -> None:
    page = "\n".join(caveats(build_zoo(tmp_path)))
    assert "`segformer`: The paper prints Dice 0.8454" in page
    assert "0.79955 in the paper is a misprint of 0.79555" in page


DASH = "\N{EN DASH}"


def test_own_numbers_stand_beside_the_published_ones(tmp_path: Path) -> None:
    zoo = build_zoo(tmp_path, TrainPlan(base=0.7))
    (training,), page = zoo.trainings, published_part(zoo)
    assert training.test is not None
    line = training.test.numbers
    assert line_of(page, "`ulvm_v5`") == [
        *("`ulvm_v5`", "703,885", "0.8633", "0.7638"),
        f"**{line['dice']:.3f}** ({line['dice_low']:.3f}{DASH}{line['dice_high']:.3f})",
        f"{line['iou']:.3f} ({line['iou_low']:.3f}{DASH}{line['iou_high']:.3f})",
        f"{line['dice_foreground']:.3f}",
        f"{line['dice'] - 0.8633:+.3f} **outside**",
        *("12", "48.0 s", "1.50 GiB", "0.03 MB"),
    ]
    assert line_of(page, "`unet`") == ["`unet`", "7,765,985", "0.8929", "0.8071", *[DASH] * 8]
    assert training.baseline is not None
    assert line_of(page, "`otsu`")[1:4] == ["0", DASH, DASH]
    assert line_of(page, "`otsu`")[6] == f"{training.baseline.numbers['dice_foreground']:.3f}"


def test_a_difference_inside_the_interval_is_not_marked(tmp_path: Path) -> None:
    page = published_part(build_zoo(tmp_path, TrainPlan(base=0.86)))
    assert "outside" not in line_of(page, "`ulvm_v5`")[7]


def test_energy_has_a_column_where_anyone_measured_it(tmp_path: Path) -> None:
    zoo = build_zoo(tmp_path, TrainPlan(record={"energy_joules": 7200.0}), TrainPlan(model="unet"))
    page = published_part(zoo)
    assert line_of(page, "`ulvm_v5`")[-1] == "2.0 Wh"
    assert line_of(page, "`unet`")[-1] == line_of(page, "`otsu`")[-1] == DASH
    assert "energy" not in zoo_text(Zoo(zoo.trainings[1:]))


def test_a_network_that_is_not_in_the_paper_comes_last(tmp_path: Path) -> None:
    page = published_part(build_zoo(tmp_path, TrainPlan(model="vmunet")))
    assert line_of(page, "`vmunet`")[2:4] == [DASH, DASH]
    assert line_of(page, "`vmunet`")[7] == DASH
    assert page.index("| `vmunet`") > page.index("| `ulvm`")


def test_what_is_not_measured_yet_is_missing(tmp_path: Path) -> None:
    page = published_part(build_zoo(tmp_path, TrainPlan(measured=False, finished=0)))
    assert line_of(page, "`ulvm_v5`")[4:10] == [*[DASH] * 4, "0", DASH]
    assert "`otsu`" not in page


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables drawing, which takes most of the time; captions remain."""
    for name in ("draw_by_epoch", "draw_costs"):
        monkeypatch.setattr(zoo_page, name, lambda *_: None)


def zoo_of(runs: list[Path]) -> Zoo:
    return Zoo([read_training(run) for run in runs])


def test_every_pair_is_tested_and_adjusted_after_holm(tmp_path: Path) -> None:
    comparison = ZooComparison(zoo_of(three_classifiers(tmp_path)))
    table = comparison.verdicts()
    assert table is not None
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
    assert table["p_adjusted"].to_numpy()[order] == pytest.approx(np.minimum(adjusted, 1))
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
    file_bytes = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    write_page(zoo_report(runs, tmp_path / "out"), tmp_path / "out")
    assert all(path.read_bytes() == content for path, content in file_bytes.items())
    line = line_of(section(page.markdown, "All networks"), "`vim`")
    assert line[1:3] == ["3,000", "7.50 M"]
    # 3,143 images in epochs of 4.0 s, 0.5 s of which are validation.
    assert line[5:] == ["4.0 s", "898.0", "1.50 GiB"]
    training = read_training(runs[0])
    assert training.macro_f1 is not None
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
    comparison = ZooComparison(zoo_of(runs))
    assert [pairs.labels for pairs in comparison.sets] == [["vim", "vit"], ["resnet9"]]
    table = comparison.verdicts()
    assert table is not None
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
    assert len(ZooComparison(zoo_of(runs)).sets) == 1


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


def test_segmenters_are_tested_by_group(tmp_path: Path) -> None:
    runs = [
        build_training(tmp_path / name, TrainPlan(model=name, base=base))
        for name, base in (("unet", 0.9), ("ulvm", 0.6))
    ]
    comparison = ZooComparison(zoo_of(runs))
    table = comparison.verdicts()
    assert table is not None
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
