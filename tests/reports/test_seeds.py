"""Reports and comparisons of several seeds: numbers against SciPy, verdicts, pages, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustcli.core.errors import UsageError
from robustcli.evaluation.record import EVALUATION, read_record
from robustcli.finetuning.record import ITERATIONS
from robustcli.metrics.mask_scores import group_dice
from robustcli.reports import seeds_page
from robustcli.reports.comparison import read_comparison
from robustcli.reports.figures.seed_figures import ScoreLine, SeedCourses
from robustcli.reports.render import document, render, zoo_document
from robustcli.reports.run_export import read_run_export
from robustcli.reports.seeds_comparison import (
    names_seeds_only,
    read_seeds_comparison,
    seeds_comparison_text,
    write_seeds_comparison,
)
from robustcli.reports.seeds_findings import (
    PRINTED_ACCURACIES,
    SeedsFindings,
    published_score,
    read_seeds,
)
from robustcli.reports.seeds_page import (
    draw_seeds_gallery,
    seeds_report,
    seeds_results,
    seeds_table,
    seeds_text,
)
from robustcli.reports.training_findings import paper_scores, read_training
from robustcli.reports.training_page import training_text
from robustcli.training.record import SEEDS, TRAINING, read_train_record
from tests.reports.finetune_runs import HELD, TENSORS, FinetunePlan
from tests.reports.mask_runs import rewrite_groups
from tests.reports.page_parts import assert_golden, introduction, line_of, section
from tests.reports.seeded_runs import build_class_seeds, build_seeds, build_tuned_seeds
from tests.reports.test_latex import check
from tests.reports.train_runs import TrainPlan

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns three seeds of a segmenter, not rendered."""
    return build_seeds(tmp_path_factory.mktemp("masks") / "run")


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns three seeds with the paper's number of slices and epochs, and other scores."""
    run = build_seeds(
        tmp_path_factory.mktemp("paper") / "run", TrainPlan(protocol="paper", epochs=100)
    )
    for seed, factor in enumerate((1.0, 0.98, 1.01)):
        path = run / f"seed-{seed}" / "paper.parquet"
        rows = pd.read_parquet(path)
        rows.assign(intersection=rows["intersection"] * factor).to_parquet(path)
    return run


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tuned_seeds(tmp_path_factory.mktemp("tuned") / "run")


def test_the_page_is_read_by_a_person(masks: Path, modes: Path, paper: Path) -> None:
    for run, name in ((masks, "seeds"), (modes, "seeds-finetuning"), (paper, "seeds-paper")):
        assert_golden(seeds_text(read_seeds(run)), name)


def test_the_numbers_are_those_of_the_rows(masks: Path) -> None:
    findings = read_seeds(masks)
    rows = [series.training.test.rows for series in findings.series[0].trainings]  # type: ignore[union-attr]
    by_group = np.column_stack([group_dice(frame) for frame in rows])
    values = by_group.mean(axis=0)
    table = seeds_results(findings)
    mean = table[table["level"] == "mean"].iloc[0]
    assert mean["score"] == pytest.approx(values.mean())
    assert mean["deviation"] == pytest.approx(values.std(ddof=1))
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (mean["seeds_low"], mean["seeds_high"]) == pytest.approx((low, high))
    resampled = stats.bootstrap((by_group.mean(axis=1),), np.mean, method="percentile", rng=0)
    interval = tuple(resampled.confidence_interval)
    assert (mean["units_low"], mean["units_high"]) == pytest.approx(interval, abs=0.01)
    assert (mean["seeds"], mean["units"]) == (3, by_group.shape[0])
    seeds = table[table["level"] == "seed"]
    assert list(seeds["score"]) == pytest.approx(list(values))
    assert list(seeds["run"]) == ["seed-0", "seed-1", "seed-2"]


