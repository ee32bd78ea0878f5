"""Several trainings against each other: tests, what keeps them apart, and the report over all."""

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
from robustcli.reports.pages import write_page
from robustcli.reports.training_findings import read_training
from robustcli.reports.zoo_comparison import ZooComparison
from robustcli.reports.zoo_page import default_folder, zoo_report, zoo_text
from robustcli.reports.zoo_rows import Zoo
from robustcli.training.record import ADDED, TRAINING
from tests.builders import IDENTITY
from tests.cli.conftest import Robust
from tests.reports.compared import PLAN, evaluated, rows_of
from tests.reports.page_parts import line_of, section
from tests.reports.train_runs import TrainPlan, build_class_training, build_training

CLEAN = replace(PLAN, transforms=(IDENTITY,))
NAMES = ("vim", "vit", "resnet9")


def trained(run: Path, name: str, worse: int, parameters: int = 1_000) -> Path:
    """A training of a classifier that is right the less often the larger `worse` is."""
    build_class_training(run, measured=False)
    evaluated(run / "test", name, worse, CLEAN)
    TRAINING.update(
        run, model=name, status="complete", parameters=parameters, chosen_epoch=7,
        multiply_adds=2_500 * parameters,
    )  # fmt: skip
    return run


def three(folder: Path) -> list[Path]:
    return [trained(folder / name, name, 3 * n, 3_000 - 1_000 * n) for n, name in enumerate(NAMES)]


def zoo_of(runs: list[Path]) -> Zoo:
    return Zoo([read_training(run) for run in runs])


def test_every_pair_is_tested_and_adjusted_after_holm(tmp_path: Path) -> None:
    comparison = ZooComparison(zoo_of(three(tmp_path)))
    table = comparison.verdicts()
    assert table is not None
    hits = {
        name: (rows["prediction"] == rows["target"]).to_numpy()
        for name in NAMES
        for rows in [rows_of(tmp_path / name / "test", name)]
    }
    expected = []
    for first, second in combinations(NAMES, 2):
        won = int((hits[first] & ~hits[second]).sum())
        lost = int((~hits[first] & hits[second]).sum())
        expected.append(binomtest(won, won + lost).pvalue)
    assert list(zip(table["first"], table["second"], strict=True)) == [*combinations(NAMES, 2)]
    assert table["p"].tolist() == pytest.approx(expected)
    order = np.argsort(expected)
    stepped = np.maximum.accumulate(np.array(expected)[order] * [3, 2, 1])
    assert table["p_adjusted"].to_numpy()[order] == pytest.approx(np.minimum(stepped, 1))
    best = comparison.sentences[0]
    assert best.startswith("`vim` has the highest top-1 of 3 trainings on the same 80 held-out")
    ahead = int((table["outcome"] == "first ahead")[table["first"] == "vim"].sum())
    assert (f"ahead of {ahead} of the 2 others" if ahead else "No difference to any") in best


def test_the_page_has_scores_costs_and_files(tmp_path: Path) -> None:
    runs = three(tmp_path)
    page = zoo_report(runs, tmp_path / "out")
    write_page(page, tmp_path / "out")
    line = line_of(section(page.markdown, "All networks"), "`vim`")
    assert line[1:3] == ["3,000", "7.50 M"]
    # 3,143 images in epochs of 4.0 s, of which 0.5 s are validation.
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


def test_the_same_runs_give_the_same_files(tmp_path: Path) -> None:
    runs = three(tmp_path)[:2]
    first, second = ({}, {})  # type: ignore[var-annotated]
    for files in (first, second):
        write_page(zoo_report(runs, tmp_path / "out"), tmp_path / "out")
        paths = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        files.update({path: path.read_bytes() for path in paths})
    assert first == second


def test_other_held_out_images_are_marked_and_not_tested(tmp_path: Path) -> None:
    runs = three(tmp_path)
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
    part = section(page, "Which network is better")
    assert "`resnet9`: not tested against those above" in part
    assert "The images, their classes or their order" in part


def test_other_training_images_are_marked_where_the_held_out_ones_are_the_same(
    tmp_path: Path,
) -> None:
    runs = three(tmp_path)
    for run in runs:
        (run / "splits.csv").write_text("image_id,group,split\na,a,train\nb,b,test\n")
    assert "**Mixed data.**" not in zoo_text(zoo_of(runs))
    (runs[0] / "splits.csv").write_text("image_id,group,split\na,a,train\nb,b,train\n")
    assert "**Mixed data.**" in zoo_text(zoo_of(runs))
    assert len(ZooComparison(zoo_of(runs)).sets) == 1


def test_an_older_run_lacks_numbers_and_nothing_is_made_up(tmp_path: Path) -> None:
    runs = three(tmp_path)
    plain = json.loads((runs[0] / "run.json").read_text())
    del plain["multiply_adds"]
    (runs[0] / "run.json").write_text(json.dumps(plain))
    metrics = pd.read_csv(runs[0] / "metrics.csv")
    metrics.drop(columns=list(ADDED)).to_csv(runs[0] / "metrics.csv", index=False)
    page = zoo_report(runs, tmp_path / "out")
    dash = "\N{EN DASH}"
    line = line_of(section(page.markdown, "All networks"), "`vim`")
    assert (line[2], line[5], line[6]) == (dash, "4.0 s", dash)
    lacking = ["multiply_adds", "train_seconds", "val_seconds", "images_per_second"]
    lacking += ["chosen_val_f1", "last_val_f1"]
    assert page.results.loc[0, lacking].isna().all()
    assert page.results.loc[1, lacking].notna().all()
    assert "Multiply-adds not recorded: vim." in page.markdown
    assert "Not recorded by vim." in page.markdown


def test_what_is_not_measured_is_named(tmp_path: Path) -> None:
    runs = [*three(tmp_path), build_class_training(tmp_path / "begun", measured=False)]
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
    runs = [*three(tmp_path), build_training(tmp_path / "seg")]
    with pytest.raises(UsageError, match="one table cannot compare them"):
        zoo_report(runs, tmp_path / "out")
    with pytest.raises(UsageError, match="overwrite the run's own report"):
        zoo_report(runs[:2], runs[3])
    assert not (tmp_path / "out").exists()


def test_the_command_writes_one_page_over_all(
    robust: Robust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [path.relative_to(tmp_path) for path in three(tmp_path)[:2]]
    names = [str(run) for run in runs]
    folder = default_folder(runs)
    answer = robust("report", *names, "--json")
    assert answer.code == 0
    assert f"No --out: the report over all 2 trainings is {folder}." in answer.err
    documents = json.loads(answer.out)
    assert list(documents) == [*names, str(folder)]
    assert [record["model"] for record in documents[str(folder)]] == ["vim", "vit"]
    assert (runs[0] / "report.md").is_file()
    named = robust("report", *names, "--out", "zoo")
    assert (named.code, named.err) == (0, "")
    assert "`vim` has the highest top-1" in named.out
    assert named.out.splitlines()[-1] == f"Report: {Path('zoo/report.md')}"
    build_training(tmp_path / "seg")
    mixed = robust("report", names[0], "seg")
    assert mixed.code == 0
    assert "No report over all runs" in mixed.err
    assert robust("report", names[0], "seg", "--out", "zoo2").code == 2
    assert robust("report", names[0], names[0]).err == ""
