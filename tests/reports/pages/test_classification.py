from pathlib import Path

from robustcli.evaluation.metrics import table
from robustcli.reports.pages.classification import classification
from tests.builders import IDENTITY, RunPlan, build_run, paper21
from tests.reports.pages.headings import sections


def test_the_sections_stand_in_their_order(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21(1)[:1], *paper21(5)[:1])
    page = classification(build_run(tmp_path, RunPlan(transforms=cells)))
    assert sections(page) == [
        *("Best and worst transforms", "All transforms", "Accuracy over severity"),
        *("What the transforms do", "Skipped images", "Speed", "Assumptions and settings"),
        *("Models", "How to repeat it"),
    ]
    assert page.results.equals(table(tmp_path))
