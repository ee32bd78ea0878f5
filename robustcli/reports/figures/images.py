"""Figures made of images: contact sheets, cases with outlines, maps on photos, receptive fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from robustcli.data.mask_values import IGNORED
from robustcli.metrics.explanation_scores import FIELD_SHARES, field_sides
from robustcli.reports.figures.canvas import (
    COLOURS,
    GREY,
    legend_label,
    light_grid,
    save_figure,
    styled,
    wrapped,
)

# The contact sheet: one photo of the run under each transform.


# Inches: a tile with its gap, a line of text above it, the gap between tiles.
CONTACT_SIDE = 1.8
CONTACT_LINE = 0.14
CONTACT_GAP = 0.12
TALLEST = 1.5  # largest height over width of an image that is drawn at full width
# Photos compress badly: 95 tiles take 6 MB, and twice that at the resolution of plots.
PHOTO_DPI = 100


@dataclass(frozen=True)
class Tile:
    """An image and the text above it; a missing file is drawn as a grey box.

    `picture` is a file, or pixels: uint8 (H, W, 3).
    """

    picture: Path | NDArray[np.uint8]
    title: str
    note: str


def draw_contact(lines: Sequence[Sequence[Tile]], path: Path) -> None:
    """Draws `lines` of tiles, all tiles of one size.

    Args:
        lines: At least one line with at least one tile.
        path: The PNG to write.
    """
    columns = max(len(line) for line in lines)
    pictures = [[_pixels(tile.picture) for tile in line] for line in lines]
    width = columns * CONTACT_SIDE
    label = (
        CONTACT_LINE * max(_text(tile).count("\n") + 1 for line in lines for tile in line)
        + CONTACT_GAP
    )
    tall = (CONTACT_SIDE - CONTACT_GAP) * _tallest_aspect(pictures) + label
    with styled():
        figure = Figure(figsize=(width, tall * len(lines)))
        for row, line in enumerate(lines):
            for column, tile in enumerate(line):
                left = (column * CONTACT_SIDE + CONTACT_GAP / 2) / width
                bottom = 1 - (row + 1) / len(lines)
                size = ((CONTACT_SIDE - CONTACT_GAP) / width, (1 - label / tall) / len(lines))
                _tile(figure, (left, bottom, *size), tile, pictures[row][column])
    save_figure(figure, path, PHOTO_DPI)


def _tile(
    figure: Figure,
    place: tuple[float, float, float, float],
    tile: Tile,
    pixels: NDArray[np.uint8] | None,
) -> None:
    axes = figure.add_axes(place)
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(pixels is None)
    axes.spines[:].set_color("#bbbbbb")
    if pixels is None:
        axes.text(0.5, 0.5, "no sample", ha="center", va="center", color=GREY)
    else:
        axes.imshow(pixels, aspect="equal")
    axes.set_title(_text(tile), fontsize=7.5, pad=3, linespacing=1.15)


def _text(tile: Tile) -> str:
    note = "\n".join(wrapped(line, 30) for line in tile.note.split("\n"))
    return f"{wrapped(tile.title, 24)}\n{note}"


def _pixels(source: Path | NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    if isinstance(source, np.ndarray):
        return source
    try:
        with Image.open(source) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError:
        return None


def _tallest_aspect(pictures: Sequence[Sequence[NDArray[np.uint8] | None]]) -> float:
    """Height over width of the tallest image, at most TALLEST; taller ones are drawn narrower."""
    sizes = [pixels.shape for line in pictures for pixels in line if pixels is not None]
    return min(TALLEST, max((height / width for height, width, _ in sizes), default=1.0))


# Single cases: the image, the true and the predicted outline, and their differences.


# Inches: a picture with its gap, a line of text above it, the heading and the legend.
PANEL_SIDE, PANEL_GAP, PANEL_LINE, HEAD, FOOT = 2.1, 0.1, 0.27, 0.3, 0.34
PANEL_DPI = 110
TITLES = ("image", "true outline", "predicted outline", "differences")
TITLES_OF_CLASSES = ("image", "true classes", "predicted classes", "differences")
_CLASSES_ABREAST = 6  # classes per line of the legend
# White, light blue, dark orange on near black: distinct in greyscale and for every colour vision.
FOUND, MISSED, ALARM, CONFUSED = "#FFFFFF", "#86CBF2", "#A83C00", "#F0E442"
DIMMED = 0.15
TRUE, CALLED = "#56B4E9", "#E69F00"


@dataclass(frozen=True)
class Case:
    """One image, uint8 (H, W, 3), with its true and its predicted mask, (H, W).

    Masks are bool. With `classes` (name and colour `#rrggbb` of each), masks contain class numbers,
    0 for background and `IGNORED` for pixels that are not scored.
    """

    title: str
    image: NDArray[np.uint8]
    truth: NDArray[Any]
    prediction: NDArray[Any]
    classes: tuple[tuple[str, str], ...] = ()


def draw_panels(cases: Sequence[Case], path: Path) -> None:
    """Draws a row of four images per case.

    Args:
        cases: At least one, all with the same classes.
        path: The PNG to write.
    """
    classes = cases[0].classes
    foot = FOOT * (1 + -(-len(classes) // _CLASSES_ABREAST))
    titles = TITLES_OF_CLASSES if classes else TITLES
    tall = [(PANEL_SIDE - PANEL_GAP) * min(TALLEST, _case_aspect(case)) for case in cases]
    width, height = (
        PANEL_SIDE * len(TITLES),
        HEAD + foot + sum(tall) + (PANEL_LINE + PANEL_GAP) * len(cases),
    )
    with styled():
        figure = Figure(figsize=(width, height))
        for column, title in enumerate(titles):
            x = (column + 0.5) * PANEL_SIDE / width
            figure.text(x, 1 - 0.08 / height, title, ha="center", va="top", fontweight="bold")
        top = height - HEAD
        for case, high in zip(cases, tall, strict=True):
            text = (PANEL_GAP / 2 / width, (top - 0.05) / height)
            figure.text(*text, case.title, ha="left", va="top", fontsize=8)
            top -= PANEL_LINE
            for column in range(len(TITLES)):
                left = (column * PANEL_SIDE + PANEL_GAP / 2) / width
                size = ((PANEL_SIDE - PANEL_GAP) / width, high / height)
                _picture(figure.add_axes((left, (top - high) / height, *size)), case, column)
            top -= high + PANEL_GAP
        _legend(figure, classes)
    save_figure(figure, path, PANEL_DPI)


def _case_aspect(case: Case) -> float:
    return case.image.shape[0] / case.image.shape[1]


def _picture(axes: Axes, case: Case, column: int) -> None:
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    shown = mask_differences(case) if column == len(TITLES) - 1 else case.image
    axes.imshow(shown)
    for number, (_, colour) in enumerate(case.classes, 1):
        if column in (1, 2):
            mask = case.truth if column == 1 else case.prediction
            _outline(axes, mask == number, colour, "solid" if column == 1 else "dashed")
    if case.classes:
        return
    if column == 1:
        _outline(axes, case.truth, TRUE, "solid")
    if column == 2:
        _outline(axes, case.prediction, CALLED, "dashed")


def mask_differences(case: Case) -> NDArray[np.uint8]:
    """The dimmed image, coloured at true positives, false negatives and false positives.

    With several classes, also where one class was predicted as another.
    """
    truth, prediction = case.truth > 0, case.prediction > 0
    if case.classes:
        counted = case.truth != IGNORED
        truth, prediction = truth & counted, prediction & counted
    same = truth & prediction & (case.truth == case.prediction)
    grey = case.image.mean(axis=2, keepdims=True) * DIMMED
    shown = np.repeat(grey, 3, axis=2)
    for colour, pixel_mask in (
        (FOUND, same),
        (MISSED, truth & ~prediction),
        (ALARM, ~truth & prediction),
        (CONFUSED, truth & prediction & ~same),
    ):
        shown[pixel_mask] = 255 * np.array(to_rgb(colour))
    pixels: NDArray[np.uint8] = np.rint(shown).astype(np.uint8)
    return pixels


def _outline(axes: Axes, mask: NDArray[np.bool_], colour: str, dashes: str) -> None:
    """Draws the border of `mask`, closed also along the image's edge."""
    if not mask.any():
        return
    height, width = mask.shape
    padded = np.pad(mask.astype(float), 1)
    limits = axes.get_xlim(), axes.get_ylim()
    lines = axes.contour(
        np.arange(-1, width + 1),
        np.arange(-1, height + 1),
        padded,
        levels=[0.5],
        colors=[colour],
        linewidths=1.4,
        linestyles=[dashes],
    )
    lines.set_path_effects([withStroke(linewidth=2.6, foreground="black")])
    axes.set(xlim=limits[0], ylim=limits[1])


