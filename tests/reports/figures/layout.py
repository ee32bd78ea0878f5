"""Whether a drawn figure can be read: nothing clipped, no labels on top of each other."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from robustcli.reports.figures import (
    canvas,
    class_figures,
    evaluation_figures,
    freezing_figures,
    images,
    training_figures,
    zoo_figures,
)

SLACK = 1.0  # pixels


def caught(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], None]) -> Figure:
    """The figure that `draw` would write."""
    figures: list[Figure] = []

    def catch(figure: Figure, path: Path, dpi: int = canvas.DPI) -> None:
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
        figures.append(figure)

    for module in (evaluation_figures, freezing_figures, images, training_figures):
        monkeypatch.setattr(module, "save_figure", catch)
    for module in (class_figures, zoo_figures):
        monkeypatch.setattr(module, "save_with_pdf", catch)
    with canvas.styled():
        draw()
    return figures[0]


def undrawn(figure: Figure) -> set[Text]:
    """The labels that ticks outside an axis keep ready but never draw."""
    texts: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            outside = [t for t in axis.get_major_ticks() if not low <= t.get_loc() <= high]
            texts.update(label for tick in outside for label in (tick.label1, tick.label2))
    return texts


def error_bar(axes: Axes, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points (n, 2) of the axes' error bars number `index`, and their whiskers (n, 2, 2)."""
    container = axes.containers[index]
    assert isinstance(container, ErrorbarContainer)
    line, _, whiskers = container.lines
    ends = whiskers[0].get_segments() if whiskers else []
    return np.asarray(line.get_xydata(), float), np.asarray(ends, float)


def boxes(texts: Iterable[Text]) -> list[tuple[str, Bbox]]:
    shown = [text for text in texts if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in shown]


def assert_nothing_clipped(figure: Figure) -> None:
    for text, box in boxes(set(figure.findobj(Text)) - undrawn(figure)):
        assert box.x0 >= -SLACK, text
        assert box.y0 >= -SLACK, text
        assert box.x1 <= figure.bbox.width + SLACK, text
        assert box.y1 <= figure.bbox.height + SLACK, text


def assert_no_overlap(texts: Iterable[Text]) -> None:
    result = boxes(texts)
    for index, (text, box) in enumerate(result):
        for other_text, other in result[index + 1 :]:
            common = Bbox.intersection(box, other)
            apart = common is None or common.width <= SLACK or common.height <= SLACK
            assert apart, (text, other_text)
