"""What rules of freezing save in time against the score that is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from robustcli.reports.figures.canvas import COLOURS, DPI, GREY, MARKERS, legend, save, styled
from robustcli.reports.figures.labels import Label, place_labels

SIZE = (8.6, 5.0)
_ROOM = 0.12  # of the range, at both ends of both axes
_LEAST = (4.0, 0.02)  # percent and score that the axes show at least


@dataclass(frozen=True)
class Rule:
    """A rule: its label, what it is one of, and its numbers with the ends of their intervals.

    `saved` is in percent of the time of an iteration, `score` in [0, 1]; without an interval, both
    ends are the number itself.
    """

    name: str
    scope: str
    saved: tuple[float, float, float]
    score: tuple[float, float, float]


def draw_tradeoff(rules: Sequence[Rule], path: Path, score: str = "dice (0 to 1)") -> None:
    """Draws a point with both its intervals per rule, and its name beside it.

    Args:
        rules: At least one; each number stands between its ends: low, value, high.
        path: The PNG to write.
        score: What the score is.
    """
    with styled():
        figure = Figure(figsize=SIZE, dpi=DPI)
        axes = figure.add_axes((0.09, 0.11, 0.88, 0.8))
        for number, scope in enumerate(dict.fromkeys(rule.scope for rule in rules)):
            _points(axes, [rule for rule in rules if rule.scope == scope], number)
        axes.axvline(0, color=GREY, linestyle="--", linewidth=0.9)
        _dress(axes, rules, score)
        legend(figure, axes)
        labels = [Label(rule.name, rule.saved[1], rule.score[1]) for rule in rules]
        place_labels(axes, labels, [box for rule in rules for box in _bars(axes, rule)])
    save(figure, path)


def _points(axes: Axes, rules: Sequence[Rule], number: int) -> None:
    axes.errorbar(
        [rule.saved[1] for rule in rules],
        [rule.score[1] for rule in rules],
        xerr=_lengths([rule.saved for rule in rules]),
        yerr=_lengths([rule.score for rule in rules]),
        fmt=MARKERS[number % len(MARKERS)],
        color=COLOURS[number % len(COLOURS)],
        markersize=6,
        elinewidth=0.9,
        capsize=2.5,
        label=rules[0].scope,
        zorder=3,
    )


def _lengths(ends: Sequence[tuple[float, float, float]]) -> tuple[list[float], list[float]]:
    below = [max(0.0, value - low) for low, value, _ in ends]
    return below, [max(0.0, high - value) for _, value, high in ends]


def _bars(axes: Axes, rule: Rule) -> list[Bbox]:
    """The pixels of both intervals."""
    (left, low), (right, high) = axes.transData.transform(
        [(rule.saved[0], rule.score[0]), (rule.saved[2], rule.score[2])]
    )
    x, y = axes.transData.transform((rule.saved[1], rule.score[1]))
    return [Bbox([[left, y - 2], [right, y + 2]]), Bbox([[x - 2, low], [x + 2, high]])]


def _dress(axes: Axes, rules: Sequence[Rule], score: str) -> None:
    saved = [0.0, *(end for rule in rules for end in rule.saved)]
    scores = [end for rule in rules for end in rule.score]
    axes.set_xlim(*_limits(saved, _LEAST[0]))
    low, high = _limits(scores, _LEAST[1])
    axes.set_ylim(max(-0.01, low), min(1.01, high))
    axes.set(
        xlabel="time of an iteration saved against full fine-tuning (%)",
        ylabel=_on_held_out(score),
    )
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _on_held_out(score: str) -> str:
    name, _, scale = score.partition(" (")
    return f"{name} on the held-out images ({scale}"


def _limits(values: Sequence[float], least: float) -> tuple[float, float]:
    wide = max(max(values) - min(values), least)
    middle = (max(values) + min(values)) / 2
    half = wide * (0.5 + _ROOM)
    return middle - half, middle + half
