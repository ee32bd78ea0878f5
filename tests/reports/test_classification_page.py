""""""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustcli.evaluation.cell_table import table
from robustcli.reports.classification_page import accuracy, classification
from robustcli.reports.findings import Findings, read_findings
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21
from tests.reports.headings import sections
from tests.reports.told import NO_PICTURES, line_of, told


def test_the_sections_stand_in_their_order(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21(1)[:1], *paper21(5)[:1])
    page = classification(build_run(tmp_path, RunPlan(transforms=cells)))
    assert sections(page) == [
        *("Best and worst transforms", "All transforms", "Accuracy over severity"),
        *("What the transforms do", "Skipped images", "Speed", "Assumptions and settings"),
        *("Models", "How to repeat it"),
    ]
    assert page.results.equals(table(tmp_path))


DASH = "\N{EN DASH}"


def findings(run: Path, **changes: Any) -> Findings:
    settings = {
        "models": (model("a"), model("b")),
        "transforms": (IDENTITY, *paper21()[:4], *paper21(5)[:1]),
        **changes,
    }
    return read_findings(build_run(run, RunPlan(**settings)))


def test_top1_stands_with_its_interval_and_the_best_is_bold(tmp_path: Path) -> None:
    found = findings(tmp_path)
    page = told(accuracy(found, NO_PICTURES))
    first, second = (found.of_model(name).iloc[2] for name in "ab")
    assert line_of(page, "`affine`") == [
        "`affine`",
        f"**{100 * first['top1']:.1f}** "
        f"({100 * first['top1_low']:.1f}{DASH}{100 * first['top1_high']:.1f})",
        f"{100 * second['top1']:.1f} "
        f"({100 * second['top1_low']:.1f}{DASH}{100 * second['top1_high']:.1f})",
    ]


def test_nothing_is_bold_for_one_model(tmp_path: Path) -> None:
    page = told(accuracy(findings(tmp_path, models=(model("a"),)), NO_PICTURES))
    assert "**" not in page
    assert "Bold" not in page


def test_drop_stands_with_its_interval_and_retention(tmp_path: Path) -> None:
    found = findings(tmp_path)
    drops = told(accuracy(found, NO_PICTURES)).split("### Drop")[1]
    row = found.of_model("b").iloc[2]
    assert line_of(drops, "`affine`")[2] == (
        f"{100 * row['drop']:.1f} ({100 * row['drop_low']:.1f} to {100 * row['drop_high']:.1f}); "
        f"{100 * row['retention']:.1f}"
    )
    assert "`identity`" not in drops.split("### Top-5")[0]


def test_top5_has_its_table(tmp_path: Path) -> None:
    found = findings(tmp_path)
    top5 = told(accuracy(found, NO_PICTURES)).split("### Top-5")[1]
    row = found.of_model("a").iloc[5]
    assert line_of(top5, "`additive_gaussian_noise, severity 5`")[1] == f"{100 * row['top5']:.1f}"


def test_best_worst_clean_and_mean_of_each_model(tmp_path: Path) -> None:
    found = findings(tmp_path)
    rows = found.of_model("b")
    whole = rows[(rows["transform"] != "identity") & (rows["severity"] == 0)]
    ranked = whole.sort_values("top1")
    worst, best = ranked.iloc[0], ranked.iloc[-1]
    assert line_of(told(accuracy(found, NO_PICTURES)), "`b`") == [
        "`b`",
        f"`{best['transform']}` {100 * best['top1']:.1f}",
        f"`{worst['transform']}` {100 * worst['top1']:.1f}",
        f"{100 * rows['top1'].iloc[0]:.1f}",
        f"{100 * whole['top1'].mean():.1f}",
    ]


def test_unfinished_cells_say_how_many_images_they_have(tmp_path: Path) -> None:
    findings(tmp_path)
    next(tmp_path.glob("predictions/model=a/transform=affine/*/block-000001.parquet")).unlink()
    for file in tmp_path.glob("predictions/model=a/transform=crop/*/*.parquet"):
        file.unlink()
    page = told(accuracy(read_findings(tmp_path), NO_PICTURES))
    assert line_of(page, "`affine`")[1].endswith("), n = 32")
    assert line_of(page, "`crop`")[1] == "not yet"
    assert line_of(page.split("### Drop")[1], "`crop`")[1] == "not yet"
