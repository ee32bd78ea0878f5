from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from robustcli.reports.figures.strips import SPREAD, STEP, Strip, draw_strips, heights
from tests.reports.figures.layout import assert_nothing_clipped, caught, error_bar


def test_every_group_is_a_dot_at_its_dice(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array([0.2, 0.9, 0.91, 1.0])
    strips = [Strip("ulvm_v5", values, 0.75, 0.6, 0.9), Strip("otsu", values / 2, 0.4, None, None)]
    figure = caught(monkeypatch, "strips", lambda: draw_strips(strips, "patient", Path()))
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
    found = heights(values)
    assert np.abs(found).max() <= SPREAD
    places = np.rint(values / STEP)
    for place in np.unique(places):
        mine = found[places == place]
        assert len(np.unique(mine)) == len(mine)


def test_a_dot_alone_is_in_the_middle() -> None:
    np.testing.assert_allclose(heights(np.array([0.1, 0.5, 0.9])), 0)
