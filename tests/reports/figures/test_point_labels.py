import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from robustcli.reports.figures.canvas import POINT, Label, place_labels
from tests.reports.figures.layout import assert_no_overlap


def placed_labels(labels: list[Label], obstacles: list[Bbox]) -> tuple[Figure, list[Annotation]]:
    figure = Figure(figsize=(6, 4), dpi=100)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    place_labels(axes, labels, obstacles)
    return figure, [text for text in axes.texts if isinstance(text, Annotation)]


def test_a_label_alone_stands_beside_its_point() -> None:
    _, (text,) = placed_labels([Label("unet", 0.5, 0.5, "bold")], [])
    assert (text.get_text(), text.get_fontweight()) == ("unet", "bold")
    x, y = text.axes.transData.transform((0.5, 0.5))  # type: ignore[union-attr]
    box = text.get_window_extent()
    assert 0 < box.x0 - x < 20
    assert abs((box.y0 + box.y1) / 2 - y) < 3


def test_crowded_labels_cover_neither_each_other_nor_points() -> None:
    generator = np.random.default_rng(3)
    labels = [
        Label(f"network_{i:02d}", *(0.5 + 0.06 * generator.standard_normal(2))) for i in range(14)
    ]
    figure, texts = placed_labels(labels, [])
    assert_no_overlap(texts)
    half_point = POINT * figure.dpi / 72
    for text in texts:
        box = text.get_window_extent()
        for label in labels:
            x, y = figure.axes[0].transData.transform((label.x, label.y))
            point = Bbox([[x - half_point, y - half_point], [x + half_point, y + half_point]])
            common = Bbox.intersection(box, point)
            assert common is None or min(common.width, common.height) < 1, (text, label)


def test_a_label_that_is_not_beside_its_point_has_a_line_to_it() -> None:
    labels = [Label("in the way of the other", 0.5, 0.5), Label("second", 0.505, 0.5)]
    distant = [Label("first", 0.2, 0.5), Label("second", 0.8, 0.5)]
    crowded = [*labels, *(Label(f"n{i}", 0.5 + i / 300, 0.5) for i in range(8))]
    assert len(placed_labels(crowded, [])[0].axes[0].lines) > 0
    assert len(placed_labels(distant, [])[0].axes[0].lines) == 0


def test_labels_stay_inside_the_axes_and_off_obstacles() -> None:
    blocked = Bbox([[300, 0], [600, 400]])  # the right half of the figure
    figure, texts = placed_labels(
        [Label("edge", 0.01, 0.99), Label("middle", 0.45, 0.5)], [blocked]
    )
    axes_box = figure.axes[0].bbox
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= axes_box.x0 - 1
        assert box.y1 <= axes_box.y1 + 1
        assert box.x1 <= 301
