from pathlib import Path

import pandas as pd

from robustcli.reports.contact_sheet import ContactLines, contact_lines
from robustcli.reports.findings import read_findings
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, paper21
from tests.reports.mask_runs import MaskPlan, build_masks


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
    for name, psnr, changed in [
        ("affine", 12.34, True),
        ("crop", float("inf"), False),
        ("hue_and_saturation", float("nan"), True),
    ]:
        (file,) = tmp_path.glob(f"inputs/*/transform={name}/severity=0/block-000000.parquet")
        frame = pd.read_parquet(file, partitioning=None)
        frame.loc[0, "psnr_db"], frame.loc[0, "changed"] = psnr, changed
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
    nothing = ContactLines([], [])
    plan = RunPlan(transforms=(IDENTITY, *paper21()[:2]), samples=False)
    assert lines_of(tmp_path / "a", plan) == nothing
    assert lines_of(tmp_path / "b", RunPlan(transforms=(IDENTITY,))) == nothing


def test_for_segmenters_the_note_is_of_the_first_image_with_foreground(tmp_path: Path) -> None:
    # Every image but the third is empty, and that is the one that an evaluation shows.
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
