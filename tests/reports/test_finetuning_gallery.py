""""""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robustcli.finetuning.record import RuleRecord
from robustcli.reports import finetuning_gallery
from robustcli.reports.figures.freezing_figures import GradientCurve, Limit, ModeCourse, Rule
from robustcli.reports.finetuning_findings import Finetuning, read_finetuning
from robustcli.reports.finetuning_gallery import (
    FinetuningGallery,
    curves,
    draw_finetuning_gallery,
    kind_of_tensor,
    limit,
    short_names,
)
from tests.reports.finetune_runs import FinetunePlan, build_finetuning


def names(gallery: FinetuningGallery) -> list[str]:
    kinds = (gallery.gradients, gallery.modes, gallery.strips, gallery.cases, gallery.tradeoff)
    return [Path(figure.path).stem for kind in kinds for figure in kind]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (
            FinetunePlan(modes=("full", "freeze"), sweep=True),
            ["gradients", "modes", "groups", "cases-full", "cases-freeze", "sweep"],
        ),
        (FinetunePlan(modes=()), ["gradients"]),
        (FinetunePlan(modes=("full",), unmeasured=("full",), profiled=0), ["modes"]),
        (FinetunePlan(modes=("full",), waiting=("full",), profiled=0, decided=False), []),
    ],
)
def test_a_run_has_the_pictures_that_it_has_data_for(
    tmp_path: Path, plan: FinetunePlan, expected: list[str]
) -> None:
    gallery = draw_finetuning_gallery(read_finetuning(build_finetuning(tmp_path, plan)))
    assert names(gallery) == expected
    assert all((tmp_path / "figures" / f"{name}.png").is_file() for name in expected)


def drawn_by(
    monkeypatch: pytest.MonkeyPatch, run: Path, plan: FinetunePlan
) -> dict[str, tuple[object, ...]]:
    """What the drawing functions were given."""
    calls: dict[str, tuple[object, ...]] = {}
    for name in ("gradients", "modes", "strips", "tradeoff"):
        monkeypatch.setattr(
            finetuning_gallery,
            f"draw_{name}",
            lambda *given, name=name: calls.update({name: given}),
        )
    monkeypatch.setattr(finetuning_gallery, "case_figures", lambda *given: ())
    draw_finetuning_gallery(read_finetuning(build_finetuning(run, plan)))
    return calls


def test_what_is_drawn_is_what_the_files_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = drawn_by(monkeypatch, tmp_path, FinetunePlan(sweep=True))
    lines, limit = calls["gradients"][:2]
    assert isinstance(lines, list)
    assert all(isinstance(line, GradientCurve) for line in lines)
    assert [line.frozen for line in lines] == [True, True, False, False]
    assert limit == Limit("threshold 1e-06", 1e-6)
    (courses, _, panel) = calls["modes"]
    assert panel == ("val_dice", "validation dice (0 to 1)")
    assert isinstance(courses, list)
    assert all(isinstance(course, ModeCourse) for course in courses)
    assert [(c.name, c.look, c.chosen, c.frozen_at) for c in courses] == [
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
    rules = drawn_by(monkeypatch, tmp_path, FinetunePlan(modes=(), sweep=True))["tradeoff"][0]
    assert isinstance(rules, list)
    assert all(isinstance(rule, Rule) for rule in rules)
    assert [rule.name for rule in rules] == [
        *("nothing frozen", "below 1e-06", "smallest 0.6", "encoder"),
    ]
    np.testing.assert_allclose(rules[2].saved, (10, 15, 20))
    assert rules[2].score == (0.8, 0.84, 0.87)
    assert rules[3].score == (0.83, 0.83, 0.83), "no interval was given"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Finetuning:
    return read_finetuning(build_finetuning(tmp_path_factory.mktemp("run"), FinetunePlan(modes=())))


def ruled(found: Finetuning, **changes: object) -> Finetuning:
    rule = found.record.rule.model_copy(update=changes)
    assert isinstance(rule, RuleRecord)
    return replace(found, record=found.record.model_copy(update={"rule": rule}))


def test_the_lines_are_the_rows_of_the_profile(found: Finetuning) -> None:
    lines = curves(found)
    assert [line.label for line in lines] == ["A_log", "D", "conv1d.weight", "in_proj.weight"]
    assert [line.frozen for line in lines] == [True, True, False, False]
    assert found.profile is not None
    rows = found.profile[found.profile["name"] == "mamba_layer.mamba.D"]
    np.testing.assert_array_equal(lines[1].values, rows["mean_abs"])
    assert lines[1].mean == pytest.approx(rows["mean_abs"].mean())
    assert (lines[0].values == 0).sum() == 3


def test_a_rule_about_all_tensors_shows_all(found: Finetuning) -> None:
    lines = curves(ruled(found, scope="all"))
    assert len(lines) == 7
    assert lines[0].label == "encoder.stem.conv1.bias"
    means = [line.mean for line in lines]
    assert means == sorted(m for m in means if m is not None)


def test_a_relative_statistic_is_divided_by_the_weight(found: Finetuning) -> None:
    plain, relative = curves(found), curves(ruled(found, relative=True))
    np.testing.assert_allclose(relative[3].values, plain[3].values / 0.5)


def test_the_statistic_is_the_rule_s(found: Finetuning) -> None:
    plain, largest = curves(found), curves(ruled(found, kind="max_abs"))
    np.testing.assert_allclose(largest[3].values, plain[3].values * 6)


def test_a_tensor_without_any_gradient_comes_last_and_has_no_mean(found: Finetuning) -> None:
    assert found.profile is not None
    rows = found.profile.copy()
    rows.loc[rows["name"] == "mamba_layer.mamba.D", "mean_abs"] = np.nan
    last = curves(replace(found, profile=rows))[-1]
    assert (last.label, last.mean) == ("D", None)
    half = found.profile.copy()
    half.loc[half["iteration"] > 0, "mean_abs"] = np.nan
    first = curves(replace(found, profile=half))[-1]
    assert first.mean == pytest.approx(np.nanmean(first.values)), "iterations without count not"


def test_without_a_profile_there_are_no_lines(found: Finetuning) -> None:
    assert curves(replace(found, profile=None)) == []
    assert not any(line.frozen for line in curves(replace(found, decisions=None)))


def test_the_limit_is_the_rule_s(found: Finetuning) -> None:
    lines = curves(found)
    assert limit(found, lines) == Limit("threshold 1e-06", 1e-6)
    lowest = limit(ruled(found, threshold=None, quantile=0.5), lines)
    assert lowest is not None
    assert lowest.value == lines[1].mean, "the largest of the frozen ones"
    assert lowest.name == f"the smallest 0.5: up to {lines[1].mean:.1e}"
    assert limit(ruled(found, threshold=None, pattern="x"), lines) is None
    assert limit(ruled(found, threshold=None, quantile=0.5), lines[2:]) is None


@pytest.mark.parametrize(
    ("name", "dimensions", "inside", "kind"),
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
    name: str, dimensions: int, inside: bool, kind: str
) -> None:
    assert kind_of_tensor(name, dimensions, inside=inside) == kind


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.b.D", "a.b.conv.weight"], ["D", "conv.weight"]),
        (["a.0.D", "a.1.D"], ["0.D", "1.D"]),
        (["a.b.conv.weight"], ["conv.weight"]),
        (["D", "a.D"], ["D", "a.D"]),
        ([], []),
    ],
)
def test_names_lose_what_all_have_in_common(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short
