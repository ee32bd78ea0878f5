from pathlib import Path

from robustcli.reports.findings import read_findings
from robustcli.reports.measure import DICE
from robustcli.reports.sections.comparison import bold_note, value, value_range, value_table
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.sections.told import told


def test_a_value_and_its_interval_are_told_by_their_measure(tmp_path: Path) -> None:
    row = read_findings(build_masks(tmp_path)).table.iloc[0]
    assert value(row, DICE) == f"{row['dice']:.3f}"
    assert value_range(row, DICE, "-") == f"{row['dice_low']:.3f}-{row['dice_high']:.3f}"


def test_bold_is_explained_where_something_is_bold(tmp_path: Path) -> None:
    one = read_findings(build_masks(tmp_path / "a"))
    models = (segmenter("a"), segmenter("b"))
    two = read_findings(build_masks(tmp_path / "b", MaskPlan(models=models)))
    assert bold_note(one) == []
    assert "whether or not the difference is more than chance" in told(bold_note(two))
    assert told([value_table(two, DICE)]).count("**") == 2 * 7
