import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from robustcli.core.errors import UsageError
from robustcli.evaluation.record import TransformRecord
from robustcli.reports.pages import kind_of
from robustcli.reports.render import render, render_zoo
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.mask_runs import MaskPlan, build_masks
from tests.reports.train_runs import TrainPlan, build_training

CELLS = (IDENTITY, *paper21()[:3], *imagenet_c()[:3])
OUTPUTS = ("results.csv", "results.json", "report.md", "report.html")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = (model("vmamba-b"), model("swin-b"))
    return build_run(tmp_path_factory.mktemp("run"), RunPlan(models=models, transforms=CELLS))


def test_a_report_is_written_beside_the_run(run: Path) -> None:
    assert render(run) == run / "report.md"
    assert all((run / name).is_file() for name in OUTPUTS)
    assert len(json.loads((run / "results.json").read_text())) == 2 * len(CELLS)


def test_the_page_and_the_tables_say_the_same(run: Path) -> None:
    markdown = render(run).read_text()
    html = (run / "report.html").read_text()
    for _, row in pd.read_csv(run / "results.csv").iterrows():
        interval = f"({100 * row['top1_low']:.1f}\N{EN DASH}{100 * row['top1_high']:.1f})"
        assert interval in markdown
        assert interval in html


def test_every_picture_of_the_markdown_exists_and_is_inside_the_html(run: Path) -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", render(run).read_text())
    assert len(pictures) == len(list((run / "figures").iterdir())) == 7
    assert all((run / picture).is_file() for picture in pictures)
    html = (run / "report.html").read_text()
    assert html.count('<figure class="picture') == len(pictures)
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "url(" not in html


