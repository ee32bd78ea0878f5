from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.reports.pages.zoo import zoo
from tests.reports.pages.headings import sections
from tests.reports.train_runs import TrainPlan, build_training


def test_the_sections_stand_in_their_order(tmp_path: Path) -> None:
    runs = [build_training(tmp_path / name, TrainPlan(model=name)) for name in ("unet", "ulvm")]
    page = zoo(runs, tmp_path / "out")
    assert sections(page) == [
        *("Published and measured", "How the trainings went", "Recipes", "How to repeat it")
    ]
    assert list(page.results["model"]) == ["unet", "ulvm"]


def test_trainings_that_have_not_begun_have_no_curves(tmp_path: Path) -> None:
    run = build_training(tmp_path / "a", TrainPlan(measured=False, finished=0))
    assert "How the trainings went" not in sections(zoo([run], tmp_path / "out"))


def test_the_folder_of_a_training_is_not_overwritten(tmp_path: Path) -> None:
    run = build_training(tmp_path / "a")
    with pytest.raises(UsageError, match="would overwrite that training's own report"):
        zoo([run], run)
