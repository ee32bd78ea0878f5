from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from robustcli.reports.figures.modes import ModeCourse, draw_modes
from tests.reports.figures.layout import assert_no_overlap, assert_nothing_clipped, caught

NAMES = ("scratch", "full", "freeze", "lora")


def course(
    look: int, epochs: int = 8, seconds: float = 10, frozen_at: int | None = None
) -> ModeCourse:
    epoch = np.arange(1, epochs + 1)
    table = {
        "epoch": epoch,
        "step": 20 * epoch,
        "seconds": np.full(epochs, seconds),
        "val_loss": 1 / epoch - 0.2 * look,
        "val_dice": 1 - 0.9 / (epoch + look),
    }
    return ModeCourse(NAMES[look], look, pd.DataFrame(table), epochs, frozen_at)


def named(axes: Axes) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}


@pytest.mark.parametrize("epochs", [1, 8, 60])
def test_four_panels_show_loss_and_dice_by_epoch_and_by_time(
    monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    shown = [course(look, epochs) for look in range(4)]
    figure = caught(monkeypatch, "modes", lambda: draw_modes(shown, Path()))
    assert_nothing_clipped(figure)
    (loss, loss_time), (dice, dice_time) = np.array(figure.axes).reshape(2, 2)
    for one in shown:
        m = one.metrics
        np.testing.assert_allclose(named(loss)[one.name], m[["epoch", "val_loss"]].to_numpy())
        np.testing.assert_allclose(named(dice)[one.name], m[["epoch", "val_dice"]].to_numpy())
        unit = 60 if 10 * epochs >= 180 else 1
        clock = 10 * m["epoch"].to_numpy() / unit
        np.testing.assert_allclose(named(dice_time)[one.name][:, 0], clock)
        np.testing.assert_allclose(named(loss_time)[one.name][:, 1], m["val_loss"])
    assert dice.get_ylim() == (0, 1)
    assert_no_overlap(dice.get_xticklabels())
    assert_no_overlap(dice_time.get_xticklabels())


@pytest.mark.parametrize(("seconds", "unit"), [(10, "seconds"), (100, "minutes"), (5000, "hours")])
def test_time_is_in_a_unit_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch, seconds: float, unit: str
) -> None:
    figure = caught(monkeypatch, "modes", lambda: draw_modes([course(1, 8, seconds)], Path()))
    assert figure.axes[3].get_xlabel() == f"{unit} of training and validation"


def test_lines_can_be_told_apart_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [course(look) for look in range(4)]
    figure = caught(monkeypatch, "modes", lambda: draw_modes(shown, Path()))
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    assert len({lines[name].get_marker() for name in NAMES}) == 4
    assert len({str(lines[name].get_linestyle()) for name in NAMES}) >= 3


def test_the_moment_of_freezing_is_marked_on_both_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [course(1), course(2, frozen_at=30)]
    figure = caught(monkeypatch, "modes", lambda: draw_modes(shown, Path()))
    marks = [set(named(axes)["moment of freezing"][:, 0]) for axes in figure.axes[:2]]
    assert marks == [{1.5}, {15.0}], "step 30 of 20 an epoch; epochs of 10 s"


def test_the_chosen_epoch_has_a_large_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    one = course(1)
    figure = caught(monkeypatch, "modes", lambda: draw_modes([one], Path()))
    large = [line for line in figure.axes[2].lines if line.get_markersize() > 6]
    assert [np.asarray(line.get_xydata()).tolist() for line in large] == [
        [[8, one.metrics["val_dice"].iloc[-1]]]
    ]
