from pathlib import Path

from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.sections.masks import masks
from tests.builders import IDENTITY, paper21
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.sections.told import NO_PICTURES, line_of, told

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
