"""Figures of one and of several trainings: plotted numbers and readable text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.text import Annotation

from robustcli.reports.figures.canvas import Estimate
from robustcli.reports.figures.evaluation_figures import COUNTED_UP_TO, draw_confusions
from robustcli.reports.figures.training_figures import (
    SPREAD,
    STEP,
    CostPanel,
    CostPoint,
    Course,
    EpochPanel,
    Level,
    Point,
    Strip,
    dot_offsets,
    draw_by_epoch,
    draw_costs,
    draw_course_grid,
    draw_curves,
    draw_scatter,
    draw_strips,
    short,
)
from robustcli.reports.zoo_findings import table_one
from tests.reports.figures.layout import (
    assert_no_overlap,
    assert_nothing_clipped,
    draw_figure,
    error_bar,
    lines_by_label,
)


def make_course(epochs: int, name: str = "ulvm_v5", chosen: int | None = 1) -> Course:
    epoch = np.arange(1, epochs + 1)
    table = {
        "epoch": epoch,
        "train_loss": 1 / epoch - 0.5,
        "val_loss": 1.2 / epoch,
        "val_dice": 1 - 0.9 / epoch,
        "val_iou": 1 - 0.95 / epoch,
    }
    return Course(name, pd.DataFrame(table), chosen)


@pytest.mark.parametrize("epochs", [1, 12, 100])
def test_curves_are_the_lines_of_the_log(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    course = make_course(epochs, chosen=epochs)
    figure = draw_figure(monkeypatch, lambda: draw_curves(course, Path(), "dice"))
    assert_nothing_clipped(figure)
    loss, dice = figure.axes
    np.testing.assert_allclose(
        lines_by_label(loss)["training loss"], course.metrics[["epoch", "train_loss"]].to_numpy()
    )
    np.testing.assert_allclose(
        lines_by_label(dice)["validation IoU"], course.metrics[["epoch", "val_iou"]].to_numpy()
    )
    assert set(lines_by_label(loss)["chosen epoch"][:, 0]) == {epochs}
    assert_no_overlap(loss.get_xticklabels())
    assert all(float(tick) == int(tick) for tick in loss.get_xticks())
    assert loss.get_ylim()[0] <= course.metrics["train_loss"].min()
    for axes in figure.axes:  # can be told apart without colour
        assert len({line.get_linestyle() for line in axes.lines}) == len(axes.lines)


def test_no_epoch_is_marked_before_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    course = make_course(10, chosen=None)
    figure = draw_figure(monkeypatch, lambda: draw_curves(course, Path(), "dice"))
    assert "chosen epoch" not in lines_by_label(figure.axes[0])


@pytest.mark.parametrize("count", [1, 2, 14])
def test_small_panels_can_be_read(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    names = [f"resnet18_seg (runs/train-resnet18_seg-{i:08d})" for i in range(count)]
    courses = [make_course(5 + i, name) for i, name in enumerate(names)]
    figure = draw_figure(monkeypatch, lambda: draw_course_grid(courses, "dice", Path()))
    assert_nothing_clipped(figure)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == count
    assert_no_overlap(axes.title for axes in panels)
    for axes, first in zip(panels, courses, strict=True):
        result = lines_by_label(axes)["validation dice"]
        np.testing.assert_allclose(result, first.metrics[["epoch", "val_dice"]].to_numpy())


PUBLISHED = [Point(p.model, p.model, p.parameters, Estimate.exact(p.dice)) for p in table_one()]


def measured_points(fall: float) -> list[Point]:
    return [
        Point(p.name, p.name, p.parameters, Estimate(d - fall - 0.03, d - fall, d), measured=True)
        for p in PUBLISHED
        for d in [p.dice.value]
    ]


@pytest.mark.parametrize("fall", [0.0, 0.004, 0.05, 0.3])
@pytest.mark.parametrize("levels", [[], [Level("Otsu: 0.700", 0.7)]])
def test_all_thirteen_points_can_be_read(
    monkeypatch: pytest.MonkeyPatch, fall: float, levels: list[Level]
) -> None:
    points = [*PUBLISHED, *measured_points(fall)]
    figure = draw_figure(monkeypatch, lambda: draw_scatter(points, levels, Path()))
    assert_nothing_clipped(figure)
    (axes,) = figure.axes
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    assert sorted(text.get_text() for text in labels) == sorted(p.name for p in PUBLISHED)
    assert_no_overlap(labels)
    assert_no_overlap(axes.get_xticklabels())


def test_points_are_at_the_numbers_on_a_logarithmic_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point("a (run)", "unet", 7_000, Estimate(0.65, 0.7, 0.76), measured=True)
    published = (("unet", 7_765_985, 0.8929), ("b", 50_000, 0.8))
    points = [Point(name, name, n, Estimate.exact(dice)) for name, n, dice in published] + [point]
    figure = draw_figure(monkeypatch, lambda: draw_scatter(points, [], Path()))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(error_bar(axes, 0)[0], [[7_765_985, 0.8929], [50_000, 0.8]])
    own_points, whiskers = error_bar(axes, 1)
    np.testing.assert_allclose(own_points, [[7_000, 0.7]])
    np.testing.assert_allclose(whiskers[0, :, 1], [0.65, 0.76])
    texts = {text.get_text(): text.get_fontweight() for text in axes.texts}
    assert texts == {"a (run)": "bold", "b": "normal"}  # joined points have one label
    joins = [line.get_xydata() for line in axes.lines if len(np.asarray(line.get_xdata())) == 2]
    assert any(np.allclose(join, [[7_000, 0.7], [7_765_985, 0.8929]]) for join in joins)


def test_many_baselines_leave_room_for_the_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [
        Level(f"Otsu (images of network number {i}): 0.7{i}", 0.7 + i / 100) for i in range(6)
    ]
    figure = draw_figure(monkeypatch, lambda: draw_scatter(PUBLISHED, levels, Path()))
    assert_nothing_clipped(figure)
    assert figure.legends[0].get_window_extent().y0 >= figure.axes[0].bbox.y1


@pytest.mark.parametrize(
    ("count", "name"), [(500, "500"), (42_737, "42.737 k"), (50_000, "50 k"), (2e6, "2 M")]
)
def test_counts_are_short_on_the_axis(count: float, name: str) -> None:
    assert short(count) == name


def test_every_group_is_a_dot_at_its_dice(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array([0.2, 0.9, 0.91, 1.0])
    strips = [
        Strip("ulvm_v5", values, Estimate(0.6, 0.75, 0.9)),
        Strip("otsu", values / 2, Estimate.exact(0.4)),
    ]
    figure = draw_figure(monkeypatch, lambda: draw_strips(strips, "patient", Path()))
    assert_nothing_clipped(figure)
    (axes,) = figure.axes
    dots = [np.asarray(p.get_offsets()) for p in axes.collections if isinstance(p, PathCollection)]
    np.testing.assert_allclose(dots[0][:, 0], values)
    np.testing.assert_allclose(dots[1][:, 0], values / 2)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ulvm_v5", "otsu"]
    _, whiskers = error_bar(axes, 0)
    np.testing.assert_allclose(whiskers[0, :, 0], [0.6, 0.9])
    assert "single patient" in axes.get_xlabel()


def test_dots_of_the_same_value_are_stacked_inside_their_line() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([np.ones(150), np.zeros(20), generator.uniform(size=200)])
    result = dot_offsets(values)
    assert np.abs(result).max() <= SPREAD
    places = np.rint(values / STEP)
    for place in np.unique(places):
        stack = result[places == place]
        assert len(np.unique(stack)) == len(stack)


def test_a_dot_alone_is_in_the_middle() -> None:
    np.testing.assert_allclose(dot_offsets(np.array([0.1, 0.5, 0.9])), 0)


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
            f"vmamba-pico (runs/{number})", Estimate(0.66, 0.7 + 0.002 * number, 0.74),
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
