from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustcli.reports.figures.gradients import ABREAST, Limit, Trace, draw_gradients
from tests.reports.figures.layout import assert_no_overlap, assert_nothing_clipped, caught

LIMIT = Limit("threshold 1e-06", 1e-6)
KINDS = ("A_log", "D", "dt_proj", "x_proj", "in_proj", "out_proj", "conv1d", "norm")


def trace(number: int, label: str, kind: str = "D", iterations: int = 20) -> Trace:
    size = 10.0 ** (-8 + 0.4 * number)
    values = size * (1 + 0.5 * np.sin(np.arange(iterations) + number))
    return Trace(label, kind, values, float(values.mean()), size < 1e-6)


def drawn(
    monkeypatch: pytest.MonkeyPatch, traces: list[Trace], limit: Limit | None = LIMIT
) -> Figure:
    return caught(
        monkeypatch, "gradients", lambda: draw_gradients(traces, limit, "mean of |g|", Path())
    )


def courses(axes: Axes) -> list[np.ndarray]:  # type: ignore[type-arg]
    """The lines with more points than a mark or a limit has."""
    found = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    return [line for line in found if len(line) > 3]


@pytest.mark.parametrize("iterations", [1, 20, 300])
def test_a_few_tensors_are_named_at_their_ends(
    monkeypatch: pytest.MonkeyPatch, iterations: int
) -> None:
    traces = [trace(i, f"dt_proj.weight{i}", iterations=iterations) for i in range(ABREAST)]
    figure = drawn(monkeypatch, traces)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [t.label for t in traces]
    assert_nothing_clipped(figure)
    assert_no_overlap(axes.texts)
    assert_no_overlap([*axes.get_yticklabels(), *axes.get_xticklabels()])


def test_the_lines_are_the_values_and_frozen_ones_are_marked_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traces = [trace(i, str(i)) for i in (0, 9)]
    (axes,) = drawn(monkeypatch, traces).axes
    for line, one in zip(courses(axes), traces, strict=True):
        np.testing.assert_allclose(line, one.values)
    lengths = [len(np.asarray(line.get_ydata())) for line in axes.lines]
    long = [line for line, n in zip(axes.lines, lengths, strict=True) if n > 3]
    assert {line.get_linestyle() for line in long} == {"-", "--"}
    assert len({str(line.get_color()) for line in long}) == 2
    marks = [line for line, n in zip(axes.lines, lengths, strict=True) if n == 1]
    means = [float(np.asarray(line.get_ydata())[0]) for line in marks]
    assert means == pytest.approx([one.mean for one in traces])


def test_the_limit_is_drawn_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, [trace(3, "a")])
    levels = [set(np.asarray(line.get_ydata(), float)) for line in figure.axes[0].lines]
    assert {LIMIT.value} in levels
    assert LIMIT.name in [text.get_text() for text in figure.legends[0].texts]
    assert figure.axes[0].get_ylim()[0] < LIMIT.value
    without = drawn(monkeypatch, [trace(3, "a")], None)
    assert len(without.legends[0].texts) == 1
    zero = drawn(monkeypatch, [trace(3, "a")], Limit("threshold 0", 0.0))
    assert len(zero.legends[0].texts) == 1, "0 has no place on a logarithmic axis"


def test_zeros_and_missing_gradients_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    part = trace(4, "part")
    part.values[::2] = 0
    never = Trace("never", "D", np.full(20, np.nan), None, False)
    nothing = Trace("nothing", "D", np.zeros(20), 0.0, True)
    figure = drawn(monkeypatch, [part, never, nothing])
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    shown = np.concatenate(courses(axes))
    assert ((shown[~np.isnan(shown)] > low) & (shown[~np.isnan(shown)] < high)).all()
    assert "never (none)" in [text.get_text() for text in axes.texts]
    assert axes.get_yticklabels()[0].get_text() == "0"
    assert_nothing_clipped(figure)
    assert_no_overlap(axes.texts)


def test_many_tensors_get_a_panel_per_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = [
        trace(i, f"layers.{n}.{kind}", kind) for n in range(6) for i, kind in enumerate(KINDS)
    ]
    figure = drawn(monkeypatch, traces)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title() for axes in panels]
    assert titles[0] == "A_log: 6/6 frozen"
    assert titles[-1] == "norm: 0/6 frozen"
    assert all(len(courses(axes)) == 6 for axes in panels)
    assert_nothing_clipped(figure)
    assert_no_overlap([axes.title for axes in panels])
    assert len(figure.legends[0].texts) == 3, "no entry per tensor"


def test_panels_of_one_kind_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, [trace(5, str(n), "convolutions") for n in range(40)])
    assert_nothing_clipped(figure)
