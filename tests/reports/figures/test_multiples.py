from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from robustcli.evaluation.metrics import table
from robustcli.reports.figures.multiples import draw_multiples
from robustcli.reports.measure import DICE
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.figures.layout import assert_no_overlap, assert_nothing_clipped, caught
from tests.reports.mask_runs import MaskPlan, build_masks


def drawn(monkeypatch: pytest.MonkeyPatch, rows: pd.DataFrame) -> Figure:
    clean = rows[rows["transform"] == "identity"]
    graded = rows[rows["severity"] > 0]
    return caught(monkeypatch, "multiples", lambda: draw_multiples(graded, clean, Path()))


def points(line: Line2D) -> NDArray[np.float64]:
    return np.asarray(line.get_xydata(), float)


@pytest.mark.parametrize("corruptions", [1, 6, pytest.param(19, marks=pytest.mark.slow)])
def test_panels_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corruptions: int
) -> None:
    models = (model("vmamba-b"), model("swin_base_patch4_window7_224.ms_in1k"))
    cells = (IDENTITY, *imagenet_c("imagenetc_")[: 5 * corruptions])
    plan = RunPlan(models=models, transforms=cells, images=12)
    figure = drawn(monkeypatch, table(build_run(tmp_path, plan)))
    assert_nothing_clipped(figure)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == corruptions
    assert_no_overlap([axes.title for axes in shown])
    assert all(
        axes.xaxis.get_tick_params()["labelbottom"] for axes in shown[-min(5, corruptions) :]
    )


def test_lines_are_the_numbers_in_the_order_of_severity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cells = (IDENTITY, *imagenet_c(severities=(5, 1, 3))[:3])
    rows = table(build_run(tmp_path, RunPlan(transforms=cells)))
    (axes,) = drawn(monkeypatch, rows).axes
    line = next(points(line) for line in axes.lines if line.get_label() == "vmamba-b")
    expected = rows[rows["severity"] > 0].sort_values("severity")["top1"] * 100
    assert list(line[:, 0]) == [1, 3, 5]
    assert list(line[:, 1]) == pytest.approx(list(expected))
    clean = 100 * rows["top1"].iloc[0]
    levels = {round(float(points(line)[0, 1]), 6) for line in axes.lines if len(points(line))}
    assert {round(clean, 6), round(clean / 2, 6)} <= levels


def test_without_clean_accuracy_there_are_only_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = table(build_run(tmp_path, RunPlan(transforms=imagenet_c()[:5])))
    (axes,) = drawn(monkeypatch, rows).axes
    assert len([line for line in axes.lines if len(points(line))]) == 1


def test_dice_have_the_axis_of_fractions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21(1)[:1], *paper21(5)[:1])
    rows = table(build_masks(tmp_path, MaskPlan(transforms=cells)))
    graded, clean = rows[rows["severity"] > 0], rows[rows["severity"] == 0]
    figure = caught(monkeypatch, "multiples", lambda: draw_multiples(graded, clean, Path(), DICE))
    assert_nothing_clipped(figure)
    assert figure.axes[0].get_ylim() == (0, 1)
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), graded["dice"])
