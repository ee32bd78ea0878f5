"""Contact sheets, masks with their errors, and maps drawn over photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from robustcli.reports.figures.images import (
    ALARM,
    DIMMED,
    FOUND,
    MISSED,
    Case,
    MapTile,
    PanelLine,
    ReceptiveField,
    Tile,
    colour_end,
    draw_contact,
    draw_explanation,
    draw_fields,
    draw_panels,
    mask_differences,
    overlay,
)
from tests.reports.figures.layout import assert_no_overlap, assert_nothing_clipped, draw_figure


def tile(folder: Path, name: str, size: tuple[int, int] = (256, 171), level: int = 90) -> Tile:
    path = folder / f"{name}.png"
    Image.new("RGB", size, (level, level, 10)).save(path)
    return Tile(path, name, "severity 3, PSNR 21.4 dB")


def contact_figure(monkeypatch: pytest.MonkeyPatch, lines: list[list[Tile]]) -> Figure:
    return draw_figure(monkeypatch, lambda: draw_contact(lines, Path()))


@pytest.mark.parametrize("size", [(256, 171), (171, 256), (32, 32), (256, 30)])
def test_tiles_and_labels_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: tuple[int, int]
) -> None:
    names = ["additive_gaussian_noise", "multiply_per_channel", "imagenetc_elastic_transform"]
    lines = [[tile(tmp_path, name, size) for name in (*names, "crop", "fliplr")]] * 3
    figure = contact_figure(monkeypatch, lines)
    assert_nothing_clipped(figure)
    assert_no_overlap([axes.title for axes in figure.axes])
    for above, below in zip(figure.axes, figure.axes[5:], strict=False):
        assert below.title.get_window_extent().y1 <= above.get_window_extent().y0


def test_long_class_names_stay_above_their_own_photo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [
        "black-and-tan coonhound",
        "Staffordshire bull terrier",
        "\u91d1\u6bdb\u5bfb\u56de\u72ac",
    ]
    tiles = [
        replace(tile(tmp_path, str(number)), title=name, note=f"9 of 9 wrong,\ntaken for {name}")
        for number, name in enumerate(names)
    ]
    figure = contact_figure(monkeypatch, [tiles])
    assert_nothing_clipped(figure)
    assert_no_overlap([axes.title for axes in figure.axes])


def test_each_label_is_above_its_own_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [[tile(tmp_path, f"t{i}", level=20 * i + j) for i in range(5)] for j in range(1)]
    for index, axes in enumerate(contact_figure(monkeypatch, lines).axes):
        assert axes.get_title().startswith(f"t{index}\n")
        pixels = np.asarray(axes.images[0].get_array())
        assert pixels[0, 0].tolist() == [20 * index, 20 * index, 10]
        box = axes.get_window_extent()
        label = axes.title.get_window_extent()
        assert label.y0 >= box.y1
        assert (label.x0 + label.x1) / 2 == pytest.approx((box.x0 + box.x1) / 2, abs=1)


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_a_missing_or_damaged_picture_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "broken.png"
    if content:
        path.write_bytes(content)
    lines = [[tile(tmp_path, "fine"), Tile(path, "broken", "PSNR unknown")]]
    intact, damaged = contact_figure(monkeypatch, lines).axes
    assert [text.get_text() for text in damaged.texts] == ["no sample"]
    assert not damaged.images
    assert intact.images


def test_a_truncated_picture_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    complete = tile(tmp_path, "cut")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(
        complete.picture
    )
    complete.picture.write_bytes(complete.picture.read_bytes()[:9000])
    (axes,) = contact_figure(monkeypatch, [[complete]]).axes
    assert not axes.images


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
    pixels = mask_differences(case())
    np.testing.assert_array_equal(pixels[5, 15], colour(FOUND))
    np.testing.assert_array_equal(pixels[5, 5], colour(MISSED))
    np.testing.assert_array_equal(pixels[5, 25], colour(ALARM))
    np.testing.assert_array_equal(pixels[30, 30], round(120 * DIMMED))


def test_the_colours_stay_apart_in_grey_and_with_red_green_blindness() -> None:
    # Rec. 601 luma; deuteranopia after Vienot, Brettel and Mollon (1999), applied to linear RGB.
    colours = [np.array(to_rgb(name)) for name in (FOUND, MISSED, ALARM)]
    colours.append(np.full(3, DIMMED))
    grey = sorted(float(rgb @ [0.299, 0.587, 0.114]) for rgb in colours)
    assert min(np.diff(grey)) > 0.12
    sight = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    perceived = [sight @ rgb**2.2 for rgb in colours]
    pairs = [np.abs(a - b).max() for n, a in enumerate(perceived) for b in perceived[n + 1 :]]
    assert min(pairs) > 0.08


def test_a_line_per_case_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case(), case(200, 50), case(30, 90, empty=True)]
    figure = draw_figure(monkeypatch, lambda: draw_panels(cases, Path()))
    assert_nothing_clipped(figure)
    assert len(figure.axes) == 12
    assert_no_overlap(figure.texts)
    for axes in figure.axes:
        for text in figure.texts:
            box, picture = text.get_window_extent(), axes.get_tightbbox()
            assert not box.overlaps(picture), text.get_text()


def test_outlines_are_the_borders_of_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = draw_figure(monkeypatch, lambda: draw_panels([case(), case(empty=True)], Path()))
    image, truth, prediction, errors = figure.axes[:4]
    assert len(image.collections) == len(errors.collections) == 0
    for axes, left, right in ((truth, -0.5, 19.5), (prediction, 9.5, 29.5)):
        (lines,) = axes.collections
        (path,) = lines.get_paths()
        across = np.asarray(path.vertices)[:, 0]
        assert (across.min(), across.max()) == (left, right)
        assert axes.get_xlim() == (-0.5, 59.5)
    assert len(figure.axes[6].collections) == 0  # nothing predicted, no outline


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
