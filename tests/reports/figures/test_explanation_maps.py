"""Maps drawn over photos: colours, sizes, text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustcli.reports.figures.images import (
    MapTile,
    PanelLine,
    ReceptiveField,
    colour_end,
    draw_explanation,
    draw_fields,
    overlay,
)

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def lightness(pixel: np.ndarray) -> float:
    return float(pixel @ (0.299, 0.587, 0.114))


def test_lightness_tells_for_nothing_and_against_apart() -> None:
    # Over black and over white, the grey values of the three colours do not overlap.
    shades = {
        sign: [
            lightness(
                overlay(np.full((9, 9, 3), value, np.uint8), np.full((9, 9), sign), 1.0)[4, 4]
            )
            for value in (0, 255)
        ]
        for sign in (-1.0, 0.0, 1.0)
    }
    assert max(shades[-1.0]) < min(shades[0.0]) - 20
    assert max(shades[0.0]) < min(shades[1.0]) - 20


def test_zero_relevance_gives_a_grey_photo() -> None:
    pixels = overlay(PHOTO, np.zeros((40, 40)))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    grey = (PHOTO @ (0.299, 0.587, 0.114)).ravel()
    assert np.corrcoef(grey, pixels[..., 0].ravel())[0, 1] > 0.999


def test_signs_are_symmetric_and_outliers_do_not_pale_the_rest() -> None:
    relevance = np.zeros((40, 40))
    relevance[5:15, 5:15], relevance[25:35, 25:35] = 1, -1
    pixels = overlay(np.full((40, 40, 3), 128, np.uint8), relevance).astype(int)
    assert pixels[10, 10, 0] > pixels[10, 10, 2] + 100, "yellow is evidence for the class"
    assert pixels[30, 30, 2] > pixels[30, 30, 0] + 40, "blue is evidence against it"
    outlier = relevance.copy()
    outlier[0, 0] = 1000
    assert colour_end(outlier) == 1
    single = np.zeros((40, 40))
    single[3, 3] = 7
    assert colour_end(single) == 7
    assert colour_end(np.zeros((4, 4))) == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (32, 32), (30, 90), (300, 20)])
def test_any_size_of_photo_is_drawn(tmp_path: Path, height: int, width: int) -> None:
    photo = np.full((height, width, 3), 90, dtype=np.uint8)
    long_name = "a $very$ long_name of a class, with many words and " + 60 * "x"
    tiles = [MapTile(long_name, photo, np.ones((height, width))), MapTile("", note="no map")]
    draw_explanation([PanelLine("a method", tiles)], tmp_path / "a.png", columns=["clean"])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == round((2 * 1.75 + 0.12) * 110)
        assert 100 < picture.height < 600


def test_empty_receptive_fields_are_drawn(tmp_path: Path) -> None:
    fields = [ReceptiveField("trained", np.zeros((8, 8))), ReceptiveField("before", np.eye(8))]
    draw_fields(fields, tmp_path / "fields.png")
    with Image.open(tmp_path / "fields.png") as picture:
        assert picture.width > 700
