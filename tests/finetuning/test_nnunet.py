"""Fine-tuning with nnU-Net's recipe and files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from robustcli.adapters.training_run import read_header
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.finetune_plan import plan_finetuning
from robustcli.finetuning.finetuning_task import export_nnunet, labels_of, read_nnunet
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.selection import make_rule
from robustcli.nnunet.files import TRAINERS
from robustcli.nnunet.normalisation import Channel
from robustcli.nnunet.plans_json import make_plan
from robustcli.training import recipes
from robustcli.training.config import TrainConfig
from robustcli.training.record import AVERAGED
from tests.adapters import nnunet_files
from tests.finetuning.tunings import TINY, MakeConfig, tiny_tuning, write_pretrained
from tests.training.images import write_pairs
from tests.training.runs import (
    FEW_PATCHES,
    RECIPE,
    Recorder,
    kill_when_stopped,
    same_state,
    weights_of,
)

CHANNELS = ("R", "G", "rgb_to_0_1")


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    plan = make_plan((32, 32), CHANNELS, images=50, labels=("road",), features=(4, 64))
    source = nnunet_files.network(plan=plan)
    folder = nnunet_files.results(tmp_path, nnunet_files.checkpoint(source, plan), plan=plan)
    data = write_pairs(tmp_path / "data", 14)
    training = TrainConfig(
        "umamba", data=str(data), out=tmp_path / "run", recipe="nnunet", device="cpu"
    )
    return FinetuneConfig(training, pretrained=folder, mode="freeze", rule=make_rule(quantile=0.3))


def test_a_results_folder_brings_patch_batch_and_normalisation(config: FinetuneConfig) -> None:
    plan = plan_finetuning(replace(config, iterations=6000), Recorder())
    recipe = plan.training.recipe
    assert config.pretrained is not None
    assert (recipe.window, recipe.epochs, plan.steps) == (32, 24, 6000)
    assert recipe.batch_size == plan.training.config.plan.batch_size  # type: ignore[union-attr]
    assert recipe.patches is not None
    assert recipe.patches.channels == (Channel(), Channel(), Channel("rgb_to_0_1"))


def test_a_frozen_mode_runs_to_its_end(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        recipes.NAMED_RECIPES, "nnunet", replace(RECIPE, epochs=2, patches=FEW_PATCHES)
    )
    run = run_finetuning(replace(config, profile_iterations=5), Recorder())
    metrics = pd.read_csv(run / "freeze" / "metrics.csv")
    assert metrics["step"].tolist() == [4, 8]
    assert AVERAGED in metrics.columns
    steps = pd.read_csv(run / "freeze" / "iterations.csv")
    # All parameters, then the parameters that are not frozen.
    assert steps["trainable"].nunique() == 2
    header = read_header(run / "freeze" / "weights.safetensors")
    assert header is not None
    assert header.nnunet is not None
    assert [channel.scheme for channel in header.nnunet.channels][2] == "rgb_to_0_1"


def short_config(data: Path, run: Path, weights: Path) -> FinetuneConfig:
    """Returns the settings of three epochs of nnU-Net's training in the mode that freezes."""
    recipes.NAMED_RECIPES["short"] = replace(RECIPE, epochs=3, patches=FEW_PATCHES)
    overrides = {"mode": "freeze", "recipe": "short", "profile_iterations": 3, "lr": None}
    return tiny_tuning(data, run, weights, rule=make_rule(quantile=0.5, scope="all"), **overrides)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process is killed in the second epoch, after its freeze."""
    monkeypatch.setattr(recipes, "NAMED_RECIPES", dict(recipes.NAMED_RECIPES))
    expected_run = run_finetuning(short_config(data, tmp_path / "whole", weights), Recorder())
    run = tmp_path / "run"
    kill_when_stopped(_CHILD, data, run, weights)
    listener = Recorder()
    run_finetuning(short_config(data, run, weights), listener)
    assert not any("freeze: Epoch 1 of" in line for line in listener.lines)
    assert same_state(weights_of(run / "freeze"), weights_of(expected_run / "freeze"))
    assert (run / "frozen.csv").read_bytes() == (expected_run / "frozen.csv").read_bytes()
    metrics = [pd.read_csv(r / "freeze" / "metrics.csv") for r in (run, expected_run)]
    assert metrics[0][AVERAGED].tolist() == metrics[1][AVERAGED].tolist()


_CHILD = """
import sys
from pathlib import Path
from robustcli.finetuning.mode_trainings import run_finetuning
from tests.finetuning.test_nnunet import short_config
from tests.training.runs import Stopping

