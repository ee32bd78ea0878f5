"""Figures of several trainings: plotted numbers and readable text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation

from robustcli.reports.figures.evaluation_figures import COUNTED_UP_TO, draw_confusions
from robustcli.reports.figures.training_figures import (
    CostPanel,
    CostPoint,
    EpochPanel,
    draw_by_epoch,
    draw_costs,
)
from tests.reports.figures.layout import (
    assert_no_overlap,
    assert_nothing_clipped,
    draw_figure,
    error_bar,
)

PANELS = (EpochPanel("val_f1", "macro F1 (0 to 1)"), EpochPanel("seconds", "s", from_zero=True))


def make_courses(count: int) -> list[tuple[str, pd.DataFrame]]:
    epoch = np.arange(1, 6)
    return [
        (
            f"resnet18 (runs/train-resnet18-{number:08d})",
            pd.DataFrame(
                {"epoch": epoch, "val_f1": 0.5 + 0.01 * number * epoch, "seconds": 3.0 + number}
            ),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_training_is_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    courses = make_courses(count)
    figure = draw_figure(monkeypatch, lambda: draw_by_epoch(courses, PANELS, Path()))
    assert_nothing_clipped(figure)
    for axes, panel in zip(figure.axes, PANELS, strict=True):
        for line, (_, metrics) in zip(axes.lines, courses, strict=True):
            np.testing.assert_allclose(
                np.asarray(line.get_xydata()), metrics[["epoch", panel.column]].to_numpy()
            )
        looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
        assert len(looks) == count
    assert figure.axes[1].get_ylim()[0] == 0
    (legend,) = figure.legends
    assert_no_overlap(legend.get_texts())


def points(count: int) -> list[CostPoint]:
    """Returns trainings of nearly equal score and costs, the worst case for their labels."""
    return [
        CostPoint(
            f"vmamba-pico (runs/{number})", 0.7 + 0.002 * number, 0.66, 0.74,
            {"parameters": 5e5 * 1.03**number, "epoch": 3.0 + 0.05 * number},
        )
        for number in range(count)
    ]  # fmt: skip


COSTS = (CostPanel("parameters", "parameters"), CostPanel("epoch", "epoch", seconds=True))


@pytest.mark.parametrize("count", [1, 2, 8])
def test_names_of_points_cover_nothing(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    figure = draw_figure(
        monkeypatch, lambda: draw_costs(points(count), COSTS, "top-1 (%)", 100, Path())
    )
    assert_nothing_clipped(figure)
    for axes in figure.axes:
        labels = [text for text in axes.texts if isinstance(text, Annotation)]
        assert len(labels) == count
        assert_no_overlap(labels)


@pytest.mark.parametrize("times", [1.0, 20.0, 180.0, 5e4])
def test_ticks_have_room_however_far_costs_are_apart(
    monkeypatch: pytest.MonkeyPatch, times: float
) -> None:
    first, second = points(2)
    for name in ("parameters", "epoch"):
        cost = first.costs[name]
        assert cost is not None
        second.costs[name] = cost * times
    figure = draw_figure(monkeypatch, lambda: draw_costs([first, second], COSTS, "%", 100, Path()))
    for axes in figure.axes:
        low, high = axes.get_xlim()
        labels = axes.get_xticklabels()
        visible_labels = [t for t in labels if low <= t.get_position()[0] <= high and t.get_text()]
        assert len(visible_labels) >= 2
        assert_no_overlap(visible_labels)


def test_points_are_at_the_numbers_and_unknown_ones_are_omitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complete, incomplete = points(2)
    incomplete.costs["epoch"] = None
    figure = draw_figure(
        monkeypatch, lambda: draw_costs([complete, incomplete], COSTS, "top-1 (%)", 100, Path())
    )
    first, second = figure.axes
    assert first.get_xscale() == "log"
    point, whiskers = error_bar(first, 0)
    np.testing.assert_allclose(point, [[5e5, 70.0]])
    np.testing.assert_allclose(whiskers[0, :, 1], [66.0, 74.0])
    assert len(first.containers) == 2
    assert len(second.containers) == 1


def test_a_confusion_matrix_counts_and_shades_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.array([[3, 1], [0, 0]])
    figure = draw_figure(monkeypatch, lambda: draw_confusions(["cat", "dog"], counts, Path()))
    axes = figure.axes[0]
    assert {text.get_text(): text.get_position() for text in axes.texts} == {
        "3": (0, 0), "1": (1, 0),
    }  # fmt: skip
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), [[0.75, 0.25], [0, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    many = COUNTED_UP_TO + 1
    names = [f"class {number}" for number in range(many)]
    figure = draw_figure(
        monkeypatch, lambda: draw_confusions(names, np.eye(many, dtype=int), Path())
    )
    assert not figure.axes[0].texts
