import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustcli.evaluation.metrics import table
from robustcli.reports.results import to_json, write_results
from tests.builders import IDENTITY, RunPlan, build_run, paper21


@pytest.fixture
def numbers(tmp_path: Path) -> pd.DataFrame:
    numbers = table(build_run(tmp_path, RunPlan(transforms=(IDENTITY, *paper21()[:3]))))
    numbers.loc[2, "retention"] = np.nan
    return numbers


def test_both_files_hold_the_unrounded_table(tmp_path: Path, numbers: pd.DataFrame) -> None:
    write_results(tmp_path, numbers)
    csv = pd.read_csv(tmp_path / "results.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(csv, numbers, check_exact=True)
    records = json.loads((tmp_path / "results.json").read_text())
    pd.testing.assert_frame_equal(pd.DataFrame(records), numbers, check_exact=True)


def test_a_missing_number_is_null_in_json_and_empty_in_csv(
    tmp_path: Path, numbers: pd.DataFrame
) -> None:
    write_results(tmp_path, numbers)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    records = json.loads(text)
    assert records[2]["retention"] is None
    assert records[0]["psnr_db"] is None
    header, identity, *_ = (tmp_path / "results.csv").read_text().splitlines()
    assert identity.split(",")[header.split(",").index("psnr_db")] == ""


def test_counts_are_whole_numbers(numbers: pd.DataFrame) -> None:
    record = json.loads(to_json(numbers))[1]
    assert (record["n"], record["severity"]) == (60, 0)
    assert all(isinstance(record[name], int) for name in ("n", "correct", "severity", "paired_n"))


def test_infinity_never_reaches_a_file(numbers: pd.DataFrame) -> None:
    numbers.loc[0, "psnr_db"] = np.inf
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(numbers)
