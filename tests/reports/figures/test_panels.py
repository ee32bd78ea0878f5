from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from robustcli.reports.figures.panels import (
    ALARM,
    DIMMED,
    FOUND,
    MISSED,
    Case,
    differences,
    draw_panels,
)
from tests.reports.figures.layout import assert_no_overlap, assert_nothing_clipped, caught


def case(height: int = 40, width: int = 60, *, empty: bool = False) -> Case:
    rows, columns = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 120, np.uint8)
    truth = (rows < 20) & (columns < 20)
    prediction = (rows < 20) & (columns >= 10) & (columns < 30)
    if empty:
        prediction = np.zeros_like(truth)
    title = "best 1: dice 0.912, kaggle_3m/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_10.tif"
    return Case(title, image, truth, prediction)


def colour(name: str) -> NDArray[np.float64]:
    return np.asarray(np.rint(255 * np.array(to_rgb(name))), dtype=np.float64)


def test_pixels_are_coloured_by_what_the_prediction_made_of_them() -> None:
    shown = differences(case())
    np.testing.assert_array_equal(shown[5, 15], colour(FOUND))
    np.testing.assert_array_equal(shown[5, 5], colour(MISSED))
    np.testing.assert_array_equal(shown[5, 25], colour(ALARM))
    np.testing.assert_array_equal(shown[30, 30], round(120 * DIMMED))


def test_the_colours_stay_apart_in_grey_and_with_red_green_blindness() -> None:
    # Rec. 601 luma; deuteranopia after Vienot, Brettel and Mollon (1999), applied to linear RGB.
    colours = [np.array(to_rgb(name)) for name in (FOUND, MISSED, ALARM)]
    colours.append(np.full(3, DIMMED))
    grey = sorted(float(rgb @ [0.299, 0.587, 0.114]) for rgb in colours)
    assert min(np.diff(grey)) > 0.12
    sight = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    seen = [sight @ rgb**2.2 for rgb in colours]
    pairs = [np.abs(a - b).max() for n, a in enumerate(seen) for b in seen[n + 1 :]]
    assert min(pairs) > 0.08


def test_a_line_per_case_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case(), case(200, 50), case(30, 90, empty=True)]
    figure = caught(monkeypatch, "panels", lambda: draw_panels(cases, Path()))
    assert_nothing_clipped(figure)
    assert len(figure.axes) == 12
    assert_no_overlap(figure.texts)
    for axes in figure.axes:
        for text in figure.texts:
            box, picture = text.get_window_extent(), axes.get_tightbbox()
            assert picture is not None
            assert not box.overlaps(picture), text.get_text()


def test_outlines_are_the_borders_of_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = caught(monkeypatch, "panels", lambda: draw_panels([case(), case(empty=True)], Path()))
    image, truth, prediction, errors = figure.axes[:4]
    assert len(image.collections) == len(errors.collections) == 0
    for axes, left, right in ((truth, -0.5, 19.5), (prediction, 9.5, 29.5)):
        (lines,) = axes.collections
        (path,) = lines.get_paths()
        across = np.asarray(path.vertices)[:, 0]
        assert (across.min(), across.max()) == (left, right)
        assert axes.get_xlim() == (-0.5, 59.5)
    assert len(figure.axes[6].collections) == 0  # nothing predicted, no outline
