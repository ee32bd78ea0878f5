from pathlib import Path

from robustcli.reports.document import Figure
from robustcli.reports.sections.relaxed import RELAXED, relaxed_cells
from robustcli.reports.sections.training_masks import held_out, paper_protocol
from robustcli.reports.training import read_training
from robustcli.reports.training_scores import pooled
from tests.reports.sections.told import line_of, told
from tests.reports.train_runs import FAULTS, TrainPlan, build_training

DASH = "\N{EN DASH}"


def test_the_network_stands_above_otsus_threshold(tmp_path: Path) -> None:
    training = read_training(build_training(tmp_path))
    page = told(held_out(training, [Figure("figures/groups.png", "Dots.")]))
    assert training.baseline is not None
    line = training.baseline.numbers
    assert line_of(page, "model") == ["model", "dice per patient", "IoU per patient"]
    assert line_of(page, "`otsu`") == [
        "`otsu`",
        f"{line['dice']:.3f} ({line['dice_low']:.3f}{DASH}{line['dice_high']:.3f})",
        f"{line['iou']:.3f} ({line['iou_low']:.3f}{DASH}{line['iou_high']:.3f})",
    ]
    details = line_of(page.split("### Single images")[1], "`ulvm_v5`")
    assert training.test is not None
    assert details[1] == f"{training.test.numbers['dice_image']:.3f}"
    assert details[6] == f"{training.test.numbers['hd95']:.1f}"
    assert "![Dots.](figures/groups.png)" in page


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    training = read_training(build_training(tmp_path, TrainPlan(measured=False)))
    assert "Not measured yet." in told(held_out(training, []))


def test_protocol_paper_tells_both_ways_of_counting_and_its_faults(tmp_path: Path) -> None:
    training = read_training(build_training(tmp_path, TrainPlan(protocol="paper")))
    found = pooled(training)
    assert found is not None
    page = told(paper_protocol(training))
    assert line_of(page, "batches of 16 slices")[1].startswith(f"{found.score.dice:.3f} (")
    assert line_of(page, "per patient")[1].startswith("0.8")
    assert "1 of 3 batches hold no foreground, true or predicted" in page
    assert all(f"- {fault}" in page for fault in FAULTS)


def test_another_protocol_has_no_such_section(tmp_path: Path) -> None:
    assert paper_protocol(read_training(build_training(tmp_path))) == []


def test_faults_are_listed_before_anything_is_measured(tmp_path: Path) -> None:
    plan = TrainPlan(protocol="paper", measured=False)
    page = told(paper_protocol(read_training(build_training(tmp_path, plan))))
    assert "| counted" not in page
    assert FAULTS[0] in page


def test_of_roads_the_relaxed_numbers_stand_beside_dice(tmp_path: Path) -> None:
    plan = TrainPlan(grouping="photo", dataset={"tolerance": 3})
    training = read_training(build_training(tmp_path, plan))
    page = told(held_out(training, []))
    assert line_of(page, "model") == ["model", "dice per photo", "IoU per photo", *RELAXED]
    for name, held in (("ulvm_v5", training.test), ("otsu", training.baseline)):
        assert held is not None
        shown = [str(cell[0]) for cell in relaxed_cells(held.numbers)]
        assert line_of(page, f"`{name}`")[3:] == shown
    assert "within 3 pixels" in page
