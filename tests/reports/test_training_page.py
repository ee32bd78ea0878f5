"""The page of a training: results, pictures, text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from robustcli.data.mask_values import UNSCORED
from robustcli.metrics.intervals import Bootstrap, wilson_interval
from robustcli.metrics.mask_scores import compare_masks_with_clean
from robustcli.reports import training_page
from robustcli.reports.figures.canvas import Estimate
from robustcli.reports.figures.training_figures import Level, Point, Strip
from robustcli.reports.statistics import ClassNumbers
from robustcli.reports.training_findings import TrainingFindings, read_training
from robustcli.reports.training_page import (
    class_sentences,
    draw_training_gallery,
    training_report,
    training_text,
)
from robustcli.reports.zoo_findings import Zoo
from robustcli.reports.zoo_page import draw_zoo_gallery
from robustcli.training.recipes import Patchwise
from tests.reports.mask_runs import UNUSUAL_MASKS
from tests.reports.page_parts import assert_golden, assert_states, introduction, section
from tests.reports.train_runs import TrainPlan, build_class_training, build_training

pytestmark = pytest.mark.usefixtures("blank_figures")

DASH = "\N{EN DASH}"
PLAIN = TrainPlan()


def page(run: Path, plan: TrainPlan = PLAIN) -> str:
    return training_text(read_built(run, plan))


def read_built(run: Path, plan: TrainPlan = PLAIN) -> TrainingFindings:
    return read_training(build_training(run, plan))


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("training", TrainPlan(recipe={"name": "nuclei-mini quick"}, dataset={"tolerance": 3})),
        ("training-paper", TrainPlan(protocol="paper")),
        ("training-begun", TrainPlan(measured=False, finished=0)),
    ],
)
def test_the_page_of_a_segmenter(tmp_path: Path, name: str, plan: TrainPlan) -> None:
    page = training_report(build_training(tmp_path, plan))
    assert_golden(page.markdown, name)
    assert list(page.results["model"]) == ["ulvm_v5"]


def test_the_page_of_a_classifier(tmp_path: Path) -> None:
    page = training_report(build_class_training(tmp_path))
    assert_golden(page.markdown, "training-classifier")
    assert list(page.results["model"]) == ["vim"]
    assert "dice" not in page.markdown


OTHER_RECIPE: dict[str, object] = {
    "accumulate": 4, "images_per_epoch": 1200, "patience": 5, "clip": None,
    "expected_dice": 0.8633, "name": "paper",
}  # fmt: skip
SETTINGS: dict[str, object] = {
    "arguments": {"bridge": False, "act": "gelu"}, "scan_backend": "cpu", "device": "NVIDIA H100",
    "devices": 2, "peak_memory_bytes": None, "energy_joules": 7200.0,
}  # fmt: skip


def test_the_pages_of_other_states(tmp_path: Path) -> None:
    subset: dict[str, object] = {"images": 99, "subset": "99 images, seed 0"}
    states = {
        "a demonstration set": TrainPlan(dataset={"demonstration": True}),
        "a subset": TrainPlan(dataset=subset),
        "five epochs are finished": TrainPlan(measured=False, finished=5),
        "it failed before parts were counted": TrainPlan(
            measured=False, record={"status": "failed", "splits": {}}
        ),
        "the paper's protocol, not measured": TrainPlan(protocol="paper", measured=False),
        "a quick recipe": TrainPlan(recipe={"name": "nuclei-mini quick"}),
        "another recipe": TrainPlan(recipe=OTHER_RECIPE),
        "a recipe of patches": TrainPlan(recipe={"patches": Patchwise()}),
        "one held-out group": TrainPlan(groups=1),
        "every image is its own group": TrainPlan(grouping="image"),
        "data with a tolerance": TrainPlan(dataset={"tolerance": 3}),
        "other settings": TrainPlan(record=SETTINGS, dataset={"masks": UNUSUAL_MASKS}),
    }
    pages = {name: page(tmp_path / str(n), plan) for n, (name, plan) in enumerate(states.items())}
    assert_states(page(tmp_path / "complete"), pages, "training-states")


def test_a_classifier_that_is_not_measured_yet_says_so(tmp_path: Path) -> None:
    run = build_class_training(tmp_path, measured=False)
    page = training_text(read_training(run))
    assert page.startswith("# Training of `vim` on `cifar10`: not measured yet")
    assert "**Partial run.**" in introduction(page)
    assert "Not measured yet." in section(page, "## Held-out images")


def test_a_difference_to_the_threshold_that_may_be_chance_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = read_built(tmp_path, TrainPlan())
    rows = training.test.rows
    equal_scores = compare_masks_with_clean(rows, rows, Bootstrap(0))
    scores = replace(equal_scores, drop=0.1, drop_low=-0.1, drop_high=0.2)
    monkeypatch.setattr(training_page, "gain", lambda _: scores)
    assert (
        "Dice of the network minus that of the threshold: -0.100 (paired 95 % interval -0.200 to "
        "0.100, which includes 0, so the difference may be due to chance)"
    ) in training_text(training)


def test_held_out_images_without_a_score_are_counted(tmp_path: Path) -> None:
    training = read_built(tmp_path, TrainPlan())
    assert "Not scored" not in training_text(training)
    skipped = pd.DataFrame({"image_id": ["a", "b"], "reason": [UNSCORED] * 2})
    test = replace(training.test, findings=replace(training.test.findings, skipped=skipped))
    text = section(training_text(replace(training, test=test)), "## Data")
    assert "Not scored: 2 held-out images, because every pixel of the mask is ignored." in text
    validation = training.record.splits["val"].model_copy(update={"unscored": 1})
    splits = {**training.record.splits, "val": validation}
    record = training.record.model_copy(update={"splits": splits})
    text = section(training_text(replace(training, record=record)), "## Data")
    assert "Left out of the validation scores: 1 image, because every pixel of the mask" in text


def test_a_dice_from_empty_images_alone_is_called_so(tmp_path: Path) -> None:
    training = read_built(tmp_path, TrainPlan())
    assert "No foreground found" not in training_text(training)
    training.test.numbers["recall"] = 0.0
    training.test.numbers["dice_foreground"] = 0.0
    text = training_text(training)
    assert "**No foreground found.** No pixel of the true foreground" in text
    assert "Over images with foreground, dice per image is 0.000." in text


def test_several_trainings_have_curves_beside_each_other(tmp_path: Path) -> None:
    runs = [
        build_training(tmp_path / name, TrainPlan(model=name, measured=False, finished=epochs))
        for name, epochs in (("unet", 3), ("ulvm", 0))
    ]
    gallery = draw_zoo_gallery(Zoo([read_training(run) for run in runs]), tmp_path / "out")
    pictures = (*gallery.published, *gallery.curves, *gallery.grids, *gallery.costs)
    assert [Path(picture.path).stem for picture in pictures] == [
        *("dice_over_parameters", "score_by_epoch", "loss_by_epoch", "time_by_epoch"),
        *("dice_curves", "loss_curves"),
    ]
    assert all((tmp_path / "out" / picture.path).is_file() for picture in pictures)
    assert all(
        (tmp_path / "out" / picture.path).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        for picture in gallery.curves
    )


def test_points_are_the_published_dice_and_the_own_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[Point], list[Level]]] = []
    monkeypatch.setattr(
        training_page, "draw_scatter", lambda points, levels, path: calls.append((points, levels))
    )
    training = read_training(build_training(tmp_path))
    draw_training_gallery(training)
    ((points, levels),) = calls
    assert len([point for point in points if not point.measured]) == 13
    line = training.test.numbers
    (custom,) = [point for point in points if point.measured]
    dice = Estimate(line["dice_low"], line["dice"], line["dice_high"])
    assert custom == Point("ulvm_v5", "ulvm_v5", 703_885, dice, measured=True)
    assert [level.dice for level in levels] == [training.baseline.numbers["dice"]]


def test_dots_are_the_dice_of_pooled_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Strip] = []
    monkeypatch.setattr(
        training_page, "draw_strips", lambda strips, group, path: calls.extend(strips)
    )
    training = read_training(build_training(tmp_path))
    draw_training_gallery(training)
    expected = []
    for group in sorted(training.test.rows["group"].unique()):
        part = training.test.rows[training.test.rows["group"] == group]
        denominator = 2 * part["tp"].sum() + part["fp"].sum() + part["fn"].sum()
        expected.append(2 * part["tp"].sum() / denominator)
    np.testing.assert_allclose(calls[0].values, expected)
    assert calls[0].mean.value == pytest.approx(np.mean(expected))
    assert [strip.name for strip in calls] == ["ulvm_v5", "otsu"]


def test_the_lowest_of_many_equal_classes_is_rarely_called_lower() -> None:
    # With unadjusted intervals, 27 of these 30 trainings call it lower than the others.
    generator, claimed = np.random.default_rng(0), 0
    for _ in range(30):
        correct = generator.binomial(20, 0.8, 100)
        claimed += "by chance" not in sentence_of_classes(
            [(f"class {k}", 20, c) for k, c in enumerate(correct)]
        )
    assert claimed <= 3
    assert "by chance" not in sentence_of_classes([("a", 100, 20), ("b", 100, 90), ("c", 100, 91)])


def test_all_classes_with_the_lowest_f1_are_named() -> None:
    words = sentence_of_classes([("a", 10, 0), ("b", 10, 9), ("c", 10, 0)])
    assert words == "The classes with the lowest F1 are `a` and `c`: 0.000."


def sentence_of_classes(counts: Sequence[tuple[str, int, int]]) -> str:
    lines = []
    for number, (name, n, correct) in enumerate(counts):
        share, ends = correct / n, wilson_interval(correct, n)
        lines.append(
            ClassNumbers(
                "vim",
                number,
                name,
                n,
                correct,
                share,
                *ends,
                None,
                n,
                share,
                share + 1e-9 * number * correct,
            )
        )
    statistics = SimpleNamespace(classes=lines, confusions=[])
    return class_sentences(cast(TrainingFindings, SimpleNamespace(classes=statistics)))[0]
