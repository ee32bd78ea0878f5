"""Figures of a fine-tuning: gradients, learning curves, tradeoff."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustcli.reports.figures.canvas import MARKED_UP_TO, Estimate, save_figure
from robustcli.reports.figures.freezing_figures import (
    LABELLED_LINES,
    MOST_TICKS,
    EndLabel,
    GradientCurve,
    Limit,
    LogScale,
    ModeCourse,
    RulePoint,
    draw_gradients,
    draw_modes,
    draw_tradeoff,
    label_ends,
    log_scale,
    spread_apart,
)
from tests.reports.figures.layout import (
    assert_no_overlap,
    assert_nothing_clipped,
    draw_figure,
    error_bar,
    lines_by_label,
)

DICE = ("val_dice", "validation dice (0 to 1)")
HEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=9)


@settings(max_examples=80, deadline=None)
@given(HEIGHTS)
def test_labels_are_apart_inside_and_in_order(heights: list[float]) -> None:
    places = spread_apart(np.array(heights), 0.1)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(places[order]) >= 0.1 - 1e-9).all()
    assert places.min() >= -1e-9
    assert places.max() <= 1 + 1e-9


def test_labels_with_enough_space_do_not_move() -> None:
    heights = np.array([0.9, 0.1, 0.5])
    np.testing.assert_allclose(spread_apart(heights, 0.2), heights)


def test_labels_that_are_too_close_move_equally() -> None:
    np.testing.assert_allclose(spread_apart(np.array([0.5, 0.5]), 0.1), [0.45, 0.55])
    np.testing.assert_allclose(spread_apart(np.array([1.0, 1.0]), 0.1), [0.9, 1.0])


def test_too_many_labels_start_at_the_bottom() -> None:
    places = spread_apart(np.zeros(20), 0.1)
    assert places[0] == 0
    assert places[-1] == pytest.approx(1.9)


def test_a_line_leads_from_each_point_to_its_label(tmp_path: Path) -> None:
    figure = Figure()
    axes = figure.add_axes((0.1, 0.1, 0.5, 0.8))
    axes.set(xlim=(0, 10), ylim=(0, 1))
    label_ends(axes, [EndLabel("a", 10, 0.5, "red"), EndLabel("b", None, 0.2, "grey")])
    label_ends(axes, [])
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    assert len(axes.lines) == 1
    assert float(np.asarray(axes.lines[0].get_ydata())[0]) == pytest.approx(0.5)
    save_figure(figure, tmp_path / "x.png")


LIMIT = Limit("threshold 1e-06", 1e-6)
KINDS = ("A_log", "D", "dt_proj", "x_proj", "in_proj", "out_proj", "conv1d", "norm")


def curve(number: int, label: str, kind: str = "D", iterations: int = 20) -> GradientCurve:
    size = 10.0 ** (-8 + 0.4 * number)
    values = size * (1 + 0.5 * np.sin(np.arange(iterations) + number))
    return GradientCurve(label, kind, values, float(values.mean()), size < 1e-6)


def figure_of_curves(
    monkeypatch: pytest.MonkeyPatch, curves: list[GradientCurve], limit: Limit | None = LIMIT
) -> Figure:
    return draw_figure(monkeypatch, lambda: draw_gradients(curves, limit, "mean of |g|", Path()))


def curve_lines(axes: Axes) -> list[np.ndarray]:  # type: ignore[type-arg]
    """Returns the curves, without markers and limits, which have at most 3 points."""
    heights = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    return [line for line in heights if len(line) > 3]


@pytest.mark.parametrize("iterations", [1, 20, 300])
def test_a_few_tensors_are_named_at_their_ends(
    monkeypatch: pytest.MonkeyPatch, iterations: int
) -> None:
    curves = [curve(i, f"dt_proj.weight{i}", iterations=iterations) for i in range(LABELLED_LINES)]
    figure = figure_of_curves(monkeypatch, curves)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [t.label for t in curves]
    assert_nothing_clipped(figure)
    assert_no_overlap(axes.texts)
    assert_no_overlap([*axes.get_yticklabels(), *axes.get_xticklabels()])


def test_the_lines_are_the_values_and_frozen_ones_are_marked_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    curves = [curve(i, str(i)) for i in (0, 9)]
    (axes,) = figure_of_curves(monkeypatch, curves).axes
    for line, first in zip(curve_lines(axes), curves, strict=True):
        np.testing.assert_allclose(line, first.statistics)
    lengths = [len(np.asarray(line.get_ydata())) for line in axes.lines]
    long = [line for line, n in zip(axes.lines, lengths, strict=True) if n > 3]
    assert {line.get_linestyle() for line in long} == {"-", "--"}
    assert len({str(line.get_color()) for line in long}) == 2
    marks = [line for line, n in zip(axes.lines, lengths, strict=True) if n == 1]
    means = [float(np.asarray(line.get_ydata())[0]) for line in marks]
    assert means == pytest.approx([first.mean for first in curves])


def test_the_limit_is_drawn_at_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = figure_of_curves(monkeypatch, [curve(3, "a")])
    levels = [set(np.asarray(line.get_ydata(), float)) for line in figure.axes[0].lines]
    assert {LIMIT.value} in levels
    assert LIMIT.name in [text.get_text() for text in figure.legends[0].texts]
    assert figure.axes[0].get_ylim()[0] < LIMIT.value
    without = figure_of_curves(monkeypatch, [curve(3, "a")], None)
    assert len(without.legends[0].texts) == 1
    zero = figure_of_curves(monkeypatch, [curve(3, "a")], Limit("threshold 0", 0.0))
    assert len(zero.legends[0].texts) == 1, "0 cannot be drawn on a logarithmic axis"


def test_zeros_and_missing_gradients_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    partial = curve(4, "part")
    partial.statistics[::2] = 0
    never = GradientCurve("never", "D", np.full(20, np.nan), None, False)
    zeros = GradientCurve("nothing", "D", np.zeros(20), 0.0, True)
    figure = figure_of_curves(monkeypatch, [partial, never, zeros])
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    values = np.concatenate(curve_lines(axes))
    assert ((values[~np.isnan(values)] > low) & (values[~np.isnan(values)] < high)).all()
    assert "never (none)" in [text.get_text() for text in axes.texts]
    assert axes.get_yticklabels()[0].get_text() == "0"
    assert_nothing_clipped(figure)
    assert_no_overlap(axes.texts)


def test_many_tensors_get_a_panel_per_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = [
        curve(i, f"layers.{n}.{kind}", kind) for n in range(6) for i, kind in enumerate(KINDS)
    ]
    figure = figure_of_curves(monkeypatch, curves)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title() for axes in panels]
    assert titles[0] == "A_log: 6/6 frozen"
    assert titles[-1] == "norm: 0/6 frozen"
    assert all(len(curve_lines(axes)) == 6 for axes in panels)
    assert_nothing_clipped(figure)
    assert_no_overlap([axes.title for axes in panels])
    assert len(figure.legends[0].texts) == 3, "the legend has no entry per tensor"


def test_panels_of_one_kind_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = figure_of_curves(monkeypatch, [curve(5, str(n), "convolutions") for n in range(40)])
    assert_nothing_clipped(figure)


def test_zeros_stand_a_decade_below_everything_else() -> None:
    scale = log_scale(np.array([3e-7, 0.0, 2e-3, np.nan]), [1e-6])
    assert scale == LogScale(pytest.approx(1e-8), pytest.approx(4e-3), True)  # type: ignore[arg-type]
    positions = scale.place(np.array([0.0, 3e-7, np.nan]))
    np.testing.assert_allclose(positions, [1e-8, 3e-7, np.nan])


def test_marks_are_inside_the_axis() -> None:
    scale = log_scale(np.array([2e-3, 5e-3]), [1e-6, 0.0])
    assert scale.floor <= 1e-6
    assert not scale.zeros


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [np.nan]])
def test_there_is_an_axis_where_nothing_is_above_zero(values: list[float]) -> None:
    scale = log_scale(np.array(values))
    assert 0 < scale.floor < scale.top


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1e-5), (1e-30, 1.0), (0.2, 30.0)])
@pytest.mark.parametrize("zeros", [False, True])
def test_ticks_are_few_and_zero_is_named(low: float, high: float, zeros: bool) -> None:
    ticks = log_scale(np.array([low, high, *[0.0] * zeros])).ticks()
    assert 1 <= len(ticks) <= MOST_TICKS + 1
    assert ("0" in ticks.values()) is zeros
    assert all(float(name) == pytest.approx(place) for place, name in ticks.items() if name != "0")


def test_log_scale_sets_the_axis() -> None:
    axes = Figure().subplots()
    scale = log_scale(np.array([1e-7, 0.0, 1e-3]))
    scale.apply(axes)
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < scale.floor, "markers at the floor must not be cut"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:2] == ["0", "1e-7"]


NAMES = ("scratch", "full", "freeze", "lora")


def mode_course(
    look: int, epochs: int = 8, seconds: float = 10, frozen_at: int | None = None
) -> ModeCourse:
    epoch = np.arange(1, epochs + 1)
    table = {
        "epoch": epoch,
        "step": 20 * epoch,
        "seconds": np.full(epochs, seconds),
        "val_loss": 1 / epoch - 0.2 * look,
        "val_dice": 1 - 0.9 / (epoch + look),
    }
    return ModeCourse(NAMES[look], look, pd.DataFrame(table), epochs, frozen_at)


@pytest.mark.parametrize("epochs", [1, 8, 60])
def test_four_panels_show_loss_and_dice_by_epoch_and_by_time(
    monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    courses = [mode_course(look, epochs) for look in range(4)]
    figure = draw_figure(monkeypatch, lambda: draw_modes(courses, Path(), DICE))
    assert_nothing_clipped(figure)
    (loss, loss_time), (dice, dice_time) = np.array(figure.axes).reshape(2, 2)
    for item in courses:
        m = item.metrics
        np.testing.assert_allclose(
            lines_by_label(loss)[item.name], m[["epoch", "val_loss"]].to_numpy()
        )
        np.testing.assert_allclose(
            lines_by_label(dice)[item.name], m[["epoch", "val_dice"]].to_numpy()
        )
        unit = 60 if 10 * epochs >= 180 else 1
        clock = 10 * m["epoch"].to_numpy() / unit
        np.testing.assert_allclose(lines_by_label(dice_time)[item.name][:, 0], clock)
        np.testing.assert_allclose(lines_by_label(loss_time)[item.name][:, 1], m["val_loss"])
    assert dice.get_ylim() == (0, 1)
    lines = {str(line.get_label()): line for line in loss.lines}
    if epochs <= MARKED_UP_TO:
        assert len({lines[name].get_marker() for name in NAMES}) == 4
    assert len({str(lines[name].get_linestyle()) for name in NAMES}) >= 3
    chosen = [line for line in dice.lines if line.get_markersize() > 6]
    assert [np.asarray(line.get_xydata()).tolist() for line in chosen] == [
        [[epochs, item.metrics["val_dice"].iloc[-1]]] for item in courses
    ]
    assert_no_overlap(dice.get_xticklabels())
    assert_no_overlap(dice_time.get_xticklabels())


@pytest.mark.parametrize(("seconds", "unit"), [(10, "seconds"), (100, "minutes"), (5000, "hours")])
def test_time_is_in_a_unit_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch, seconds: float, unit: str
) -> None:
    figure = draw_figure(
        monkeypatch, lambda: draw_modes([mode_course(1, 8, seconds)], Path(), DICE)
    )
    assert figure.axes[3].get_xlabel() == f"{unit} of training and validation"


def test_the_moment_of_freezing_is_marked_on_both_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    courses = [mode_course(1), mode_course(2, frozen_at=30)]
    figure = draw_figure(monkeypatch, lambda: draw_modes(courses, Path(), DICE))
    marks = [set(lines_by_label(axes)["moment of freezing"][:, 0]) for axes in figure.axes[:2]]
    assert marks == [{1.5}, {15.0}], "step 30, with 20 steps of 10 s per epoch"


RULES = [
    RulePoint(
        "nothing frozen", "state-space blocks", Estimate(-1, 0, 1), Estimate(0.82, 0.86, 0.89)
    ),
    *(
        RulePoint(
            f"below 1e-{n}",
            "state-space blocks",
            Estimate(n - 4, n - 3.0, n - 2),
            Estimate(0.8, 0.86 - n / 500, 0.9),
        )
        for n in range(4, 8)
    ),
    RulePoint("smallest 0.3", "all tensors", Estimate(8, 11, 14), Estimate(0.8, 0.84, 0.87)),
    RulePoint("encoder.stages.*", "by name", Estimate(25, 31, 34), Estimate.exact(0.83)),
]


def test_points_stand_where_the_numbers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = draw_figure(monkeypatch, lambda: draw_tradeoff(RULES, Path(), "dice (0 to 1)"))
    (axes,) = figure.axes
    points, whiskers = error_bar(axes, 0)
    np.testing.assert_allclose(points, [(r.saved[1], r.score[1]) for r in RULES[:5]])
    np.testing.assert_allclose(whiskers[:, :, 0], [(r.saved[0], r.saved[2]) for r in RULES[:5]])
    assert {text.get_text() for text in axes.texts} == {rule.name for rule in RULES}
    assert [t.get_text() for t in figure.legends[0].texts] == [
        *("state-space blocks", "all tensors", "by name"),
    ]
    assert_nothing_clipped(figure)
    assert_no_overlap([*axes.texts, *figure.legends[0].texts])


@pytest.mark.parametrize("saved", [-3.0, 40.0])
def test_one_rule_and_the_time_of_full_are_inside(
    monkeypatch: pytest.MonkeyPatch, saved: float
) -> None:
    points = [RulePoint("a", "by name", Estimate.exact(saved), Estimate.exact(1.0))]
    figure = draw_figure(monkeypatch, lambda: draw_tradeoff(points, Path(), "dice (0 to 1)"))
    low, high = figure.axes[0].get_xlim()
    assert low < min(0, saved)
    assert high > max(0, saved)
    assert figure.axes[0].get_ylim()[1] <= 1.01