def _legend(figure: Figure, classes: Sequence[tuple[str, str]]) -> None:
    """Draws the legend: outcomes of the last column, and outlines or classes.

    Without classes, the outlines are in the same line; classes are in a line above.
    """
    if classes:
        lines = [
            Line2D([], [], color=colour, linewidth=3, label=legend_label(name))
            for name, colour in classes
        ]
        above = FOOT / figure.get_figheight()
        columns = min(len(classes), _CLASSES_ABREAST)
        figure.legend(
            handles=lines, loc="lower center", bbox_to_anchor=(0.5, above), ncols=columns,
            frameon=False,
        )  # fmt: skip
    outlines = [
        Line2D([], [], color=TRUE, linewidth=2, label="true outline"),
        Line2D([], [], color=CALLED, linewidth=2, linestyle="--", label="predicted outline"),
    ]
    handles: list[Line2D | Patch] = [
        *([] if classes else outlines),
        Patch(facecolor=FOUND, label="found", edgecolor="#444444", linewidth=0.6),
        Patch(facecolor=MISSED, label="missed", edgecolor="#444444", linewidth=0.6),
        Patch(facecolor=ALARM, label="false alarm", edgecolor="#444444", linewidth=0.6),
    ]
    if classes:
        confused = "taken for another class"
        handles.append(
            Patch(facecolor=CONFUSED, label=confused, edgecolor="#444444", linewidth=0.6)
        )
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)


