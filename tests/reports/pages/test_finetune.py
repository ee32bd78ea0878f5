from pathlib import Path

import pytest

from robustcli.reports.pages.finetune import finetune
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.pages.headings import sections

LAST = ["Every tensor", "Data", "Recipe and settings", "How to repeat it"]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (
            FinetunePlan(modes=("full", "freeze"), sweep=True),
            [
                *(
                    "Modes",
                    "Gradients and what was frozen",
                    "Time saved against dice, rule by rule",
                ),
                *("Best, median and worst cases", *LAST),
            ],
        ),
        (FinetunePlan(modes=()), ["Gradients and what was frozen", LAST[0], *LAST[2:]]),
    ],
)
def test_the_sections_stand_in_their_order(
    tmp_path: Path, plan: FinetunePlan, expected: list[str]
) -> None:
    page = finetune(build_finetuning(tmp_path, plan))
    assert sections(page) == expected
    assert list(page.results["mode"]) == list(plan.modes)
