"""`robust compare`: which of several models is better, without torch and without the images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import robustcli
from tests.cli.conftest import REPOSITORY, Robust, python
from tests.reports.compared import PLAN, rewrite_pixels, two_runs


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    two_runs(tmp_path)
    return "a", "b"


def test_the_verdicts_of_two_runs(robust: Robust, runs: tuple[str, str]) -> None:
    outcome = robust("compare", *runs)
    assert (outcome.code, outcome.err) == (0, "")
    assert "top-1 of vmamba-b and swin-b" in outcome.out
    assert outcome.out.splitlines()[-1] == (
        "Between vmamba-b and swin-b no difference is shown on any of 3 transforms (n = 80)."
    )


def test_the_report_and_its_numbers(robust: Robust, runs: tuple[str, str]) -> None:
    outcome = robust("compare", *runs, "--out", "comparison")
    assert outcome.out.splitlines()[-1] == f"Report: {Path('comparison') / 'report.md'}"
    names = {path.name for path in Path("comparison").iterdir()}
    assert names == {"report.md", "report.html", "results.csv", "results.json", "figures"}
    document = robust("compare", *runs, "--json", "--out", "comparison")
    assert json.loads(document.out) == json.loads(Path("comparison/results.json").read_text())
    assert "Report:" not in robust("compare", *runs, "--out", "comparison", "--quiet").out


def test_runs_that_differ_are_refused_and_forced(robust: Robust, runs: tuple[str, str]) -> None:
    rewrite_pixels(Path("b"), "affine", slice(5))
    refused = robust("compare", *runs)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == (
        "Error: These runs differ in more than their models.\nDifferent pixels after the "
        "transform: `affine`.\nEvaluate the models with the same settings, complete partial runs, "
        "or compare only the results that all runs have: `--force-common`.\n"
    )
    forced = robust("compare", *runs, "--force-common")
    assert forced.code == 0
    assert forced.out.startswith("Not compared: Different pixels after the transform: `affine`.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "A comparison needs two models, but only one was found: `vmamba-b`."),
        (["a", "nowhere"], "`nowhere` is not a run."),
        (["a", "b:swin"], "No model of this run is called `swin`."),
        (["a", "b", "--out", "a"], "`--out a` is a run."),
        ([], "Missing argument 'RUNS...'."),
    ],
)
def test_what_is_typed_wrong(
    robust: Robust, runs: tuple[str, str], arguments: list[str], message: str
) -> None:
    outcome = robust("compare", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert not Path("a/report.md").exists()


def test_the_function_gives_the_same(robust: Robust, runs: tuple[str, str]) -> None:
    comparison = robustcli.compare(*runs, out="comparison")
    assert comparison.table()["transform"].tolist() == [t.name for t in PLAN.transforms]
    assert json.loads(robust("compare", *runs, "--json").out) == json.loads(comparison.as_json())
    assert "robustcli.compare(...)" in Path("comparison/report.md").read_text(encoding="utf-8")


def test_neither_torch_nor_the_images_are_needed(tmp_path: Path, runs: tuple[str, str]) -> None:
    """In an interpreter in which importing torch fails; the images never existed."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    code = (
        "import sys, robustcli; from robustcli.cli import main\n"
        "robustcli.compare('a', 'b')\n"
        "sys.argv = ['robust', 'compare', 'a', 'b', '--out', 'comparison', '--quiet']\n"
        "main(prog_name='robust')"
    )
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    done = python("-c", code, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (0, "")
    assert "Between vmamba-b and swin-b no difference is shown" in done.stdout
