"""What a fine-tuning leaves for nnU-Net, read back as nnU-Net's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustcli.finetuning.finetune_plan import plan_finetuning
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.nnunet_export import export_nnunet
from robustcli.finetuning.pretrained import read_nnunet
from robustcli.nnunet.files import TRAINERS
from tests.adapters import nnunet_files
from tests.finetuning.tunings import tuning, write_pretrained
from tests.training.pairs import write_pairs
from tests.training.runs import Heard


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("discs") / "data", 14)


@pytest.mark.parametrize("model", ["umamba", "umamba-enc"])
def test_results_of_nnunet_come_back_as_such(data: Path, tmp_path: Path, model: str) -> None:
    made = nnunet_files.network(model)
    top = nnunet_files.results(tmp_path / "results", nnunet_files.checkpoint(made))
    config = tuning(data, tmp_path / "run", top, model=model, mode="full", window=32, epochs=1)
    mode = run_finetuning(config) / "full"
    (results,) = (mode / "nnunet").iterdir()
    assert results.name == f"{TRAINERS[model]}__nnUNetPlans__2d"
    assert {p.name for p in results.iterdir()} == {"plans.json", "dataset.json", "fold_all"}
    found = read_nnunet(results)
    assert (found.model, found.num_classes, found.epochs) == (model, 2, 1)
    ours = load_file(mode / "weights.safetensors")
    assert found.weights.keys() == ours.keys()
    assert all(torch.equal(found.weights[name], ours[name]) for name in ours)
    assert found.plan.labels == ("background", "foreground")
    assert {channel.scheme for channel in found.plan.channels} == {"rgb_to_0_1"}  # as trained
    content = torch.load(results / "fold_all" / "checkpoint_final.pth", weights_only=True)
    theirs = nnunet_files.checkpoint(made)
    assert content.keys() == theirs.keys()
    assert content["network_weights"].keys() == theirs["network_weights"].keys()


def test_without_a_plan_one_is_made_of_the_network(data: Path, tmp_path: Path) -> None:
    weights = write_pretrained(tmp_path / "weights.safetensors")
    run = run_finetuning(tuning(data, tmp_path / "run", weights, mode="freeze", epochs=1))
    (results,) = (run / "freeze" / "nnunet").iterdir()
    found = read_nnunet(results)
    assert found.plan.options["features"] == (4, 8)
    assert found.plan.patch == (16, 16)
    assert json.dumps(dict(found.plan.plans))  # as upstream's JSON


def test_features_of_no_plan_leave_none(data: Path, tmp_path: Path) -> None:
    weights = write_pretrained(tmp_path / "weights.safetensors", features=[4, 12])
    config = tuning(data, tmp_path / "run", weights, mode="full", epochs=1)
    run = run_finetuning(config)
    assert not (run / "full" / "nnunet").exists()
    plan = plan_finetuning(config, Heard())
    assert not export_nnunet(plan.mode_plan("full", run / "full"))
