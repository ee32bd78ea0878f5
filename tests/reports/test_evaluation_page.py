"""The pages of evaluations: their numbers, what limits them, and what they are silent about."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustcli.evaluation.cell_table import table
from robustcli.evaluation.record import TransformRecord
from robustcli.evaluation.sessions import DeviceUse, Session, write_session
from robustcli.nnunet.normalisation import Channel, NnUNetInference
from robustcli.reports.evaluation_page import evaluation_report, evaluation_text
from robustcli.reports.findings import Findings, read_findings
from robustcli.tasks.record import MaskPreprocessingRecord, MasksRecord, ModelCost
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.page_parts import assert_golden, line_of, section

DASH = "\N{EN DASH}"
CELLS = (IDENTITY, *paper21()[:4], *paper21(5)[:1])
TWO = (segmenter("a"), segmenter("b"))


def findings(run: Path, **changes: Any) -> Findings:
    settings = {"models": (model("a"), model("b")), "transforms": CELLS, **changes}
    return read_findings(build_run(run, RunPlan(**settings)))


def page(run: Path, **changes: Any) -> str:
    return evaluation_text(findings(run, **changes))


def mask_findings(run: Path, **changes: Any) -> Findings:
    return read_findings(build_masks(run, MaskPlan(**{"models": TWO, **changes})))


def mask_page(run: Path, **changes: Any) -> str:
    return evaluation_text(mask_findings(run, **changes))


def test_the_page_of_classifiers(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21()[:3], *imagenet_c()[:5])
    run = build_run(tmp_path, RunPlan(models=(model("a"), model("b")), transforms=cells))
    page = evaluation_report(run)
    assert_golden(page.markdown, "classification")
    assert page.results.equals(table(run))


def test_the_page_of_segmenters(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21()[:2], *paper21(1)[:1], *paper21(5)[:1])
    plan = MaskPlan(models=TWO, transforms=cells, dataset={"tolerance": 3})
    page = evaluation_report(build_masks(tmp_path, plan))
    assert_golden(page.markdown, "segmentation")
    assert page.results.equals(table(tmp_path))
    assert all((tmp_path / f"figures/cases-{name}.png").is_file() for name in "ab")


# Numbers of classifiers.


def test_top1_stands_with_its_interval_and_the_best_is_bold(tmp_path: Path) -> None:
    found = findings(tmp_path)
    first, second = (found.of_model(name).iloc[2] for name in "ab")
    assert line_of(section(evaluation_text(found), "Top-1 accuracy in"), "`affine`") == [
        "`affine`",
        f"**{100 * first['top1']:.1f}** "
        f"({100 * first['top1_low']:.1f}{DASH}{100 * first['top1_high']:.1f})",
        f"{100 * second['top1']:.1f} "
        f"({100 * second['top1_low']:.1f}{DASH}{100 * second['top1_high']:.1f})",
    ]


def test_nothing_is_bold_for_one_model(tmp_path: Path) -> None:
    page_of_one = page(tmp_path, models=(model("a"),), dataset={"images_available": 60})
    assert "**" not in page_of_one
    assert "Bold" not in page_of_one


def test_drop_stands_with_its_interval_and_retention(tmp_path: Path) -> None:
    found = findings(tmp_path)
    drops = section(evaluation_text(found), "Drop in")
    row = found.of_model("b").iloc[2]
    assert line_of(drops, "`affine`")[2] == (
        f"{100 * row['drop']:.1f} ({100 * row['drop_low']:.1f} to {100 * row['drop_high']:.1f}); "
        f"{100 * row['retention']:.1f}"
    )
    assert "`identity`" not in drops


def test_top5_has_its_table(tmp_path: Path) -> None:
    found = findings(tmp_path)
    top5 = section(evaluation_text(found), "Top-5")
    row = found.of_model("a").iloc[5]
    assert line_of(top5, "`additive_gaussian_noise, severity 5`")[1] == f"{100 * row['top5']:.1f}"


def test_best_worst_clean_and_mean_of_each_model(tmp_path: Path) -> None:
    found = findings(tmp_path)
    rows = found.of_model("b")
    whole = rows[(rows["transform"] != "identity") & (rows["severity"] == 0)]
    ranked = whole.sort_values("top1")
    worst, best = ranked.iloc[0], ranked.iloc[-1]
    assert line_of(section(evaluation_text(found), "Best and worst"), "`b`") == [
        "`b`",
        f"`{best['transform']}` {100 * best['top1']:.1f}",
        f"`{worst['transform']}` {100 * worst['top1']:.1f}",
        f"{100 * rows['top1'].iloc[0]:.1f}",
        f"{100 * whole['top1'].mean():.1f}",
    ]


def test_unfinished_cells_say_how_many_images_they_have(tmp_path: Path) -> None:
    findings(tmp_path)
    next(tmp_path.glob("predictions/model=a/transform=affine/*/block-000001.parquet")).unlink()
    for file in tmp_path.glob("predictions/model=a/transform=crop/*/*.parquet"):
        file.unlink()
    page = evaluation_text(read_findings(tmp_path))
    top1 = section(page, "Top-1 accuracy in")
    assert line_of(top1, "`affine`")[1].endswith("), n = 32")
    assert line_of(top1, "`crop`")[1] == "not yet"
    assert line_of(section(page, "Drop in"), "`crop`")[1] == "not yet"


# Numbers of segmenters.


def test_dice_and_iou_stand_with_their_intervals(tmp_path: Path) -> None:
    found = mask_findings(tmp_path)
    page = evaluation_text(found)
    first, second = (found.of_model(name).iloc[2] for name in "ab")
    assert line_of(section(page, "### Dice"), "`affine`") == [
        "`affine`",
        f"**{first['dice']:.3f}** ({first['dice_low']:.3f}{DASH}{first['dice_high']:.3f})",
        f"{second['dice']:.3f} ({second['dice_low']:.3f}{DASH}{second['dice_high']:.3f})",
    ]
    assert line_of(section(page, "### IoU"), "`affine`")[2] == (
        f"{second['iou']:.3f} ({second['iou_low']:.3f}{DASH}{second['iou_high']:.3f})"
    )
    row = found.of_model("b").iloc[3]
    assert line_of(section(page, "Drop in dice"), "`crop`")[2] == (
        f"{row['drop']:.3f} ({row['drop_low']:.3f} to {row['drop_high']:.3f}); "
        f"{100 * row['retention']:.1f}"
    )
    assert "`identity`" not in section(page, "Drop in dice")


def test_of_roads_both_relaxed_numbers_stand_with_their_intervals(tmp_path: Path) -> None:
    found = mask_findings(tmp_path, dataset={"tolerance": 3})
    page = evaluation_text(found)
    relaxed = section(page, "Relaxed precision and recall, with")
    assert "within 3 pixels of a true one" in relaxed
    row = found.of_model("b").iloc[2]
    for part, name in (("precision:", "relaxed_precision"), ("recall:", "relaxed_recall")):
        assert line_of(relaxed.split(f"Relaxed {part}")[1], "`affine`")[2] == (
            f"{row[name]:.3f} ({row[f'{name}_low']:.3f}{DASH}{row[f'{name}_high']:.3f})"
        )
    assert "Relaxed precision and recall: 3 pixels, as V. Mnih" in page


def test_best_and_worst_are_by_dice(tmp_path: Path) -> None:
    found = mask_findings(tmp_path)
    rows = found.of_model("a")
    ranked = rows[rows["transform"] != "identity"].sort_values("dice")
    assert line_of(section(evaluation_text(found), "Best and worst"), "`a`")[1:4] == [
        f"`{ranked.iloc[-1]['transform']}` {ranked.iloc[-1]['dice']:.3f}",
        f"`{ranked.iloc[0]['transform']}` {ranked.iloc[0]['dice']:.3f}",
        f"{rows.iloc[0]['dice']:.3f}",
    ]


def test_the_details_of_a_transform_stand_together(tmp_path: Path) -> None:
    found = mask_findings(tmp_path)
    details = section(evaluation_text(found), "Single images")
    lines = [line for line in details.splitlines() if line.startswith("| `")]
    assert [line.split("|")[1].strip() for line in lines[:4]] == ["`identity`"] * 2 + [
        "`additive_gaussian_noise`"
    ] * 2
    assert [line.split("|")[2].strip() for line in lines[:4]] == ["`a`", "`b`"] * 2
    row = found.of_model("b").iloc[1]
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[2] == f"{row['dice_image']:.3f}"
    assert cells[3] == f"{row['dice_image_low']:.3f}{DASH}{row['dice_image_high']:.3f}"
    assert cells[4:7] == [f"{row[n]:.3f}" for n in ("dice_foreground", "precision", "recall")]
    assert cells[7:] == [f"{row['hd95']:.1f}", f"{row['boundary_dice']:.3f}"]


def test_one_model_without_tolerance_needs_less(tmp_path: Path) -> None:
    page = mask_page(tmp_path, models=(segmenter("a"),))
    assert "**" not in page
    assert "elaxed" not in page, "these data have no tolerance"
    assert "Masks:" not in page, "these data are read as usual"
    assert line_of(section(page, "Single images"), "transform")[1] == "dice per image"


def test_clean_images_alone_are_not_compared(tmp_path: Path) -> None:
    page = mask_page(tmp_path, transforms=(IDENTITY,), panels=False)
    assert "## Clean images" in page
    assert "Drop in" not in page
    assert "Best and worst" not in page
    assert "None: the run holds no pictures" in section(page, "Best, median and worst cases")


def test_unfinished_cells_of_segmenters_say_so(tmp_path: Path) -> None:
    build_masks(tmp_path, MaskPlan(transforms=(IDENTITY, *paper21()[:3])))
    for file in tmp_path.glob("predictions/*/transform=crop/*/*.parquet"):
        file.unlink()
    page = evaluation_text(read_findings(tmp_path))
    assert line_of(section(page, "### Dice"), "`crop`")[1] == "not yet"
    assert line_of(section(page, "Drop in"), "`crop`")[1] == "not yet"


# What limits the numbers.


WHOLE = {"images_available": 60}


@pytest.mark.parametrize(
    ("changes", "notice"),
    [
        ({"dataset": {**WHOLE, "demonstration": True}}, "**Demonstration set.** `imagenet-val` is"),
        (
            {"dataset": {"images_available": 50000, "subset": "part of `x`, seed 0"}},
            "**Subset.** 60 of 50,000 images (part of `x`, seed 0).",
        ),
        ({"dataset": {"images_available": 50000}}, "**Subset.** 60 of 50,000 images.\n"),
        (
            {"done": 0.5, "transforms": CELLS[:4], "record": {"status": "partial"}},
            "**Partial run.** 240 of 480 predictions are missing: 8 of 8 cells lack images "
            "(status: partial).",
        ),
        (
            {"models": (model("a"), model("pico", untrained=True))},
            "**Untrained model.** Random weights, evaluated on request: `pico`.",
        ),
        (
            {"models": (model("a"), model("b", "imagenet-22k"))},
            "from the data and not from the architecture: `a` (imagenet-1k), `b` (imagenet-22k).",
        ),
    ],
)
def test_what_limits_the_numbers_is_said_first(
    tmp_path: Path, changes: dict[str, object], notice: str
) -> None:
    assert notice in page(tmp_path, **changes).split("\n## ")[0]


@pytest.mark.parametrize(
    ("changes", "notice"),
    [
        ({"dataset": {"demonstration": True}}, "**Demonstration set.** `kaggle_3m`"),
        (
            {
                "dataset": {"images_available": 194, "subset": "test part of `ulvm_v5`"},
                "record": {"split": "test"},
            },
            "**Held-out images.** 24 of 194 images (test part of `ulvm_v5`).",
        ),
        ({"dataset": {"images_available": 99}}, "**Subset.** 24 of 99 images."),
        ({"record": {"status": "running"}}, "**Partial run.**"),
        ({"models": (segmenter("a", untrained=True),)}, "**Untrained model.**"),
        ({"groups": 1}, "**One patient only.** From one patient"),
        (
            {"models": (segmenter("a"), segmenter("b", pretraining="other data"))},
            "**Mixed pretraining.**",
        ),
    ],
)
def test_what_limits_the_numbers_of_segmenters_is_said_first(
    tmp_path: Path, changes: dict[str, object], notice: str
) -> None:
    assert notice in mask_page(tmp_path, **changes).split("\n## ")[0]


def test_a_finished_run_on_all_images_has_no_notices(tmp_path: Path) -> None:
    assert "**" not in page(tmp_path / "cls", dataset=WHOLE).split("\n## ")[0]
    # A baseline that learned nothing is no mixed pretraining.
    models = (segmenter("a"), segmenter("otsu", parameters=0, pretraining="none"))
    assert "**" not in mask_page(tmp_path / "seg", models=models).split("\n## ")[0]


def test_the_title_says_what_was_measured(tmp_path: Path) -> None:
    title = page(tmp_path / "a").splitlines()[0]
    assert title == "# Top-1 accuracy of `a`, `b` under 4 transforms: `imagenet-val`, 60 images"
    many = page(tmp_path / "b", models=[model(name) for name in "abcd"]).splitlines()[0]
    assert "accuracy of 4 models under" in many
    masks = mask_page(tmp_path / "c", transforms=(IDENTITY,)).splitlines()[0]
    assert masks == "# Dice of `a`, `b` on clean images: `kaggle_3m`, 24 images"


# How strong a transform must be.


def severities(run: Path, cells: list[TransformRecord], images: int = 30) -> Findings:
    return findings(run, transforms=(IDENTITY, *cells), images=images)


def test_a_run_without_scales_has_no_such_section(tmp_path: Path) -> None:
    assert "over severity" not in evaluation_text(severities(tmp_path, paper21()[:2]))


def test_breaking_points_are_the_first_severity_below_half(tmp_path: Path) -> None:
    found = severities(tmp_path, imagenet_c()[:10])
    page = evaluation_text(found)
    for name in ("c_gaussian_noise", "c_shot_noise"):
        expected = []
        for entry in "ab":
            rows = found.of_model(entry)
            clean = rows["top1"].iloc[0]
            steps = rows[rows["transform"] == name]
            below = steps.loc[steps["top1"] < clean / 2, "severity"]
            expected.append("> 5" if below.empty else str(below.min()))
        assert line_of(section(page, "Breaking points"), f"`{name}`")[1:] == expected
    assert "mCE" not in page


def test_a_model_without_its_cells_leaves_a_gap_and_moves_nobody(tmp_path: Path) -> None:
    severities(tmp_path, imagenet_c()[:5])
    for file in tmp_path.glob("predictions/model=a/transform=c_*/severity=*/*.parquet"):
        file.unlink()
    points = section(evaluation_text(read_findings(tmp_path)), "Breaking points")
    gap, there = line_of(points, "`c_gaussian_noise`")[1:]
    assert gap == DASH
    assert there != gap


def test_corruption_errors_follow_when_the_benchmark_is_complete(tmp_path: Path) -> None:
    found = severities(tmp_path, imagenet_c(), images=10)
    page = section(evaluation_text(found), "corruption errors")
    first, second = found.corruption_errors
    assert line_of(page, "mCE")[1:] == [f"{100 * first.mce:.1f}", f"{100 * second.mce:.1f}"]
    assert line_of(page, "relative")[1] == f"{100 * first.relative_mce:.1f}"
    assert line_of(page, "`fog`")[2] == f"{100 * second.by_corruption['fog']:.1f}"


def test_segmenters_break_where_less_than_half_of_their_dice_is_left(tmp_path: Path) -> None:
    cells = (IDENTITY, *(cell for step in (1, 2, 5) for cell in paper21(step)[:1]))
    found = mask_findings(tmp_path, transforms=cells, models=TWO[:1])
    points = section(evaluation_text(found), "Dice over severity")
    rows = found.table
    below = rows.loc[rows["dice"] < rows["dice"].iloc[0] / 2, "severity"]
    assert line_of(points, "`additive_gaussian_noise`")[1] == str(below.min())


# The images, and what the run cost.


def test_changes_are_a_share_and_a_psnr(tmp_path: Path) -> None:
    text = section(page(tmp_path), "What the transforms do")
    for cell in CELLS[:5]:
        files = tmp_path.glob(f"inputs/*/transform={cell.name}/severity=0/*.parquet")
        rows = pd.concat(pd.read_parquet(file, partitioning=None) for file in files)
        changed = rows[rows["changed"]]
        psnr = f"{changed['psnr_db'].mean():.1f}" if len(changed) else DASH
        unchanged = f"{100 * (1 - len(changed) / len(rows)):.1f}"
        assert line_of(text, f"`{cell.name}`")[1:] == [unchanged, psnr]
    assert "No contact sheet: the run holds no samples" in text


def test_models_that_see_other_images_have_columns_of_their_own(tmp_path: Path) -> None:
    text = page(tmp_path, models=(model("a"), model("b", view="r224"), model("c")))
    assert line_of(section(text, "What the transforms do"), "transform") == [
        *("transform", "unchanged % (r256c224)", "PSNR dB (r256c224)"),
        *("unchanged % (r224)", "PSNR dB (r224)"),
    ]


@pytest.mark.parametrize(
    ("count", "intro", "listed"),
    [
        (0, "None: every image could be read.", 0),
        (1, "1 image of 60 could not be read: left out of every number.\n", 1),
        (12, "12 images of 60 could not be read: left out of every number. The first 10:", 10),
    ],
)
def test_skipped_images_are_counted_and_the_first_are_listed(
    tmp_path: Path, count: int, intro: str, listed: int
) -> None:
    skipped = [(f"class-{i % 10:02d}/photo-{i:05d}.jpeg", "truncated") for i in range(count)]
    text = section(page(tmp_path, skipped=skipped), "Skipped images")
    assert intro in text
    assert text.count("jpeg`: truncated") == listed


def session(use: DeviceUse | None) -> Session:
    return Session(
        started=datetime(2025, 1, 1, tzinfo=UTC),
        seconds=100,
        waiting_seconds=5,
        device="NVIDIA H100",
        threads=8,
        batch_size=64,
        models={"a": ModelCost(images=5000, seconds=40)},
        device_use=use,
    )


def test_speed_per_model_and_what_the_device_did(tmp_path: Path) -> None:
    found = findings(tmp_path, transforms=(IDENTITY,))
    (tmp_path / "sessions" / "00000000.json").unlink()
    assert "No timings were recorded." in evaluation_text(read_findings(tmp_path))
    use = DeviceUse(peak_memory_bytes=3 * 2**30, utilisation_percent=87.25, energy_joules=7200)
    write_session(tmp_path, "a", session(use))
    found = read_findings(tmp_path)
    speed = section(evaluation_text(found), "Speed")
    assert line_of(speed, "`a`")[1:] == ["125.0", "5,000", "40.0"]
    assert line_of(speed, "`b`")[1:] == [DASH, "0", "0.0"]
    for fact in (
        "1 session, 100.0 s in all; the models waited for images 5.0 % of it.",
        "On NVIDIA H100, 8 threads, batch size 64.",
        "Peak device memory: 3.00 GiB.",
        "Mean device utilisation: 87.2 %.",
        "Energy of the device: 2.00 Wh.",
    ):
        assert f"- {fact}\n" in speed
    # What was not measured is not mentioned.
    unknown = DeviceUse(peak_memory_bytes=2**30, utilisation_percent=None, energy_joules=None)
    write_session(tmp_path, "a", session(unknown))
    speed = section(evaluation_text(read_findings(tmp_path)), "Speed")
    assert "Peak device memory: 1.00 GiB." in speed
    assert "utilisation" not in speed
    assert "Energy" not in speed
    write_session(tmp_path, "a", session(None))
    assert "Peak" not in evaluation_text(read_findings(tmp_path))


# What the numbers rest on.


def test_parameters_are_shown_and_the_assumed_ones_marked(tmp_path: Path) -> None:
    text = page(tmp_path / "a", transforms=(*CELLS[:2], *imagenet_c()[:1]))
    parameters = section(text, "Transform parameters")
    assert "Parameters assumed:" in parameters
    assert line_of(parameters, "`additive_gaussian_noise`") == [
        *("`additive_gaussian_noise`", "paper21"),
        *("`strength=[0.0, 0.5], per_channel=true`", "assumed"),
    ]
    assert line_of(parameters, "`c_gaussian_noise, severity 1`")[1:] == [
        *("imagenet-c", "`severity=1`", "given")
    ]
    # Without assumed parameters none are claimed.
    assert "assumed" not in page(tmp_path / "b", transforms=(IDENTITY, *imagenet_c()[:1]))
    assert "Transform parameters" not in page(tmp_path / "c", transforms=(IDENTITY,))


def test_every_choice_is_stated(tmp_path: Path) -> None:
    record = {"seed": 7, "precision": "bf16", "apply_at": "crop"}
    text = page(tmp_path, record=record, dataset={"subset": "15 per class, seed 0"})
    for fact in (
        "Images: `imagenet-val` at `photos/val`, 10 classes of label space `imagenet-1k`; "
        "60 of 50,000 images.",
        "Subset: 15 per class, seed 0.",
        f"Digest of the image list: `{'cd' * 32}`.",
        "Transforms act on the image after the model's own resize and crop (`--apply-at crop`).",
        "Seed: 7. Precision: bf16.",
    ):
        assert f"- {fact}\n" in section(text, "Assumptions and settings")
    repeat = section(text, "How to repeat it")
    command = "robust eval --model a --model b --data photos/val --transform paper21 --seed 0"
    assert f"```text\n{command}\n```" in repeat
    assert "Versions: imgaug 0.4.2, python 3.11.2, robustcli 0.1.0, torch 2.6.0." in repeat
    assert "Device: cpu (2 threads)." in repeat


MASKS = MasksRecord(
    foreground=["128"], background=None, ignored=["255"], channel="colour",
    words="foreground is `128`, `255` is ignored",
)  # fmt: skip


def test_every_choice_of_segmenters_is_stated(tmp_path: Path) -> None:
    record = {"seed": 7, "precision": "bf16", "split": "test"}
    dataset = {"subset": "test part of `a`", "masks": MASKS}
    text = mask_page(tmp_path, record=record, dataset=dataset)
    for fact in (
        "Images: `kaggle_3m` at `lgg/kaggle_3m`; 24 of 24 images.",
        "Part of the data: the part that was held out. Subset: test part of `a`.",
        "Masks: foreground is `128`, `255` is ignored.",
        "A group is one patient: dice is pooled within it, intervals resample whole groups.",
        f"Digest of the image list: `{'cd' * 32}`.",
        "Seed: 7. Precision: bf16.",
    ):
        assert f"- {fact}\n" in section(text, "Assumptions and settings")
    assert "Empty masks: an image (and a patient) without foreground" in text
    assert "averaged over 8 patients" in text
    assert "Versions: robust 0.1.0, torch 2.6.0. Device: cpu (2 threads)." in text


def test_models_are_described_so_that_they_can_be_found_again(tmp_path: Path) -> None:
    models = (
        model("a", arguments={"pad_type": "same"}, scan_backend="reference"),
        model("b", "imagenet-22k"),
        model("c", untrained=True, weights="", weights_sha256=""),
    )
    text = section(page(tmp_path, models=models), "## Models")
    assert line_of(text, "`a`")[1:] == [
        *('`a.in1k, pad_type="same"`', "89,000,000", "imagenet-1k", "reference"),
        *("`a.safetensors`", f"`{'ab' * 32}`"),
    ]
    assert line_of(text, "`b`")[3:5] == ["imagenet-22k", "none"]
    assert line_of(text, "`c`")[3:] == ["untrained", "none", "none", "none"]
    inputs = text.split("| model")[2]
    assert line_of(inputs, "`a`")[1:] == [
        *("256 px", "224 px", "center", "bicubic", "0.5, 0.5, 0.5", "0.5, 0.5, 0.5")
    ]


def test_how_each_segmenter_sees_an_image_is_stated(tmp_path: Path) -> None:
    whole = MaskPreprocessingRecord(window=0, channels="bgr", threshold=0.62246, overlap=0.25)
    channel = Channel(scheme="zscore")
    nnunet = NnUNetInference(channels=(channel, channel), mirror_axes=(0, 1))
    peer = MaskPreprocessingRecord(
        window=64, channels="rgb", threshold=0.5, overlap=0.5, nnunet=nnunet
    )
    models = (
        segmenter("a"),
        segmenter("b", preprocessing=whole),
        segmenter("c", preprocessing=peer),
    )
    inputs = section(mask_page(tmp_path, models=models), "## Models").split("| model")[2]
    assert line_of(inputs, "`a`")[1:] == ["128 px", "rgb", "probability 0.5", "50 %"]
    assert line_of(inputs, "`b`")[1:] == [
        *("none: the whole image", "bgr", "probability 0.6225", "25 %")
    ]
    assert line_of(inputs, "`c`")[2] == "rgb, normalised as nnU-Net does (zscore), 4 flips averaged"