# Explanations: maps overlaid on photos, and generated images.

# One colour scale for all: cividis, from dark blue (against the class) over grey (zero) to yellow
# (for it). Its lightness changes from end to end, so it looks the same for every kind of colour
# vision and in greyscale prints. Source: J. R. Nuñez, C. R. Anderton, R. S. Renslow, Optimizing
# colormaps with consideration for color vision deficiency, PLoS ONE 13 (2018).


# Sizes in inches: a tile with its gap, the gap, a line of text, a heading, the colour scale.
MAP_SIDE, MAP_GAP, MAP_LINE, MAP_HEADING, MAP_SCALE = 1.75, 0.1, 0.145, 0.27, 0.52
MAP_MARGIN = 0.06
WIDEST_TITLE = 25  # letters
MOST_LINES = 3  # of a title
FAINTEST = 1e-3
"""Profiles are drawn down to this percentage of the largest influence."""
STRONGEST = 99.5
"""Percentile of |map| at which the colour scale ends, so that outliers do not fade the rest."""
SMOOTHED = 0.008
"""Standard deviation of the blur of a drawn map, as a share of its longer side."""
_PALE = (0.30, 0.62)  # lightness of the photo, so that both ends of the scale are visible
_VISIBLE = 0.75  # exponent of the opacity; below 1, weak evidence is visible too
_CIVIDIS: Colormap = matplotlib.colormaps["cividis"]


@dataclass(frozen=True)
class MapTile:
    """An image with the text above it, or a text in its place.

    Args:
        title: Text above the image; cut if it takes more than three lines.
        picture: uint8 (H, W, 3); None if `note` is shown instead.
        relevance: A map to overlay on the image, (H, W), of any sign.
        note: Text shown in place of the image, such as why it is missing.
    """

    title: str
    picture: NDArray[np.uint8] | None = None
    relevance: NDArray[np.floating] | None = None
    note: str = ""


@dataclass(frozen=True)
class PanelLine:
    """Tiles side by side under a heading; an empty heading takes no space."""

    heading: str
    tiles: Sequence[MapTile]