def test_the_paper_is_scored_over_its_batches(paper: Path) -> None:
    findings = read_seeds(paper)
    frames = [pd.read_parquet(paper / f"seed-{s}" / "paper.parquet") for s in range(3)]
    values = [paper_scores(frame, 16).dice for frame in frames]
    scores = findings.series[0].scores
    assert scores.mean == pytest.approx(np.mean(values))
    assert scores.units == 2  # the third batch contains no foreground in any seed
    assert findings.units == "batches of 16 slices"


@pytest.mark.parametrize(
    ("published", "verdict", "is_consistent"),
    [("inside", "reproduced", True), ("outside", "not reproduced", False)],
)
def test_the_published_number_is_judged_over_seeds(
    paper: Path, monkeypatch: pytest.MonkeyPatch, published: str, verdict: str, is_consistent: bool
) -> None:
    scores = read_seeds(paper).series[0].scores
    assert scores.over_seeds is not None
    monkeypatch.setattr("robustcli.metrics.seed_scores.WIDEST", 0.2)
    value = scores.mean + 0.001 if published == "inside" else 0.99
    line = published_score(read_train_record(paper / "seed-0"))
    assert line.value == 0.8633
    assert line.differences == []
    other_line = type(line)(value, line.source, [])
    monkeypatch.setattr("robustcli.reports.seeds_findings.published_score", lambda _: other_line)
    findings = read_seeds(paper)
    judgement = findings.published
    assert (judgement.outcome, judgement.single_holds) == (verdict, is_consistent)
    assert f"{verdict}." in seeds_table(findings)
    assert verdict in section(seeds_text(findings), "Published")


def test_other_experiments_are_not_judged(masks: Path) -> None:
    judgement = read_seeds(masks).published
    assert judgement.outcome is None
    assert "protocol patient instead of paper" in judgement.score.differences
    results = seeds_results(read_seeds(masks))
    assert results.loc[results["level"] == "mean", "verdict"].tolist() == ["not comparable"]


def test_classifiers_have_the_published_accuracies_of_the_paper(tmp_path: Path) -> None:
    run = build_class_seeds(tmp_path / "run")
    record = read_train_record(run / "seed-0")
    score = published_score(record)
    assert score.value == PRINTED_ACCURACIES[0].top1 == 0.8947
    assert len(score.differences) == 3  # recipe, images, epochs
    settings = {
        "recipe": record.recipe.model_copy(update={"name": "paper", "epochs": 100}),
        "dataset": record.dataset.model_copy(update={"images": 60_000}),
    }
    score_of_paper = published_score(record.model_copy(update=settings))
    assert score_of_paper.differences == []
    assert published_score(record.model_copy(update={"arguments": {"patch_size": 8}})) is None
    # Both seeds have equal predictions, so there is no interval over seeds.
    findings = read_seeds(run)
    scores = findings.series[0].scores
    assert (scores.over_seeds, scores.deviation) == (None, 0)
    assert scores.units == findings.held_out
    assert "top-1" in seeds_text(findings)


def test_modes_are_compared_with_full_seed_by_seed(modes: Path) -> None:
    findings = read_seeds(modes)
    values = {series.mode: list(series.by_seed.values()) for series in findings.series}
    assert list(findings.differences) == ["scratch", "freeze"]
    for mode, difference in findings.differences.items():
        result = stats.ttest_rel(values[mode], values["full"])
        assert difference.p == pytest.approx(result.pvalue)
        interval = result.confidence_interval()
        ends = max(-1, interval.low), min(1, interval.high)  # a difference of dice
        assert (difference.low, difference.high) == pytest.approx(ends)
    assert findings.published is None
    assert "minus full" in seeds_table(findings)


