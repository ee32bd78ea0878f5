from pathlib import Path

from robustcli.evaluation.corruption import corruption_errors
from robustcli.evaluation.record import TransformRecord
from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.measure import DICE
from robustcli.reports.sections.severity import breaking, severity
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.mask_runs import MaskPlan, build_masks
from tests.reports.sections.told import NO_PICTURES, line_of, told


def findings(run: Path, cells: list[TransformRecord], images: int = 30) -> Findings:
    plan = RunPlan(models=(model("a"), model("b")), transforms=(IDENTITY, *cells), images=images)
    return read_findings(build_run(run, plan))


def test_a_run_without_scales_has_no_such_section(tmp_path: Path) -> None:
    assert severity(findings(tmp_path, paper21()[:2]), NO_PICTURES) == []


def test_breaking_points_are_the_first_severity_below_half(tmp_path: Path) -> None:
    found = findings(tmp_path, imagenet_c()[:10])
    page = told(severity(found, NO_PICTURES))
    for name in ("c_gaussian_noise", "c_shot_noise"):
        expected = []
        for entry in "ab":
            rows = found.of_model(entry)
            clean = rows["top1"].iloc[0]
            steps = rows[rows["transform"] == name]
            below = steps.loc[steps["top1"] < clean / 2, "severity"]
            expected.append("> 5" if below.empty else str(below.min()))
        assert line_of(page, f"`{name}`")[1:] == expected
    assert "mCE" not in page


def test_a_model_without_its_cells_leaves_a_gap_and_moves_nobody(tmp_path: Path) -> None:
    findings(tmp_path, imagenet_c()[:5])
    for file in tmp_path.glob("predictions/model=a/transform=c_*/severity=*/*.parquet"):
        file.unlink()
    page = told(severity(read_findings(tmp_path), NO_PICTURES))
    gap, there = line_of(page, "`c_gaussian_noise`")[1:]
    assert gap == "\N{EN DASH}"
    assert there != gap


def test_corruption_errors_follow_when_the_benchmark_is_complete(tmp_path: Path) -> None:
    found = findings(tmp_path, imagenet_c(), images=10)
    page = told(severity(found, NO_PICTURES)).split("corruption errors")[1]
    first, second = corruption_errors(found.table, found.record)
    assert line_of(page, "mCE")[1:] == [f"{100 * first.mce:.1f}", f"{100 * second.mce:.1f}"]
    assert line_of(page, "relative")[1] == f"{100 * first.relative_mce:.1f}"
    assert line_of(page, "`fog`")[2] == f"{100 * second.by_corruption['fog']:.1f}"


def test_segmenters_break_where_less_than_half_of_their_dice_is_left(tmp_path: Path) -> None:
    cells = (IDENTITY, *(cell for step in (1, 2, 5) for cell in paper21(step)[:1]))
    found = read_findings(build_masks(tmp_path, MaskPlan(transforms=cells)))
    page = told(breaking(found, NO_PICTURES, DICE, "Dice over severity"))
    rows = found.table
    below = rows.loc[rows["dice"] < rows["dice"].iloc[0] / 2, "severity"]
    assert line_of(page, "`additive_gaussian_noise`")[1] == str(below.min())
    assert page.startswith("## Dice over severity")
    assert "keeps less than half of its clean dice;" in page