def draw_explanation(
    lines: Sequence[PanelLine],
    path: Path,
    *,
    columns: Sequence[str] = (),
    scale: bool = True,
) -> None:
    """Draws `lines` of tiles, all of one size, with the colour scale below them.

    Args:
        lines: At least one, with at least one tile.
        path: The PNG to write.
        columns: Headings above equal shares of the width, such as `clean` and `transformed`.
        scale: Whether to draw the colour scale of maps.
    """
    across = max(len(line.tiles) for line in lines)
    tall = (MAP_SIDE - MAP_GAP) * _map_aspect(lines)
    texts = [
        MAP_LINE * max(_map_title(tile).count("\n") + 1 for tile in line.tiles) for line in lines
    ]
    headings = [MAP_HEADING * bool(line.heading) for line in lines]
    head, foot = MAP_HEADING * bool(columns), MAP_SCALE * scale
    width = MAP_SIDE * across + 2 * MAP_MARGIN
    height = (
        head + foot + sum(texts) + sum(headings) + (tall + MAP_GAP) * len(lines) + 2 * MAP_MARGIN
    )
    with styled():
        figure = Figure(figsize=(width, height))
        for number, name in enumerate(columns):
            x = (MAP_MARGIN + (number + 0.5) * MAP_SIDE * across / len(columns)) / width
            figure.text(
                x, 1 - 0.08 / height, name, ha="center", va="top", fontweight="bold", fontsize=10
            )
        top = height - MAP_MARGIN - head
        for line, text, heading in zip(lines, texts, headings, strict=True):
            if line.heading:
                y = (top - 0.05) / height
                figure.text(
                    (MAP_MARGIN + MAP_GAP / 2) / width, y, line.heading, ha="left", va="top",
                    fontweight="bold",
                )  # fmt: skip
            top -= heading + text
            for column, tile in enumerate(line.tiles):
                left = (MAP_MARGIN + column * MAP_SIDE + MAP_GAP / 2) / width
                place = (left, (top - tall) / height, (MAP_SIDE - MAP_GAP) / width, tall / height)
                _map_tile(figure.add_axes(place), tile)
            top -= tall + MAP_GAP
        if scale:
            _colour_scale(figure, width, height)
    save_figure(figure, path, PANEL_DPI)


def _map_aspect(lines: Sequence[PanelLine]) -> float:
    pictures = [t.picture for line in lines for t in line.tiles if t.picture is not None]
    return min(TALLEST, max((p.shape[0] / p.shape[1] for p in pictures), default=1.0))


def _map_title(tile: MapTile) -> str:
    lines = wrapped(tile.title, WIDEST_TITLE).split("\n")
    lines = [
        line if len(line) <= WIDEST_TITLE else f"{line[: WIDEST_TITLE - 1]}…" for line in lines
    ]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1][: WIDEST_TITLE - 1]}…"]
    return "\n".join(lines)


def _map_tile(axes: Axes, tile: MapTile) -> None:
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    axes.set_title(_map_title(tile), fontsize=7.5, pad=3, linespacing=1.1)
    if tile.picture is None:
        note = "\n".join(wrapped(line, 22) for line in tile.note.split("\n"))
        axes.text(
            0.5, 0.5, note, ha="center", va="center", color=GREY, fontsize=8, linespacing=1.4
        )  # fmt: skip
    elif tile.relevance is None:
        axes.imshow(tile.picture, interpolation="nearest")
    else:
        axes.imshow(overlay(tile.picture, tile.relevance), interpolation="nearest")


def overlay(
    picture: NDArray[np.uint8], relevance: NDArray[np.floating], end: float | None = None
) -> NDArray[np.uint8]:
    """A map overlaid on its photo, which is converted to grey; uint8 (H, W, 3).

    Args:
        picture: uint8 (H, W, 3).
        relevance: (H, W), finite. At zero, the grey photo is unchanged.
        end: |value| at which the colour scale ends; None for the map's STRONGEST percentile.
    """
    smooth = smoothed(relevance)
    if end is None:
        end = colour_end(smooth)
    values = np.clip(smooth / end if end else 0 * smooth, -1, 1)
    low, high = _PALE
    grey = low + (high - low) * (picture.astype(np.float64) @ (0.299, 0.587, 0.114)) / 255
    colours = _CIVIDIS((values + 1) / 2)[..., :3]
    opacity = (np.abs(values) ** _VISIBLE)[..., None]
    shown = (1 - opacity) * grey[..., None] + opacity * colours
    pixels: NDArray[np.uint8] = np.rint(255 * shown).astype(np.uint8)
    return pixels


def smoothed(relevance: NDArray[np.floating]) -> NDArray[np.float64]:
    """`relevance` with a blur of SMOOTHED, because single pixels are too small to be visible."""
    from scipy.ndimage import gaussian_filter

    values = relevance.astype(np.float64)
    smooth: NDArray[np.float64] = gaussian_filter(values, SMOOTHED * max(values.shape))
    return smooth


def colour_end(relevance: NDArray[np.floating]) -> float:
    """The |value| at which the colour scale of a map ends; 0 for a map of zeros."""
    size = np.abs(relevance.astype(np.float64))
    # The largest value, for maps with only a few nonzero pixels.
    return float(np.percentile(size, STRONGEST)) or float(size.max())


