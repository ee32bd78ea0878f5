from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from robustcli.evaluation.metrics import table
from robustcli.reports.figures.bars import draw_bars
from robustcli.reports.measure import DICE
from robustcli.reports.ranking import extremes
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.figures.layout import assert_no_overlap, assert_nothing_clipped, caught
from tests.reports.mask_runs import MaskPlan, build_masks

LONG = "swin_base_patch4_window7_224.ms_in1k"


def numbers(run: Path, models: int, cells: int = 21) -> pd.DataFrame:
    names = [LONG, *(f"model-{i}" for i in range(1, models))][:models]
    plan = RunPlan(
        models=[model(name) for name in names], transforms=(IDENTITY, *paper21()[:cells])
    )
    return table(build_run(run, plan))


def drawn(monkeypatch: pytest.MonkeyPatch, rows: pd.DataFrame) -> Figure:
    return caught(monkeypatch, "bars", lambda: draw_bars(rows, extremes(rows), Path()))


@pytest.mark.parametrize("models", [1, 3, 6])
def test_bars_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: int) -> None:
    figure = drawn(monkeypatch, numbers(tmp_path, models))
    assert_nothing_clipped(figure)
    for axes in figure.axes:
        assert_no_overlap([text for text in axes.texts if isinstance(text, Annotation)])
        assert_no_overlap(axes.get_xticklabels())


def test_bars_are_as_high_as_the_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = numbers(tmp_path, 2)
    best, worst = drawn(monkeypatch, rows).axes
    ends = extremes(rows)
    for axes, cells in ((best, ends.best), (worst, ends.worst)):
        for container, name in zip(axes.containers[1::2], rows["model"].unique(), strict=True):
            mine = rows[rows["model"] == name].set_index("transform")["top1"]
            heights = [bar.get_height() for bar in container]
            assert heights == pytest.approx([100 * mine[transform] for transform, _ in cells])
    assert [label.get_text().replace("\n", "") for label in worst.get_xticklabels()] == [
        transform for transform, _ in ends.worst
    ]


@pytest.mark.parametrize(("cells", "panels"), [(1, 1), (2, 2)])
def test_few_transforms(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cells: int, panels: int
) -> None:
    figure = drawn(monkeypatch, numbers(tmp_path, 1, cells))
    assert len(figure.axes) == panels
    assert_nothing_clipped(figure)


def test_severities_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = RunPlan(transforms=(IDENTITY, *imagenet_c()[:45]))
    figure = drawn(monkeypatch, table(build_run(tmp_path, plan)))
    assert_nothing_clipped(figure)
    for axes in figure.axes:
        assert_no_overlap(axes.get_xticklabels())
        assert all("severity 5" in label.get_text() for label in axes.get_xticklabels())


def test_dice_without_intervals_are_drawn_with_their_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = MaskPlan(transforms=(IDENTITY, *paper21()[:2]), groups=1)
    rows = table(build_masks(tmp_path, plan))
    ends = extremes(rows, by=DICE)
    figure = caught(monkeypatch, "bars", lambda: draw_bars(rows, ends, Path(), DICE))
    assert_nothing_clipped(figure)
    dice = rows.set_index("transform")["dice"]
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert shown == [f"{dice[name]:.3f}" for name, _ in (*ends.best, *ends.worst)]
    assert figure.axes[0].get_ylabel() == "dice (0 to 1)"
    assert figure.axes[0].get_ylim()[1] < 1.2
