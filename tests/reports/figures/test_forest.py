"""Differences with their intervals, and the probability of ranks, as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from robustcli.reports.figures.forest import ForestLine, draw_forest, draw_ranks
from tests.reports.figures.layout import (
    assert_no_overlap,
    assert_nothing_clipped,
    caught,
    error_bar,
)


def assert_readable(figure: Figure) -> None:
    assert_nothing_clipped(figure)
    for axes in figure.axes:
        assert_no_overlap([*axes.get_yticklabels(), *axes.texts])


LINES = [
    ForestLine("affine", 2.0, -1.0, 5.0, "no difference shown"),
    ForestLine("perspective", 8.0, 4.0, 12.0, "first ahead"),
    ForestLine("fast_snowy_landscape", -6.0, -9.0, -3.0, "second ahead"),
    ForestLine("identity", 0.5, -1.0, 2.0, "no difference shown"),
]
PAIR = ("vmamba-b (runs/one)", "swin-b")


def test_the_largest_difference_is_on_top_and_each_has_its_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figure = caught(monkeypatch, lambda: draw_forest(LINES, PAIR, "percentage points", Path()))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *("fast_snowy_landscape", "identity", "affine", "perspective")
    ]
    points, whiskers = error_bar(axes, 0)
    assert points.tolist() == [[8.0, 3.0]]
    np.testing.assert_allclose(whiskers[:, :, 0], [[4.0, 12.0]])
    undecided, _ = error_bar(axes, 2)
    assert undecided.tolist() == [[0.5, 1.0], [2.0, 2.0]]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        *("vmamba-b (runs/one) ahead", "swin-b ahead", "no difference shown")
    }
    assert axes.get_xlabel().startswith("vmamba-b (runs/one) minus swin-b (percentage points)")
    assert_readable(figure)


@pytest.mark.parametrize("lines", [1, 2, 40])
def test_any_number_of_lines_can_be_read(monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    many = [
        ForestLine(f"additive_gaussian_noise, severity {n}", n, n - 3, n + 3, "first ahead")
        for n in range(lines)
    ]
    assert_readable(caught(monkeypatch, lambda: draw_forest(many, PAIR, "dice", Path())))


def test_the_parts_of_a_bar_are_the_probabilities_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [(0.9, 0.1, 0.0), (0.1, 0.6, 0.3), (0.0, 0.3, 0.7)]
    figure = caught(monkeypatch, lambda: draw_ranks(["a", "b", "c"], shares, Path()))
    (axes,) = figure.axes
    widths = [[bar.get_width() for bar in container] for container in axes.containers]
    np.testing.assert_allclose(np.transpose(widths), shares)
    assert [text.get_text() for text in axes.texts] == [
        *("90 %", "10 %", "10 %", "60 %", "30 %", "30 %", "70 %")
    ]
    assert_readable(figure)
