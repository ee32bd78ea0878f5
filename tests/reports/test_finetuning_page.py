"""The page of a fine-tuning: results, pictures, text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustcli.finetuning.record import RuleRecord
from robustcli.reports import finetuning_page
from robustcli.reports.figures.freezing_figures import GradientCurve, Limit, ModeCourse, RulePoint
from robustcli.reports.finetuning_findings import (
    FinetuningFindings,
    chosen_from,
    read_finetuning,
    saved,
)
from robustcli.reports.finetuning_page import (
    curves,
    draw_finetuning_gallery,
    finetuning_report,
    finetuning_text,
    kind_of_tensor,
    rule_limit,
    short_names,
)
from tests.reports.finetune_runs import (
    IMAGES,
    MAMBA,
    ROADS,
    FinetunePlan,
    build_finetuning,
    sweep_rows,
)
from tests.reports.mask_runs import UNUSUAL_MASKS
from tests.reports.page_parts import assert_golden, assert_states, line_of, section

pytestmark = pytest.mark.usefixtures("blank_figures")


def page(run: Path, plan: FinetunePlan) -> str:
    return finetuning_text(read_finetuning(build_finetuning(run, plan)))


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("finetuning", FinetunePlan(sweep=True)),
        ("finetuning-partial", FinetunePlan(unmeasured=("full",), waiting=("freeze",))),
        ("finetuning-profile", FinetunePlan(modes=())),
    ],
)
def test_the_page_of_a_fine_tuning(tmp_path: Path, name: str, plan: FinetunePlan) -> None:
    page = finetuning_report(build_finetuning(tmp_path, plan))
    assert_golden(page.markdown, name)
    begun_modes = [mode for mode in plan.modes if mode not in plan.waiting]
    assert list(page.results["mode"]) == begun_modes


LARGE = ((f"{MAMBA}D", (64,), True, 2e-5), (f"{MAMBA}A_log", (64, 16), True, 4e-5))


def test_the_pages_of_other_states(tmp_path: Path) -> None:
    item = ("full",)
    states = {
        "no mode has begun, nothing is decided": FinetunePlan(
            modes=item, waiting=item, profiled=0, decided=False
        ),
        "the mode freeze is not measured": FinetunePlan(unmeasured=("freeze",)),
        "data with a tolerance, a mode is not measured": replace(ROADS, unmeasured=("scratch",)),
        "30 held-out groups": FinetunePlan(training=replace(IMAGES, groups=30, images=30)),
        "one held-out group": FinetunePlan(training=replace(IMAGES, grouping="patient", groups=1)),
        "nothing is frozen": FinetunePlan(tensors=LARGE),
        "a rule about all tensors": FinetunePlan(rule={"scope": "all"}),
        "a rule about names": FinetunePlan(
            rule={"threshold": None, "pattern": "encoder.*"}, record={"profile": "none"}
        ),
        "a profile of another run": FinetunePlan(record={"profile": "old/gradients.parquet"}),
        "no heads, unknown start": FinetunePlan(record={"heads": [], "pretrained_sha256": None}),
        "unusual masks": FinetunePlan(training=replace(IMAGES, dataset={"masks": UNUSUAL_MASKS})),
    }
    pages = {name: page(tmp_path / str(n), plan) for n, (name, plan) in enumerate(states.items())}
    assert_states(page(tmp_path / "complete", FinetunePlan()), pages, "finetuning-states")


def test_memory_that_nobody_measured_is_a_dash(tmp_path: Path) -> None:
    run = build_finetuning(tmp_path, FinetunePlan(modes=("full",)))
    costs = run / "full" / "costs.json"
    costs.write_text('{"trainable": 5, "optimizer_bytes": 20, "peak_memory_bytes": null}')
    text = finetuning_text(read_finetuning(run))
    assert line_of(section(text, "Costs of the modes"), "`full`")[6] == "\N{EN DASH}"


def test_a_tensor_without_a_gradient_comes_last(tmp_path: Path) -> None:
    build_finetuning(tmp_path, FinetunePlan(modes=()))
    table = pd.read_csv(tmp_path / "frozen.csv")
    table.loc[2, "statistic"] = None
    table.to_csv(tmp_path / "frozen.csv", index=False)
    last = chosen_from(read_finetuning(tmp_path)).iloc[-1]
    assert last["name"] == "mamba_layer.mamba.A_log"


def test_time_that_nobody_measured_is_a_dash() -> None:
    row = sweep_rows().iloc[1]
    assert saved(row.copy()) == "3.0 (1.0\N{EN DASH}5.0)"
    row["seconds_ratio_low"] = None
    assert saved(row) == "3.0"
    row["seconds_ratio"] = None
    assert saved(row) == "\N{EN DASH}"


def drawing_arguments(
    monkeypatch: pytest.MonkeyPatch, run: Path, plan: FinetunePlan
) -> dict[str, tuple[object, ...]]:
    """Returns the arguments of the drawing functions."""
    calls: dict[str, tuple[object, ...]] = {}
    for name in ("gradients", "modes", "strips", "tradeoff"):
        monkeypatch.setattr(
            finetuning_page,
            f"draw_{name}",
            lambda *arguments, name=name: calls.update({name: arguments}),
        )
    monkeypatch.setattr(finetuning_page, "case_figures", lambda *arguments: ())
    draw_finetuning_gallery(read_finetuning(build_finetuning(run, plan)))
    return calls


def test_what_is_drawn_is_what_the_files_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = drawing_arguments(monkeypatch, tmp_path, FinetunePlan(sweep=True))
    lines, limit = calls["gradients"][:2]
    assert isinstance(lines, list)
    assert all(isinstance(line, GradientCurve) for line in lines)
    assert [line.frozen for line in lines] == [True, True, False, False]
    assert limit == Limit("threshold 1e-06", 1e-6)
    (mode_courses, _, panel) = calls["modes"]
    assert panel == ("val_dice", "validation dice (0 to 1)")
    assert isinstance(mode_courses, list)
    assert all(isinstance(curve, ModeCourse) for curve in mode_courses)
    assert [(c.name, c.look, c.chosen, c.frozen_at) for c in mode_courses] == [
        ("scratch", 0, 5, None),
        ("full", 1, 5, None),
        ("freeze", 2, 5, 10),
    ]
    strips = calls["strips"][0]
    assert isinstance(strips, list)
    assert [strip.name for strip in strips] == ["scratch", "full", "freeze", "otsu"]


def test_time_saved_is_what_is_missing_from_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = drawing_arguments(monkeypatch, tmp_path, FinetunePlan(modes=(), sweep=True))[
        "tradeoff"
    ][0]
    assert isinstance(rules, list)
    assert all(isinstance(rule, RulePoint) for rule in rules)
    assert [rule.name for rule in rules] == [
        *("nothing frozen", "below 1e-06 of the weight's rms (rms)", "smallest 0.6", "encoder")
    ]
    np.testing.assert_allclose(rules[2].saved, (10, 15, 20))
    assert rules[2].score == (0.8, 0.84, 0.87)
    assert rules[3].score == (0.83, 0.83, 0.83), "without an interval, its ends are the score"


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> FinetuningFindings:
    return read_finetuning(build_finetuning(tmp_path_factory.mktemp("run"), FinetunePlan(modes=())))


def ruled(profiled: FinetuningFindings, **changes: object) -> FinetuningFindings:
    rule = profiled.record.rule.model_copy(update=changes)
    assert isinstance(rule, RuleRecord)
    return replace(profiled, record=profiled.record.model_copy(update={"rule": rule}))


def test_the_lines_are_the_rows_of_the_profile(profiled: FinetuningFindings) -> None:
    lines = curves(profiled)
    assert [line.label for line in lines] == ["A_log", "D", "conv1d.weight", "in_proj.weight"]
    assert [line.frozen for line in lines] == [True, True, False, False]
    rows = profiled.profile[profiled.profile["name"] == "mamba_layer.mamba.D"]
    np.testing.assert_array_equal(lines[1].statistics, rows["mean_abs"])
    assert lines[1].mean == pytest.approx(rows["mean_abs"].mean())
    assert np.count_nonzero(lines[0].statistics == 0) == 3


def test_a_rule_about_all_tensors_shows_all(profiled: FinetuningFindings) -> None:
    lines = curves(ruled(profiled, scope="all"))
    assert len(lines) == 7
    assert lines[0].label == "encoder.stem.conv1.bias"
    means = [line.mean for line in lines]
    assert means == sorted(m for m in means if m is not None)


def test_a_relative_statistic_is_divided_by_the_weight(profiled: FinetuningFindings) -> None:
    absolute, relative = (curves(profiled), curves(ruled(profiled, relative=True)))
    np.testing.assert_allclose(2 * absolute[3].statistics, relative[3].statistics)


def test_the_statistic_is_the_rule_s(profiled: FinetuningFindings) -> None:
    absolute, largest = (curves(profiled), curves(ruled(profiled, kind="max_abs")))
    np.testing.assert_allclose(largest[3].statistics, 6 * absolute[3].statistics)


def test_a_tensor_without_any_gradient_comes_last_and_has_no_mean(
    profiled: FinetuningFindings,
) -> None:
    rows = profiled.profile.copy()
    rows.loc[rows["name"] == "mamba_layer.mamba.D", "mean_abs"] = np.nan
    last = curves(replace(profiled, profile=rows))[-1]
    assert (last.label, last.mean) == ("D", None)
    partial_profile = profiled.profile.copy()
    partial_profile.loc[partial_profile["iteration"] > 0, "mean_abs"] = np.nan
    first = curves(replace(profiled, profile=partial_profile))[-1]
    assert first.mean == pytest.approx(np.nanmean(first.statistics)), (
        "iterations without a gradient are ignored"
    )


def test_without_a_profile_there_are_no_lines(profiled: FinetuningFindings) -> None:
    assert curves(replace(profiled, profile=None)) == []
    assert not any(line.frozen for line in curves(replace(profiled, decisions=None)))


def test_the_limit_is_the_rule_s(profiled: FinetuningFindings) -> None:
    lines = curves(profiled)
    assert rule_limit(profiled, lines) == Limit("threshold 1e-06", 1e-6)
    lowest = rule_limit(ruled(profiled, threshold=None, quantile=0.5), lines)
    assert lowest.value == lines[1].mean, "the largest value of the frozen tensors"
    assert lowest.name == f"the smallest 0.5: up to {lines[1].mean:.1e}"
    assert rule_limit(ruled(profiled, threshold=None, pattern="x"), lines) is None
    assert rule_limit(ruled(profiled, threshold=None, quantile=0.5), lines[2:]) is None


@pytest.mark.parametrize(
    ("name", "dimensions", "is_scan", "kind"),
    [
        ("mamba_layer.mamba.A_log", 2, True, "A_log"),
        ("layers.3.mixer.A_b_log", 2, True, "A_log"),
        ("layers.3.mixer.D_b", 1, True, "D"),
        ("layers.0.blocks.1.op.A_logs", 2, True, "A_log"),
        ("layers.0.blocks.1.op.Ds", 1, True, "D"),
        ("layers.0.blocks.1.op.dt_projs_weight", 3, True, "dt_proj"),
        ("layers.3.mixer.dt_proj_b.bias", 1, True, "dt_proj"),
        ("layers.0.blocks.1.op.x_proj_weight", 3, True, "x_proj"),
        ("layers.0.blocks.1.op.out_norm.weight", 1, True, "norm"),
        ("m.in_proj.weight", 2, True, "in_proj"),
        ("m.out_proj.weight", 2, True, "out_proj"),
        ("m.conv1d_b.bias", 1, True, "conv1d"),
        ("m.conv2d.weight", 4, True, "conv2d"),
        ("encoder.conv.weight", 4, False, "convolutions"),
        ("encoder.conv.bias", 1, False, "biases"),
        ("encoder.norm.weight", 1, False, "scales"),
        ("head.weight", 2, False, "linear layers"),
    ],
)
def test_tensors_are_told_by_their_part(
    name: str, dimensions: int, is_scan: bool, kind: str
) -> None:
    assert kind_of_tensor(name, dimensions, inside=is_scan) == kind


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.b.D", "a.b.conv.weight"], ["D", "conv.weight"]),
        (["a.0.D", "a.1.D"], ["0.D", "1.D"]),
        (["a.b.conv.weight"], ["conv.weight"]),
        (["D", "a.D"], ["D", "a.D"]),
        ([], []),
    ],
)
def test_names_lose_what_all_have_in_common(names: list[str], expected: list[str]) -> None:
    assert short_names(names) == expected
