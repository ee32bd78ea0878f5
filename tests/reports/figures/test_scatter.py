from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Annotation

from robustcli.reports.figures.scatter import Level, Point, draw_scatter, short
from robustcli.reports.published import table_one
from tests.reports.figures.layout import (
    assert_no_overlap,
    assert_nothing_clipped,
    caught,
    error_bar,
)

PUBLISHED = [Point(p.model, p.model, p.parameters, p.dice) for p in table_one()]


def measured(fall: float) -> list[Point]:
    return [
        Point(p.name, p.name, p.parameters, p.dice - fall, True, p.dice - fall - 0.03, p.dice)
        for p in PUBLISHED
    ]


@pytest.mark.parametrize("fall", [0.0, 0.004, 0.05, 0.3])
@pytest.mark.parametrize("levels", [[], [Level("Otsu: 0.700", 0.7)]])
def test_all_thirteen_can_be_read(
    monkeypatch: pytest.MonkeyPatch, fall: float, levels: list[Level]
) -> None:
    points = [*PUBLISHED, *measured(fall)]
    figure = caught(monkeypatch, "scatter", lambda: draw_scatter(points, levels, Path()))
    assert_nothing_clipped(figure)
    (axes,) = figure.axes
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    assert sorted(text.get_text() for text in labels) == sorted(p.name for p in PUBLISHED)
    assert_no_overlap(labels)
    assert_no_overlap(axes.get_xticklabels())


def test_points_are_at_the_numbers_on_a_logarithmic_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Point("a (run)", "unet", 7_000, 0.7, True, 0.65, 0.76)
    points = [Point("unet", "unet", 7_765_985, 0.8929), Point("b", "b", 50_000, 0.8), own]
    figure = caught(monkeypatch, "scatter", lambda: draw_scatter(points, [], Path()))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(error_bar(axes, 0)[0], [[7_765_985, 0.8929], [50_000, 0.8]])
    mine, whiskers = error_bar(axes, 1)
    np.testing.assert_allclose(mine, [[7_000, 0.7]])
    np.testing.assert_allclose(whiskers[0, :, 1], [0.65, 0.76])
    texts = {text.get_text(): text.get_fontweight() for text in axes.texts}
    assert texts == {"a (run)": "bold", "b": "normal"}  # the joined one is not named twice
    joins = [line.get_xydata() for line in axes.lines if len(np.asarray(line.get_xdata())) == 2]
    assert any(np.allclose(join, [[7_000, 0.7], [7_765_985, 0.8929]]) for join in joins)


def test_many_baselines_leave_room_for_the_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [
        Level(f"Otsu (images of network number {i}): 0.7{i}", 0.7 + i / 100) for i in range(6)
    ]
    figure = caught(monkeypatch, "scatter", lambda: draw_scatter(PUBLISHED, levels, Path()))
    assert_nothing_clipped(figure)
    assert figure.legends[0].get_window_extent().y0 >= figure.axes[0].bbox.y1


@pytest.mark.parametrize(
    ("count", "name"), [(500, "500"), (42_737, "42.737 k"), (50_000, "50 k"), (2e6, "2 M")]
)
def test_counts_are_short_on_the_axis(count: float, name: str) -> None:
    assert short(count) == name
