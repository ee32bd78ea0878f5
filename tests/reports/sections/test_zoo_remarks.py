from pathlib import Path

from robustcli.reports.document import Listing
from robustcli.reports.sections.zoo_remarks import zoo_remarks
from robustcli.reports.training import Training, read_training
from robustcli.reports.zoo_rows import zoo_rows
from tests.reports.sections.told import told
from tests.reports.train_runs import TrainPlan, build_training


def remarks(trainings: list[Training]) -> list[str]:
    page = told([Listing(tuple(zoo_remarks(zoo_rows(trainings), trainings)))])
    return page.strip().splitlines()


def trained(run: Path, plan: TrainPlan) -> Training:
    return read_training(build_training(run, plan))


def test_trainings_that_differ_alike_from_the_published_ones_are_told_together(
    tmp_path: Path,
) -> None:
    trainings = [
        trained(tmp_path / "a", TrainPlan(model="unet")),
        trained(tmp_path / "b", TrainPlan(model="ulvm")),
        trained(tmp_path / "c", TrainPlan(model="ulvm_v5", protocol="paper", epochs=100)),
        trained(tmp_path / "d", TrainPlan(model="vmunet")),
    ]
    lines = remarks(trainings)
    assert lines[1] == (
        "- `unet`, `ulvm`: another experiment than the published one (protocol patient instead of "
        "paper; 12 epochs instead of 100), so the difference says nothing of the network alone."
    )
    assert lines[2].startswith("- `ulvm_v5`: the published experiment, but for seeds")
    assert not any("vmunet" in line for line in lines)


def test_known_slips_of_the_paper_are_told(tmp_path: Path) -> None:
    page = "\n".join(remarks([trained(tmp_path, TrainPlan())]))
    assert "`segformer`: The paper prints Dice 0.8454" in page
    assert "0.79955 is a slip for 0.79555" in page
