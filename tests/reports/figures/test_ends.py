from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from robustcli.reports.figures.canvas import save
from robustcli.reports.figures.ends import EndLabel, label_ends, spread

HEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=9)


@settings(max_examples=80, deadline=None)
@given(HEIGHTS)
def test_labels_are_apart_inside_and_in_order(heights: list[float]) -> None:
    places = spread(np.array(heights), 0.1)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(places[order]) >= 0.1 - 1e-9).all()
    assert places.min() >= -1e-9
    assert places.max() <= 1 + 1e-9


def test_labels_that_have_room_stay_where_they_are() -> None:
    heights = np.array([0.9, 0.1, 0.5])
    np.testing.assert_allclose(spread(heights, 0.2), heights)


def test_labels_that_are_too_close_share_the_way() -> None:
    np.testing.assert_allclose(spread(np.array([0.5, 0.5]), 0.1), [0.45, 0.55])
    np.testing.assert_allclose(spread(np.array([1.0, 1.0]), 0.1), [0.9, 1.0])


def test_more_labels_than_there_is_room_for_begin_at_the_bottom() -> None:
    places = spread(np.zeros(20), 0.1)
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
    save(figure, tmp_path / "x.png")
