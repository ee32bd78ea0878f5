"""`results.csv` and `results.json`: the numbers of a run for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from robustcli.core.atomic import write_text


def write_results(run: Path, table: pd.DataFrame) -> None:
    """Writes both files durably; the same table gives the same bytes.

    Args:
        run: Directory of the run.
        table: `metrics.table` of the run; a missing number is empty in CSV and null in JSON.
    """
    write_text(run / "results.csv", table.to_csv(index=False, lineterminator="\n"))
    write_text(run / "results.json", to_json(table))


def to_json(table: pd.DataFrame) -> str:
    """`table` as a JSON array with one record per row; shares are fractions in [0, 1].

    Raises:
        ValueError: A number is infinite, which JSON cannot say.
    """
    records = table.astype(object).where(table.notna(), None).to_dict(orient="records")
    return json.dumps(records, indent=1, allow_nan=False) + "\n"
