"""The page of a training: results, pictures, text."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.mask_scores import compare_masks
from robustcli.reports import training_page
from robustcli.reports.figures.training_figures import Level, Point, Strip
from robustcli.reports.measure import RELAXED
from robustcli.reports.training_findings import TrainingFindings, gain, pooled, read_training
from robustcli.reports.training_page import (
    TrainingGallery,
    draw_training_gallery,
    draw_zoo_gallery,
    training_report,
    training_text,
)
from robustcli.reports.zoo_rows import Zoo
from robustcli.tasks.record import MasksRecord
from robustcli.training.recipes import Patchwise
from tests.reports.page_parts import assert_golden, line_of, section
from tests.reports.train_runs import FAULTS, TrainPlan, build_class_training, build_training

PLAIN = TrainPlan()


def page(run: Path, plan: TrainPlan = PLAIN) -> str:
    return training_text(read(run, plan))


def read(run: Path, plan: TrainPlan = PLAIN) -> TrainingFindings:
    return read_training(build_training(run, plan))


def opening(page: str) -> str:
    """What stands before the first section."""
    return page.split("\n## ")[0]


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


def test_a_classifier_that_is_not_measured_yet_says_so(tmp_path: Path) -> None:
    run = build_class_training(tmp_path, measured=False)
    page = training_text(read_training(run))
    assert page.startswith("# Training of `vim` on `cifar10`: not measured yet")
    assert "**Partial run.**" in opening(page)
    assert "Not measured yet." in section(page, "## Held-out images")


def test_what_it_cost_is_said(tmp_path: Path) -> None:
    text = page(tmp_path, TrainPlan(record={"energy_joules": 7200.0}))
    for fact in (
        "12 epochs, 120 steps in 48.0 s (median epoch 4.0 s, with its validation).",
        "The network waited for images 2.0 % of its training time.",
        "Peak memory: 1.50 GiB.",
        "Energy of the device: 2.00 Wh.",
    ):
        assert f"- {fact}\n" in section(text, "How the training went")


def test_memory_and_energy_that_nobody_measured_are_not_told(tmp_path: Path) -> None:
    plan = TrainPlan(record={"peak_memory_bytes": None})
    facts = section(page(tmp_path, plan), "How the training went")
    assert "memory" not in facts
    assert "Energy" not in facts


@pytest.mark.parametrize(
    ("record", "machine"),
    [
        ({}, "On cpu (2 threads)."),
        ({"device": "NVIDIA H100", "devices": 2}, "On NVIDIA H100, 2 threads, 2 processes."),
    ],
)
def test_the_machine_is_named(tmp_path: Path, record: dict[str, object], machine: str) -> None:
    assert f"- {machine}\n" in page(tmp_path, TrainPlan(record=record))


def test_before_the_first_epoch_there_is_nothing_to_tell(tmp_path: Path) -> None:
    plan = TrainPlan(measured=False, finished=0)
    text = page(tmp_path, plan)
    assert "No epoch is finished yet." in text


def test_the_parts_of_the_data_are_counted(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert line_of(text, "part") == ["part", "images", "patients", "images without foreground"]
    assert line_of(text, "training") == ["training", "3,143", "88", "2,050"]
    assert line_of(text, "held out") == ["held out", "24", "8", "4"]
    assert "Empty masks: an image (and a patient)" in text


def test_where_every_image_is_its_own_group_groups_are_not_counted(tmp_path: Path) -> None:
    text = page(tmp_path, TrainPlan(grouping="image"))
    assert line_of(text, "training") == ["training", "3,143", "2,050"]


def test_parts_that_are_not_counted_yet_are_left_out(tmp_path: Path) -> None:
    plan = TrainPlan(measured=False, record={"splits": {}})
    text = page(tmp_path, plan)
    assert "| part" not in text


DASH = "\N{EN DASH}"
RELAXED_NAMES = ["relaxed precision", "relaxed recall"]


def test_the_network_stands_above_otsus_threshold(tmp_path: Path) -> None:
    training = read(tmp_path)
    page = training_text(training)
    assert training.baseline is not None
    line = training.baseline.numbers
    held_out = section(page, "Held-out images")
    assert line_of(held_out, "model") == ["model", "dice per patient", "IoU per patient"]
    assert line_of(held_out, "`otsu`") == [
        "`otsu`",
        f"{line['dice']:.3f} ({line['dice_low']:.3f}{DASH}{line['dice_high']:.3f})",
        f"{line['iou']:.3f} ({line['iou_low']:.3f}{DASH}{line['iou_high']:.3f})",
    ]
    details = line_of(page.split("### Single images")[1], "`ulvm_v5`")
    assert training.test is not None
    assert details[1] == f"{training.test.numbers['dice_image']:.3f}"
    assert details[6] == f"{training.test.numbers['hd95']:.1f}"


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan(measured=False))
    assert "Not measured yet." in training_text(training)


def test_protocol_paper_tells_both_ways_of_counting_and_its_faults(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan(protocol="paper"))
    found = pooled(training)
    assert found is not None
    page = training_text(training)
    assert line_of(page, "batches of 16 slices")[1].startswith(f"{found.score.dice:.3f} (")
    assert line_of(page, "per patient")[1].startswith("0.8")
    assert "1 of 3 batches hold no foreground, true or predicted" in page
    assert all(f"- {fault}" in page for fault in FAULTS)


def test_another_protocol_has_no_such_section(tmp_path: Path) -> None:
    assert "The paper's way of counting" not in page(tmp_path)


def test_faults_are_listed_before_anything_is_measured(tmp_path: Path) -> None:
    plan = TrainPlan(protocol="paper", measured=False)
    text = page(tmp_path, plan)
    assert "| counted" not in text
    assert FAULTS[0] in text


def test_of_roads_the_relaxed_numbers_stand_beside_dice(tmp_path: Path) -> None:
    plan = TrainPlan(grouping="photo", dataset={"tolerance": 3})
    training = read(tmp_path, plan)
    page = training_text(training)
    assert line_of(page, "model") == ["model", "dice per photo", "IoU per photo", *RELAXED_NAMES]
    for name, held in (("ulvm_v5", training.test), ("otsu", training.baseline)):
        assert held is not None
        shown = [measure.with_range(held.numbers) for measure in RELAXED]
        assert line_of(page, f"`{name}`")[3:] == shown
    assert "within 3 pixels" in page


def test_the_title_names_network_data_protocol_and_dice(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan())
    assert training.test is not None
    line = training.test.numbers
    assert training_text(training).splitlines()[0] == (
        "# Training of `ulvm_v5` on `kaggle_3m`, protocol patient: dice "
        f"{line['dice']:.3f} ({line['dice_low']:.3f}{DASH}{line['dice_high']:.3f})"
    )


def test_protocol_paper_leads_with_its_own_statistic_and_tells_both(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan(protocol="paper"))
    paper = pooled(training)
    assert paper is not None
    text = training_text(training)
    assert f"protocol paper: dice {paper.score.dice:.3f} (" in text.splitlines()[0]
    assert f"over 3 batches of 16 slices: dice {paper.score.dice:.3f} (" in text
    assert training.test is not None
    assert f"of 8 patients: dice {training.test.numbers['dice']:.3f} (" in text


def test_the_result_stands_beside_otsus(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan())
    compared = gain(training)
    assert compared is not None
    assert compared.drop is not None
    assert compared.drop_low is not None
    assert compared.drop_high is not None
    text = training_text(training)
    assert "Otsu's threshold on the same images: dice 0.6" in text
    assert (
        f"The network gains +{-compared.drop:.3f} (paired 95 % interval "
        f"{-compared.drop_high:.3f} to {-compared.drop_low:.3f})."
    ) in text


def test_a_gain_that_may_be_chance_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = read(tmp_path, TrainPlan())
    assert training.test is not None
    rows = training.test.rows
    same = compare_masks(rows, rows, Bootstrap(0))
    monkeypatch.setattr(training_page, "gain", lambda _: same)
    assert (
        "gains 0.000 (paired 95 % interval 0.000 to 0.000: it includes 0, so this can be chance)"
        in training_text(training)
    )


def test_the_chosen_epoch_is_named_with_the_reason(tmp_path: Path) -> None:
    text = page(tmp_path, TrainPlan())
    assert "Weights of epoch 11 of 12: the best dice on the validation images, 0.7600." in text
    assert "was trained on 3,143 images of `kaggle_3m` under the protocol patient: split by" in text


@pytest.mark.parametrize(
    ("plan", "notice"),
    [
        (TrainPlan(dataset={"demonstration": True}), "**Demonstration set.**"),
        (
            TrainPlan(dataset={"images": 99, "subset": "99 images, seed 0"}),
            "**Subset.** 99 of 3,929 images (99 images, seed 0).",
        ),
        (
            TrainPlan(measured=False, finished=5),
            "**Partial run.** 5 of 12 epochs are finished (status: running).",
        ),
        (TrainPlan(measured=False, finished=0), "protocol patient: not measured yet"),
        (TrainPlan(recipe={"name": "nuclei-mini quick"}), "**Quick recipe.** 12 epochs:"),
        (TrainPlan(groups=1), "**One held-out patient only.**"),
        (TrainPlan(measured=False, record={"status": "failed"}), "(status: failed)"),
    ],
)
def test_what_limits_the_numbers_is_said(tmp_path: Path, plan: TrainPlan, notice: str) -> None:
    assert notice in opening(page(tmp_path, plan))


def test_a_dice_from_empty_images_alone_is_called_so(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan())
    assert training.test is not None
    assert "Nothing found" not in training_text(training)
    training.test.numbers["recall"] = 0.0
    training.test.numbers["dice_foreground"] = 0.0
    text = training_text(training)
    assert "**Nothing found.** Not one pixel of true foreground" in text
    assert "Over images with foreground alone, dice per image is 0.000." in text


def test_nothing_is_limited_without_reason(tmp_path: Path) -> None:
    assert "**" not in opening(page(tmp_path))


def test_of_roads_the_relaxed_numbers_are_told(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan(dataset={"tolerance": 3}))
    assert training.test is not None
    line = training.test.numbers
    words = f"Relaxed precision and recall (3 pixels): {line['relaxed_precision']:.3f} ("
    page = training_text(training)
    assert words in page
    assert f" and {line['relaxed_recall']:.3f} (" in page


CHANGED: dict[str, object] = {
    "accumulate": 4,
    "images_per_epoch": 1200,
    "patience": 5,
    "clip": None,
    "expected_dice": 0.8633,
    "name": "paper",
}


def test_the_recipe_is_told_line_by_line(tmp_path: Path) -> None:
    plain = section(page(tmp_path / "a"), "Recipe and settings")
    changed = section(page(tmp_path / "b", TrainPlan(recipe=CHANGED)), "Recipe and settings")
    for name, first, second in (
        ("loss", "bce-dice", "bce-dice"),
        ("optimizer", "AdamW, weight decay 0.01", "AdamW, weight decay 0.01"),
        ("learning rate", "0.001, constant", "0.001, constant"),
        ("batch", "8", "8, gradients of 4 added up"),
        ("images an epoch", "all", "1,200"),
        ("early stopping", "no", "after 5 epochs"),
        ("gradient norm at most", "1", "any"),
        ("dice it should reach", DASH, "0.8633"),
        ("recipe", "patient", "paper"),
    ):
        assert (line_of(plain, name)[1], line_of(changed, name)[1]) == (first, second)


def test_a_recipe_of_patches_is_told_as_nnunet_has_it(tmp_path: Path) -> None:
    text = page(tmp_path, TrainPlan(recipe={"patches": Patchwise()}))
    recipe = section(text, "Recipe and settings")
    names = [line.split("|")[1].strip() for line in recipe.splitlines() if line.startswith("| ")]
    assert names[6:15] == [
        *("epochs", "iterations an epoch", "batches of a validation", "momentum"),
        *("share of a batch with foreground", "dice of the loss", "normalisation"),
        *("best epoch by", "early stopping"),
    ]
    assert line_of(recipe, "momentum")[1] == "0.99, Nesterov"
    assert line_of(recipe, "share of a batch")[1] == "33% at least"
    assert line_of(recipe, "normalisation")[1] == "zscore"


def test_how_the_paper_pooled_is_told_for_its_protocol_only(tmp_path: Path) -> None:
    plan = TrainPlan(protocol="paper")
    assert line_of(page(tmp_path / "a", plan), "slices for one dice")[1] == "16"
    assert "slices for one dice" not in page(tmp_path / "b", TrainPlan())


def test_everything_that_was_set_is_told(tmp_path: Path) -> None:
    record: dict[str, object] = {
        "arguments": {"bridge": False, "act": "gelu"},
        "scan_backend": "cpu",
    }
    words = "foreground is `128`, `255` is ignored"
    masks = MasksRecord(
        foreground=["128"], background=None, ignored=["255"], channel="colour", words=words
    )
    text = page(tmp_path, TrainPlan(record=record, dataset={"masks": masks}))
    settings = section(text, "Recipe and settings")
    for fact in (
        "Images: `kaggle_3m` at `lgg/kaggle_3m`; 3,929 of 3,929 images.",
        "Subset: none. A group is one patient.",
        f"Masks: {words}.",
        f"Digest of the image list: `{'cd' * 32}`.",
        "Foreground: probability >= 0.5. Seed: 0.",
        'Network: `ulvm_v5` of family ulvm; arguments `bridge=false, act="gelu"`.',
        f"Started from the documented initialisation, seed 0, SHA-256 `{'aa' * 32}`.",
        f"Chosen weights: `weights.safetensors`, SHA-256 `{'bb' * 32}`.",
        "Scan: cpu.",
    ):
        assert f"- {fact}\n" in settings
    assert "```text\nrobust train seg --model ulvm_v5 --protocol patient\n```" in text
    assert "Versions: robust 0.1.0, torch 2.6.0. Device: cpu (2 threads)." in text


def test_weights_that_are_not_chosen_yet_are_not_named(tmp_path: Path) -> None:
    assert "Chosen weights" not in page(tmp_path, TrainPlan(measured=False))


def test_the_source_of_the_relaxed_numbers_is_told_of_roads_only(tmp_path: Path) -> None:
    roads = TrainPlan(dataset={"tolerance": 3})
    assert "Relaxed precision and recall: 3 pixels, as V. Mnih" in page(tmp_path / "a", roads)
    assert "Relaxed" not in page(tmp_path / "b", TrainPlan())


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
    gallery = draw_zoo_gallery(Zoo([read_training(run) for run in runs]), tmp_path / "out")
    assert names(gallery) == ["dice_over_parameters", "dice_curves", "loss_curves"]
    assert (tmp_path / "out/figures/loss_curves.png").is_file()


def test_points_are_the_published_dice_and_the_own_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[Point], list[Level]]] = []
    monkeypatch.setattr(
        training_page,
        "draw_scatter",
        lambda points, levels, path: drawn.append((points, levels)),
    )
    training = read_training(build_training(tmp_path))
    draw_training_gallery(training)
    ((points, levels),) = drawn
    assert len([point for point in points if not point.measured]) == 13
    assert training.test is not None
    assert training.baseline is not None
    line = training.test.numbers
    (own,) = [point for point in points if point.measured]
    assert astuple(own) == (
        *("ulvm_v5", "ulvm_v5", 703_885, line["dice"], True, line["dice_low"], line["dice_high"]),
    )
    assert [level.dice for level in levels] == [training.baseline.numbers["dice"]]


def test_dots_are_the_dice_of_pooled_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Strip] = []
    monkeypatch.setattr(
        training_page, "draw_strips", lambda strips, group, path: drawn.extend(strips)
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
