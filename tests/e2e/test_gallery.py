"""`docs/gallery.md` matches the output of `benchmarks/gallery.py` for the committed numbers."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from math import isclose
from pathlib import Path
from types import ModuleType

import pytest
from scipy.stats import binomtest

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.cli import main

ROOT = Path(__file__).parents[2]
NUMBERS = json.loads((ROOT / "docs" / "gallery.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    """Imports the script as a module."""
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "benchmarks" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gallery"] = module  # needed by dataclasses
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_committed_numbers(gallery: ModuleType) -> None:
    assert gallery.PAGE.read_text("utf-8") == gallery.page(NUMBERS), "run `make gallery`"


def test_figures_are_small_and_all_there(gallery: ModuleType) -> None:
    linked_files = re.findall(r"\(images/([\w.-]+)\)", gallery.PAGE.read_text("utf-8"))
    assert len(linked_files) >= 3
    for name in linked_files:
        assert 0 < (gallery.IMAGES / name).stat().st_size <= 150_000


def test_differences_are_those_of_the_scores() -> None:
    for study in NUMBERS.values():
        labels = [model["label"] for model in study["models"]]
        top1 = {
            (row["label"], row["transform"]): row["correct"] / row["n"] for row in study["scores"]
        }
        for verdict in study["verdicts"]:
            first, second = (top1[label, verdict["transform"]] for label in labels)
            assert isclose(verdict["difference"], first - second, abs_tol=1e-7)
            assert verdict["low"] <= verdict["difference"] <= verdict["high"]


def test_adjusted_p_values_follow_from_the_others() -> None:
    """Holm's definition: the largest multiple among the equal or smaller p-values."""
    for study in NUMBERS.values():
        ordered = sorted(study["verdicts"], key=lambda verdict: verdict["p"])
        largest = 0.0
        for position, verdict in enumerate(ordered):
            largest = max(largest, verdict["p"] * (len(ordered) - position))
            assert isclose(verdict["p_adjusted"], min(1.0, largest), rel_tol=1e-6)
            is_shown = verdict["outcome"] != "no difference shown"
            assert is_shown == (verdict["p_adjusted"] <= 0.05)


def test_the_bundled_weights_are_those_of_the_page() -> None:
    for model in NUMBERS["demo"]["models"]:
        facts = load(ModelRequest(model["name"]), "cls", offline=True).facts
        assert facts.weights_sha256 == model["weights_sha256"]
        assert facts.parameters == model["parameters"]


def test_numbers_of_the_readme_are_those_of_the_page(gallery: ModuleType) -> None:
    """Each row of a table of transforms in README.md is in the page too."""
    cells = {tuple(_cells(line)) for line in gallery.PAGE.read_text("utf-8").splitlines()}
    names = {verdict["transform"] for verdict in NUMBERS["demo"]["verdicts"]}
    rows = [_cells(line) for line in (ROOT / "README.md").read_text("utf-8").splitlines()]
    quoted = [tuple(row) for row in rows if row and row[0] in names]
    assert len(quoted) >= 5
    assert [row for row in quoted if row not in cells] == []


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


@pytest.mark.slow
def test_a_run_gives_the_numbers_of_the_page_again(
    gallery: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = next(study for study in gallery.STUDIES if study.name == "demo")
    (evaluation,) = study.evaluations
    with pytest.raises(SystemExit) as exit_info:
        main([*evaluation.command, "--quiet"], prog_name="robust")
    assert exit_info.value.code == 0
    results = json.loads((tmp_path / evaluation.folder / "results.json").read_text("utf-8"))
    stored_scores = NUMBERS["demo"]["scores"]
    assert [row["transform"] for row in results] == [row["transform"] for row in stored_scores]
    for row, stored_row in zip(results, stored_scores, strict=True):
        # Rounding on another processor may change an image or two.
        assert abs(row["correct"] - stored_row["correct"]) <= 3
    pairs = json.loads((tmp_path / evaluation.folder / "statistics.json").read_text("utf-8"))
    clean = next(a for a in pairs["agreement"] if a["transform"] == "identity")
    discordant = (clean["first_only"], clean["second_only"])
    verdict = next(v for v in pairs["verdicts"] if v["transform"] == "identity")
    assert isclose(verdict["p"], binomtest(discordant[0], sum(discordant)).pvalue, rel_tol=1e-9)


def test_the_commands_of_the_page_can_be_typed(gallery: ModuleType) -> None:
    lines = [line for line in gallery.PAGE.read_text("utf-8").splitlines() if line[:7] == "robust "]
    expected = [
        command
        for study in gallery.STUDIES
        for command in (*(e.command for e in study.evaluations), study.comparison)
    ]
    assert [shlex.split(line)[1:] for line in lines] == [list(command) for command in expected]