run_finetuning(short_config(*map(Path, sys.argv[1:])), Stopping(after=19))  # in the second epoch
"""


@pytest.mark.parametrize("model", ["umamba", "umamba-enc", "resenc"])
def test_results_of_nnunet_are_written_as_nnunet_results(
    data: Path, tmp_path: Path, model: str
) -> None:
    source = nnunet_files.network(model)
    top = nnunet_files.results(tmp_path / "results", nnunet_files.checkpoint(source))
    config = tiny_tuning(data, tmp_path / "run", top, model=model, mode="full", window=32, epochs=1)
    mode = run_finetuning(config) / "full"
    (results,) = (mode / "nnunet").iterdir()
    assert results.name == f"{TRAINERS[model]}__nnUNetPlans__2d"
    assert {p.name for p in results.iterdir()} == {"plans.json", "dataset.json", "fold_all"}
    loaded = read_nnunet(results)
    assert (loaded.model, loaded.num_classes, loaded.epochs) == (model, 2, 1)
    own_weights = load_file(mode / "weights.safetensors")
    assert loaded.weights.keys() == own_weights.keys()
    assert all(torch.equal(loaded.weights[name], own_weights[name]) for name in own_weights)
    assert loaded.plan.labels == ("background", "foreground")
    assert {channel.scheme for channel in loaded.plan.channels} == {"rgb_to_0_1"}  # as in training
    network_class = {"resenc": "ResidualEncoderUNet"}.get(model, "PlainConvUNet")
    assert loaded.plan.settings["UNet_class_name"] == network_class
    content = torch.load(results / "fold_all" / "checkpoint_final.pth", weights_only=True)
    source_state = nnunet_files.checkpoint(source)
    assert content.keys() == source_state.keys()
    assert content["network_weights"].keys() == source_state["network_weights"].keys()


def test_without_a_plan_one_is_made_of_the_network(make_config: MakeConfig) -> None:
    run = run_finetuning(make_config(mode="freeze", epochs=1))
    (results,) = (run / "freeze" / "nnunet").iterdir()
    loaded = read_nnunet(results)
    assert loaded.plan.options["features"] == (4, 8)
    assert loaded.plan.patch == (16, 16)
    assert json.dumps(dict(loaded.plan.plans))  # as nnU-Net's JSON


@pytest.mark.parametrize(
    "changes", [{"model": "umamba-nomamba", "pretrained": None}, {"ablate": "scan"}]
)
def test_networks_that_no_nnunet_trainer_builds_give_no_results_folder(
    make_config: MakeConfig, changes: dict[str, Any]
) -> None:
    listener = Recorder()
    run = run_finetuning(
        make_config(mode="scratch", epochs=1, model_args=TINY, **changes), listener
    )
    assert not (run / "scratch" / "nnunet").exists()
    assert "No results folder of nnU-Net is written" in "\n".join(listener.lines)


def test_features_outside_of_any_plan_give_no_results_folder(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    weights = write_pretrained(tmp_path / "weights.safetensors", features=[4, 12])
    config = make_config(pretrained=weights, mode="full", epochs=1)
    run = run_finetuning(config)
    assert not (run / "full" / "nnunet").exists()
    plan = plan_finetuning(config, Recorder())
    assert not export_nnunet(plan.mode_plan("full", run / "full"))


def test_labels_of_the_data_set_are_the_classes_of_the_masks():
    assert labels_of(()) == {"background": 0, "foreground": 1}
    assert labels_of(("liver", "kidney")) == {"background": 0, "liver": 1, "kidney": 2}
    assert labels_of(("ignore", "kidney")) == {"background": 0, "class 1": 1, "kidney": 2}
