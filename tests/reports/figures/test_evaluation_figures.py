"""Figures of an evaluation: readable text and plotted numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from numpy.typing import NDArray

from robustcli.evaluation.cell_table import table
from robustcli.metrics.class_scores import ReliabilityBin
from robustcli.metrics.verdicts import Verdict
from robustcli.reports.figures.evaluation_figures import (
    draw_bars,
    draw_differences,
    draw_dots,
    draw_multiples,
    draw_ranks,
    draw_reliability,
)
from robustcli.reports.scoring import DICE, TOP1, extremes
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.figures.layout import (
    assert_no_overlap,
    assert_nothing_clipped,
    draw_figure,
    error_bar,
)
from tests.reports.mask_runs import MaskPlan, build_masks

LONG = "swin_base_patch4_window7_224.ms_in1k"


def numbers(run: Path, models: int, cells: int = 21) -> pd.DataFrame:
    names = [LONG, *(f"model-{i}" for i in range(1, models))][:models]
    plan = RunPlan(
        models=[model(name) for name in names], transforms=(IDENTITY, *paper21()[:cells])
    )
    return table(build_run(run, plan))


def figure_of_rows(monkeypatch: pytest.MonkeyPatch, rows: pd.DataFrame) -> Figure:
    return draw_figure(monkeypatch, lambda: draw_bars(rows, extremes(rows, TOP1), Path(), TOP1))


@pytest.mark.parametrize("models", [1, 3, 6])
def test_bars_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: int) -> None:
    figure = figure_of_rows(monkeypatch, numbers(tmp_path, models))
    assert_nothing_clipped(figure)
    for axes in figure.axes:
        assert_no_overlap([text for text in axes.texts if isinstance(text, Annotation)])
        assert_no_overlap(axes.get_xticklabels())


def test_bars_of_scores_that_are_all_zero_have_an_axis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = numbers(tmp_path, 1)
    rows[["top1", "top1_low", "top1_high"]] = 0.0
    assert figure_of_rows(monkeypatch, rows).axes[0].get_ylim()[1] > 1


def test_bars_are_as_high_as_the_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = numbers(tmp_path, 2)
    best_axes, worst_axes = figure_of_rows(monkeypatch, rows).axes
    limits = extremes(rows, TOP1)
    for axes, cells in ((best_axes, limits.best), (worst_axes, limits.worst)):
        for container, name in zip(axes.containers[1::2], rows["model"].unique(), strict=True):
            model_rows = rows[rows["model"] == name].set_index("transform")["top1"]
            heights = [bar.get_height() for bar in container]
            assert heights == pytest.approx([100 * model_rows[transform] for transform, _ in cells])
    assert [label.get_text().replace("\n", "") for label in worst_axes.get_xticklabels()] == [
        transform for transform, _ in limits.worst
    ]


def test_many_bars_have_no_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = figure_of_rows(monkeypatch, numbers(tmp_path, 12))
    assert_nothing_clipped(figure)
    assert not [text for axes in figure.axes for text in axes.texts]
    assert len(figure.axes[0].patches) == 4 * 12


@pytest.mark.parametrize(("cells", "panels"), [(1, 1), (2, 2)])
def test_few_transforms(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cells: int, panels: int
) -> None:
    figure = figure_of_rows(monkeypatch, numbers(tmp_path, 1, cells))
    assert len(figure.axes) == panels
    assert_nothing_clipped(figure)


def test_severities_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = RunPlan(transforms=(IDENTITY, *imagenet_c()[:45]))
    figure = figure_of_rows(monkeypatch, table(build_run(tmp_path, plan)))
    assert_nothing_clipped(figure)
    for axes in figure.axes:
        assert_no_overlap(axes.get_xticklabels())
        assert all("severity 5" in label.get_text() for label in axes.get_xticklabels())


def test_dice_without_intervals_are_drawn_with_their_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = MaskPlan(transforms=(IDENTITY, *paper21()[:2]), groups=1)
    rows = table(build_masks(tmp_path, plan))
    limits = extremes(rows, DICE)
    figure = draw_figure(monkeypatch, lambda: draw_bars(rows, limits, Path(), DICE))
    assert_nothing_clipped(figure)
    dice = rows.set_index("transform")["dice"]
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == [f"{dice[name]:.3f}" for name, _ in (*limits.best, *limits.worst)]
    assert figure.axes[0].get_ylabel() == "dice (0 to 1)"
    assert figure.axes[0].get_ylim()[1] < 1.2


@pytest.mark.parametrize(
    ("models", "cells"), [(1, 21), (6, 40), pytest.param(1, 119, marks=pytest.mark.slow)]
)
def test_dots_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: int, cells: int
) -> None:
    transforms = (IDENTITY, *(*paper21(), *imagenet_c(), *paper21(2))[:cells])
    names = ["swin_base_patch4_window7_224.ms_in1k", *"abcde"][:models]
    plan = RunPlan(models=[model(name) for name in names], transforms=transforms, images=12)
    rows = table(build_run(tmp_path, plan))
    figure = draw_figure(monkeypatch, lambda: draw_dots(rows, Path(), TOP1))
    assert_nothing_clipped(figure)
    labels = figure.axes[0].get_yticklabels()
    assert len(labels) == cells + 1
    assert_no_overlap(labels)


def test_dots_are_at_the_numbers_best_on_top(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = RunPlan(models=(model("a"), model("b")), transforms=(IDENTITY, *paper21()[:5]))
    rows = table(build_run(tmp_path, plan))
    (axes,) = draw_figure(monkeypatch, lambda: draw_dots(rows, Path(), TOP1)).axes
    means = rows.groupby("transform")["top1"].mean().drop("identity").sort_values()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["identity (clean)", *means.index[::-1]]
    for number, name in enumerate("ab"):
        model_rows = rows[rows["model"] == name]
        points, whiskers = error_bar(axes, number)
        np.testing.assert_allclose(points[:, 0], 100 * model_rows["top1"].to_numpy())
        limits = 100 * model_rows[["top1_low", "top1_high"]].to_numpy()
        np.testing.assert_allclose(whiskers[:, :, 0], limits)
    assert axes.yaxis.get_inverted()


def test_a_cell_without_rows_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = table(build_run(tmp_path, RunPlan(transforms=(IDENTITY, *paper21()[:3]))))
    rows.loc[1, ["top1", "top1_low", "top1_high"]] = float("nan")
    (axes,) = draw_figure(monkeypatch, lambda: draw_dots(rows, Path(), TOP1)).axes
    assert len(axes.get_yticklabels()) == 3


def test_dice_are_drawn_as_fractions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = table(build_masks(tmp_path, MaskPlan(transforms=(IDENTITY, *paper21()[:3]))))
    figure = draw_figure(monkeypatch, lambda: draw_dots(rows, Path(), DICE))
    assert_nothing_clipped(figure)
    (axes,) = figure.axes
    np.testing.assert_allclose(error_bar(axes, 0)[0][:, 0], rows["dice"].to_numpy())
    assert axes.get_xlim()[1] <= 1.0
    assert axes.get_xlabel() == "dice (0 to 1)"


def drawn_multiples(monkeypatch: pytest.MonkeyPatch, rows: pd.DataFrame) -> Figure:
    clean = rows[rows["transform"] == "identity"]
    graded = rows[rows["severity"] > 0]
    return draw_figure(monkeypatch, lambda: draw_multiples(graded, clean, Path(), TOP1))


def points(line: Line2D) -> NDArray[np.float64]:
    return np.asarray(line.get_xydata(), float)


@pytest.mark.parametrize("corruptions", [1, 6, pytest.param(19, marks=pytest.mark.slow)])
def test_panels_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corruptions: int
) -> None:
    models = (model("vmamba-b"), model("swin_base_patch4_window7_224.ms_in1k"))
    cells = (IDENTITY, *imagenet_c("imagenetc_")[: 5 * corruptions])
    plan = RunPlan(models=models, transforms=cells, images=12)
    figure = drawn_multiples(monkeypatch, table(build_run(tmp_path, plan)))
    assert_nothing_clipped(figure)
    visible_axes = [axes for axes in figure.axes if axes.get_visible()]
    assert len(visible_axes) == corruptions
    assert_no_overlap([axes.title for axes in visible_axes])
    assert all(
        axes.xaxis.get_tick_params()["labelbottom"] for axes in visible_axes[-min(5, corruptions) :]
    )


def test_lines_are_the_numbers_in_the_order_of_severity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cells = (IDENTITY, *imagenet_c(severities=(5, 1, 3))[:3])
    rows = table(build_run(tmp_path, RunPlan(transforms=cells)))
    (axes,) = drawn_multiples(monkeypatch, rows).axes
    line = next(points(line) for line in axes.lines if line.get_label() == "vmamba-b")
    expected = rows[rows["severity"] > 0].sort_values("severity")["top1"] * 100
    assert list(line[:, 0]) == [1, 3, 5]
    assert list(line[:, 1]) == pytest.approx(list(expected))
    clean = 100 * rows["top1"].iloc[0]
    levels = {round(float(points(line)[0, 1]), 6) for line in axes.lines if len(points(line))}
    assert {round(clean, 6), round(clean / 2, 6)} <= levels


def test_without_clean_accuracy_there_are_only_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = table(build_run(tmp_path, RunPlan(transforms=imagenet_c()[:5])))
    (axes,) = drawn_multiples(monkeypatch, rows).axes
    assert len([line for line in axes.lines if len(points(line))]) == 1


def test_dice_have_the_axis_of_fractions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21(1)[:1], *paper21(5)[:1])
    rows = table(build_masks(tmp_path, MaskPlan(transforms=cells)))
    graded, clean = rows[rows["severity"] > 0], rows[rows["severity"] == 0]
    figure = draw_figure(monkeypatch, lambda: draw_multiples(graded, clean, Path(), DICE))
    assert_nothing_clipped(figure)
    assert figure.axes[0].get_ylim() == (0, 1)
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), graded["dice"])


# Differences and reliability.


def verdict_of(transform: str, difference: float, p_adjusted: float) -> Verdict:
    limits = (difference - 0.05, difference + 0.05, p_adjusted, p_adjusted)
    return Verdict(LONG, "model-1", transform, 0, 100, 100, difference, *limits)


def test_differences_can_be_read_and_lie_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    result = [
        verdict_of("identity", 0.01, 1.0),
        verdict_of("piecewise_affine_of_a_long_name", 0.2, 0.001),
        verdict_of("fog", -0.1, 0.04),
    ]
    models = [LONG, "model-1"]
    pairs = {(LONG, "model-1"): result}
    figure = draw_figure(monkeypatch, lambda: draw_differences(pairs, models, Path(), TOP1))
    assert_nothing_clipped(figure)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "identity (clean)", "piecewise_affine_of_a_long_name", "fog",
    ]  # fmt: skip
    points = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
    assert [line.get_xdata()[0] for line in points] == pytest.approx([1, 20, -10])
    colours = {line.get_color() for line in points}
    assert len(colours) == 3, "one colour each: no difference, first ahead, second ahead"
    intervals = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    assert any(list(x) == pytest.approx([15, 25]) for x in intervals)


def test_at_most_three_pairs_stand_abreast(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [f"m{i}" for i in range(4)]
    pairs = {(models[0], other): [verdict_of("fog", 0.1, 1.0)] for other in models[1:]}
    pairs[models[1], models[2]] = pairs[models[0], models[1]]
    names = [*models, LONG, "model-1"]
    figure = draw_figure(monkeypatch, lambda: draw_differences(pairs, names, Path(), TOP1))
    assert len(figure.axes) == 3


def test_long_names_of_a_difference_are_not_wider_than_their_axes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = [f"hf-hub:timm/some_long_model_name.tag_in1k_number_{number}" for number in range(4)]
    pairs = {
        (models[0], other): [verdict_of("additive_gaussian_noise", 0.1, 1.0)]
        for other in models[1:]
    }
    figure = draw_figure(monkeypatch, lambda: draw_differences(pairs, models, Path(), TOP1))
    assert_nothing_clipped(figure)
    assert_no_overlap([axes.xaxis.label for axes in figure.axes])


def test_reliability_shows_each_bin_at_its_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    bins = [ReliabilityBin(10, 2, 0.3), ReliabilityBin(90, 81, 0.95), ReliabilityBin(1, 1, 0.1)]
    panels = {f"transform-{i}": {LONG: bins, "other": bins[:1]} for i in range(8)}
    figure = draw_figure(monkeypatch, lambda: draw_reliability(panels, Path()))
    assert_nothing_clipped(figure)
    visible_axes = [axes for axes in figure.axes if axes.get_visible()]
    assert len(visible_axes) == 8
    line = visible_axes[0].lines[1]
    assert np.column_stack(line.get_data()) == pytest.approx(np.array([[30, 20], [95, 90]]))


def test_the_parts_of_a_bar_are_the_probabilities_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [(0.9, 0.1, 0.0), (0.1, 0.6, 0.3), (0.0, 0.3, 0.7)]
    figure = draw_figure(monkeypatch, lambda: draw_ranks(["a", "b", "c"], shares, Path()))
    (axes,) = figure.axes
    widths = [[bar.get_width() for bar in container] for container in axes.containers]
    np.testing.assert_allclose(np.transpose(widths), shares)
    assert [text.get_text() for text in axes.texts] == [
        *("90 %", "10 %", "10 %", "60 %", "30 %", "30 %", "70 %")
    ]
    assert_nothing_clipped(figure)
    assert_no_overlap([*axes.get_yticklabels(), *axes.texts])
