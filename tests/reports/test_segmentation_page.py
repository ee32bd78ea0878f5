""""""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from robustcli.evaluation.cell_table import table
from robustcli.reports.document import Figure
from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.relaxed import relaxed_cells, relaxed_note, relaxed_source, relaxed_words
from robustcli.reports.segmentation_page import (
    cases,
    mask_opening,
    mask_settings,
    masks,
    segmentation,
)
from robustcli.tasks.record import MaskPreprocessingRecord
from tests.builders import IDENTITY, paper21
from tests.reports.headings import sections
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.told import NO_PICTURES, line_of, told


def test_the_sections_stand_in_their_order(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21(1)[:1], *paper21(5)[:1])
    models = (segmenter("a"), segmenter("b"))
    page = segmentation(build_masks(tmp_path, MaskPlan(models=models, transforms=cells)))
    assert sections(page) == [
        *("Best and worst transforms", "All transforms", "Dice over severity"),
        *("Best, median and worst cases", "What the transforms do", "Skipped images", "Speed"),
        *("Assumptions and settings", "Models", "How to repeat it"),
    ]
    assert page.results.equals(table(tmp_path))
    figures = [block.path for block in page.document.blocks if isinstance(block, Figure)]
    assert {"figures/cases-a.png", "figures/cases-b.png"} <= set(figures)
    assert all((tmp_path / figure).is_file() for figure in figures)


def test_pictures_follow_the_heading() -> None:
    page = told(cases([Figure("figures/cases-a.png", "Of a.")]))
    assert page.startswith("## Best, median and worst cases\n\n![Of a.](figures/cases-a.png)")


def test_their_absence_is_said() -> None:
    assert "None: the run holds no pictures" in told(cases([]))


def page(run: Path, plan: MaskPlan) -> str:
    return told(mask_opening(read_findings(build_masks(run, plan))))


def test_the_title_says_what_was_measured(tmp_path: Path) -> None:
    text = page(tmp_path, MaskPlan())
    assert text.startswith("# Dice of `ulvm_v5` under 6 transforms: `kaggle_3m`, 24 images\n")
    assert "averaged over 8 patients" in text


def test_how_empty_masks_count_is_said(tmp_path: Path) -> None:
    text = page(tmp_path, MaskPlan(grouping="photo"))
    assert "Empty masks: an image (and a photo) without foreground" in text
    assert "has dice 1 and IoU 1, with any pixel predicted 0" in text


HELD = {"images_available": 194, "subset": "test part of `ulvm_v5`"}


@pytest.mark.parametrize(
    ("plan", "notice"),
    [
        (MaskPlan(dataset={"demonstration": True}), "**Demonstration set.** `kaggle_3m`"),
        (
            MaskPlan(dataset=HELD, record={"split": "test"}),
            "**Held-out images.** 24 of 194 images (test part of `ulvm_v5`).",
        ),
        (
            MaskPlan(dataset={"images_available": 99, "subset": "24 images, seed 0"}),
            "**Subset.** 24 of 99 images (24 images, seed 0).",
        ),
        (MaskPlan(record={"status": "running"}), "**Partial run.**"),
        (MaskPlan(models=(segmenter("a", untrained=True),)), "**Untrained model.**"),
        (MaskPlan(groups=1), "**One patient only.** From one patient"),
    ],
)
def test_what_limits_the_numbers_is_said(tmp_path: Path, plan: MaskPlan, notice: str) -> None:
    assert notice in page(tmp_path, plan)


def test_nothing_is_limited_without_reason(tmp_path: Path) -> None:
    assert "**" not in page(tmp_path, MaskPlan())


def test_a_baseline_that_learned_nothing_is_no_mixed_pretraining(tmp_path: Path) -> None:
    otsu = segmenter("otsu", parameters=0, pretraining="none")
    other = segmenter("unet", pretraining="other data")
    assert "Mixed" not in page(tmp_path / "a", MaskPlan(models=(segmenter("a"), otsu)))
    assert "**Mixed pretraining.**" in page(
        tmp_path / "b", MaskPlan(models=(segmenter("a"), other))
    )


