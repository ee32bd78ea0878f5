from pathlib import Path

import numpy as np
import pytest

from robustcli.evaluation.metrics import table
from robustcli.reports.figures.dots import draw_dots
from robustcli.reports.measure import DICE
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.figures.layout import (
    assert_no_overlap,
    assert_nothing_clipped,
    caught,
    error_bar,
)
from tests.reports.mask_runs import MaskPlan, build_masks


@pytest.mark.parametrize(
    ("models", "cells"), [(1, 21), (6, 40), pytest.param(1, 119, marks=pytest.mark.slow)]
)
def test_dots_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: int, cells: int
) -> None:
    transforms = (IDENTITY, *(*paper21(), *imagenet_c(), *paper21(2))[:cells])
    names = ["swin_base_patch4_window7_224.ms_in1k", *"abcde"][:models]
    plan = RunPlan(models=[model(name) for name in names], transforms=transforms, images=12)
    rows = table(build_run(tmp_path, plan))
    figure = caught(monkeypatch, "dots", lambda: draw_dots(rows, Path()))
    assert_nothing_clipped(figure)
    labels = figure.axes[0].get_yticklabels()
    assert len(labels) == cells + 1
    assert_no_overlap(labels)


def test_dots_are_at_the_numbers_best_on_top(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = RunPlan(models=(model("a"), model("b")), transforms=(IDENTITY, *paper21()[:5]))
    rows = table(build_run(tmp_path, plan))
    (axes,) = caught(monkeypatch, "dots", lambda: draw_dots(rows, Path())).axes
    means = rows.groupby("transform")["top1"].mean().drop("identity").sort_values()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["identity (clean)", *means.index[::-1]]
    for number, name in enumerate("ab"):
        mine = rows[rows["model"] == name]
        points, whiskers = error_bar(axes, number)
        np.testing.assert_allclose(points[:, 0], 100 * mine["top1"].to_numpy())
        ends = 100 * mine[["top1_low", "top1_high"]].to_numpy()
        np.testing.assert_allclose(whiskers[:, :, 0], ends)
    assert axes.yaxis.get_inverted()


def test_a_cell_without_rows_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = table(build_run(tmp_path, RunPlan(transforms=(IDENTITY, *paper21()[:3]))))
    rows.loc[1, ["top1", "top1_low", "top1_high"]] = float("nan")
    (axes,) = caught(monkeypatch, "dots", lambda: draw_dots(rows, Path())).axes
    assert len(axes.get_yticklabels()) == 3


def test_dice_are_drawn_as_fractions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = table(build_masks(tmp_path, MaskPlan(transforms=(IDENTITY, *paper21()[:3]))))
    figure = caught(monkeypatch, "dots", lambda: draw_dots(rows, Path(), DICE))
    assert_nothing_clipped(figure)
    (axes,) = figure.axes
    np.testing.assert_allclose(error_bar(axes, 0)[0][:, 0], rows["dice"].to_numpy())
    assert axes.get_xlim()[1] <= 1.0
    assert axes.get_xlabel() == "dice (0 to 1)"
