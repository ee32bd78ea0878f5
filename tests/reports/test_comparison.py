"""Comparison of runs: models by name, refusals, paired results per image, and the page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from robustcli.core.errors import UsageError
from robustcli.evaluation.record import EVALUATION, TransformRecord, read_record
from robustcli.reports import comparison as comparison_module
from robustcli.reports.comparison import (
    COMPARISON_COLUMNS,
    Comparison,
    comparison_text,
    conclusions,
    read_comparison,
    write_comparison,
)
from robustcli.reports.comparison import comparison_page as page_of
from robustcli.reports.pages import check_out
from robustcli.reports.pairing import find_models
from robustcli.tasks.record import MasksRecord
from robustcli.transforms.base import Cell
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.compared import (
    CONTENTS,
    PLAN,
    TRANSFORMS,
    build_evaluation,
    rewrite_pixels,
    rewrite_targets,
    rows_of,
    two_runs,
)
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.mask_runs import MaskPlan, build_masks, rewrite_groups, segmenter
from tests.reports.page_parts import assert_golden, line_of, section, titles
from tests.reports.train_runs import TrainPlan, build_class_training, build_training

pytestmark = pytest.mark.usefixtures("blank_figures")

MASKS = MaskPlan(transforms=TRANSFORMS[:2], panels=False)
LOWER_THRESHOLD = segmenter("any").preprocessing.model_copy(update={"threshold": 0.4})


# Numbers.


def test_every_line_is_made_of_both_models_on_the_same_images(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    table = read_comparison(runs).table()
    assert list(table.columns) == list(COMPARISON_COLUMNS)
    assert table["transform"].tolist() == [transform.name for transform in TRANSFORMS]
    p_values = []
    for _, row in table.iterrows():
        first, second = (
            rows_of(run, name, row["transform"]).set_index("image_id")
            for run, name in zip(runs, ("vmamba-b", "swin-b"), strict=True)
        )
        hits = first["prediction"] == first["target"]
        second_hits = second["prediction"] == second["target"]
        assert (row["first_score"], row["second_score"]) == (hits.mean(), second_hits.mean())
        assert row["difference"] == pytest.approx(hits.mean() - second_hits.mean())
        first_only, second_only = int((hits & ~second_hits).sum()), int((~hits & second_hits).sum())
        p_values.append(binomtest(first_only, first_only + second_only).pvalue)
        assert row["p"] == pytest.approx(p_values[-1])
        assert row["low"] < row["difference"] < row["high"]
    # Holm's definition: the smallest p times the number of lines, the next times one less, ...
    adjusted, highest = {}, 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[int(index)] = highest
    assert table["p_adjusted"].tolist() == pytest.approx([adjusted[i] for i in range(4)])


def test_of_segmenters_groups_are_compared(tmp_path: Path) -> None:
    runs = [
        build_masks(tmp_path / name, replace(MASKS, models=(segmenter(name),), base=base))
        for name, base in (("a", 0.85), ("b", 0.6))
    ]
    comparison = read_comparison(runs)
    (line,) = comparison.clean_lines
    means = []
    for run in runs:
        store = comparison.models[runs.index(run)].run
        rows = store.images(comparison.models[runs.index(run)].model, ("identity", 0))
        pooled = rows.groupby("group")[["tp", "fp", "fn"]].sum()
        means.append((2 * pooled["tp"] / (2 * pooled["tp"] + pooled["fp"] + pooled["fn"])).mean())
    assert (line.first_score, line.second_score) == pytest.approx(tuple(means))
    assert line.verdict.difference == pytest.approx(means[0] - means[1])
    assert (comparison.n, comparison.groups, comparison.grouping) == (24, 8, "patient")
    assert line.verdict.p == pytest.approx(2 / 2**8), "all patients have the same sign"
    assert line.word == "a ahead"
    assert (comparison.statistics.agreements, comparison.statistics.flips) == ([], [])


def test_models_of_one_run_are_compared_among_each_other(tmp_path: Path) -> None:
    models = tuple(model(name) for name in ("a", "b", "c"))
    build_run(tmp_path / "run", replace(PLAN, models=models))
    comparison = read_comparison([tmp_path / "run"])
    assert comparison.pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    assert len(comparison.lines) == 3 * len(TRANSFORMS)
    assert [rank.model for rank in comparison.ranks] == ["a", "b", "c"]
    assert sum(comparison.ranks[0].probabilities) == pytest.approx(1)
    assert [(c.first, c.second, c.transforms) for c in comparison.claims] == [
        ("a", "b", 3),
        ("a", "c", 3),
        ("b", "c", 3),
    ]


def test_severities_beside_the_full_range_are_listed_too(tmp_path: Path) -> None:
    transforms = (IDENTITY, *paper21()[:1], *paper21(3)[:1])
    comparison = read_comparison(two_runs(tmp_path, replace(PLAN, transforms=transforms)))
    levels = comparison.table()[["level", "severity"]]
    assert [*map(tuple, levels.to_numpy())] == [
        ("transform", 0), ("transform", 0), ("severity", 0), ("severity", 0), ("severity", 3)
    ]  # fmt: skip
    assert "severity 3" in section(page_of(comparison, COMMAND), "Severity by severity")


def test_transforms_with_severities_count_once_and_are_listed_one_by_one(tmp_path: Path) -> None:
    severities = (IDENTITY, *paper21()[:1], *imagenet_c(severities=(1, 3))[:2])
    runs = two_runs(tmp_path, replace(PLAN, transforms=severities))
    comparison = read_comparison(runs)
    table = comparison.table()
    assert table["level"].tolist() == ["transform"] * 3 + ["severity"] * 4
    mean = table[table["transform"] == "c_gaussian_noise"]
    assert mean["severity"].isna().tolist() == [True, False, False]
    assert mean["first_score"].iloc[0] == pytest.approx(mean["first_score"].iloc[1:].mean())
    assert mean["difference"].iloc[0] == pytest.approx(mean["difference"].iloc[1:].mean())
    assert [line.label for line in comparison.lines][-1] == "c_gaussian_noise, mean over severities"
    assert comparison.claims[0].transforms == 2
    assert [rank.n for rank in comparison.ranks] == [80, 80]


def test_the_ranking_is_over_transforms_else_over_untouched_images(tmp_path: Path) -> None:
    comparison = read_comparison(two_runs(tmp_path))
    means = [
        np.mean(
            [
                (rows["prediction"] == rows["target"]).mean()
                for transform in TRANSFORMS[1:]
                for rows in [rows_of(tmp_path / "a", "vmamba-b", transform.name)]
            ]
        )
    ]
    assert comparison.ranks[0].mean == pytest.approx(means[0])
    clean = read_comparison(two_runs(tmp_path / "clean", replace(PLAN, transforms=(IDENTITY,))))
    assert clean.ranks[0].mean == clean.clean_lines[0].first_score
    assert (clean.claims, clean.transforms) == ([], [])


def test_the_document_holds_all_of_it(tmp_path: Path) -> None:
    comparison = read_comparison(two_runs(tmp_path))
    document = json.loads(comparison.as_json())
    assert [m["label"] for m in document["models"]] == ["vmamba-b", "swin-b"]
    assert document["models"][1]["weights_sha256"] == "04" * 32
    assert (document["task"], document["score"], document["n"]) == ("cls", "top1", 80)
    assert len(document["verdicts"]) == len(comparison.table())
    assert document["verdicts"][0]["difference"] == comparison.table()["difference"].iloc[0]
    assert document["claims"][0]["sentence"] == comparison.claims[0].sentence()
    assert len(document["agreement"]) == 4
    assert len(document["flips"]) == 6
    assert (document["differences"], document["left_out"]) == ([], [])


# Selection of models.


def labels(*names: Path | str) -> list[str]:
    return [result.label for result in find_models([str(name) for name in names])[0]]


def test_a_model_of_a_run_by_name(tmp_path: Path) -> None:
    hub = "hf-hub:timm/resnet18"
    plan = replace(PLAN, models=(model("a"), model(hub), model("b")), transforms=(IDENTITY,))
    run = build_run(tmp_path / "odd:name", plan)
    assert labels(run) == ["a", hub, "b"]
    assert labels(f"{run}:{hub}", f"{run}:b") == [hub, "b"]
    assert labels(f"{run}:a", run) == ["a", hub, "b"], (
        "a model that is named twice is compared once"
    )
    with pytest.raises(UsageError, match=r"No model of this run is called `c`"):
        find_models([f"{run}:c", str(run)])


def test_models_with_the_same_name_are_told_apart_by_their_runs(tmp_path: Path) -> None:
    plan = replace(PLAN, transforms=(IDENTITY,))
    runs = [build_evaluation(tmp_path / name, "vmamba-b", plan=plan) for name in ("x/run", "y/run")]
    other_run = build_evaluation(tmp_path / "other", "swin-b", plan=plan)
    assert labels(*runs, other_run) == ["vmamba-b (x/run)", "vmamba-b (y/run)", "swin-b"]


def test_trainings_and_modes_are_compared_on_their_held_out_images(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    build_training(first, TrainPlan(base=0.9))
    build_training(second, TrainPlan(base=0.6))
    comparison = read_comparison([first, second])
    assert comparison.labels == ["ulvm_v5 (first)", "ulvm_v5 (second)"]
    assert comparison.clean_lines[0].word == "ulvm_v5 (first) ahead"
    assert any("variation between seeds" in str(a) for a in comparison.announcements)
    finetuning_run = build_finetuning(tmp_path / "tuned")
    modes = ["umamba-pico scratch", "umamba-pico full", "umamba-pico freeze"]
    assert labels(finetuning_run) == modes
    assert labels(f"{finetuning_run}:full", f"{finetuning_run}:freeze") == modes[1:]
    assert labels(finetuning_run / "full", f"{finetuning_run}:scratch") == ["umamba-pico", modes[0]]
    assert labels(finetuning_run, first) == [*modes, "ulvm_v5"]
    classifier = build_class_training(tmp_path / "class")
    assert labels(classifier, f"{classifier}:vim", first) == ["vim", "ulvm_v5"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["alone"], "only one was found: `vmamba-b`"),
        (["alone", "alone:vmamba-b"], "only one was found"),
        (["nowhere", "alone"], "`nowhere` is not a run"),
        (["begun", "alone"], "`begun` has no results on held-out images yet"),
        (["profiled", "alone"], "`profiled` has no results on held-out images yet"),
        (["newer", "alone"], "was written by a newer version"),
    ],
)
def test_what_cannot_be_compared_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    build_evaluation(Path("alone"), "vmamba-b")
    build_training(Path("begun"), TrainPlan(measured=False))
    build_finetuning(Path("profiled"), FinetunePlan(modes=()))
    newer = build_evaluation(Path("newer"), "swin-b") / "run.json"
    newer.write_text(newer.read_text().replace('"seed"', '"seeds": 3, "seed"', 1))
    with pytest.raises(UsageError, match=re.escape(message)):
        read_comparison(names)


# Differences that prevent a comparison, and options that force it.


def changed_parameters() -> list[TransformRecord]:
    parameters = {"strength": [0.0, 0.7], "per_channel": True}
    transform = TRANSFORMS[2].model_copy(update={"parameters": parameters})
    return [*TRANSFORMS[:2], transform, TRANSFORMS[3]]


DIFFERENCES: dict[str, tuple[RunPlan, str]] = {
    "images": (
        replace(PLAN, images=60, dataset={"digest": "00" * 32, "subset": "60 images"}),
        r"80 of `imagenet-val`, digest cdcdcdcd in `.*a`; 60 of `imagenet-val` \(60 images\), "
        r"digest 00000000 in `.*b`",
    ),
    "contents": (
        replace(PLAN, dataset={"contents": "01" * 32, "location": "copy"}),
        r"different contents .*`photos/val`, digest efefefef in `.*a`; `copy`, digest 01010101 in",
    ),
    "seed": (replace(PLAN, record={"seed": 1}), r"`--seed`\): 0 in `.*a`; 1 in `.*b`"),
    "apply_at": (replace(PLAN, record={"apply_at": "crop"}), r"`--apply-at`: original in"),
    "transforms": (replace(PLAN, transforms=TRANSFORMS[:3]), r"`.*b` lacks `crop`"),
    "severities": (
        replace(PLAN, transforms=(IDENTITY, *paper21(3)[:3])),
        r"`.*b` lacks `additive_gaussian_noise` at its full range, `affine` at its full range, "
        r"`crop` at its full range\.\n.*`.*a` lacks "
        r"`additive_gaussian_noise, severity 3`",
    ),
    "parameters": (
        replace(PLAN, transforms=changed_parameters()),
        r"parameters of `affine`: strength = \[0.0, 0.5\] in `.*a`; strength = \[0.0, 0.7\] in",
    ),
    "unreadable": (
        replace(PLAN, skipped=(("class-01/photo-00001.jpeg", "cut off"),)),
        r"could not be read: 0 \(none\) in `.*a`; 1 \(class-01/photo-00001.jpeg\) in `.*b`",
    ),
    "partial": (
        replace(PLAN, done=0.5, record={"status": "partial"}),
        r"Not finished: `identity` of `swin-b` \(40 of 80 images\)",
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_runs_that_differ_are_refused_with_the_difference(tmp_path: Path, name: str) -> None:
    plan, message = DIFFERENCES[name]
    with pytest.raises(UsageError, match=message) as caught:
        read_comparison(two_runs(tmp_path, other_plan=plan))
    assert "--force-common" in caught.value.todo


def forced(folder: Path, name: str, change: Callable[[Path], None] = lambda _: None) -> Comparison:
    runs = two_runs(folder, other_plan=DIFFERENCES[name][0])
    change(runs[1])
    return read_comparison(runs, force_common=True)


def cells(comparison: Comparison) -> list[str]:
    return [line.verdict.transform for line in comparison.lines]


def test_common_images_are_compared_on_request(tmp_path: Path) -> None:
    comparison = forced(tmp_path, "images")
    assert (comparison.n, cells(comparison)) == (60, [t.name for t in TRANSFORMS])
    (left_out_cell,) = comparison.left_out
    assert left_out_cell.startswith("Images that are not in all runs: class-")
    assert left_out_cell.endswith("and 16 more.")
    first = rows_of(tmp_path / "a", "vmamba-b").head(60)
    share = (first["prediction"] == first["target"]).mean()
    assert comparison.clean_lines[0].first_score == pytest.approx(share)
    assert "60 of `imagenet-val`" in comparison.differences[0]


def test_of_changed_files_those_with_other_pixels_are_left_out(tmp_path: Path) -> None:
    comparison = forced(tmp_path, "contents", lambda run: rewrite_pixels(run, "identity", slice(3)))
    assert comparison.n == 77
    assert comparison.left_out[0] == (
        "Images with different pixels: class-00/photo-00000.jpeg, class-01/photo-00001.jpeg, "
        "class-02/photo-00002.jpeg."
    )


def test_of_changed_files_every_block_and_only_recorded_pixels_count(tmp_path: Path) -> None:
    last = forced(tmp_path / "1", "contents", lambda r: rewrite_pixels(r, "identity", slice(3), 2))
    assert last.n == 77
    assert "class-04/photo-00064.jpeg" in last.left_out[0]
    with pytest.raises(UsageError, match="no finished transform of the same images in common"):
        forced(tmp_path / "2", "contents", lambda run: shutil.rmtree(run / "inputs"))


def test_images_of_another_class_are_left_out(tmp_path: Path) -> None:
    comparison = forced(tmp_path, "images", lambda run: rewrite_targets(run, "swin-b", 5))
    assert comparison.n == 55
    assert any(s.startswith("Images of another class: class-00") for s in comparison.left_out)


def test_images_of_another_group_are_left_out(tmp_path: Path) -> None:
    """Groups are paired by their order, so a group of other images would shift the others."""
    other = replace(MASKS, models=(segmenter("b"),), base=0.6, dataset={"digest": "ab" * 32})
    first = build_masks(tmp_path / "a", replace(MASKS, models=(segmenter("a"),)))
    second = build_masks(tmp_path / "b", other)
    rewrite_groups(second, {0: "a-new-one", 9: "p05"})
    comparison = read_comparison([first, second], force_common=True)
    moved = "p00/slice-0000.tif, p01/slice-0009.tif"
    assert f"Images of another group: {moved}." in comparison.left_out
    dice = []
    for run in (first, second):
        rows = comparison.models[len(dice)].run.store.rows(run.name, Cell("identity", 0), "seg")
        rows = rows.drop([0, 9])
        pooled = rows.groupby("group")[["tp", "fp", "fn"]].sum()
        dice.append(2 * pooled["tp"] / (2 * pooled["tp"] + pooled["fp"] + pooled["fn"]))
    assert comparison.clean_lines[0].verdict.difference == pytest.approx((dice[0] - dice[1]).mean())


def test_of_several_true_classes_each_model_has_its_own(tmp_path: Path) -> None:
    plan = replace(PLAN, dataset={"contents": CONTENTS, "several_labels": True})
    runs = two_runs(tmp_path, plan)
    rewrite_targets(runs[1], "swin-b", 5)
    comparison = read_comparison(runs)
    assert (comparison.n, list(comparison.left_out)) == (80, [])
    second = rows_of(runs[1], "swin-b")
    share = (second["prediction"] == second["target"]).mean()
    assert comparison.clean_lines[0].second_score == pytest.approx(share)


def test_with_another_seed_the_pixels_decide(tmp_path: Path) -> None:
    equal_pixels = forced(tmp_path / "same", "seed")
    assert len(equal_pixels.lines) == 4, "transforms with equal pixels are compared"
    other_pixels = forced(
        tmp_path / "other", "seed", lambda run: rewrite_pixels(run, "affine", slice(9))
    )
    assert cells(other_pixels) == ["identity", "additive_gaussian_noise", "crop"]
    assert list(other_pixels.left_out) == ["Different pixels after the transform: `affine`."]


def test_where_pixels_are_not_recorded_nothing_shows_that_they_are_the_same(tmp_path: Path) -> None:
    runs = two_runs(tmp_path, other_plan=DIFFERENCES["seed"][0])
    for block in (runs[1] / "inputs").rglob("transform=crop/*/*.parquet"):
        block.unlink()
    comparison = read_comparison(runs, force_common=True)
    assert cells(comparison) == ["identity", "additive_gaussian_noise", "affine"]


def test_with_other_crops_only_untouched_images_can_be_shown_to_be_the_same(tmp_path: Path) -> None:
    vmamba = model("vmamba-b", view="original")
    plan = replace(PLAN, models=(vmamba,), record={"apply_at": "crop"})
    comparison = read_comparison(two_runs(tmp_path, other_plan=plan), force_common=True)
    assert cells(comparison) == ["identity"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transforms", ["identity", "additive_gaussian_noise", "affine"]),
        ("severities", ["identity"]),
        ("parameters", [t.name for t in TRANSFORMS]),
        ("unreadable", [t.name for t in TRANSFORMS]),
    ],
)
def test_common_transforms_are_compared_on_request(
    tmp_path: Path, name: str, expected: list[str]
) -> None:
    comparison = forced(tmp_path, name)
    assert cells(comparison) == expected
    assert comparison.differences
    assert comparison.n == (79 if name == "unreadable" else 80)


def test_of_a_partial_run_finished_transforms_are_compared_on_request(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    for block in (runs[1] / "predictions").rglob("transform=affine/*/block-000002.parquet"):
        block.unlink()
    EVALUATION.update(runs[1], status="partial")
    with pytest.raises(
        UsageError, match=r"Not finished: `affine` of `swin-b` \(64 of 80"
    ) as caught:
        read_comparison(runs)
    assert caught.value.what == "Not all results of these models are finished."
    assert "Continue with `robust eval --model swin-b" in caught.value.todo
    comparison = read_comparison(runs, force_common=True)
    assert cells(comparison) == ["identity", "additive_gaussian_noise", "crop"]
    assert comparison.n == 80
    with pytest.raises(UsageError, match="no finished transform of the same images in common"):
        forced(tmp_path / "nothing", "partial")


def test_a_mode_that_is_not_measured_yet_is_left_out_on_request(tmp_path: Path) -> None:
    run = build_finetuning(tmp_path, FinetunePlan(unmeasured=("freeze",)))
    with pytest.raises(UsageError, match=r"Mode freeze of .* is not evaluated yet"):
        read_comparison([run])
    comparison = read_comparison([run], force_common=True)
    assert comparison.labels == ["umamba-pico scratch", "umamba-pico full"]
    assert comparison.differences == []
    assert comparison.left_out == [f"Mode freeze of `{run}` is not evaluated yet."]


def test_equal_settings_do_not_hide_other_pixels(tmp_path: Path) -> None:
    """Another version of a library could cause this; one block of images is enough to detect it."""
    runs = two_runs(tmp_path)
    rewrite_pixels(runs[1], "affine", slice(None))
    with pytest.raises(UsageError, match="Different pixels after the transform: `affine`"):
        read_comparison(runs)


def test_the_seed_of_untouched_images_means_nothing(tmp_path: Path) -> None:
    clean = replace(PLAN, transforms=(IDENTITY,))
    comparison = read_comparison(two_runs(tmp_path, clean, replace(clean, record={"seed": 7})))
    assert (len(comparison.lines), comparison.differences) == (1, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": {"tolerance": 3}}, "The tolerance of masks: none in .*; 3 pixels in"),
        (
            {"models": (segmenter("b", preprocessing=LOWER_THRESHOLD),)},
            "of the foreground: 0.5 in .*; 0.4 in",
        ),
        (
            {
                "dataset": {
                    "masks": MasksRecord(
                        foreground=["128"], background=None, ignored=[], channel="colour",
                        words="foreground is `128`",
                    )
                }
            },
            "How masks are read .*: as usual in .*; foreground is `128` in",
        ),
        ({"grouping": "photo"}, "What a group of images is: patient in .*; photo in"),
    ],
)  # fmt: skip
def test_segmenters_whose_masks_are_judged_otherwise_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    first = build_masks(tmp_path / "a", replace(MASKS, models=(segmenter("a"),)))
    plan = replace(MASKS, **{"models": (segmenter("b"),), **changes})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        read_comparison([first, build_masks(tmp_path / "b", plan)])


@pytest.mark.parametrize("force", [False, True])
def test_other_tasks_and_classes_are_never_compared(tmp_path: Path, force: bool) -> None:
    classes = build_evaluation(tmp_path / "a", "vmamba-b")
    masks = build_masks(tmp_path / "m", MASKS)
    with pytest.raises(UsageError, match=r"The task: classification in .*; segmentation in"):
        read_comparison([classes, masks], force_common=force)
    plan = replace(PLAN, dataset={"label_space": "mine", "classes": 3})
    other_run = build_evaluation(tmp_path / "b", "swin-b", plan=plan)
    with pytest.raises(UsageError, match=r"`imagenet-1k` \(10 classes\) in .*; `mine`"):
        read_comparison([classes, other_run], force_common=force)
    plan = replace(PLAN, dataset={"contents": CONTENTS, "answers": [0, 3]})
    other_run = build_evaluation(tmp_path / "d", "swin-b", plan=plan)
    with pytest.raises(UsageError, match=r"may predict \(`--answers`\): all in .*; 2 of 10, dig"):
        read_comparison([classes, other_run], force_common=force)
    plan = replace(PLAN, dataset={"contents": CONTENTS, "several_labels": True})
    other_run = build_evaluation(tmp_path / "c", "swin-b", plan=plan)
    with pytest.raises(UsageError, match=r"\nTrue classes of an image: one in .*; several in"):
        read_comparison([classes, other_run], force_common=force)
    photos = build_masks(tmp_path / "p", replace(MASKS, grouping="photo"))
    with pytest.raises(UsageError, match=r"What a group of images is: patient in .*; photo in"):
        read_comparison([masks, photos], force_common=force)


# Announcements that limit a comparison.


@pytest.mark.parametrize(
    ("model_changes", "record", "title", "text"),
    [
        ({"pretraining": "imagenet-22k"}, {}, "Mixed pretraining.", "`swin-b` (imagenet-22k)"),
        ({"untrained": True}, {}, "Untrained model.", "as requested: `swin-b`."),
        ({}, {"precision": "bf16"}, "Precision differs.", "`vmamba-b`: fp32; `swin-b`: bf16."),
        ({}, {"device": "NVIDIA H100"}, "Device differs.", "`swin-b`: NVIDIA H100."),
        ({}, {"versions": {"torch": "2.14.1"}}, "Versions differ.", "torch 2.14.1."),
    ],
)
def test_what_is_no_reason_to_refuse_is_announced(
    tmp_path: Path,
    model_changes: dict[str, object],
    record: dict[str, object],
    title: str,
    text: str,
) -> None:
    plan = replace(PLAN, models=(model("b", **model_changes),), record=record)  # type: ignore[arg-type]
    comparison = read_comparison(two_runs(tmp_path, other_plan=plan))
    sentences = {a.title: a.sentence for a in comparison.announcements}
    assert list(sentences) == [title]
    assert text in sentences[title]


def test_other_preprocessing_is_announced(tmp_path: Path) -> None:
    preprocessing = model("a").preprocessing.model_copy(update={"crop": 192, "resize": None})
    plan = replace(PLAN, models=(model("b", preprocessing=preprocessing),))
    (announcement,) = read_comparison(two_runs(tmp_path, other_plan=plan)).announcements
    assert announcement.title == "Preprocessing differs."
    assert "`vmamba-b`: resize 256, crop 224, bicubic, mean 0.5, 0.5, 0.5" in announcement.sentence
    assert "`swin-b`: no resize, crop 192" in announcement.sentence


def test_runs_of_older_versions_are_compared_by_ids_and_pixels(tmp_path: Path) -> None:
    comparison = read_comparison(two_runs(tmp_path, other_plan=replace(PLAN, dataset={})))
    (announcement,) = comparison.announcements
    assert announcement.title == "Older run."
    assert read_record(tmp_path / "b").dataset.contents is None
    assert str(tmp_path / "b") in announcement.sentence
    assert str(tmp_path / "a") not in announcement.sentence


def test_the_same_weights_twice_are_called_so(tmp_path: Path) -> None:
    runs = [build_evaluation(tmp_path / name, "vmamba-b") for name in ("before", "after")]
    comparison = read_comparison(runs)
    assert [a.title for a in comparison.announcements] == ["The same network."]
    assert all(line.verdict.p == 1 for line in comparison.lines)
    assert [rank.probabilities for rank in comparison.ranks] == [(0.5, 0.5), (0.5, 0.5)]


@pytest.mark.parametrize(
    ("groups", "title"),
    [(1, "Only one patient."), (5, "Too few images or too many comparisons to show a difference.")],
)
def test_groups_too_few_for_any_verdict_are_named(tmp_path: Path, groups: int, title: str) -> None:
    runs = [
        build_masks(
            tmp_path / name,
            replace(
                MASKS, models=(segmenter(name, weights_sha256=name * 64),), base=base,
                groups=groups, dataset={"contents": "ef" * 32},
            ),
        )
        for name, base in (("a", 0.9), ("b", 0.5))
    ]  # fmt: skip
    comparison = read_comparison(runs)
    (announcement,) = comparison.announcements
    assert announcement.title == title
    assert {line.verdict.outcome for line in comparison.lines} == {"no difference shown"}
    if groups == 5:
        assert "With 5 patients and 2 tests no adjusted p can be below 0.12" in str(announcement)
        assert [line.verdict.p for line in comparison.lines] == [2 / 2**5] * 2


COMMAND = "robust compare a b --out comparison"


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Returns a comparison of three classifiers; one transform is left out."""
    plan = replace(
        PLAN, images=400, transforms=(IDENTITY, *paper21()[:2], *imagenet_c(severities=(1, 5))[:4])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("compared"))
        two_runs(Path(), plan, replace(plan, transforms=plan.transforms[:-1]))
        vit = model("vit-b", weights_sha256="77" * 32, pretraining="imagenet-22k")
        build_run(Path("c"), replace(plan, models=(vit,)))
        return read_comparison(["a", "b", "c"], force_common=True)


