from pathlib import Path

import numpy as np
import pytest

from robustcli.reports.figures.tradeoff import Rule, draw_tradeoff
from tests.reports.figures.layout import (
    assert_no_overlap,
    assert_nothing_clipped,
    caught,
    error_bar,
)

RULES = [
    Rule("nothing frozen", "state-space blocks", (-1, 0, 1), (0.82, 0.86, 0.89)),
    *(
        Rule(
            f"below 1e-{n}",
            "state-space blocks",
            (n - 4, n - 3.0, n - 2),
            (0.8, 0.86 - n / 500, 0.9),
        )
        for n in range(4, 8)
    ),
    Rule("smallest 0.3", "all tensors", (8, 11, 14), (0.8, 0.84, 0.87)),
    Rule("encoder.stages.*", "by name", (25, 31, 34), (0.83, 0.83, 0.83)),
]


def test_points_stand_where_the_numbers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = caught(monkeypatch, "tradeoff", lambda: draw_tradeoff(RULES, Path()))
    (axes,) = figure.axes
    points, ends = error_bar(axes, 0)
    np.testing.assert_allclose(points, [(r.saved[1], r.score[1]) for r in RULES[:5]])
    np.testing.assert_allclose(ends[:, :, 0], [(r.saved[0], r.saved[2]) for r in RULES[:5]])
    assert {text.get_text() for text in axes.texts} == {rule.name for rule in RULES}
    assert [t.get_text() for t in figure.legends[0].texts] == [
        *("state-space blocks", "all tensors", "by name"),
    ]


def test_it_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = caught(monkeypatch, "tradeoff", lambda: draw_tradeoff(RULES, Path()))
    assert_nothing_clipped(figure)
    assert_no_overlap([*figure.axes[0].texts, *figure.legends[0].texts])


@pytest.mark.parametrize("saved", [(-3.0, -3.0, -3.0), (40.0, 40.0, 40.0)])
def test_one_rule_and_the_time_of_full_are_inside(
    monkeypatch: pytest.MonkeyPatch, saved: tuple[float, float, float]
) -> None:
    one = [Rule("a", "by name", saved, (1.0, 1.0, 1.0))]
    figure = caught(monkeypatch, "tradeoff", lambda: draw_tradeoff(one, Path()))
    low, high = figure.axes[0].get_xlim()
    assert low < min(0, saved[0])
    assert high > max(0, saved[2])
    assert figure.axes[0].get_ylim()[1] <= 1.01
