from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.reports.findings import read_findings
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21

CELLS = (IDENTITY, *paper21()[:2])


def test_skipped_images_are_not_missing(tmp_path: Path) -> None:
    skipped = [("class-01/photo-00001.jpeg", "truncated")]
    findings = read_findings(build_run(tmp_path, RunPlan(transforms=CELLS, skipped=skipped)))
    assert (findings.expected, findings.n) == (59, 59)
    assert not findings.is_partial


def test_a_run_with_unfinished_cells_is_partial_whatever_its_status(tmp_path: Path) -> None:
    build_run(tmp_path, RunPlan(transforms=CELLS))
    next(tmp_path.glob("predictions/*/transform=affine/*/block-000001.parquet")).unlink()
    findings = read_findings(tmp_path)
    assert findings.record.status == "complete"
    assert list(findings.unfinished["transform"]) == ["affine"]
    assert findings.is_partial


@pytest.mark.parametrize("status", ["running", "partial", "failed"])
def test_a_run_that_did_not_end_well_is_partial(tmp_path: Path, status: str) -> None:
    plan = RunPlan(transforms=CELLS, record={"status": status})
    assert read_findings(build_run(tmp_path, plan)).is_partial


def test_rows_of_a_model_are_its_own(tmp_path: Path) -> None:
    plan = RunPlan(models=(model("a"), model("b")), transforms=CELLS)
    rows = read_findings(build_run(tmp_path, plan)).of_model("b")
    assert list(rows["model"]) == ["b"] * 3
    assert list(rows.index) == [0, 1, 2]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        read_findings(tmp_path)
