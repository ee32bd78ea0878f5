"""The report of an explanation: page, pictures, numbers, terminal table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robustcli.core.errors import RunError, UsageError
from robustcli.explanation.methods import METHODS
from robustcli.explanation.record import (
    EXPLAINED_SCHEMA,
    EXPLANATION,
    ChoiceRecord,
    read_explained_rows,
)
from robustcli.metrics.explanation_scores import flip_contrasts
from robustcli.metrics.intervals import Bootstrap
from robustcli.reports import explanation_page as page_module
from robustcli.reports.explanation_findings import (
    ERROR_OF,
    ExplanationFindings,
    absences,
    explanation_results,
    explanation_summary,
    read_explanation,
)
from robustcli.reports.explanation_page import IN_WORDS, explanation_page, explanation_text
from robustcli.reports.pages import run_kind
from robustcli.reports.pairing import find_models
from robustcli.reports.render import document, render
from robustcli.reports.run_export import read_run_export
from tests.builders import IDENTITY
from tests.reports.explanation_runs import (
    INVERT,
    LABELS,
    PERSPECTIVE,
    ExplainPlan,
    build_explanation,
)
from tests.reports.page_parts import assert_golden, line_of, section, titles

FULL_PLAN = ExplainPlan(
    methods=(
        *("integrated-gradients", "grad-cam", "relevance", "attention"),
        *("maximised-photo", "erf", "erf-untrained"),
    ),
    transforms=(PERSPECTIVE, INVERT),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a finished run of every kind of method, rendered with the pictures of one photo."""
    run = build_explanation(tmp_path_factory.mktemp("runs") / "explained", FULL_PLAN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "PANELS_SHOWN", 1)
        render(run)
    return run


def read_built(folder: Path, plan: ExplainPlan) -> ExplanationFindings:
    return read_explanation(build_explanation(folder, plan))


def test_the_page(run: Path) -> None:
    assert_golden((run / "report.md").read_text(encoding="utf-8"), "explanation")
    assert {path.name for path in (run / "panels").iterdir()} == {
        *("001-perspective.png", "learned-001-perspective.png", "receptive-fields.png"),
    }
    html = (run / "report.html").read_text(encoding="utf-8")
    assert html.count('<img src="data:image/webp') == 3
    assert html.count('alt="Photo 1, class-0/photo-000.jpeg. Clean: true and predicted tench') == 2
    assert "http" not in html.replace("http-equiv", "")
    assert 'class="picture chart"' not in html, "photos and maps must not be inverted in the dark"


def test_the_files_hold_every_number_and_say_why_one_is_missing(run: Path) -> None:
    table = pd.read_csv(run / "results.csv")
    assert len(table) == (3 * 2 + 1) * 2 * 2  # targets of four methods, transforms, views
    records = json.loads((run / "results.json").read_text())
    rows = read_explained_rows(run)
    explained_columns = [name for name in table if name not in ("why_absent", "model", "method")]
    for record in records:
        cell = rows
        for key in ("method", "transform", "view", "target_kind"):
            cell = cell[cell[key] == record[key]]
        assert record["n"] == len(cell) == 18
        assert record["insertion_auc"] == pytest.approx(cell["insertion_auc"].mean())
        if record["view"] == "transformed":
            flipped = cell["flipped"].to_numpy(dtype=bool)
            expected = flip_contrasts(cell[["centroid_shift"]].to_numpy(), flipped, Bootstrap(0))[0]
            assert record["centroid_shift_difference_low"] == pytest.approx(expected.low)
            assert record["centroid_shift_flipped_n"] == 6
        reasons = dict(text.split(": ", 1) for text in record["why_absent"].split("; "))
        for name in explained_columns:
            if record[name] is None:
                base = name.removesuffix("_high").removesuffix("_low")
                names = [reason for reason in reasons if base.startswith(reason)]
                assert names, f"no reason is given for the missing {name}"


def test_a_report_is_the_same_again_and_needs_no_arrays_for_its_numbers(run: Path) -> None:
    assert document(run, "csv") == (run / "results.csv").read_text()
    latex = document(run, "latex")
    assert r"\label{tab:shift}" in latex
    assert r"\textbf{+9.4 (" in latex
    before = (run / "panels/001-perspective.png").read_bytes()
    page_module.PanelDrawer(read_explanation(run)).panel(
        1, *one_photo(run, "perspective"), "localised"
    )
    assert (run / "panels/001-perspective.png").read_bytes() == before


def one_photo(run: Path, transform: str) -> tuple[pd.DataFrame]:
    rows = read_explained_rows(run)
    return (
        rows[(rows["image_id"] == "class-0/photo-000.jpeg") & (rows["transform"] == transform)],
    )


