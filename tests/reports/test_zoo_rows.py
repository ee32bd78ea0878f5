from pathlib import Path

from robustcli.reports.training_findings import Training, read_training
from robustcli.reports.zoo_rows import ZooRow, baselines, label, zoo_rows
from tests.reports.train_runs import TrainPlan, build_training


def trained(run: Path, plan: TrainPlan | None = None) -> Training:
    return read_training(build_training(run, plan or TrainPlan()))


def own(rows: list[ZooRow]) -> list[str]:
    return [row.label for row in rows if row.training is not None]


def test_own_rows_stand_where_the_paper_has_the_network_others_below(tmp_path: Path) -> None:
    trainings = [
        trained(tmp_path / "a", TrainPlan(model="vmunet", parameters=27)),
        trained(tmp_path / "b", TrainPlan(model="unet")),
    ]
    rows = zoo_rows(trainings)
    assert len(rows) == 14
    assert (rows[0].label, rows[0].training) == ("unet", trainings[1])
    assert (rows[-1].label, rows[-1].printed, rows[-1].parameters) == ("vmunet", None, 27)
    assert own(rows) == ["unet", "vmunet"]


def test_several_trainings_of_a_network_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    trainings = [trained(tmp_path / name) for name in ("x/run", "y/run", "z")]
    rows = zoo_rows(trainings)
    assert own(rows) == ["ulvm_v5 (x/run)", "ulvm_v5 (y/run)", f"ulvm_v5 ({tmp_path.name}/z)"]
    assert len(rows) == 15
    assert label(trainings[2], trainings[2:]) == "ulvm_v5"


def test_a_difference_is_marked_where_the_printed_dice_is_outside_the_interval(
    tmp_path: Path,
) -> None:
    near, far = (
        zoo_rows([trained(tmp_path / str(base), TrainPlan(base=base))])[5] for base in (0.86, 0.7)
    )
    for row in (near, far):
        assert row.printed is not None
        assert row.score is not None
        assert row.score.dice is not None
        assert row.difference == row.score.dice - 0.8633
    assert (near.is_outside, far.is_outside) == (False, True)


def test_without_an_interval_nothing_is_outside(tmp_path: Path) -> None:
    row = zoo_rows([trained(tmp_path, TrainPlan(base=0.5, groups=1))])[5]
    assert row.difference is not None
    assert row.difference < -0.2
    assert not row.is_outside


def test_otsu_has_one_line_per_set_of_held_out_images(tmp_path: Path) -> None:
    trainings = [trained(tmp_path / "a"), trained(tmp_path / "b", TrainPlan(model="unet"))]
    assert [baseline.images for baseline in baselines(trainings)] == [""]
    record = tmp_path / "b" / "baseline" / "run.json"
    record.write_text(record.read_text().replace("cd" * 32, "ef" * 32))
    trainings[1] = read_training(tmp_path / "b")
    assert [baseline.images for baseline in baselines(trainings)] == [
        *("images of ulvm_v5", "images of unet")
    ]
