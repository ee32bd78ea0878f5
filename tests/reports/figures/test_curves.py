from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from robustcli.reports.figures.curves import Course, draw_course_grid, draw_curves
from tests.reports.figures.layout import assert_no_overlap, assert_nothing_clipped, caught


def course(epochs: int, name: str = "ulvm_v5", chosen: int | None = 1) -> Course:
    epoch = np.arange(1, epochs + 1)
    table = {
        "epoch": epoch,
        "train_loss": 1 / epoch - 0.5,
        "val_loss": 1.2 / epoch,
        "val_dice": 1 - 0.9 / epoch,
        "val_iou": 1 - 0.95 / epoch,
    }
    return Course(name, pd.DataFrame(table), chosen)


def named(axes: Axes) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}


@pytest.mark.parametrize("epochs", [1, 12, 100])
def test_curves_are_the_lines_of_the_log(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    shown = course(epochs, chosen=epochs)
    figure = caught(monkeypatch, "curves", lambda: draw_curves(shown, Path()))
    assert_nothing_clipped(figure)
    loss, dice = figure.axes
    np.testing.assert_allclose(
        named(loss)["training loss"], shown.metrics[["epoch", "train_loss"]].to_numpy()
    )
    np.testing.assert_allclose(
        named(dice)["validation IoU"], shown.metrics[["epoch", "val_iou"]].to_numpy()
    )
    assert set(named(loss)["chosen epoch"][:, 0]) == {epochs}
    assert_no_overlap(loss.get_xticklabels())
    assert all(float(tick) == int(tick) for tick in loss.get_xticks())


def test_a_loss_below_zero_is_inside_the_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = caught(monkeypatch, "curves", lambda: draw_curves(course(10), Path()))
    assert figure.axes[0].get_ylim()[0] <= 1 / 10 - 0.5


def test_lines_can_be_told_apart_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = caught(monkeypatch, "curves", lambda: draw_curves(course(10), Path()))
    for axes in figure.axes:
        assert len({line.get_linestyle() for line in axes.lines}) == len(axes.lines)


def test_no_epoch_is_marked_before_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = course(10, chosen=None)
    figure = caught(monkeypatch, "curves", lambda: draw_curves(shown, Path()))
    assert "chosen epoch" not in named(figure.axes[0])


@pytest.mark.parametrize("count", [1, 2, 14])
def test_small_panels_can_be_read(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    names = [f"resnet18_seg (runs/train-resnet18_seg-{i:08d})" for i in range(count)]
    shown = [course(5 + i, name) for i, name in enumerate(names)]
    figure = caught(monkeypatch, "curves", lambda: draw_course_grid(shown, "dice", Path()))
    assert_nothing_clipped(figure)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == count
    assert_no_overlap(axes.title for axes in panels)
    for axes, one in zip(panels, shown, strict=True):
        found = named(axes)["validation dice"]
        np.testing.assert_allclose(found, one.metrics[["epoch", "val_dice"]].to_numpy())