def test_a_difference_is_put_in_words_only_where_it_is_shown(tmp_path: Path) -> None:
    moves = read_built(tmp_path / "moves", ExplainPlan(methods=("grad-cam",)))
    first, second = explanation_summary(moves)[:2]
    (cell,) = [c for c in moves.transformed if c.key.target_kind == "true"]
    contrast = cell.contrasts["centroid_shift"]
    times = contrast.flipped.value / contrast.kept.value
    assert f"moves {times:.1f} times as far if the prediction flips as if it stays" in first
    assert f"95 % interval {100 * contrast.low:.1f} to {100 * contrast.high:.1f}" in first
    assert (
        "more similar to that of the clean photo if the prediction stays than if it flips" in second
    )
    findings = read_built(tmp_path / "same", ExplainPlan(methods=("grad-cam",), further=0.0))
    (sentence,) = [s for s in explanation_summary(findings) if "flips" in s]
    assert sentence.startswith("Grad-CAM under perspective: no difference shown")
    less = read_built(tmp_path / "less", ExplainPlan(methods=("grad-cam",), further=-0.8))
    assert "times as far if the prediction stays as if it flips" in explanation_summary(less)[0]


def test_too_few_photos_are_not_compared(tmp_path: Path) -> None:
    explanation = read_built(tmp_path / "few", ExplainPlan(images=8))
    sentences = [s for s in explanation_summary(explanation) if "flip" in s]
    assert sentences == [
        "Too few photos to compare flipped with kept predictions under perspective (3 flipped, 5 "
        "kept): 5 of each are needed."
    ]
    page = explanation_page(explanation)
    assert "3 flipped and 5 kept; 5 of each are needed" in section(page, "Shift of the centre")


def test_maps_that_do_not_depend_on_the_weights_fail_the_sanity_check(tmp_path: Path) -> None:
    explanation = read_built(tmp_path / "run", ExplainPlan(methods=("grad-cam",)))
    equal_rows = explanation.rows.assign(
        sanity_similarity=explanation.rows["sanity_similarity"].where(
            explanation.rows["sanity_similarity"].isna(), 0.9
        )
    )
    assert "Sanity check failed" not in explanation_text(explanation)
    failing = replace(explanation, rows=equal_rows)
    (sentence,) = [s for s in explanation_summary(failing) if "Sanity" in s]
    assert sentence.startswith("Sanity check failed: with shuffled weights, the Grad-CAM map")
    assert "0.90" in line_of(section(explanation_page(failing), "Sanity check"), "Grad-CAM")[2]


def test_maps_whose_sum_is_not_the_change_of_the_score_fail_their_check(tmp_path: Path) -> None:
    explanation = read_built(tmp_path / "run", ExplainPlan(methods=("integrated-gradients",)))
    assert not [s for s in explanation_summary(explanation) if "failed" in s]
    for error, shown in ((0.3, "30 %"), (1.004, "100 %"), (12.0, "1200 %")):
        rows = explanation.rows.assign(completeness_error=error)
        check, advice = list(explanation_summary(replace(explanation, rows=rows)))[-2:]
        assert check.startswith("Check failed: the sum of the maps of integrated gradients")
        assert f"by {shown} in the median" in check
        assert "do not use these maps" in advice


def test_what_was_not_asked_for_is_said(tmp_path: Path) -> None:
    explanation = read_built(tmp_path / "run", ExplainPlan(methods=("occlusion",), sanity=False))
    page = explanation_page(explanation)
    assert "`--sanity` repeats the maps" in section(page, "Sanity check")
    assert not {"Learned features", "Effective receptive field"} & set(titles(page))
    clean = next(c for c in explanation.cells if c.key.view == "clean")
    reasons = absences(explanation, clean)
    assert reasons["sanity_similarity"] == "not requested (`--sanity`)"
    assert reasons["completeness_error"] == "a check only for integrated gradients"
    assert reasons["map_similarity"].startswith("compares the transformed photo's map")
    assert reasons["pointing_hit"] == "the positions of objects are not known (`--boxes`)"
    boxed = replace(explanation, record=explanation.record.model_copy(update={"boxes": "ab" * 32}))
    assert absences(boxed, clean)["pointing_hit"].startswith("none of the photos has a box")
    assert "ab" * 32 in section(explanation_page(boxed), "Settings")


def test_untouched_photos_alone_are_compared_with_nothing(tmp_path: Path) -> None:
    plan = ExplainPlan(methods=("grad-cam",), transforms=(IDENTITY,), images=3)
    explanation = read_built(tmp_path / "run", plan)
    assert "Where the model looks when it fails" not in titles(explanation_page(explanation))
    table = explanation_results(explanation)
    assert table["flipped"].isna().all()
    assert table["why_absent"].str.startswith("flipped: no transform was requested").all()
    assert "no transform was requested" in explanation_text(explanation)