def _colour_scale(figure: Figure, width: float, height: float) -> None:
    left = max(0.15, 0.5 - 1.9 / width)
    axes = figure.add_axes((left, (MAP_MARGIN + 0.30) / height, 1 - 2 * left, 0.12 / height))
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), _CIVIDIS), cax=axes, orientation="horizontal"
    )
    bar.set_ticks([-1, 0, 1], labels=["opposes", "0", "supports"])
    bar.outline.set_linewidth(0.4)
    axes.tick_params(length=2, labelsize=7.5, pad=2)


# Effective receptive fields.


@dataclass(frozen=True)
class ReceptiveField:
    """The influence of each pixel of the input on the centre of a feature map.

    Args:
        name: For example `trained` or `before training`.
        influence: (H, W), not negative.
    """

    name: str
    influence: NDArray[np.floating]


def draw_fields(fields: Sequence[ReceptiveField], path: Path) -> None:
    """Draws effective receptive fields side by side, and their profiles through the centre.

    Args:
        fields: At least one.
        path: The PNG to write.
    """
    side, low, high = 2.3, 0.62, 0.58
    width, height = len(fields) * (side + 0.15) + 4.1, side + low + high
    with styled():
        figure = Figure(figsize=(width, height))
        for number, field in enumerate(fields):
            left = (0.1 + number * (side + 0.15)) / width
            _field(figure.add_axes((left, low / height, side / width, side / height)), field)
        right = (len(fields) * (side + 0.15) + 0.95) / width
        _profiles(figure.add_axes((right, low / height, 3.0 / width, side / height)), fields)
        scale = figure.add_axes((0.35 / width, 0.34 / height, (side - 0.5) / width, 0.1 / height))
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), _CIVIDIS), cax=scale, orientation="horizontal"
        )
        bar.set_ticks([0, 1], labels=["0", "largest influence"])
        bar.outline.set_linewidth(0.4)
        scale.tick_params(length=2, labelsize=7.5, pad=2)
    save_figure(figure, path, PANEL_DPI)


def _field(axes: Axes, field: ReceptiveField) -> None:
    values = np.sqrt(np.clip(field.influence.astype(np.float64), 0, None))
    height, width = values.shape
    axes.imshow(values / (values.max() or 1), cmap=_CIVIDIS, vmin=0, vmax=1)
    sides = field_sides(field.influence)
    for share, dashes in zip(FIELD_SHARES, ("solid", "dashed"), strict=True):
        half = sides[share] * min(height, width) / 2
        x, y = (width - 1) / 2, (height - 1) / 2
        corners_x = [x - half, x + half, x + half, x - half, x - half]
        corners_y = [y - half, y - half, y + half, y + half, y - half]
        axes.plot(corners_x, corners_y, color="white", linewidth=1.1, linestyle=dashes)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    shares = "\n".join(
        f"{100 * share:.0f} % ({dashes}): {100 * sides[share]:.3g} % of the side"
        for share, dashes in zip(FIELD_SHARES, ("solid", "dashed"), strict=True)
    )
    axes.set_title(f"{wrapped(field.name, 34)}\n{shares}", fontsize=8)


def _profiles(axes: Axes, fields: Sequence[ReceptiveField]) -> None:
    lowest = 100.0
    for number, field in enumerate(fields):
        values = field.influence.astype(np.float64)
        middle, half = values.shape[0] / 2, max(1, values.shape[0] // 16)
        line = values[max(0, round(middle - half)) : round(middle + half)].mean(axis=0)
        x = np.linspace(-50, 50, len(line))
        top = float(line.max())
        if top > 0:
            lowest = min(lowest, float(100 * line.min() / top))
            percents = np.clip(100 * line / top, FAINTEST / 10, None)
            axes.plot(
                x, percents, color=COLOURS[number % len(COLOURS)],
                linestyle=("solid", "dashed", "dotted", "dashdot")[number % 4],
                label=legend_label(field.name),
            )  # fmt: skip
    light_grid(axes)
    axes.set(
        xlabel="offset from the centre, % of the side", ylabel="influence, % of the largest",
        yscale="log", ylim=(10 ** np.floor(np.log10(max(lowest, FAINTEST))), 150), xlim=(-50, 50),
    )  # fmt: skip
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("in the middle eighth of the rows", fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="lower center")
