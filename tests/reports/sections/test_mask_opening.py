from pathlib import Path

import pytest

from robustcli.reports.findings import read_findings
from robustcli.reports.sections.mask_opening import mask_opening
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.sections.told import told


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
