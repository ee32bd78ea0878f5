"""Dice against the number of parameters: what was printed, and what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from robustcli.reports.figures.canvas import COLOURS, DPI, GREY, legend, legend_width, save, styled
from robustcli.reports.figures.labels import Label, place_labels

SIZE = (8.6, 5.6)
ROOM = 0.1  # of the range of dice, above and below
LEGEND_LINE = 0.2  # inches
OWN = COLOURS[0]
OWN_NAME, PUBLISHED_NAME = "measured here, 95 % interval", "as published"


@dataclass(frozen=True)
class Point:
    """A network: its label, its name, its parameters (above 0) and its dice in [0, 1].

    `low` and `high` are the ends of the interval of an own dice, where it has one.
    """

    name: str
    network: str
    parameters: int
    dice: float
    own: bool = False
    low: float | None = None
    high: float | None = None

    @property
    def span(self) -> tuple[float, float]:
        """The interval, or the dice twice."""
        return (
            self.dice if self.low is None else self.low,
            self.dice if self.high is None else self.high,
        )


@dataclass(frozen=True)
class Level:
    """A horizontal line: what has no parameters."""

    name: str
    dice: float


def draw_scatter(points: Sequence[Point], levels: Sequence[Level], path: Path) -> None:
    """Draws `points` with the parameters on a logarithmic axis, each with its name.

    Args:
        points: At least one.
        levels: Baselines.
        path: The PNG to write.
    """
    with styled():
        figure = Figure(figsize=SIZE, dpi=DPI)
        axes = figure.add_axes((0.08, 0.1, 0.9, 0.89 - _legend_share(levels)))
        _points(axes, [point for point in points if not point.own], own=False)
        _points(axes, [point for point in points if point.own], own=True)
        for level in levels:
            axes.axhline(level.dice, color=GREY, linestyle="--", linewidth=1, label=level.name)
        _dress(axes, points, levels)
        legend(figure, axes)
        _join(axes, points)
        place_labels(axes, _labels(points), _bars(axes, points, levels))
    save(figure, path)


def _legend_share(levels: Sequence[Level]) -> float:
    """The part of the figure's height that the legend above the axes takes."""
    names = [OWN_NAME, PUBLISHED_NAME, *(level.name for level in levels)]
    columns = max(1, int(SIZE[0] / legend_width(names)))
    return (0.15 + LEGEND_LINE * -(-len(names) // columns)) / SIZE[1]


def _points(axes: Axes, points: Sequence[Point], *, own: bool) -> None:
    if not points:
        return
    below = [max(0.0, point.dice - point.span[0]) for point in points]
    above = [max(0.0, point.span[1] - point.dice) for point in points]
    axes.errorbar(
        [point.parameters for point in points],
        [point.dice for point in points],
        yerr=(below, above) if own else None,
        fmt="D" if own else "o",
        color=OWN if own else GREY,
        markerfacecolor=OWN if own else "white",
        markersize=6,
        elinewidth=1.1,
        capsize=2.5,
        label=OWN_NAME if own else PUBLISHED_NAME,
        zorder=3,
    )


def _join(axes: Axes, points: Sequence[Point]) -> None:
    """Draws a thin line from each own point to what was published of the same network."""
    for point in points:
        twin = _twin(point, points)
        if twin is not None:
            ends = (point.parameters, twin.parameters), (point.dice, twin.dice)
            axes.plot(*ends, color=GREY, linewidth=0.7, zorder=2)


def _twin(point: Point, points: Sequence[Point]) -> Point | None:
    """What was published of the network of an own `point`."""
    same = [other for other in points if not other.own and other.network == point.network]
    return same[0] if point.own and same else None


def _labels(points: Sequence[Point]) -> list[Label]:
    """A label per own point and per published one that is joined to none, from left to right."""
    own = {point.network for point in points if point.own}
    shown = [point for point in points if point.own or point.network not in own]
    order = sorted(shown, key=lambda point: (not point.own, point.parameters, point.dice))
    return [Label(p.name, p.parameters, p.dice, "bold" if p.own else "normal") for p in order]


def _bars(axes: Axes, points: Sequence[Point], levels: Sequence[Level]) -> list[Bbox]:
    """The pixels of the points with their intervals, and of the lines of baselines."""
    boxes = []
    for point in points:
        (x, low), (_, high) = axes.transData.transform([(point.parameters, y) for y in point.span])
        boxes += [Bbox([[x - 2, low], [x + 2, high]])] if point.own else []
        y = axes.transData.transform((point.parameters, point.dice))[1]
        boxes.append(Bbox([[x - 7, y - 7], [x + 7, y + 7]]))
    for level in levels:
        y = axes.transData.transform((1, level.dice))[1]
        boxes.append(Bbox([[axes.bbox.x0, y - 1], [axes.bbox.x1, y + 1]]))
    return boxes


def _dress(axes: Axes, points: Sequence[Point], levels: Sequence[Level]) -> None:
    counts = [point.parameters for point in points]
    heights = [end for point in points for end in point.span] + [level.dice for level in levels]
    room = ROOM * max(0.1, max(heights) - min(heights))
    axes.set_xscale("log")
    axes.set_xlim(min(counts) / 2.2, max(counts) * 3)
    axes.set_ylim(max(0.0, min(heights) - room), min(1.0, max(heights) + room))
    axes.set(xlabel="parameters (logarithmic)", ylabel="dice (0 to 1)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: short(count)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def short(count: float) -> str:
    """A number of parameters in a few letters: `50 k`, `2 M`."""
    if count >= 1e6:
        return f"{count / 1e6:g} M"
    return f"{count / 1e3:g} k" if count >= 1e3 else f"{count:g}"
