"""Checks that a drawn figure can be read: no clipped or overlapping text."""

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
    evaluation_figures,
    freezing_figures,
    images,
    training_figures,
)

SLACK = 1.0  # pixels


def draw_figure(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], None]) -> Figure:
    """Returns the figure that `draw` would save."""
    figures: list[Figure] = []

    def catch(figure: Figure, path: Path, dpi: int = canvas.DPI) -> None:
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
        figures.append(figure)

    for module in (evaluation_figures, freezing_figures, images, training_figures):
        monkeypatch.setattr(module, "save_figure", catch)
    for module in (evaluation_figures, training_figures):
        monkeypatch.setattr(module, "save_with_pdf", catch)
    with canvas.styled():
        draw()
    return figures[0]


def hidden_tick_labels(figure: Figure) -> set[Text]:
    """Returns labels of ticks outside of the axes, which are never drawn."""
    texts: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            hidden_ticks = [t for t in axis.get_major_ticks() if not low <= t.get_loc() <= high]
            texts.update(label for tick in hidden_ticks for label in (tick.label1, tick.label2))
    return texts


def error_bar(axes: Axes, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the points (n, 2) and whiskers (n, 2, 2) of the error bars number `index`."""
    container = axes.containers[index]
    assert isinstance(container, ErrorbarContainer)
    line, _, whiskers = container.lines
    whisker_ends = whiskers[0].get_segments() if whiskers else []
    return np.asarray(line.get_xydata(), float), np.asarray(whisker_ends, float)


def lines_by_label(axes: Axes) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}


def boxes(texts: Iterable[Text]) -> list[tuple[str, Bbox]]:
    visible_texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in visible_texts]


def assert_nothing_clipped(figure: Figure) -> None:
    for text, box in boxes(set(figure.findobj(Text)) - hidden_tick_labels(figure)):
        assert box.x0 >= -SLACK, text
        assert box.y0 >= -SLACK, text
        assert box.x1 <= figure.bbox.width + SLACK, text
        assert box.y1 <= figure.bbox.height + SLACK, text


def assert_no_overlap(texts: Iterable[Text]) -> None:
    result = boxes(texts)
    for index, (text, box) in enumerate(result):
        for other_text, other_box in result[index + 1 :]:
            common = Bbox.intersection(box, other_box)
            apart = common is None or common.width <= SLACK or common.height <= SLACK
            assert apart, (text, other_text)
