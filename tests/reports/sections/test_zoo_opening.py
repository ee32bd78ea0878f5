from pathlib import Path

import pytest

from robustcli.reports.sections.zoo_opening import zoo_opening, zoo_recipes
from robustcli.reports.training import Training, read_training
from tests.reports.sections.told import line_of, told
from tests.reports.train_runs import TrainPlan, build_training


def trained(folder: Path, *plans: TrainPlan) -> list[Training]:
    return [
        read_training(build_training(folder / f"run-{number}", plan))
        for number, plan in enumerate(plans)
    ]


PLAIN = TrainPlan(model="unet")


def test_the_title_counts_trainings_and_names_data_and_protocol(tmp_path: Path) -> None:
    page = told(zoo_opening(trained(tmp_path, TrainPlan(), PLAIN)))
    assert page.splitlines()[0] == (
        "# 2 trainings of the segmentation zoo: `kaggle_3m`, protocol patient"
    )
    assert "**" not in page
    assert "Empty masks: an image (and a patient)" in page


@pytest.mark.parametrize(
    ("plan", "notice"),
    [
        (TrainPlan(protocol="paper"), "**Mixed protocols.**"),
        (TrainPlan(record={"seed": 1}), "**Mixed data.**"),
        (TrainPlan(dataset={"digest": "00" * 32}), "**Mixed data.**"),
        (TrainPlan(epochs=3), "**Mixed lengths.**"),
        (TrainPlan(measured=False), "**Partial runs.** Not finished: `ulvm_v5`."),
        (
            TrainPlan(dataset={"digest": "00" * 32, "images": 9, "demonstration": True}),
            "**Demonstration set.**",
        ),
    ],
)
def test_what_keeps_them_from_being_compared_is_said(
    tmp_path: Path, plan: TrainPlan, notice: str
) -> None:
    assert notice in told(zoo_opening(trained(tmp_path, plan, PLAIN)))


def test_each_recipe_has_its_line_and_each_command_is_shown_once(tmp_path: Path) -> None:
    trainings = trained(tmp_path, TrainPlan(recipe={"accumulate": 2}), PLAIN, PLAIN)
    page = told(zoo_recipes(trainings))
    assert line_of(page, "`ulvm_v5`") == [
        *("`ulvm_v5`", "kaggle_3m", "patient", "0", "bce-dice", "AdamW", "0.001, constant"),
        *("8 x 2", "128 px", "light", "probability >= 0.5", "cpu (2 threads)"),
    ]
    assert line_of(page, "`unet (run-2)`")[7] == "8"
    assert page.count("robust train seg --model unet") == 1
    assert "Versions: robust 0.1.0, torch 2.6.0." in page


def test_different_versions_are_told_apart(tmp_path: Path) -> None:
    other = TrainPlan(record={"versions": {"torch": "2.7.0"}})
    page = told(zoo_recipes(trained(tmp_path, PLAIN, other)))
    assert "Versions of `unet`: robust 0.1.0, torch 2.6.0." in page
    assert "Versions of `ulvm_v5`: torch 2.7.0." in page
