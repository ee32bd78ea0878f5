from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from robustcli.reports.figures.canvas import DPI, error_bars, look, save_figure, styled, wrapped
from robustcli.reports.scoring import DICE, TOP1


def test_models_differ_in_colour_marker_and_hatch_each() -> None:
    seven = [look(index) for index in range(7)]
    assert len({style.colour for style in seven}) == 7
    assert len({style.marker for style in seven}) == 7
    assert len({style.hatch for style in seven}) == 7
    assert len({look(index) for index in range(50)}) == 50


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
