from pathlib import Path

import pytest

from robustcli.reports.pages.training import training
from tests.reports.pages.headings import sections
from tests.reports.train_runs import TrainPlan, build_training

PLAIN = [
    *("Held-out images", "Best, median and worst cases", "How the training went"),
    *("Published and measured", "Data", "Recipe and settings", "How to repeat it"),
]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (TrainPlan(), PLAIN),
        (TrainPlan(protocol="paper"), [PLAIN[0], "The paper's way of counting", *PLAIN[1:]]),
        (TrainPlan(measured=False, finished=0), PLAIN),
    ],
)
def test_the_sections_stand_in_their_order(
    tmp_path: Path, plan: TrainPlan, expected: list[str]
) -> None:
    page = training(build_training(tmp_path, plan))
    assert sections(page) == expected
    assert list(page.results["model"]) == ["ulvm_v5"]