def page_mask_settings(run: Path, plan: MaskPlan) -> str:
    return told(mask_settings(read_findings(build_masks(run, plan))))


@pytest.mark.parametrize(
    "fact",
    [
        "Images: `kaggle_3m` at `lgg/kaggle_3m`; 24 of 24 images.",
        "Part of the data: the part that was held out. Subset: test part of `a`.",
        "A group is one patient: dice is pooled within it",
        f"Digest of the image list: `{'cd' * 32}`.",
        "Seed: 7. Precision: bf16.",
        "```text\nrobust eval --model ulvm_v5 --data lgg/kaggle_3m --transform paper21\n```",
        "Versions: robust 0.1.0, torch 2.6.0. Device: cpu (2 threads).",
    ],
)
def test_every_choice_is_stated(tmp_path: Path, fact: str) -> None:
    record = {"seed": 7, "precision": "bf16", "split": "test"}
    plan = MaskPlan(record=record, dataset={"subset": "test part of `a`"})
    assert fact in page_mask_settings(tmp_path, plan)


def test_how_each_model_sees_an_image_is_stated(tmp_path: Path) -> None:
    whole = MaskPreprocessingRecord(window=0, channels="bgr", threshold=0.62246, overlap=0.25)
    models = (segmenter("a"), segmenter("b", preprocessing=whole))
    inputs = page_mask_settings(tmp_path, MaskPlan(models=models)).split("| model")[2]
    assert line_of(inputs, "`a`")[1:] == ["128 px", "rgb", "probability 0.5", "50 %"]
    assert line_of(inputs, "`b`")[1:] == [
        *("none: the whole image", "bgr", "probability 0.6225", "25 %")
    ]


def test_the_source_of_the_relaxed_numbers_is_told_of_roads_only(tmp_path: Path) -> None:
    roads = MaskPlan(dataset={"tolerance": 3})
    assert "Relaxed precision and recall: 3 pixels, as V. Mnih" in page_mask_settings(
        tmp_path / "a", roads
    )
    assert "Relaxed" not in page_mask_settings(tmp_path / "b", MaskPlan())


DASH = "\N{EN DASH}"
TWO = (segmenter("a"), segmenter("b"))


def findings(run: Path, plan: MaskPlan | None = None) -> Findings:
    return read_findings(build_masks(run, plan or MaskPlan(models=TWO)))


def test_dice_and_iou_stand_with_their_intervals(tmp_path: Path) -> None:
    found = findings(tmp_path)
    page = told(masks(found, NO_PICTURES))
    first, second = (found.of_model(name).iloc[2] for name in "ab")
    assert line_of(page.split("### Dice")[1], "`affine`") == [
        "`affine`",
        f"**{first['dice']:.3f}** ({first['dice_low']:.3f}{DASH}{first['dice_high']:.3f})",
        f"{second['dice']:.3f} ({second['dice_low']:.3f}{DASH}{second['dice_high']:.3f})",
    ]
    assert line_of(page.split("### IoU")[1], "`affine`")[2] == (
        f"{second['iou']:.3f} ({second['iou_low']:.3f}{DASH}{second['iou_high']:.3f})"
    )


def test_of_roads_both_relaxed_numbers_stand_with_their_intervals(tmp_path: Path) -> None:
    found = findings(tmp_path, MaskPlan(models=TWO, dataset={"tolerance": 3}))
    page = told(masks(found, NO_PICTURES)).split("### Relaxed")[1].split("###")[0]
    assert "within 3 pixels of a true one" in page
    row = found.of_model("b").iloc[2]
    for part, name in (("precision:", "relaxed_precision"), ("recall:", "relaxed_recall")):
        assert line_of(page.split(f"Relaxed {part}")[1], "`affine`")[2] == (
            f"{row[name]:.3f} ({row[f'{name}_low']:.3f}{DASH}{row[f'{name}_high']:.3f})"
        )


