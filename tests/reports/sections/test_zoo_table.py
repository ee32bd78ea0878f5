from pathlib import Path

from robustcli.reports.document import Figure
from robustcli.reports.sections.zoo_table import zoo_table
from robustcli.reports.training import Training, read_training
from tests.reports.sections.told import line_of, told
from tests.reports.train_runs import TrainPlan, build_training

DASH = "\N{EN DASH}"


def trained(run: Path, plan: TrainPlan) -> Training:
    return read_training(build_training(run, plan))


def test_own_numbers_stand_beside_the_published_ones(tmp_path: Path) -> None:
    training = trained(tmp_path, TrainPlan(base=0.7))
    page = told(zoo_table([training], [Figure("figures/x.png", "Points.")]))
    assert training.test is not None
    line = training.test.numbers
    assert line_of(page, "`ulvm_v5`") == [
        *("`ulvm_v5`", "703,885", "0.8633", "0.7638"),
        f"**{line['dice']:.3f}** ({line['dice_low']:.3f}{DASH}{line['dice_high']:.3f})",
        f"{line['iou']:.3f} ({line['iou_low']:.3f}{DASH}{line['iou_high']:.3f})",
        f"{line['dice_foreground']:.3f}",
        f"{line['dice'] - 0.8633:+.3f} **outside**",
        *("12", "48.0 s", "1.50 GiB", "0.03 MB"),
    ]
    assert line_of(page, "`unet`") == ["`unet`", "7,765,985", "0.8929", "0.8071", *[DASH] * 8]
    assert training.baseline is not None
    assert line_of(page, "`otsu`")[1:4] == ["0", DASH, DASH]
    assert line_of(page, "`otsu`")[6] == f"{training.baseline.numbers['dice_foreground']:.3f}"
    assert "![Points.](figures/x.png)" in page


def test_a_difference_inside_the_interval_is_not_marked(tmp_path: Path) -> None:
    page = told(zoo_table([trained(tmp_path, TrainPlan(base=0.86))], []))
    assert "outside" not in line_of(page, "`ulvm_v5`")[7]


def test_energy_has_a_column_where_anyone_measured_it(tmp_path: Path) -> None:
    first = trained(tmp_path / "a", TrainPlan(record={"energy_joules": 7200.0}))
    second = trained(tmp_path / "b", TrainPlan(model="unet"))
    page = told(zoo_table([first, second], []))
    assert line_of(page, "`ulvm_v5`")[-1] == "2.0 Wh"
    assert line_of(page, "`unet`")[-1] == line_of(page, "`otsu`")[-1] == DASH
    assert "energy" not in told(zoo_table([second], []))


def test_a_network_that_is_not_in_the_paper_comes_last(tmp_path: Path) -> None:
    page = told(zoo_table([trained(tmp_path, TrainPlan(model="vmunet"))], []))
    assert line_of(page, "`vmunet`")[2:4] == [DASH, DASH]
    assert line_of(page, "`vmunet`")[7] == DASH
    assert page.index("| `vmunet`") > page.index("| `ulvm`")


def test_what_is_not_measured_yet_is_missing(tmp_path: Path) -> None:
    page = told(zoo_table([trained(tmp_path, TrainPlan(measured=False, finished=0))], []))
    assert line_of(page, "`ulvm_v5`")[4:10] == [*[DASH] * 4, "0", DASH]
    assert "`otsu`" not in page
