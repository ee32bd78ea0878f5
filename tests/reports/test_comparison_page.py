"""Output of a comparison: terminal, page and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from robustcli.core.errors import UsageError
from robustcli.reports import comparison as comparison_module
from robustcli.reports.comparison import (
    Comparison,
    check_out,
    comparison_text,
    conclusions,
    read_comparison,
    write_comparison,
)
from robustcli.reports.comparison import comparison_page as page_of
from tests.builders import IDENTITY, build_run, imagenet_c, model, paper21
from tests.reports.compared import PLAN, two_runs
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.page_parts import assert_golden, line_of, section, titles

COMMAND = "robust compare a b --out comparison"


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    """Returns a comparison of three classifiers in two runs; one transform is left out."""
    monkeypatch.chdir(tmp_path)
    plan = replace(
        PLAN, images=400, transforms=(IDENTITY, *paper21()[:2], *imagenet_c(severities=(1, 5))[:4])
    )
    two_runs(Path(), plan, replace(plan, transforms=plan.transforms[:-1]))
    vit = model("vit-b", weights_sha256="77" * 32, pretraining="imagenet-22k")
    build_run(Path("c"), replace(plan, models=(vit,)))
    return read_comparison(["a", "b", "c"], force_common=True)


def test_the_page(comparison: Comparison) -> None:
    report = write_comparison(comparison, Path("out"), COMMAND)
    page = report.read_text(encoding="utf-8")
    assert_golden(page, "comparison")
    figures = {path.name for path in Path("out/figures").iterdir()}
    assert figures == {"pair-1.png", "pair-2.png", "pair-3.png", "ranks.png"}
    assert Path("out/results.json").read_text() == comparison.as_json()
    table = pd.read_csv("out/results.csv")
    assert len(table) == len(comparison.table())
    assert table["difference"].tolist() == pytest.approx(comparison.table()["difference"].tolist())
    html = Path("out/report.html").read_text(encoding="utf-8")
    assert html.count('<img src="data:image/') == 4
    assert "http" not in html.replace("http-equiv", "")
    second_report = write_comparison(comparison, Path("again"), COMMAND)
    assert second_report.read_bytes() == report.read_bytes()


def test_of_segmenters_there_are_no_classes_to_agree_on(tmp_path: Path) -> None:
    plan = MaskPlan(models=(segmenter("a"), segmenter("b")), transforms=(IDENTITY,))
    comparison = read_comparison([build_masks(tmp_path / "run", plan)])
    page = page_of(comparison, COMMAND)
    assert "of 8 patients" in page.splitlines()[0]
    assert "sign flips of the patients' differences" in page
    assert not {"Agreement", "Flips", "Severity by severity"} & set(titles(page))
    (line,) = comparison.lines
    assert line_of(section(page, "Transform by transform"), "`identity`") == [
        *("`identity`", "**`a` ahead** with 8 patients", "+0.050 (0.049 to 0.050)"),
        *("0.008", "0.008", f"{line.first_score:.3f}", f"{line.second_score:.3f}"),
    ]


def test_one_group_gives_neither_interval_nor_ranking(tmp_path: Path) -> None:
    plan = MaskPlan(models=(segmenter("a"), segmenter("b")), transforms=(IDENTITY,), groups=1)
    comparison = read_comparison([build_masks(tmp_path / "run", plan)])
    page = page_of(comparison, COMMAND)
    assert "**Only one patient.**" in page
    assert section(page, "## Ranking").strip() == (
        "A single patient does not show the variation between patients, so no ranking is given."
    )
    assert "a single patient allows no test" in "\n".join(conclusions(comparison))
    assert "P(rank 1)" in comparison_text(comparison)


def test_the_terminal_shows_the_same_numbers_in_ascii(comparison: Comparison) -> None:
    text = comparison_text(comparison)
    assert text.isascii()
    assert "The runs differ. Transforms" in text
    assert "`b` lacks `c_shot_noise, severity 5`" in text
    assert "Mixed pretraining." in text
    for sentence in conclusions(comparison):
        assert sentence.replace("\N{EN DASH}", "-") in text
    assert text.count("p (Holm)") == 3
    line = comparison.clean_lines[0]
    (table_line,) = [x for x in text.splitlines() if x.startswith("identity")][:1]
    assert table_line.split()[1:3] == [
        f"{100 * line.first_score:.1f}",
        f"{100 * line.second_score:.1f}",
    ]


def test_of_many_pairs_some_are_shown(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_module, "PAIRS_SHOWN", 1)
    text = comparison_text(comparison)
    assert text.count("p (Holm)") == 1
    assert "2 more pairs: see `--json`" in text
    assert len(conclusions(comparison)) == 6, "conclusions cover all pairs"
    page = page_of(comparison, COMMAND)
    assert "2 more pairs: see `results.csv`." in page


@pytest.mark.parametrize("name", ["<b>&|x", "a*b_c`d"])
def test_names_are_shown_letter_for_letter(tmp_path: Path, name: str) -> None:
    models = (model(name), model("other", weights_sha256="00" * 32))
    build_run(tmp_path / "run", replace(PLAN, models=models, transforms=(IDENTITY,)))
    out = tmp_path / "out"
    write_comparison(read_comparison([tmp_path / "run"]), out, COMMAND)
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in html
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<code>{escaped}</code>" in html


def test_nothing_of_a_run_is_overwritten(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", PLAN)
    with pytest.raises(UsageError, match="would overwrite the report of the run"):
        check_out(run)
    with pytest.raises(UsageError, match="is a file"):
        check_out(run / "run.json")
    check_out(tmp_path / "new")
