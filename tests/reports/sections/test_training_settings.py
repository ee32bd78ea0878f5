from pathlib import Path

import pytest

from robustcli.reports.sections.training_settings import training_settings
from robustcli.reports.training import read_training
from tests.reports.sections.told import line_of, told
from tests.reports.train_runs import TrainPlan, build_training


def page(run: Path, plan: TrainPlan) -> str:
    return told(training_settings(read_training(build_training(run, plan))))


CHANGED: dict[str, object] = {
    "accumulate": 4,
    "images_per_epoch": 1200,
    "patience": 5,
    "clip": None,
    "expected_dice": 0.8633,
    "name": "paper",
}


@pytest.mark.parametrize(
    ("name", "plain", "changed"),
    [
        ("loss", "bce-dice", "bce-dice"),
        ("optimizer", "AdamW, weight decay 0.01", "AdamW, weight decay 0.01"),
        ("learning rate", "0.001, constant", "0.001, constant"),
        ("batch", "8", "8, gradients of 4 added up"),
        ("images an epoch", "all", "1,200"),
        ("early stopping", "no", "after 5 epochs"),
        ("gradient norm at most", "1", "any"),
        ("dice it should reach", "\N{EN DASH}", "0.8633"),
        ("recipe", "patient", "paper"),
    ],
)
def test_the_recipe_is_told_line_by_line(
    tmp_path: Path, name: str, plain: str, changed: str
) -> None:
    assert line_of(page(tmp_path / "a", TrainPlan()), name)[1] == plain
    assert line_of(page(tmp_path / "b", TrainPlan(recipe=CHANGED)), name)[1] == changed


def test_how_the_paper_pooled_is_told_for_its_protocol_only(tmp_path: Path) -> None:
    plan = TrainPlan(protocol="paper")
    assert line_of(page(tmp_path / "a", plan), "slices for one dice")[1] == "16"
    assert "slices for one dice" not in page(tmp_path / "b", TrainPlan())


@pytest.mark.parametrize(
    "fact",
    [
        "Images: `kaggle_3m` at `lgg/kaggle_3m`; 3,929 of 3,929 images.",
        "Subset: none. A group is one patient.",
        f"Digest of the image list: `{'cd' * 32}`.",
        "Foreground: probability >= 0.5. Seed: 0.",
        'Network: `ulvm_v5` of family ulvm; arguments `bridge=false, act="gelu"`.',
        f"Started from the documented initialisation, seed 0, SHA-256 `{'aa' * 32}`.",
        f"Chosen weights: `weights.safetensors`, SHA-256 `{'bb' * 32}`.",
        "Scan: cpu.",
        "```text\nrobust train seg --model ulvm_v5 --protocol patient\n```",
        "Versions: robust 0.1.0, torch 2.6.0. Device: cpu (2 threads).",
    ],
)
def test_everything_that_was_set_is_told(tmp_path: Path, fact: str) -> None:
    record: dict[str, object] = {
        "arguments": {"bridge": False, "act": "gelu"},
        "scan_backend": "cpu",
    }
    assert fact in page(tmp_path, TrainPlan(record=record))


def test_weights_that_are_not_chosen_yet_are_not_named(tmp_path: Path) -> None:
    assert "Chosen weights" not in page(tmp_path, TrainPlan(measured=False))


def test_the_source_of_the_relaxed_numbers_is_told_of_roads_only(tmp_path: Path) -> None:
    roads = TrainPlan(dataset={"tolerance": 3})
    assert "Relaxed precision and recall: 3 pixels, as V. Mnih" in page(tmp_path / "a", roads)
    assert "Relaxed" not in page(tmp_path / "b", TrainPlan())