@pytest.fixture
def comparison(
    three_runs: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Comparison:
    """Returns `three_runs`, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return three_runs


def test_the_page(comparison: Comparison) -> None:
    report = write_comparison(comparison, Path("out"), COMMAND)
    page = report.read_text(encoding="utf-8")
    assert_golden(page, "comparison")
    figures = {path.name for path in Path("out/figures").iterdir()}
    assert figures == {"pair-1.png", "pair-2.png", "pair-3.png", "ranks.png"}
    assert Path("out/results.json").read_text() == comparison.as_json()
    table = pd.read_csv("out/results.csv")
    assert len(table) == len(comparison.table())
    assert table["difference"].tolist() == pytest.approx(comparison.table()["difference"].tolist())
    html = Path("out/report.html").read_text(encoding="utf-8")
    assert html.count('<img src="data:image/') == 4
    assert "http" not in html.replace("http-equiv", "")


def test_of_segmenters_there_are_no_classes_to_agree_on(tmp_path: Path) -> None:
    plan = MaskPlan(models=(segmenter("a"), segmenter("b")), transforms=(IDENTITY,))
    comparison = read_comparison([build_masks(tmp_path / "run", plan)])
    page = page_of(comparison, COMMAND)
    assert "of 8 patients" in page.splitlines()[0]
    assert "sign flips of the patients' differences" in page
    assert not {"Agreement", "Flips", "Severity by severity"} & set(titles(page))
    (line,) = comparison.lines
    assert line_of(section(page, "Transform by transform"), "`identity`") == [
        *("`identity`", "**`a` ahead**", "8", "+0.050 (0.049 to 0.050)"),
        *("0.008", "0.008", f"{line.first_score:.3f}", f"{line.second_score:.3f}"),
    ]


def test_one_group_gives_neither_interval_nor_ranking(tmp_path: Path) -> None:
    plan = MaskPlan(models=(segmenter("a"), segmenter("b")), transforms=(IDENTITY,), groups=1)
    comparison = read_comparison([build_masks(tmp_path / "run", plan)])
    page = page_of(comparison, COMMAND)
    assert "**Only one patient.**" in page
    assert section(page, "## Ranking").strip() == (
        "A single patient does not show the variation between patients, so no ranking is given."
    )
    assert "a single patient allows no test" in "\n".join(conclusions(comparison))
    assert "P(rank 1)" in comparison_text(comparison)


def test_the_terminal_shows_the_same_numbers_in_ascii(comparison: Comparison) -> None:
    text = comparison_text(comparison)
    assert text.isascii()
    assert "The runs differ. Transforms" in text
    assert "`b` lacks `c_shot_noise, severity 5`" in text
    assert "Mixed pretraining." in text
    for sentence in conclusions(comparison):
        assert sentence.replace("\N{EN DASH}", "-") in text
    assert text.count("p (Holm)") == 3
    line = comparison.clean_lines[0]
    (table_line,) = [x for x in text.splitlines() if x.startswith("identity")][:1]
    assert table_line.split()[1:3] == [
        f"{100 * line.first_score:.1f}",
        f"{100 * line.second_score:.1f}",
    ]


def test_of_many_pairs_some_are_shown(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_module, "PAIRS_SHOWN", 1)
    text = comparison_text(comparison)
    assert text.count("p (Holm)") == 1
    assert "2 more pairs: see `--json`" in text
    assert len(conclusions(comparison)) == 6, "conclusions cover all pairs"
    page = page_of(comparison, COMMAND)
    assert "2 more pairs: see `results.csv`." in page


@pytest.mark.parametrize("name", ["<b>&|x", "a*b_c`d"])
def test_names_are_shown_letter_for_letter(tmp_path: Path, name: str) -> None:
    models = (model(name), model("other", weights_sha256="00" * 32))
    build_run(tmp_path / "run", replace(PLAN, models=models, transforms=(IDENTITY,)))
    out = tmp_path / "out"
    write_comparison(read_comparison([tmp_path / "run"]), out, COMMAND)
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in html
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<code>{escaped}</code>" in html


def test_nothing_of_a_run_is_overwritten(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", PLAN)
    with pytest.raises(UsageError, match="would overwrite the report of the run"):
        check_out(run)
    with pytest.raises(UsageError, match="is a file"):
        check_out(run / "run.json")
    check_out(tmp_path / "new")
