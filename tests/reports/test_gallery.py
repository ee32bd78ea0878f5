"""Figures of an evaluation: contact sheets and cases."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from robustcli.reports import evaluation_page
from robustcli.reports.evaluation_page import (
    ContactLines,
    Gallery,
    case_figures,
    contact_lines,
    draw_gallery,
)
from robustcli.reports.figures.images import Case
from robustcli.reports.findings import read_findings
from robustcli.tasks.record import MaskPreprocessingRecord
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, paper21
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture
def drawn_cases(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    result: list[Case] = []
    monkeypatch.setattr(evaluation_page, "draw_panels", lambda cases, path: result.extend(cases))
    return result


def test_each_panel_is_a_case_with_its_rank_dice_and_id(
    tmp_path: Path, drawn_cases: list[Case]
) -> None:
    findings = read_findings(build_masks(tmp_path))
    (figure,) = case_figures(findings, findings.models[0], tmp_path, "ulvm_v5")
    assert figure.path == "figures/cases-ulvm_v5.png"
    assert [case.title for case in drawn_cases] == [
        "best 1: dice 0.900, p00/slice-0000.tif",
        "median 1: dice 0.600, p01/slice-0001.tif",
        "worst 1: dice 0.300, p02/slice-0002.tif",
    ]
    first, second = drawn_cases[:2]
    assert (first.truth == first.prediction).all()
    assert (second.truth != second.prediction).any()
    assert first.image.shape == (48, 64, 3)


def test_the_models_own_threshold_makes_the_mask(tmp_path: Path, drawn_cases: list[Case]) -> None:
    strict = MaskPreprocessingRecord(window=128, channels="rgb", threshold=0.95, overlap=0.5)
    plan = MaskPlan(models=(segmenter("a"), segmenter("b", preprocessing=strict)))
    findings = read_findings(build_masks(tmp_path, plan))
    for panels in findings.models:
        case_figures(findings, panels, tmp_path, panels.name)
    # The pictures show 230 / 255 = 0.902.
    assert [case.prediction.any() for case in drawn_cases] == [True] * 3 + [False] * 3


def test_pictures_that_are_gone_are_left_out(tmp_path: Path, drawn_cases: list[Case]) -> None:
    findings = read_findings(build_masks(tmp_path))
    (tmp_path / "panels/ulvm_v5/best-1/truth.png").unlink()
    (tmp_path / "panels/ulvm_v5/worst-1/image.png").write_bytes(b"no picture")
    assert case_figures(findings, findings.models[0], tmp_path, "a")
    assert [case.title[:6] for case in drawn_cases] == ["median"]


def test_a_name_with_a_slash_is_a_file_name(tmp_path: Path) -> None:
    models = (segmenter("smp:Unet/resnet34"),)
    findings = read_findings(build_masks(tmp_path, MaskPlan(models=models)))
    (figure,) = case_figures(findings, models[0], tmp_path, "smp:Unet/resnet34")
    with Image.open(tmp_path / figure.path) as picture:
        assert picture.width > 600


def lines_of(run: Path, plan: RunPlan) -> ContactLines:
    return contact_lines(read_findings(build_run(run, plan)))


def test_single_cells_follow_the_clean_photo_and_scales_have_their_own_lines(
    tmp_path: Path,
) -> None:
    cells = (IDENTITY, *paper21()[:6], *imagenet_c()[:10])
    lines = lines_of(tmp_path, RunPlan(transforms=cells))
    assert [len(line) for line in lines.single] == [5, 2]
    assert lines.single[0][0].title == "clean"
    assert [tile.title for tile in lines.graded[1]] == ["c_shot_noise"] * 5
    assert [tile.note.split(",")[0] for tile in lines.graded[1]] == [
        f"severity {severity}" for severity in (1, 2, 3, 4, 5)
    ]
    tiles = [tile for line in (*lines.single, *lines.graded) for tile in line]
    assert all(tile.picture.is_file() for tile in tiles)


def test_the_clean_photo_opens_the_scales_when_there_is_nothing_else(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, RunPlan(transforms=(IDENTITY, *imagenet_c()[:5])))
    assert lines.single == []
    assert [line[0].title for line in lines.graded] == ["clean", "c_gaussian_noise"]


def test_one_severity_of_a_transform_is_a_single_cell(tmp_path: Path) -> None:
    cells = (IDENTITY, *imagenet_c(severities=(3,))[:2])
    lines = lines_of(tmp_path, RunPlan(transforms=cells))
    assert lines.graded == []
    assert lines.single[0][1].note.startswith("severity 3, PSNR ")


def test_the_note_is_the_psnr_of_the_first_image(tmp_path: Path) -> None:
    build_run(tmp_path, RunPlan(transforms=(IDENTITY, *paper21()[:4])))
    for name, psnr, expected_label in [
        ("affine", 12.34, True),
        ("crop", float("inf"), False),
        ("hue_and_saturation", float("nan"), True),
    ]:
        (file,) = tmp_path.glob(f"inputs/*/transform={name}/severity=0/block-000000.parquet")
        frame = pd.read_parquet(file, partitioning=None)
        frame.loc[0, "psnr_db"], frame.loc[0, "changed"] = psnr, expected_label
        frame.to_parquet(file, index=False)
    next(tmp_path.glob("inputs/*/transform=additive*/*/block-000000.parquet")).unlink()
    (line,) = contact_lines(read_findings(tmp_path)).single
    assert {tile.title: tile.note for tile in line} == {
        "clean": "as it is",
        "additive_gaussian_noise": "PSNR unknown",
        "affine": "PSNR 12.3 dB",
        "crop": "unchanged",
        "hue_and_saturation": "PSNR unknown",
    }


def test_without_samples_or_transforms_there_are_no_sheets(tmp_path: Path) -> None:
    no_lines = ContactLines([], [])
    plan = RunPlan(transforms=(IDENTITY, *paper21()[:2]), samples=False)
    assert lines_of(tmp_path / "a", plan) == no_lines
    assert lines_of(tmp_path / "b", RunPlan(transforms=(IDENTITY,))) == no_lines


def test_for_segmenters_the_note_is_of_the_first_image_with_foreground(tmp_path: Path) -> None:
    # All images but the third are empty, so an evaluation shows the third.
    plan = MaskPlan(transforms=(IDENTITY, *paper21()[:1]), images=6, empty_every=1)
    build_masks(tmp_path, plan)
    (tmp_path / "samples").mkdir()
    (rows,) = tmp_path.glob("predictions/*/transform=identity/*/block-000000.parquet")
    frame = pd.read_parquet(rows, partitioning=None)
    frame.loc[2, "fn"] = 10
    frame.to_parquet(rows, index=False)
    (file,) = tmp_path.glob("inputs/*/transform=additive*/*/block-000000.parquet")
    measures = pd.read_parquet(file, partitioning=None)
    measures["psnr_db"] = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    measures.to_parquet(file, index=False)
    (line,) = contact_lines(read_findings(tmp_path)).single
    assert line[1].note == "PSNR 30.0 dB"


def names(gallery: Gallery) -> list[str]:
    kinds = (gallery.bars, gallery.overview, gallery.multiples, gallery.contact)
    return [Path(figure.path).stem for kind in kinds for figure in kind]


CASES = {
    "paper21": (paper21()[:4], ["best_and_worst", "all_transforms", "contact_sheet"]),
    "imagenet-c": (imagenet_c()[:5], ["best_and_worst", "severities", "contact_sheet_severities"]),
    "one severity": (
        imagenet_c(severities=(3,))[:3],
        ["best_and_worst", "all_transforms", "contact_sheet"],
    ),
    "both": (
        [*paper21()[:1], *paper21(1)[:1], *paper21(5)[:1]],
        [
            *("best_and_worst", "all_transforms", "severities", "contact_sheet"),
            "contact_sheet_severities",
        ],
    ),
    "identity alone": ([], []),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_has_the_pictures_that_its_cells_allow(tmp_path: Path, case: str) -> None:
    transforms, expected = CASES[case]
    build_run(tmp_path, RunPlan(transforms=(IDENTITY, *transforms), images=10))
    gallery = draw_gallery(read_findings(tmp_path))
    assert names(gallery) == expected
    for name in expected:
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            assert picture.width > 200


def test_nothing_is_drawn_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    plan = RunPlan(transforms=(IDENTITY, *paper21()[:2]), done=0.0, samples=False)
    assert names(draw_gallery(read_findings(build_run(tmp_path, plan)))) == []
