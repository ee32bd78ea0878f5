import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from robustcli.core.errors import UsageError
from robustcli.reports.render import render
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21

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
    for row in pd.read_csv(run / "results.csv").itertuples():
        interval = f"({100 * row.top1_low:.1f}\N{EN DASH}{100 * row.top1_high:.1f})"
        assert interval in markdown
        assert interval in html


def test_every_picture_of_the_markdown_exists_and_is_inside_the_html(run: Path) -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", render(run).read_text())
    assert len(pictures) == len(list((run / "figures").iterdir())) == 5
    assert all((run / picture).is_file() for picture in pictures)
    html = (run / "report.html").read_text()
    assert html.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r'(src|href)="(?!data:)', html)


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
    tmp_path: Path, cells: tuple[object, ...], done: float
) -> None:
    plan = RunPlan(transforms=cells, done=done, samples=False, record={"status": "running"})
    text = render(build_run(tmp_path, plan)).read_text()
    assert "**Partial run.**" in text
    assert "nan" not in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        render(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("robustcli.reports.render", ["torch", "timm", "imgaug", "cv2", "matplotlib.pyplot"]),
        ("robustcli.reports.console", ["torch", "matplotlib"]),
        ("robustcli.evaluation.metrics", ["torch", "matplotlib", "scipy"]),
    ],
)
def test_reports_import_no_torch(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (answer.stdout, answer.stderr) == ("[]\n", "")
