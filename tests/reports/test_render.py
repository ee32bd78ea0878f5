"""Reports of every kind of run in every state: files, pictures, and reproducible bytes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from robustcli.core.errors import UsageError
from robustcli.core.io import to_csv
from robustcli.evaluation.cell_table import table
from robustcli.reports.finetuning_findings import read_finetuning
from robustcli.reports.pages import to_json
from robustcli.reports.render import render, render_zoo
from robustcli.reports.training_findings import read_training
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.mask_runs import MaskPlan, build_masks
from tests.reports.train_runs import TrainPlan, build_training

CELLS = (IDENTITY, *paper21()[:3], *imagenet_c()[:3])
DASH = "\N{EN DASH}"
OUTPUTS = ("results.csv", "results.json", "report.md", "report.html")
Renderer = Callable[[], Path]


def rendered(kind: str, folder: Path) -> Renderer:
    """Makes a finished run in `folder`; returns the function that renders it."""
    if kind == "cls":
        models = (model("vmamba-b"), model("swin-b"))
        build_run(folder, RunPlan(models=models, transforms=CELLS))
    elif kind == "seg":
        build_masks(folder, MaskPlan(transforms=CELLS[:3]))
    elif kind == "finetune":
        build_finetuning(folder, FinetunePlan(modes=("full",), sweep=True))
    elif kind == "zoo":
        runs = [build_training(folder / f"run-{name}", TrainPlan(model=name)) for name in NETWORKS]
        return lambda: render_zoo([*runs, runs[0]], folder)
    else:
        build_training(folder, TrainPlan(protocol="paper" if kind == "paper" else "patient"))
    return lambda: render(folder)


NETWORKS = ("unet", "ulvm")
# Title, rows of the results, pictures.
KINDS = {
    "cls": ("# Top-1 accuracy of", 14, 7),
    "seg": ("# Dice of", 3, 3),
    "train": ("# Training of", 1, 4),
    "paper": ("# Training of", 1, 4),
    "finetune": ("# Fine-tuning of", 1, 5),
    "zoo": ("# 2 trainings of the segmentation zoo", 2, 7),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("zoo", "paper"))) for kind in KINDS],
)  # a zoo takes 8 seconds (tests/cli/test_report.py also renders one), `paper` differs in its data
def test_a_report_has_all_files_and_is_the_same_again(tmp_path: Path, kind: str) -> None:
    title, rows, count = KINDS[kind]
    render_kind = rendered(kind, tmp_path)
    assert render_kind() == tmp_path / "report.md"
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    markdown, html = ((tmp_path / f"report.{name}").read_text() for name in ("md", "html"))
    assert all((tmp_path / name).is_file() for name in OUTPUTS)
    assert markdown.startswith(title)
    assert len(json.loads((tmp_path / "results.json").read_text())) == rows
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    figures = [path for path in (tmp_path / "figures").iterdir() if path.suffix == ".png"]
    assert sorted(pictures) == sorted(f"figures/{path.name}" for path in figures)
    assert html.count('<figure class="picture') == len(pictures) == count
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "url(" not in html
    measure, scale = ("top1", 100) if kind == "cls" else ("dice", 1)
    digits = 1 if kind == "cls" else 3
    for _, row in pd.read_csv(tmp_path / "results.csv").iterrows():
        low, high = (f"{scale * row[f'{measure}_{bound}']:.{digits}f}" for bound in ("low", "high"))
        assert f"({low}{DASH}{high})" in markdown
        assert f"({low}{DASH}{high})" in html
    if kind in ("cls", "finetune", "zoo"):  # together they have the figures of all kinds
        render_kind()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_results_do_not_depend_on_how_often_the_run_was_interrupted(tmp_path: Path) -> None:
    plan = RunPlan(transforms=CELLS[:2], samples=False)
    runs = [build_run(tmp_path / name, plan) for name in "ab"]
    (runs[1] / "sessions" / "00000000.json").unlink()
    first, second = map(table, runs)
    assert (to_csv(first), to_json(first)) == (to_csv(second), to_json(second))


@pytest.mark.parametrize("read", [render, read_training, read_finetuning])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        read(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["[]", "{", '{"task": "detect"}', '{"kind": "explain"}'])
def test_a_record_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json` is not the record of an evaluation"):
        render(tmp_path)


def test_a_comparison_does_not_overwrite_a_training(tmp_path: Path) -> None:
    run = build_training(tmp_path / "a")
    with pytest.raises(UsageError, match="is one of the trainings to compare"):
        render_zoo([run], tmp_path / "b" / ".." / "a")
    assert not (run / "report.md").exists()


def test_only_trainings_are_compared(tmp_path: Path) -> None:
    run = build_masks(tmp_path / "a", MaskPlan(transforms=(IDENTITY,)))
    with pytest.raises(UsageError, match=r"is an evaluation.*(.|\n)*`robust compare RUN RUN"):
        render_zoo([run], tmp_path / "out")
    (run / "run.json").write_text("{")
    with pytest.raises(UsageError, match="is not the record of a training"):
        render_zoo([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reports_import_no_torch() -> None:
    """Imported one after another, so that each is checked before the next brings its packages."""
    modules = {
        "robustcli.evaluation.cell_table": ["torch", "matplotlib", "scipy"],
        "robustcli.reports.comparison": ["torch", "matplotlib"],
        "robustcli.reports.render": ["torch", "timm", "imgaug", "cv2", "matplotlib.pyplot"],
    }
    code = "import sys\n" + "".join(
        f"import {module}; assert not {set(names)} & set(sys.modules), '{module}'\n"
        for module, names in modules.items()
    )
    # Old releases cannot know what the libraries below them deprecate today.
    options = ("-W", "error", "-W", "default::DeprecationWarning")
    subprocess.run([sys.executable, *options, "-c", code], check=True)