def test_rendering_again_gives_the_same_files(run: Path) -> None:
    render(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    render(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_results_do_not_depend_on_how_often_the_run_was_interrupted(tmp_path: Path) -> None:
    one, other = (
        build_run(tmp_path / name, RunPlan(transforms=CELLS[:2], samples=False)) for name in "ab"
    )
    (other / "sessions" / "00000000.json").unlink()
    render(one)
    render(other)
    for name in ("results.csv", "results.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("cells", [(IDENTITY,), tuple(paper21()[:1]), CELLS])
@pytest.mark.parametrize("done", [0.0, 0.5])
def test_a_report_of_any_state_can_be_made(
    tmp_path: Path, cells: tuple[TransformRecord, ...], done: float
) -> None:
    plan = RunPlan(transforms=cells, done=done, samples=False, record={"status": "running"})
    text = render(build_run(tmp_path, plan)).read_text()
    assert "**Partial run.**" in text
    assert "nan" not in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        render(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_each_kind_of_run_has_its_own_report(tmp_path: Path) -> None:
    kinds = {
        "cls": build_run(tmp_path / "cls", RunPlan(transforms=CELLS[:2], samples=False)),
        "seg": build_masks(tmp_path / "seg", MaskPlan(transforms=CELLS[:2])),
        "train": build_training(tmp_path / "train"),
    }
    assert {kind_of(run) for run in kinds.values()} == set(kinds)
    for kind, start in (
        ("cls", "# Top-1"),
        ("seg", "# Dice of"),
        ("train", "# Training of"),
    ):
        assert render(kinds[kind]).read_text().startswith(start)


@pytest.mark.parametrize("content", ["[]", "{", '{"task": "detect"}', '{"kind": "explain"}'])
def test_a_record_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json` is not the record of an evaluation"):
        render(tmp_path)


@pytest.mark.parametrize("protocol", ["patient", "paper"])
def test_a_training_has_tables_and_pictures_in_both_pages(tmp_path: Path, protocol: str) -> None:
    run = build_training(tmp_path, TrainPlan(protocol=protocol))  # type: ignore[arg-type]
    markdown, html = render(run).read_text(), (run / "report.html").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert sorted(pictures) == sorted(f"figures/{p.name}" for p in (run / "figures").iterdir())
    assert html.count('<figure class="picture') == len(pictures) == 4
    (row,) = json.loads((run / "results.json").read_text())
    for page in (markdown, html):
        assert f"{row['dice']:.3f} ({row['dice_low']:.3f}\N{EN DASH}{row['dice_high']:.3f})" in page
        assert "nan" not in page.split("<body>")[-1].lower().replace("data:image", "")[:4000]


@pytest.mark.parametrize("kind", ["seg", "train", "zoo"])
def test_rendering_masks_again_gives_the_same_files(tmp_path: Path, kind: str) -> None:
    def write() -> dict[Path, bytes]:
        if kind == "zoo":
            render_zoo(runs, tmp_path / "out")
        else:
            render(runs[kind == "train"])
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    runs = [build_training(tmp_path / "a", TrainPlan(model="unet")), build_training(tmp_path / "b")]
    if kind == "seg":
        runs[0] = build_masks(tmp_path / "c", MaskPlan(transforms=CELLS[:3]))
    assert write() == write()


@pytest.mark.parametrize("finished", [0, 1, 5])
def test_a_report_of_an_unfinished_training_can_be_made(tmp_path: Path, finished: int) -> None:
    text = render(
        build_training(tmp_path, TrainPlan(measured=False, finished=finished))
    ).read_text()
    assert "**Partial run.**" in text
    assert "nan" not in text


@pytest.mark.parametrize("done", [0.0, 0.5])
@pytest.mark.parametrize("groups", [1, 8])
def test_a_report_of_segmenters_in_any_state_can_be_made(
    tmp_path: Path, done: float, groups: int
) -> None:
    cells = (IDENTITY, *paper21()[:2], *paper21(1)[:1], *paper21(4)[:1])
    plan = MaskPlan(transforms=cells, done=done, groups=groups, record={"status": "running"})
    text = render(build_masks(tmp_path, plan)).read_text()
    assert "**Partial run.**" in text
    assert "nan" not in text


def test_several_trainings_share_a_report(tmp_path: Path) -> None:
    runs = [build_training(tmp_path / name, TrainPlan(model=name)) for name in ("unet", "ulvm")]
    report = render_zoo([*runs, runs[0]], tmp_path / "out")
    assert report == tmp_path / "out" / "report.md"
    assert report.read_text().startswith("# 2 trainings of the segmentation zoo")
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 2
    assert not (runs[0] / "report.md").exists()


def test_a_comparison_does_not_overwrite_a_training(tmp_path: Path) -> None:
    run = build_training(tmp_path / "a")
    with pytest.raises(UsageError, match="is one of the trainings to compare"):
        render_zoo([run], tmp_path / "b" / ".." / "a")
    assert not (run / "report.md").exists()


def test_only_trainings_are_compared(tmp_path: Path) -> None:
    run = build_masks(tmp_path / "a", MaskPlan(transforms=(IDENTITY,)))
    with pytest.raises(UsageError, match="is not the record of a training"):
        render_zoo([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("robustcli.reports.render", ["torch", "timm", "imgaug", "cv2", "matplotlib.pyplot"]),
        ("robustcli.reports.console", ["torch", "matplotlib"]),
        ("robustcli.evaluation.cell_table", ["torch", "matplotlib", "scipy"]),
    ],
)
def test_reports_import_no_torch(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (answer.stdout, answer.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    "plan",
    [
        FinetunePlan(modes=()),
        FinetunePlan(modes=("full",), unmeasured=("full",), record={"status": "running"}),
        FinetunePlan(modes=("full",), waiting=("full",), profiled=0, decided=False),
        FinetunePlan(modes=("full", "freeze"), sweep=True),
    ],
)
def test_a_report_of_a_fine_tuning_in_any_state_can_be_made(
    tmp_path: Path, plan: FinetunePlan
) -> None:
    run = build_finetuning(tmp_path, plan)
    assert kind_of(run) == "finetune"
    text = render(run).read_text()
    assert "nan" not in text
    assert all((run / name).is_file() for name in OUTPUTS)
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert all((run / picture).is_file() for picture in pictures)
    assert len(json.loads((run / "results.json").read_text())) == len(plan.modes) - len(
        plan.waiting
    )


def test_rendering_a_fine_tuning_again_gives_the_same_files(tmp_path: Path) -> None:
    def write() -> dict[Path, bytes]:
        render(tmp_path)
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    build_finetuning(tmp_path, FinetunePlan(modes=("full", "freeze"), sweep=True))
    assert write() == write()
