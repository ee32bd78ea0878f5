from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from robustcli.reports import training_gallery
from robustcli.reports.figures.training_figures import Level, Point, Strip
from robustcli.reports.training_findings import read_training
from robustcli.reports.training_gallery import (
    TrainingGallery,
    draw_training_gallery,
    draw_zoo_gallery,
)
from tests.reports.train_runs import TrainPlan, build_training


def names(gallery: TrainingGallery) -> list[str]:
    kinds = (gallery.scatter, gallery.curves, gallery.strips, gallery.cases)
    return [Path(figure.path).stem for kind in kinds for figure in kind]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (TrainPlan(), ["dice_over_parameters", "curves", "groups", "cases-ulvm_v5"]),
        (TrainPlan(measured=False, finished=2), ["dice_over_parameters", "curves"]),
        (TrainPlan(measured=False, finished=0), ["dice_over_parameters"]),
    ],
)
def test_a_training_has_the_pictures_that_it_has_data_for(
    tmp_path: Path, plan: TrainPlan, expected: list[str]
) -> None:
    gallery = draw_training_gallery(read_training(build_training(tmp_path, plan)))
    assert names(gallery) == expected
    assert all((tmp_path / "figures" / f"{name}.png").is_file() for name in expected)


def test_several_trainings_have_curves_beside_each_other(tmp_path: Path) -> None:
    runs = [
        build_training(tmp_path / name, TrainPlan(model=name, measured=False, finished=finished))
        for name, finished in (("unet", 3), ("ulvm", 0))
    ]
    gallery = draw_zoo_gallery([read_training(run) for run in runs], tmp_path / "out")
    assert names(gallery) == ["dice_over_parameters", "dice_curves", "loss_curves"]
    assert (tmp_path / "out/figures/loss_curves.png").is_file()


def test_points_are_the_published_dice_and_the_own_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[Point], list[Level]]] = []
    monkeypatch.setattr(
        training_gallery,
        "draw_scatter",
        lambda points, levels, path: drawn.append((points, levels)),
    )
    training = read_training(build_training(tmp_path))
    draw_training_gallery(training)
    ((points, levels),) = drawn
    assert len([point for point in points if not point.own]) == 13
    assert training.test is not None
    assert training.baseline is not None
    line = training.test.numbers
    (own,) = [point for point in points if point.own]
    assert astuple(own) == (
        *("ulvm_v5", "ulvm_v5", 703_885, line["dice"], True, line["dice_low"], line["dice_high"]),
    )
    assert [level.dice for level in levels] == [training.baseline.numbers["dice"]]


def test_dots_are_the_dice_of_pooled_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Strip] = []
    monkeypatch.setattr(
        training_gallery, "draw_strips", lambda strips, group, path: drawn.extend(strips)
    )
    training = read_training(build_training(tmp_path))
    draw_training_gallery(training)
    assert training.test is not None
    expected = []
    for group in sorted(training.test.rows["group"].unique()):
        part = training.test.rows[training.test.rows["group"] == group]
        whole = 2 * part["tp"].sum() + part["fp"].sum() + part["fn"].sum()
        expected.append(2 * part["tp"].sum() / whole)
    np.testing.assert_allclose(drawn[0].values, expected)
    assert drawn[0].mean == pytest.approx(np.mean(expected))
    assert [strip.name for strip in drawn] == ["ulvm_v5", "otsu"]
