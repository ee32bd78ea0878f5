"""Draws explanations: maps overlaid on photos, generated images, receptive fields.

One colour scale for all: cividis, from dark blue (against the class) over grey (zero) to yellow
(for it). Its lightness changes from end to end, so it looks the same for every kind of colour
vision and in greyscale prints. Source: J. R. Nuñez, C. R. Anderton, R. S. Renslow, Optimizing
colormaps with consideration for color vision deficiency, PLoS ONE 13 (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustcli.metrics.explanation_scores import FIELD_SHARES, field_sides
from robustcli.reports.figures.canvas import COLOURS, GREY, light_grid, save_figure, styled, wrapped
from robustcli.reports.figures.images import PANEL_DPI, TALLEST

# Sizes in inches: a tile with its gap, the gap, a line of text, a heading, the colour scale.
SIDE, GAP, LINE, HEADING, SCALE = 1.75, 0.1, 0.145, 0.27, 0.52
MARGIN = 0.06
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
_COLOURS: Colormap = matplotlib.colormaps["cividis"]


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
    tall = (SIDE - GAP) * _aspect(lines)
    texts = [LINE * max(_title(tile).count("\n") + 1 for tile in line.tiles) for line in lines]
    headings = [HEADING * bool(line.heading) for line in lines]
    head, foot = HEADING * bool(columns), SCALE * scale
    width = SIDE * across + 2 * MARGIN
    height = head + foot + sum(texts) + sum(headings) + (tall + GAP) * len(lines) + 2 * MARGIN
    with styled():
        figure = Figure(figsize=(width, height))
        for number, name in enumerate(columns):
            x = (MARGIN + (number + 0.5) * SIDE * across / len(columns)) / width
            figure.text(
                x, 1 - 0.08 / height, name, ha="center", va="top", fontweight="bold", fontsize=10
            )
        top = height - MARGIN - head
        for line, text, heading in zip(lines, texts, headings, strict=True):
            if line.heading:
                y = (top - 0.05) / height
                figure.text(
                    (MARGIN + GAP / 2) / width, y, line.heading, ha="left", va="top",
                    fontweight="bold",
                )  # fmt: skip
            top -= heading + text
            for column, tile in enumerate(line.tiles):
                left = (MARGIN + column * SIDE + GAP / 2) / width
                place = (left, (top - tall) / height, (SIDE - GAP) / width, tall / height)
                _tile(figure.add_axes(place), tile)
            top -= tall + GAP
        if scale:
            _colour_scale(figure, width, height)
    save_figure(figure, path, PANEL_DPI)


def _aspect(lines: Sequence[PanelLine]) -> float:
    pictures = [t.picture for line in lines for t in line.tiles if t.picture is not None]
    return min(TALLEST, max((p.shape[0] / p.shape[1] for p in pictures), default=1.0))


def _title(tile: MapTile) -> str:
    lines = wrapped(tile.title, WIDEST_TITLE).split("\n")
    lines = [
        line if len(line) <= WIDEST_TITLE else f"{line[: WIDEST_TITLE - 1]}…" for line in lines
    ]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1][: WIDEST_TITLE - 1]}…"]
    return "\n".join(lines)


def _tile(axes: Axes, tile: MapTile) -> None:
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    axes.set_title(_title(tile), fontsize=7.5, pad=3, linespacing=1.1)
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
    colours = _COLOURS((values + 1) / 2)[..., :3]
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
    axes = figure.add_axes((left, (MARGIN + 0.30) / height, 1 - 2 * left, 0.12 / height))
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), _COLOURS), cax=axes, orientation="horizontal"
    )
    bar.set_ticks([-1, 0, 1], labels=["speaks against it", "0", "speaks for it"])
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
            ScalarMappable(Normalize(0, 1), _COLOURS), cax=scale, orientation="horizontal"
        )
        bar.set_ticks([0, 1], labels=["0", "largest influence"])
        bar.outline.set_linewidth(0.4)
        scale.tick_params(length=2, labelsize=7.5, pad=2)
    save_figure(figure, path, PANEL_DPI)


def _field(axes: Axes, field: ReceptiveField) -> None:
    values = np.sqrt(np.clip(field.influence.astype(np.float64), 0, None))
    height, width = values.shape
    axes.imshow(values / (values.max() or 1), cmap=_COLOURS, vmin=0, vmax=1)
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
                linestyle=("solid", "dashed", "dotted", "dashdot")[number % 4], label=field.name,
            )  # fmt: skip
    light_grid(axes)
    axes.set(
        xlabel="offset from the centre, % of the side", ylabel="influence, % of the largest",
        yscale="log", ylim=(10 ** np.floor(np.log10(max(lowest, FAINTEST))), 150), xlim=(-50, 50),
    )  # fmt: skip
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("in the middle eighth of the rows", fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="lower center")