def test_a_drop_stands_with_its_paired_interval_and_retention(tmp_path: Path) -> None:
    found = findings(tmp_path)
    drops = told(masks(found, NO_PICTURES)).split("### Drop in dice")[1]
    row = found.of_model("b").iloc[3]
    assert line_of(drops, "`crop`")[2] == (
        f"{row['drop']:.3f} ({row['drop_low']:.3f} to {row['drop_high']:.3f}); "
        f"{100 * row['retention']:.1f}"
    )
    assert "`identity`" not in drops.split("### IoU")[0]


def test_best_and_worst_are_by_dice(tmp_path: Path) -> None:
    found = findings(tmp_path)
    rows = found.of_model("a")
    ranked = rows[rows["transform"] != "identity"].sort_values("dice")
    line = line_of(told(masks(found, NO_PICTURES)), "`a`")
    assert line[1:4] == [
        f"`{ranked.iloc[-1]['transform']}` {ranked.iloc[-1]['dice']:.3f}",
        f"`{ranked.iloc[0]['transform']}` {ranked.iloc[0]['dice']:.3f}",
        f"{rows.iloc[0]['dice']:.3f}",
    ]


def test_the_details_of_a_transform_stand_together(tmp_path: Path) -> None:
    found = findings(tmp_path)
    details = told(masks(found, NO_PICTURES)).split("### Single images")[1]
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


def test_one_model_needs_no_column_of_models(tmp_path: Path) -> None:
    page = told(masks(findings(tmp_path, MaskPlan()), NO_PICTURES))
    assert "**" not in page
    assert "elaxed" not in page, "these data have no tolerance"
    assert line_of(page.split("### Single images")[1], "transform")[1] == "dice per image"


def test_clean_images_alone_are_not_compared(tmp_path: Path) -> None:
    page = told(masks(findings(tmp_path, MaskPlan(transforms=(IDENTITY,))), NO_PICTURES))
    assert page.startswith("## Clean images")
    assert "Drop" not in page
    assert "Best and worst" not in page


def test_unfinished_cells_say_so(tmp_path: Path) -> None:
    build_masks(tmp_path, MaskPlan(transforms=(IDENTITY, *paper21()[:3])))
    for file in tmp_path.glob("predictions/*/transform=crop/*/*.parquet"):
        file.unlink()
    page = told(masks(read_findings(tmp_path), NO_PICTURES))
    assert line_of(page.split("### Dice")[1], "`crop`")[1] == "not yet"
    assert line_of(page.split("### Drop")[1], "`crop`")[1] == "not yet"


def test_data_without_a_tolerance_show_nothing() -> None:
    assert (relaxed_note(None), relaxed_source(None)) == ([], ())


def test_the_note_says_how_far_near_is() -> None:
    assert "within 3 pixels of a true one" in told(relaxed_note(3))
    assert "within 1 pixel of a true one" in told(relaxed_note(1))


def test_a_number_that_does_not_exist_is_a_dash() -> None:
    numbers = pd.Series(
        {
            **dict.fromkeys(
                (f"relaxed_precision{end}" for end in ("", "_low", "_high")), float("nan")
            ),
            "relaxed_recall": 0.25,
            "relaxed_recall_low": 0.125,
            "relaxed_recall_high": 0.5,
        }
    )
    assert relaxed_words(numbers) == f"{DASH} and 0.250 (0.125{DASH}0.500)"
    assert relaxed_cells(numbers) == ((DASH,), (f"0.250 (0.125{DASH}0.500)",))


def test_the_foot_names_the_tolerance_and_the_thesis() -> None:
    (foot,) = relaxed_source(3)
    assert "3 pixels, as V. Mnih, Machine Learning for Aerial Image Labeling, PhD" in str(foot[0])