def test_what_each_seed_froze_and_what_it_saved_is_reported(modes: Path) -> None:
    findings = read_seeds(modes)
    page = section(seeds_text(findings), "## Frozen tensors and costs")
    assert line_of(page, "1")[:4] == ["1", "2 of 7", "1,088 of 5,904", "18.43"]
    assert "froze no tensor" not in page
    steps = {mode: pd.read_csv(modes / "seed-1" / mode / ITERATIONS) for mode in ("full", "freeze")}
    after = steps["freeze"][steps["freeze"]["trainable"] < steps["full"]["trainable"].max()]
    ratio = after["seconds"].median() / steps["full"]["seconds"].median()
    assert findings.freezing[1].seconds == pytest.approx(ratio)
    assert line_of(page, "1")[4] == f"{ratio:.2f}"
    rows = seeds_results(findings).query("level == 'seed' and mode == 'freeze'")
    assert rows["frozen"].tolist() == [HELD, HELD]
    assert rows["seconds_ratio"].tolist() == pytest.approx([f.seconds for f in findings.freezing])
    assert "2 of 7" in seeds_table(findings)


def test_a_rule_that_froze_nothing_with_any_seed_is_named(tmp_path: Path) -> None:
    large = tuple((name, shape, mamba, 1e-3) for name, shape, mamba, _ in TENSORS)
    findings = read_seeds(build_tuned_seeds(tmp_path / "run", plan=FinetunePlan(tensors=large)))
    sentence = "The rule froze no tensor with any seed"
    assert sentence in section(seeds_text(findings), "## Frozen tensors and costs")
    assert sentence in seeds_table(findings)


def test_costs_are_missing_until_both_modes_are_measured(tmp_path: Path) -> None:
    plan = FinetunePlan(waiting=("full",))
    findings = read_seeds(build_tuned_seeds(tmp_path / "run", plan=plan))
    (line, _) = findings.freezing
    assert (line.seconds, line.optimizer, line.memory) == (None, None, None)
    page = section(seeds_text(findings), "## Frozen tensors and costs")
    assert line_of(page, "0")[4:] == ["\N{EN DASH}"] * 3


def test_failed_and_unfinished_seeds_are_reported(tmp_path: Path) -> None:
    findings = read_seeds(build_seeds(tmp_path / "run", missing=1))
    assert (findings.finished, findings.missing) == ([0, 1], {2: ()})
    page = introduction(seeds_text(findings))
    assert "**Partial run.** 2 of 3 seeds are finished; not finished: 2" in page
    assert "**Seed 2 failed.** The loss is not finite." in page
    assert "Not finished: seed 2." in seeds_table(findings)
    assert line_of(seeds_text(findings), "[2]")[1] == "\N{EN DASH}"


def test_modes_that_lack_a_seed_are_named_with_the_options_that_train_them(tmp_path: Path) -> None:
    run = build_tuned_seeds(tmp_path / "run", count=3)
    for mode in ("freeze", "full"):
        shutil.rmtree(run / "seed-2" / mode)
    SEEDS.update(run, status="complete")
    findings = read_seeds(run)
    assert (findings.finished, findings.missing) == ([0, 1], {2: ("full", "freeze")})
    assert "not finished: 2 (modes full, freeze)" in introduction(seeds_text(findings))
    table = seeds_table(findings)
    assert "Not finished: seed 2 (modes full, freeze)." in table
    assert "repeat the command with `--mode full`, then with `--mode freeze`." in table


