from pathlib import Path

from robustcli.evaluation.metrics import table
from robustcli.reports.measure import DICE
from robustcli.reports.terminal import MODELS_ABREAST, Kind, comparison_table, grid
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter

KIND = Kind(DICE, "dice!", " of 1", "extra", lambda row: f"x{row['n']}", lambda row: "clean")


def test_a_kind_decides_what_is_shown(tmp_path: Path) -> None:
    lines = comparison_table(table(build_masks(tmp_path)), KIND).splitlines()
    assert lines[0].split()[:3] == ["transform", "extra", "dice!"]
    assert lines[2].split()[:2] == ["identity", "x24"]
    assert lines[-1].startswith("ulvm_v5: clean (identity), best ")
    assert " of 1, worst crop " in lines[-1]


def test_so_many_models_stand_abreast(tmp_path: Path) -> None:
    models = [segmenter(f"m{i}") for i in range(MODELS_ABREAST + 1)]
    text = comparison_table(table(build_masks(tmp_path, MaskPlan(models=models))), KIND)
    heads = [line.split()[4:] for line in text.splitlines() if line.startswith("dice!")]
    assert heads == [[f"m{i}" for i in range(MODELS_ABREAST)], [f"m{MODELS_ABREAST}"]]


def test_numbers_are_to_the_right() -> None:
    lines = grid(("a", "b"), [("x", "1"), ("long name", "23")]).splitlines()
    assert lines[2] == "x            1"
    assert lines[3] == "long name   23"
