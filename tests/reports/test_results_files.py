"""The numbers of classifiers' trainings for other programs."""

from __future__ import annotations

from pathlib import Path

from robustcli.reports.finetuning_results import columns
from robustcli.reports.scoring import SCORINGS
from robustcli.reports.training_results import CLASS_COLUMNS

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"


def test_every_column_is_documented() -> None:
    told = FORMATS.read_text(encoding="utf-8")
    for name in (*CLASS_COLUMNS, *columns(SCORINGS["cls"])):
        assert f"`{name}`" in told, name