def test_a_folder_in_which_nothing_has_begun_has_a_page(tmp_path: Path, masks: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    SEEDS.write(run, SEEDS.read(masks).model_copy(update={"status": "running"}))
    page = seeds_report(run)
    assert "not measured yet" in page.markdown
    assert page.terminal == "No scores yet for 3 seeds."
    assert page.results.empty


def drawing_arguments(
    findings: SeedsFindings, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[object, ...]]:
    calls: dict[str, tuple[object, ...]] = {}
    for name in ("draw_seed_courses", "draw_seed_scores"):
        monkeypatch.setattr(
            seeds_page, name, lambda *arguments, name=name: calls.__setitem__(name, arguments)
        )
    draw_seeds_gallery(findings)
    return calls


def test_pictures_show_every_seed_and_the_mean(
    masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_seeds(tmp_path / "run", missing=1)
    calls = drawing_arguments(read_seeds(run), monkeypatch)
    seed_courses = calls["draw_seed_courses"][0]
    assert isinstance(seed_courses, list)
    (curves,) = seed_courses
    assert isinstance(curves, SeedCourses)
    assert [len(line) for line in curves.scores] == [12, 12, 2]
    assert list(curves.mean.index) == [1, 2]  # the epochs that all seeds have
    lines = calls["draw_seed_scores"][0]
    assert isinstance(lines, list)
    assert [line.name for line in lines] == ["seed 0", "seed 1", "mean"]
    assert isinstance(lines[2], ScoreLine)
    assert lines[2].mean
    assert calls["draw_seed_scores"][2] is None  # not the published experiment


def test_everything_is_rendered_without_the_data(masks: Path, tmp_path: Path) -> None:
    run = build_class_seeds(tmp_path / "run")
    report = render(run)
    html = report.with_suffix(".html")
    assert 'href="seed-1/report.html"' in html.read_text()
    assert {p.name for p in (run / "figures").iterdir()} == {"seed_courses.png", "seed_scores.png"}
    rows = json.loads((run / "results.json").read_text())
    assert [row["level"] for row in rows] == ["seed"] * 2 + ["mean"]
    pages = [run / f"seed-{seed}" / "report.html" for seed in (0, 1)]
    before = [path.read_bytes() for path in (report, html, *pages)]
    times = [path.stat().st_mtime_ns for path in pages]
    TRAINING.update(run / "seed-1", energy_joules=7200.0)
    render(run)
    assert [path.read_bytes() for path in (report, html, pages[0])] == before[:3]
    assert (pages[0].stat().st_mtime_ns, pages[1].read_bytes() == before[3]) == (times[0], False)


def test_other_formats_say_the_same(masks: Path) -> None:
    (table,) = check(document(masks, "latex"))
    assert table[1][0] == r"\texttt{ulvm\_v5}"
    assert document(masks, "csv").splitlines()[0].startswith("level,mode,seed")
    assert {path.name for path in masks.iterdir()} == {"run.json", "seed-0", "seed-1", "seed-2"}


def test_a_report_over_trainings_takes_the_seeds_apart(masks: Path, tmp_path: Path) -> None:
    table = json.loads(zoo_document([masks], tmp_path / "zoo", "json"))
    assert [row["run"] for row in table] == ["seed-0", "seed-1", "seed-2"]


def test_publishing_names_the_folders_of_the_seeds(masks: Path) -> None:
    with pytest.raises(UsageError, match="contains 3 runs, one for each seed") as caught:
        read_run_export(masks)
    assert "seed-0" in caught.value.todo


def test_the_report_of_a_seed_says_whose_parts_it_has(masks: Path) -> None:
    report = training_text(read_training(masks / "seed-1"))
    assert "Seed: 1; the data is split with seed 0." in report


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns two folders: three seeds of one network, two of a better one."""
    parent = tmp_path_factory.mktemp("seeds")
    better_plan = TrainPlan(model="unet")
    return build_seeds(parent / "ulvm"), build_seeds(parent / "unet", better_plan, (0.93, 0.94))


def test_every_group_counts_with_its_mean_over_seeds(folders: tuple[Path, Path]) -> None:
    comparison = read_seeds_comparison(folders)
    (pair,) = comparison.pairs
    means = [
        np.mean([group_dice(run.training.test.rows) for run in model.series.measured], axis=0)  # type: ignore[union-attr]
        for model in comparison.models
    ]
    assert pair.gap.difference == pytest.approx((means[0] - means[1]).mean())
    assert (comparison.confidence, pair.gap.units) == (0.95, 8)
    assert pair.outcome == "unet ahead"
    assert "unet ahead" in seeds_comparison_text(comparison)
    (row,) = comparison.table().to_dict("records")
    assert (row["first_seeds"], row["second_seeds"], row["outcome"]) == (3, 2, "second ahead")
    assert json.loads(comparison.as_json())["pairs"][0]["difference"] == row["difference"]


def test_folders_of_one_name_are_told_apart_and_missing_seeds_are_named(tmp_path: Path) -> None:
    runs = [build_seeds(tmp_path / name / "seeds") for name in ("a", "b")]
    TRAINING.update(runs[1] / "seed-2", status="running")
    comparison = read_seeds_comparison(runs)
    assert [m.label for m in comparison.models] == ["ulvm_v5 (a/seeds)", "ulvm_v5 (b/seeds)"]
    sentence = "`ulvm_v5 (b/seeds)` has 2 of 3 seeds."
    assert comparison.unfinished == [sentence]
    assert f"Not finished: {sentence}" in seeds_comparison_text(comparison)
    report = write_seeds_comparison(comparison, tmp_path / "out", "robust ...")
    assert f"**Not finished.** {sentence}" in report.read_text("utf-8")


def test_the_report_has_a_line_per_pair(folders: tuple[Path, Path], tmp_path: Path) -> None:
    report = write_seeds_comparison(read_seeds_comparison(folders), tmp_path / "out", "robust ...")
    assert "| `ulvm_v5` | `unet`" in report.read_text()
    assert report.with_suffix(".html").is_file()


def test_modes_over_seeds_are_compared_at_a_level_for_all_pairs(modes: Path) -> None:
    run = modes
    comparison = read_seeds_comparison([run])
    assert [model.label.split()[-1] for model in comparison.models] == ["scratch", "full", "freeze"]
    assert comparison.confidence == pytest.approx(1 - 0.05 / 3)
    two_modes = read_seeds_comparison([f"{run}:full", f"{run}:freeze"])
    assert [model.source for model in two_modes.models] == [f"{run}:full", f"{run}:freeze"]
    with pytest.raises(UsageError, match="No mode of these fine-tunings is called `half`"):
        read_seeds_comparison([f"{run}:half", f"{run}:full"])


def test_one_seed_is_an_ordinary_run_of_a_comparison(folders: tuple[Path, Path]) -> None:
    names = [f"{folders[0]}:seed-1", f"{folders[1]}:seed-0"]
    assert not names_seeds_only(names)
    assert names_seeds_only(folders)
    assert len(read_comparison(names).models) == 2
    assert not names_seeds_only([folders[0], folders[1] / "seed-0"])
    with pytest.raises(UsageError, match="contains 3 seeds") as caught:
        read_comparison([folders[0], folders[1] / "seed-0"])
    assert "ulvm:seed-0" in caught.value.todo
    with pytest.raises(UsageError, match="No seed of this run is called `seed-7`"):
        read_comparison([f"{folders[0]}:seed-7", f"{folders[1]}:seed-0"])


def test_other_images_are_refused_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other_folder = Path(shutil.copytree(folders[1], tmp_path / "other"))
    for test in other_folder.glob("seed-*/test"):
        dataset = read_record(test).dataset.model_copy(update={"digest": "ef" * 32, "images": 23})
        EVALUATION.update(test, dataset=dataset)
    with pytest.raises(UsageError, match="differ in more than their networks") as caught:
        read_seeds_comparison([folders[0], other_folder])
    assert "digest efefefef" in caught.value.why
    names = [folders[0], other_folder]
    forced_comparison = read_seeds_comparison(names, force_common=True)
    assert len(forced_comparison.differences) == 1
    assert forced_comparison.pairs[0].gap.units == 8
    for test in other_folder.glob("seed-*/test"):
        rewrite_groups(test, {0: "p07"})
    left_out = read_seeds_comparison(names, force_common=True)
    (sentence,) = left_out.paired.left_out
    assert sentence == "Images of another group: p00/slice-0000.tif."
    assert f"Not compared: {sentence}" in seeds_comparison_text(left_out)
    assert left_out.pairs[0].gap.difference != forced_comparison.pairs[0].gap.difference
    with pytest.raises(UsageError, match="only one was found"):
        read_seeds_comparison([folders[0], folders[0]])
