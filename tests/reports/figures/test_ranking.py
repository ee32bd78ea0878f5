"""The probability of ranks as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from robustcli.reports.figures.ranking import draw_ranks
from tests.reports.figures.layout import (
    assert_no_overlap,
    assert_nothing_clipped,
    caught,
)


def assert_readable(figure: Figure) -> None:
    assert_nothing_clipped(figure)
    for axes in figure.axes:
        assert_no_overlap([*axes.get_yticklabels(), *axes.texts])


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
