from pathlib import Path

import pytest

from robustcli.evaluation.bootstrap import Bootstrap
from robustcli.evaluation.mask_scores import compare_masks
from robustcli.reports.sections import training_opening as opening_module
from robustcli.reports.sections.training_opening import training_opening
from robustcli.reports.training import Training, read_training
from robustcli.reports.training_scores import gain, pooled
from tests.reports.sections.told import told
from tests.reports.train_runs import TrainPlan, build_training

DASH = "\N{EN DASH}"


def read(run: Path, plan: TrainPlan) -> Training:
    return read_training(build_training(run, plan))


def page(run: Path, plan: TrainPlan) -> str:
    return told(training_opening(read(run, plan)))


def test_the_title_names_network_data_protocol_and_dice(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan())
    assert training.test is not None
    line = training.test.numbers
    assert told(training_opening(training)).splitlines()[0] == (
        "# Training of `ulvm_v5` on `kaggle_3m`, protocol patient: dice "
        f"{line['dice']:.3f} ({line['dice_low']:.3f}{DASH}{line['dice_high']:.3f})"
    )


def test_protocol_paper_leads_with_its_own_statistic_and_tells_both(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan(protocol="paper"))
    paper = pooled(training)
    assert paper is not None
    text = told(training_opening(training))
    assert f"protocol paper: dice {paper.score.dice:.3f} (" in text.splitlines()[0]
    assert f"over 3 batches of 16 slices: dice {paper.score.dice:.3f} (" in text
    assert training.test is not None
    assert f"of 8 patients: dice {training.test.numbers['dice']:.3f} (" in text


def test_the_result_stands_beside_otsus(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan())
    compared = gain(training)
    assert compared is not None
    assert compared.drop is not None
    assert compared.drop_low is not None
    assert compared.drop_high is not None
    text = told(training_opening(training))
    assert "Otsu's threshold on the same images: dice 0.6" in text
    assert (
        f"The network gains +{-compared.drop:.3f} (paired 95 % interval "
        f"{-compared.drop_high:.3f} to {-compared.drop_low:.3f})."
    ) in text


def test_a_gain_that_may_be_chance_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = read(tmp_path, TrainPlan())
    assert training.test is not None
    rows = training.test.rows
    same = compare_masks(rows, rows, Bootstrap(0))
    monkeypatch.setattr(opening_module, "gain", lambda _: same)
    assert (
        "gains 0.000 (paired 95 % interval 0.000 to 0.000: it includes 0, so this can be chance)"
        in told(training_opening(training))
    )


def test_the_chosen_epoch_is_named_with_the_reason(tmp_path: Path) -> None:
    text = page(tmp_path, TrainPlan())
    assert "Weights of epoch 11 of 12: the best dice on the validation images, 0.7600." in text
    assert "was trained on 3,143 images of `kaggle_3m` under the protocol patient: split by" in text


@pytest.mark.parametrize(
    ("plan", "notice"),
    [
        (TrainPlan(dataset={"demonstration": True}), "**Demonstration set.**"),
        (
            TrainPlan(dataset={"images": 99, "subset": "99 images, seed 0"}),
            "**Subset.** 99 of 3,929 images (99 images, seed 0).",
        ),
        (
            TrainPlan(measured=False, finished=5),
            "**Partial run.** 5 of 12 epochs are finished (status: running).",
        ),
        (TrainPlan(measured=False, finished=0), "protocol patient: not measured yet"),
        (TrainPlan(recipe={"name": "nuclei-mini quick"}), "**Quick recipe.** 12 epochs:"),
        (TrainPlan(groups=1), "**One held-out patient only.**"),
        (TrainPlan(measured=False, record={"status": "failed"}), "(status: failed)"),
    ],
)
def test_what_limits_the_numbers_is_said(tmp_path: Path, plan: TrainPlan, notice: str) -> None:
    assert notice in page(tmp_path, plan)


def test_a_dice_from_empty_images_alone_is_called_so(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan())
    assert training.test is not None
    assert "Nothing found" not in told(training_opening(training))
    training.test.numbers["recall"] = 0.0
    training.test.numbers["dice_foreground"] = 0.0
    text = told(training_opening(training))
    assert "**Nothing found.** Not one pixel of true foreground" in text
    assert "Over images with foreground alone, dice per image is 0.000." in text


def test_nothing_is_limited_without_reason(tmp_path: Path) -> None:
    assert "**" not in page(tmp_path, TrainPlan())


def test_of_roads_the_relaxed_numbers_are_told(tmp_path: Path) -> None:
    training = read(tmp_path, TrainPlan(dataset={"tolerance": 3}))
    assert training.test is not None
    line = training.test.numbers
    words = f"Relaxed precision and recall (3 pixels): {line['relaxed_precision']:.3f} ("
    page = told(training_opening(training))
    assert words in page
    assert f" and {line['relaxed_recall']:.3f} (" in page
