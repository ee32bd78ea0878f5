from pathlib import Path

import pytest

from robustcli.reports.document import Figure
from robustcli.reports.sections.training_course import course, data
from robustcli.reports.training import read_training
from tests.reports.sections.told import line_of, told
from tests.reports.train_runs import TrainPlan, build_training

CURVES = [Figure("figures/curves.png", "Curves.")]


@pytest.mark.parametrize(
    "fact",
    [
        "12 epochs, 120 steps in 48.0 s (median epoch 4.0 s, with its validation).",
        "The network waited for images 2.0 % of its training time.",
        "Peak memory: 1.50 GiB.",
        "Energy of the device: 2.00 Wh.",
        "![Curves.](figures/curves.png)",
    ],
)
def test_what_it_cost_is_said(tmp_path: Path, fact: str) -> None:
    plan = TrainPlan(record={"energy_joules": 7200.0})
    assert fact in told(course(read_training(build_training(tmp_path, plan)), CURVES))


def test_memory_and_energy_that_nobody_measured_are_not_told(tmp_path: Path) -> None:
    plan = TrainPlan(record={"peak_memory_bytes": None})
    page = told(course(read_training(build_training(tmp_path, plan)), CURVES))
    assert "memory" not in page
    assert "Energy" not in page


@pytest.mark.parametrize(
    ("record", "machine"),
    [
        ({}, "On cpu (2 threads)."),
        ({"device": "NVIDIA H100", "devices": 2}, "On NVIDIA H100, 2 threads, 2 processes."),
    ],
)
def test_the_machine_is_named(tmp_path: Path, record: dict[str, object], machine: str) -> None:
    training = read_training(build_training(tmp_path, TrainPlan(record=record)))
    assert machine in told(course(training, CURVES))


def test_before_the_first_epoch_there_is_nothing_to_tell(tmp_path: Path) -> None:
    plan = TrainPlan(measured=False, finished=0)
    page = told(course(read_training(build_training(tmp_path, plan)), []))
    assert "No epoch is finished yet." in page


def test_the_parts_of_the_data_are_counted(tmp_path: Path) -> None:
    page = told(data(read_training(build_training(tmp_path))))
    assert line_of(page, "part") == ["part", "images", "patients", "images without foreground"]
    assert line_of(page, "training") == ["training", "3,143", "88", "2,050"]
    assert line_of(page, "held out") == ["held out", "24", "8", "4"]
    assert "Empty masks: an image (and a patient)" in page


def test_where_every_image_is_its_own_group_groups_are_not_counted(tmp_path: Path) -> None:
    page = told(data(read_training(build_training(tmp_path, TrainPlan(grouping="image")))))
    assert line_of(page, "training") == ["training", "3,143", "2,050"]


def test_parts_that_are_not_counted_yet_are_left_out(tmp_path: Path) -> None:
    plan = TrainPlan(measured=False, record={"splits": {}})
    page = told(data(read_training(build_training(tmp_path, plan))))
    assert "| part" not in page
