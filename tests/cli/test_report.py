"""`robust report`: rendered again, without torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from robustcli.reports import zoo_page
from robustcli.reports.render import render
from robustcli.reports.zoo_page import default_folder
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21
from tests.cli.conftest import Robust, python
from tests.reports.explanation_runs import build_explanation
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.train_runs import build_training, three_classifiers

PLAN = RunPlan(models=(model("vmamba-b"),), transforms=(IDENTITY, *paper21()[:2]), images=12)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    build_run(tmp_path / "run", PLAN)
    return Path("run")


def test_the_table_and_the_path(robust: Robust, run: Path) -> None:
    outcome = robust("report", "run")
    assert outcome.code == 0
    assert "identity" in outcome.out
    assert outcome.out.splitlines()[-1] == f"Report: {run / 'report.md'}"
    assert (run / "report.md").is_file()
    assert "Report:" not in robust("report", "run", "--quiet").out
    assert robust("report", str(run.resolve()), "run").out == outcome.out


def test_several_runs_as_one_json_document(robust: Robust, run: Path, tmp_path: Path) -> None:
    build_run(tmp_path / "other", PLAN)
    outcome = robust("report", "run", "other", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    results = json.loads(outcome.out)
    assert list(results) == ["run", "other"]
    assert results["run"] == json.loads((run / "results.json").read_text())
    assert results["run"][0]["transform"] == "identity"


def test_a_fine_tuning_has_a_table_of_its_own(robust: Robust, tmp_path: Path) -> None:
    build_finetuning(tmp_path / "tuned", FinetunePlan(modes=("full", "freeze")))
    outcome = robust("report", "tuned")
    assert outcome.code == 0
    assert "Dice of freeze minus that of full: -0.004" in outcome.out
    assert outcome.out.splitlines()[-1] == f"Report: {Path('tuned') / 'report.md'}"


@pytest.mark.parametrize(
    ("name", "why"),
    [("nowhere", "The folder does not exist."), ("empty", "It contains no `run.json`.")],
)
def test_what_is_no_run(robust: Robust, tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "empty").mkdir()
    outcome = robust("report", name)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        f"Error: `{name}` is not a run.\n{why}\nPass a run folder, as created by `--out`.\n"
    )


def test_a_run_must_be_named(robust: Robust) -> None:
    outcome = robust("report")
    assert outcome.code == 2
    assert "RUNS" in outcome.err


def test_the_report_of_a_run_that_must_not_change(
    robust: Robust, run: Path, tmp_path: Path
) -> None:
    robust("report", "run")
    expected = {path.name: path.read_text() for path in run.glob("re*.*")}
    for path in [*run.glob("re*.*"), *run.glob("figures/*")]:
        path.unlink()
    before = sorted(run.rglob("*"))
    outcome = robust("report", "run", "--out", "copy")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == f"Report: {Path('copy') / 'report.md'}"
    assert {path.name: path.read_text() for path in Path("copy").glob("re*.*")} == expected
    assert robust("report", "run", "--out", "copy", "--json").out.startswith('{\n  "copy": [')
    page = robust("report", "run", "--out", "copy", "--format", "html").out
    assert page == expected["report.html"]
    assert sorted(run.rglob("*")) == before
    build_run(tmp_path / "other", PLAN)
    refused = robust("report", "run", "--out", "other")
    assert (refused.code, refused.out) == (2, "")
    assert "`--out other` is a run." in refused.err


@pytest.mark.parametrize("kind", ["training", "fine-tuning", "explanation"])
def test_no_report_writes_into_the_run_with_out(tmp_path: Path, kind: str) -> None:
    build = {
        "training": build_training,
        "fine-tuning": build_finetuning,
        "explanation": build_explanation,
    }[kind]
    run = build(tmp_path / "run")
    before = sorted(run.rglob("*"))
    report = render(run, out=tmp_path / "copy")
    assert sorted(run.rglob("*")) == before
    assert len(list(report.parent.rglob("*.png"))) > 0


def test_it_needs_no_torch(run: Path) -> None:
    code = (
        "import sys\nfrom robustcli.cli import main\n"
        "sys.modules['torch'] = None  # any import of it fails\n"
        "main(['report', 'run', '--quiet'])\n"
    )
    process = python("-c", code)
    assert process.returncode == 0, process.stderr
    assert "identity" in process.stdout


def test_stored_runs_can_be_gated(robust: Robust, run: Path) -> None:
    kept = robust("report", "run", "--fail-under", "clean=10")
    assert (kept.code, kept.err) == (0, "")
    assert "Gates: 1 of 1 passed" in kept.out
    outcome = robust("report", "run", "--fail-under", "mean=99", "--fail-drop", "0", "--json")
    assert outcome.code == 4
    document = json.loads(outcome.out)["run"]
    assert document["results"][0]["transform"] == "identity"
    assert document["gates"]["gates"][0]["target"] == "mean over 2 transforms"
    assert "`--fail-under mean=99`: `vmamba-b`, mean over 2 transforms: top-1" in outcome.err
    assert "**Gates:" in (run / "report.md").read_text("utf-8")


def test_gates_of_several_runs_are_told_together(robust: Robust, run: Path, tmp_path: Path) -> None:
    build_run(tmp_path / "other", PLAN)
    outcome = robust("report", "run", "other", "--fail-under", "clean=100")
    assert outcome.code == 4
    assert outcome.err.startswith("Error: Gates failed in 2 runs.\n1 of 1 gates failed in `run`.\n")
    assert "in `other`" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--fail-under", "fog=70"], 2, "specifies a transform that is not in the run: `fog`"),
        (
            ["--fail-under", "clean=70", "--out", "zoo"],
            2,
            "`--fail-under clean=70` and `--out` cannot be used together.",
        ),
    ],
)
def test_gates_that_do_not_fit(
    robust: Robust, run: Path, arguments: list[str], code: int, message: str
) -> None:
    outcome = robust("report", "run", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    assert not (run / "gates.json").exists()


def test_a_partial_run_is_1_and_not_4(robust: Robust, tmp_path: Path) -> None:
    build_run(tmp_path / "half", RunPlan(images=60, done=0.5, record={"status": "partial"}))
    outcome = robust("report", "half", "--fail-under", "clean=100")
    assert outcome.code == 1
    assert "is incomplete (status: partial)" in outcome.err


@pytest.mark.parametrize("form", ["latex", "csv", "json", "markdown", "html"])
def test_one_document_on_standard_output_or_in_a_file(robust: Robust, run: Path, form: str) -> None:
    outcome = robust("report", "run", "--format", form)
    assert outcome.code == 0
    starts = {"latex": "% Tables", "csv": "model,", "json": "[", "markdown": "# Top", "html": "<!D"}
    assert outcome.out.startswith(starts[form])
    assert (run / "report.md").exists() == (form in ("markdown", "html"))
    written = robust("report", "run", "--format", form, "--file", "out/x.txt")
    assert (written.code, written.out) == (0, "")
    expected = outcome.out
    if form == "markdown":  # its links start at its own folder
        expected = expected.replace("](figures/", "](../run/figures/")
        assert "](../run/figures/" in expected
    assert Path("out/x.txt").read_text() == expected


def test_documents_hold_the_numbers_of_the_results(robust: Robust, run: Path) -> None:
    robust("report", "run")
    for form in ("csv", "json"):
        output = robust("report", "run", "--format", form).out
        assert output == (run / f"results.{form}").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--file", "x"), "`--file` needs a document"),
        (("--format", "csv", "--json"), "cannot be used together"),
        (("other", "--format", "csv"), "writes the document of one run; got 2 runs"),
        (("--format", "csv", "--html-samples", "1"), "`--html-samples` and `--format csv` cannot"),
        (("--format", "csv", "--out", "copy"), "`--out` and `--format csv` cannot"),
        (("other", "--out", "zoo", "--html-samples", "1"), "`--html-samples` has no effect"),
    ],
)
def test_options_that_do_not_go_together(
    robust: Robust, run: Path, arguments: tuple[str, ...], named: str
) -> None:
    outcome = robust("report", "run", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert named in outcome.err


def test_a_gate_that_one_run_refuses_changes_no_other_run(
    robust: Robust, run: Path, tmp_path: Path
) -> None:
    build_run(tmp_path / "other", replace(PLAN, transforms=(IDENTITY,)))
    outcome = robust("report", "run", "other", "--fail-drop", "50")
    assert (outcome.code, outcome.out) == (2, "")
    assert "has no matching result" in outcome.err
    assert not (run / "gates.json").exists()


def test_a_name_is_no_formula_in_a_spreadsheet(robust: Robust, tmp_path: Path) -> None:
    names = ("=1+1", "+1", "-1", "@x", "plain=1")
    plan = RunPlan(models=tuple(map(model, names)), transforms=(IDENTITY,), images=5)
    build_run(tmp_path / "run", plan)
    lines = robust("report", "run", "--format", "csv").out.splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["'=1+1", "'+1", "'-1", "'@x", "plain=1"]
    assert all(float(line.split(",")[-7]) >= 0 for line in lines if line.split(",")[-7])
    records = json.loads(robust("report", "run", "--format", "json").out)
    assert [record["model"] for record in records] == list(names)


def test_the_command_writes_one_page_over_all(
    robust: Robust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo_page, "draw_zoo_gallery", lambda *_: zoo_page.ZooGallery())
    runs = [path.relative_to(tmp_path) for path in three_classifiers(tmp_path)[:2]]
    names = [str(run) for run in runs]
    folder = default_folder(runs)
    outcome = robust("report", *names, "--json")
    assert outcome.code == 0
    assert (
        f"`--out` is not set: the report over all 2 trainings is written to {folder}."
        in outcome.err
    )
    documents = json.loads(outcome.out)
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