def test_a_partial_run_and_one_without_rows(tmp_path: Path) -> None:
    partial = read_built(tmp_path / "partial", ExplainPlan(done=3))
    assert "**Partial run.** 3 photos of 18 have rows" in explanation_page(partial)
    assert explanation_text(partial).count("Partial: 3 photos of 18 have rows.") == 1
    empty_run = build_explanation(tmp_path / "empty", ExplainPlan(methods=(), done=0))
    render(empty_run)
    assert explanation_results(read_explanation(empty_run)).empty
    assert explanation_text(read_explanation(empty_run)).startswith("Partial: 0 photos of 18")


@pytest.mark.parametrize("name", ["<b>&|x", "a*b_c`d", "=1+1|<img src=x onerror=alert(1)>"])
def test_names_are_shown_letter_for_letter(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "PANELS_SHOWN", 1)
    plan = ExplainPlan(methods=("grad-cam",), images=1, name=name, labels=[name, *LABELS[1:]])
    run = build_explanation(tmp_path / "run", plan)
    render(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<code>{escaped}</code>" in html
    assert f"true and predicted {escaped} (80.0" in html.replace("&#34;", '"')
    assert "<b>" not in html
    assert "<img src=x" not in html
    assert pd.read_csv(run / "results.csv")["model"][0] == ("'" if name[0] == "=" else "") + name


def test_the_table_for_a_terminal(run: Path) -> None:
    text = explanation_text(read_explanation(run))
    assert text.isascii()
    line = next(line for line in text.splitlines() if line.startswith("Hidden attention"))
    assert line.split()[2:6] == ["perspective", "none", "18", "6"]
    for sentence in explanation_summary(read_explanation(run)):
        assert sentence.replace("\N{EN DASH}", "-") in text


def test_every_method_is_explained_in_a_sentence() -> None:
    assert set(IN_WORDS) == set(METHODS)
    assert set(ERROR_OF) <= set(METHODS)
    assert set(ERROR_OF.values()) <= set(EXPLAINED_SCHEMA.names)


def test_a_map_that_is_not_finite_is_named_and_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation = read_built(tmp_path / "run", ExplainPlan(methods=("grad-cam",), images=1))
    (path,) = explanation.run.glob("rows/*/*/*/*.npz")
    content = dict(np.load(path))
    content["maps"][0] = np.nan
    content["maps"][1] = 0
    np.savez(path, **content)
    drawn_maps = []
    monkeypatch.setattr(
        page_module, "draw_explanation", lambda lines, *_, **__: drawn_maps.extend(lines)
    )
    page_module.draw_explanation_gallery(explanation)
    tiles = drawn_maps[1].tiles
    assert tiles[0].picture is None
    assert tiles[0].note == "no map: it is not finite"
    assert tiles[1].title.endswith("(a map of zeros)")


def test_the_field_is_the_mean_over_images(run: Path) -> None:
    influence, images = page_module._mean_map(read_explanation(run), "erf")
    maps = np.abs(np.load(next(run.glob("rows/*/erf/perspective-0/*.npz")))["maps"].astype(float))
    assert images == 18
    assert influence == pytest.approx(maps[::2].mean(axis=0))


def test_damaged_rows_and_other_runs(tmp_path: Path) -> None:
    run = build_explanation(tmp_path / "run", ExplainPlan(methods=("grad-cam",), images=1))
    assert run_kind(run) == "explanation"
    with pytest.raises(UsageError, match="is an explanation"):
        find_models([str(run)])
    with pytest.raises(UsageError, match="is an explanation"):
        read_run_export(run)
    (path,) = run.glob("rows/*/*/*/*.npz")
    path.write_bytes(b"nothing")
    with pytest.raises(RunError, match="Remove it and repeat `robust explain`"):
        render(run)
    path.with_suffix(".parquet").write_bytes(b"nothing")
    with pytest.raises(RunError, match="Remove this file and repeat"):
        render(run)
    EXPLANATION.update(run, schema_version=99)
    with pytest.raises(UsageError, match="99"):
        render(run)


def test_panels_are_pictures_of_a_size_that_a_page_shows(run: Path) -> None:
    with Image.open(run / "panels/001-perspective.png") as panel:
        assert 700 < panel.width < 800


@pytest.mark.parametrize(
    ("rule", "numbers"), [("subset", [1, 7, 13]), ("class", [1, 7, 13]), ("worst", [1, 2, 3])]
)
def test_the_drawn_photos_of_a_subset_are_spread_over_it(tmp_path, monkeypatch, rule, numbers):
    plan = ExplainPlan(
        methods=["grad-cam"],
        transforms=(PERSPECTIVE, INVERT),
        record={"choice": ChoiceRecord(rule=rule, count=18)},
    )
    explanation = read_explanation(build_explanation(tmp_path, plan))
    monkeypatch.setattr(page_module, "PANELS_SHOWN", 6)
    drawn = page_module._drawn(page_module._pairs(explanation), explanation.record)
    assert [number for number, _ in drawn] == [n for n in numbers for _ in range(2)]
