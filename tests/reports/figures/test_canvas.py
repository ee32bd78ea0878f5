"""Shared parts of figures, and labels of points that cover nothing."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from PIL import Image

from robustcli.reports.figures.canvas import (
    DPI,
    POINT,
    Label,
    error_bars,
    legend,
    legend_label,
    look,
    place_labels,
    save_figure,
    styled,
    wrapped,
)
from robustcli.reports.scoring import DICE, TOP1
from tests.reports.figures.layout import assert_no_overlap


def test_models_differ_in_colour_marker_and_hatch_each() -> None:
    seven = [look(index) for index in range(7)]
    assert len({style.colour for style in seven}) == 7
    assert len({style.marker for style in seven}) == 7
    assert len({style.hatch for style in seven}) == 7
    assert len({look(index) for index in range(50)}) == 50


def test_letters_without_glyph_are_drawn_as_code_points(tmp_path: Path) -> None:
    figure = Figure()
    text = figure.text(0.5, 0.5, "\u540d\u524d caf\u00e9\n\u0394")
    save_figure(figure, tmp_path / "figure.png")  # a warning would fail
    assert text.get_text() == "U+540DU+524D caf\u00e9\n\u0394"


@pytest.mark.parametrize("labels", [["_net"], ["_net", "other"]])
def test_a_name_with_an_underscore_first_is_in_the_legend(labels: list[str]) -> None:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    for label in labels:
        axes.plot([0, 1], label=legend_label(label))
    legend(figure, axes)
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == labels


def test_a_long_legend_makes_its_figure_higher() -> None:
    heights = []
    for entries in (1, 4, 5, 60):
        with styled():
            figure = Figure(figsize=(4, 3), layout="constrained")
            axes = figure.subplots()
            for number in range(entries):
                axes.plot([0, 1], label=f"a name that takes a line of its own {number}")
            legend(figure, axes)
            figure.draw_without_rendering()  # a warning about collapsed axes would fail
        heights.append(axes.get_position().height * figure.get_figheight())
        assert figure.get_figheight() == pytest.approx(3 + 0.2 * max(0, entries - 4))
    assert min(heights) > 1.5


def test_neighbouring_models_can_be_told_apart_with_red_green_blindness() -> None:
    # Deuteranopia, matrix of Vienot, Brettel and Mollon (1999), applied to linear RGB.
    sight = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    perceived = [sight @ np.array(to_rgb(look(i).colour)) ** 2.2 for i in range(6)]
    distances = [np.abs(a - b).max() for n, a in enumerate(perceived) for b in perceived[n + 1 :]]
    assert min(distances) > 0.08


def test_error_bars_are_the_distances_to_the_ends_of_the_interval() -> None:
    rows = pd.DataFrame({"top1": [0.5, 1.0], "top1_low": [0.4, 0.9], "top1_high": [0.7, 1.0]})
    np.testing.assert_allclose(error_bars(rows, TOP1), [[10, 10], [20, 0]], atol=1e-9)


def test_a_number_without_interval_has_no_bars() -> None:
    rows = pd.DataFrame({"dice": [0.5], "dice_low": [np.nan], "dice_high": [np.nan]})
    assert error_bars(rows, DICE) == ([0.0], [0.0])


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("crop", ["crop"]),
        ("fast_snowy_landscape", ["fast_snowy_", "landscape"]),
        ("c_elastic_transform, severity 5", ["c_elastic_", "transform,", "severity 5"]),
        ("averyveryverylongname", ["averyveryverylongname"]),
        ("\u540d\u524d\u540d", ["U+540DU+524D", "U+540D"]),
        ("\x1b[31m", ["\\x1b[31m"]),
    ],
)
def test_long_names_are_broken_at_their_joints(name: str, lines: list[str]) -> None:
    assert wrapped(name, 13).split("\n") == lines


def test_a_saved_picture_has_the_promised_size_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_figure(Figure(figsize=(2, 1)), tmp_path / name)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * DPI, DPI)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_users_own_settings_are_restored() -> None:
    before = matplotlib.rcParams["font.size"]
    with styled():
        assert matplotlib.rcParams["text.parse_math"] is False
    assert matplotlib.rcParams["font.size"] == before


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
