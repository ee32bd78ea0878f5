"""The files of a report: numbers, the two pages, and names with special characters."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import nn

import robustcli
from robustcli.evaluation.cell_table import table
from robustcli.reports.comparison import COMPARISON_COLUMNS
from robustcli.reports.finetuning_page import SEGMENTER_MODE_COLUMNS, columns
from robustcli.reports.pages import Page, to_json, write_page, write_result_files
from robustcli.reports.scoring import SCORINGS
from robustcli.reports.training_page import CLASSIFIER_COLUMNS
from tests.builders import IDENTITY, RunPlan, build_run, paper21

DOCS = Path(__file__).parents[2] / "docs"


def test_all_four_files_are_written(tmp_path: Path) -> None:
    page = Page(pd.DataFrame({"dice": [0.5]}), "# Dice of `a<b` is **high**\n")
    assert write_page(page, tmp_path / "new") == tmp_path / "new" / "report.md"
    assert (tmp_path / "new/report.md").read_text() == "# Dice of `a<b` is **high**\n"
    assert "<title>Dice of a&lt;b is high</title>" in (tmp_path / "new/report.html").read_text()
    assert (tmp_path / "new/results.csv").read_text() == "dice\n0.5\n"
    assert (tmp_path / "new/results.json").is_file()


@pytest.fixture
def numbers(tmp_path: Path) -> pd.DataFrame:
    numbers = table(build_run(tmp_path, RunPlan(transforms=(IDENTITY, *paper21()[:3]))))
    numbers.loc[2, "retention"] = np.nan
    return numbers


def test_both_files_hold_the_unrounded_table(tmp_path: Path, numbers: pd.DataFrame) -> None:
    write_result_files(tmp_path, numbers)
    csv = pd.read_csv(tmp_path / "results.csv")  # pandas 2 loses the last bits, by 1.4e-15
    pd.testing.assert_frame_equal(csv, numbers, rtol=4e-15, atol=0)
    records = json.loads((tmp_path / "results.json").read_text())
    pd.testing.assert_frame_equal(pd.DataFrame(records), numbers, check_exact=True)


def test_a_missing_number_is_null_in_json_and_empty_in_csv(
    tmp_path: Path, numbers: pd.DataFrame
) -> None:
    write_result_files(tmp_path, numbers)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    records = json.loads(text)
    assert records[2]["retention"] is None
    assert records[0]["psnr_db"] is None
    header, identity, *_ = (tmp_path / "results.csv").read_text().splitlines()
    assert identity.split(",")[header.split(",").index("psnr_db")] == ""


def test_counts_are_whole_numbers(numbers: pd.DataFrame) -> None:
    record = json.loads(to_json(numbers))[1]
    assert (record["n"], record["severity"]) == (60, 0)
    assert all(isinstance(record[name], int) for name in ("n", "correct", "severity", "paired_n"))


def test_infinity_never_reaches_a_file(numbers: pd.DataFrame) -> None:
    numbers.loc[0, "psnr_db"] = np.inf
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(numbers)


@pytest.mark.parametrize(
    ("page", "heading", "names"),
    [
        ("formats.md", "", (*CLASSIFIER_COLUMNS, *columns(SCORINGS["cls"]))),
        ("formats.md", "## Fine-tuning", SEGMENTER_MODE_COLUMNS),
        ("compare.md", "## Files", COMPARISON_COLUMNS),
    ],
)
def test_every_column_is_documented(page: str, heading: str, names: tuple[str, ...]) -> None:
    section = (DOCS / page).read_text(encoding="utf-8").partition(heading or "#")[2]
    assert set(names) <= set(re.findall(r"`([a-z_0-9]+)`", section))


def test_temporary_files_of_killed_reports_are_removed(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    names = {".a.png.0123abcd-7-1.tmp": 3600, ".b.png.0123abcd-7-1.tmp": 0, ".user.tmp": 3600}
    for name, age in names.items():
        path = tmp_path / "figures" / name
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    write_page(Page(pd.DataFrame({"a": [1]}), "# T\n"), tmp_path)
    left = {path.name for path in (tmp_path / "figures").iterdir()}
    assert left == set(names) - {".a.png.0123abcd-7-1.tmp"}


NAMES = ("<img src=x onerror=alert(1)>", "a|b `c`", "=1+1", "@sum(1)")


def _page(*pictures: str, **files: str) -> Page:
    shown = "\n\n".join(f"![`{name}` \\[1\\].](figures/{name})\n\n*C*" for name in pictures)
    tables = {f"{name}.csv": text for name, text in files.items()}
    return Page(pd.DataFrame(), f"# Report\n\n{shown}\n", tables)


def _draw(folder: Path, *names: str) -> None:
    (folder / "figures").mkdir(exist_ok=True)
    for name in names:
        Image.new("L", (4, 4)).save(folder / "figures" / name)


def test_files_of_an_earlier_report_are_removed_and_those_of_the_user_kept(tmp_path: Path) -> None:
    _draw(tmp_path, "old.png", "old.pdf", "both.png", "mine.png")
    (tmp_path / "figures" / "both.pdf").write_text("older than both.png: of the user")
    os.utime(tmp_path / "figures" / "both.pdf", (1, 1))
    (tmp_path / "classes.csv").write_text("of the user")
    write_page(_page("old.png", "both.png", verdicts="a\n"), tmp_path)
    _draw(tmp_path, "new.png", "both.png")
    write_page(_page("new.png", "both.png"), tmp_path)
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"new.png", "both.png", "both.pdf", "mine.png"}
    assert not (tmp_path / "verdicts.csv").exists()
    assert (tmp_path / "classes.csv").read_text() == "of the user"


def test_a_damaged_page_removes_no_other_files(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    write_page(_page(), tmp_path)
    listed = '<meta name="files" content="run.json figures/..%2f..%2fx.png %2e%2e/verdicts.csv">'
    report = tmp_path / "report.html"
    report.write_text(report.read_text("utf-8").replace("<title>", f"{listed}<title>"), "utf-8")
    write_page(_page(), tmp_path)
    assert (tmp_path / "run.json").exists()


def test_names_of_classes_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(2):
            pixels = np.random.default_rng((number, index)).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    network = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, 4)).eval()
    run = robustcli.evaluate(
        network, tmp_path / "data", "identity", out=tmp_path / "run", classes=NAMES,
        preprocessing={"resize": 8, "crop": 8}, workers=0, device="cpu",
    )  # fmt: skip
    run.report()
    page = (run.path / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    for line in (run.path / "report.md").read_text().splitlines():
        assert "<img src=x" not in re.sub(r"(`+).*?\1(?!`)", "", line), (
            "HTML may only appear as code"
        )
    with (run.path / "classes.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "@")]
    assert any("1+1" in cell for cell in cells)
