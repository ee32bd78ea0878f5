"""Default settings and initial weights of a fine-tuning; nnU-Net's recipe and files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustcli.adapters import networks
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.load import resolve
from robustcli.adapters.nnunet_models import read_nnunet
from robustcli.adapters.trainable import heads_of, transfer
from robustcli.adapters.training_run import read_header
from robustcli.core.errors import UsageError
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.finetune_plan import plan_finetuning
from robustcli.finetuning.finetuning_task import (
    Pretrained,
    SegmenterFinetuning,
    export_nnunet,
    labels_of,
    light,
    no_weights,
)
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.selection import make_rule
from robustcli.nnunet.files import TRAINERS
from robustcli.nnunet.normalisation import Channel
from robustcli.nnunet.plans_json import make_plan
from robustcli.training import recipes
from robustcli.training.config import TrainConfig
from robustcli.training.record import AVERAGED
from tests.finetuning.tunings import TINY, MakeConfig, tiny_tuning, write_pretrained
from tests.finetuning.tunings import network as network_pretrained
from tests.nnunet.nnunet_files import checkpoint, network, results
from tests.training.images import write_pairs
from tests.training.runs import (
    FEW_PATCHES,
    RECIPE,
    Recorder,
    kill_when_stopped,
    same_state,
    weights_of,
)

TASK, UMAMBA = SegmenterFinetuning(), resolve("umamba")
NO_OPTIONS = FinetuneConfig(TrainConfig("umamba"))


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_command_without_options_uses_bundled_weights_and_data_and_announces_them() -> None:
    messages: list[str] = []
    training = TASK.with_defaults(NO_OPTIONS, UMAMBA, messages.append).training
    assert (training.model, training.data) == ("umamba-pico", "nuclei-mini:stained")
    assert [line.split(";")[0] for line in messages] == [
        "`--pretrained` and `--data` are not set",
        "`--data` is not set",
    ]
    assert "pretrained on the fluorescence images" in messages[0]
    assert "the intervals are wide" in messages[1]


def test_with_named_weights_or_data_the_network_is_not_replaced() -> None:
    messages: list[str] = []
    with_weights = replace(NO_OPTIONS, pretrained=Path("x"))
    assert TASK.with_defaults(with_weights, UMAMBA, messages.append).training.model == "umamba"
    other_data = replace(NO_OPTIONS, training=TrainConfig("umamba", "roads"))
    assert TASK.with_defaults(other_data, UMAMBA, messages.append).training == other_data.training
    assert len(messages) == 1  # about the data set of the first call


def test_configured_data_replace_the_bundled_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_DATA_SEGMENTATION", "/my/cells")
    messages: list[str] = []
    assert TASK.with_defaults(NO_OPTIONS, UMAMBA, messages.append).training.data == "/my/cells"
    assert messages[1] == (
        "`--data` is not set; using /my/cells (environment variable ROBUST_DATA_SEGMENTATION)."
    )


@pytest.mark.parametrize(("quick", "steps"), [(False, 360), (True, 60)])
def test_bundled_data_have_a_recipe_for_two_cores(quick: bool, steps: int) -> None:
    config = TrainConfig("umamba-pico", quick=quick)
    assert TASK.usual_steps(config, config, "nuclei-mini:stained") == steps
    recipe = light(config, "nuclei-mini:stained")
    assert (recipe.window, recipe.batch_size, recipe.quick) == (128, 4, False)


def test_options_override_the_recipe_of_the_bundled_data() -> None:
    config = TrainConfig("umamba-pico", window=64, batch_size=2, epochs=3)
    assert light(config, "nuclei-mini") == config
    assert TASK.usual_steps(config, config, "nuclei-mini") is None


@pytest.mark.parametrize(
    ("config", "data"),
    [
        (TrainConfig("unet"), "kaggle_3m"),
        (TrainConfig("unet", protocol="paper"), "nuclei-mini"),
        (TrainConfig("unet", recipe="nnunet"), "nuclei-mini"),
    ],
)
def test_other_data_protocols_and_recipes_are_unchanged(config: TrainConfig, data: str) -> None:
    assert light(config, data) is config
    assert TASK.usual_steps(config, config, data) is None


@pytest.mark.parametrize("name", ["umamba", "umamba-nomamba", "resenc"])
def test_networks_of_a_plan_on_other_data_use_nnunets_recipe_and_announce_it(name: str) -> None:
    messages: list[str] = []
    typed = TrainConfig(name)
    recipe = TASK.usual_recipe(typed, resolve(name), "roads", messages.append)
    assert (recipe.recipe, TASK.usual_steps(typed, recipe, "roads")) == ("nnunet", 6000)
    assert messages == [
        f"`--recipe` is not set; `{name}` is trained with nnU-Net's recipe, which needs a GPU. "
        "`--recipe nnunet-light` is a smaller version for a CPU, `--recipe patient` is the recipe "
        "of this program."
    ]
    # The user named nnU-Net's recipe: its 1000 epochs.
    assert TASK.usual_steps(recipe, recipe, "roads") is None
    assert TASK.usual_steps(replace(typed, epochs=3), recipe, "roads") is None
    assert TASK.usual_steps(replace(typed, quick=True), recipe, "roads") is None


@pytest.mark.parametrize(
    ("config", "data"),
    [
        (TrainConfig("unet"), "roads"),
        (TrainConfig("umamba", recipe="patient"), "roads"),
        (TrainConfig("umamba", protocol="paper"), "roads"),
    ],
)
def test_other_networks_and_data_keep_their_recipe(config: TrainConfig, data: str) -> None:
    messages: list[str] = []
    assert TASK.usual_recipe(config, resolve(config.model), data, messages.append) is config
    bundled = TASK.usual_recipe(
        TrainConfig("umamba-pico"), resolve("umamba-pico"), "nuclei-mini", messages.append
    )
    assert (bundled.recipe, bundled.window) == (None, 128)
    assert messages == []


def test_without_weights_the_ways_to_them_are_named() -> None:
    error = no_weights(resolve("umamba"))
    assert error.what == "`umamba` has no weights on this machine to fine-tune."
    assert "`umamba-pico` is bundled with weights" in error.why
    assert "--mode scratch" in error.todo
    assert "is bundled with weights" not in no_weights(resolve("unet")).why


read_file = SegmenterFinetuning().read_file


def fill(network: nn.Module, start: Pretrained, entry: ModelEntry) -> None:
    transfer(network, start.state, entry, heads_of(entry), start.origin, patch=start.patch)


def test_weights_of_a_training_bring_the_arguments_of_their_network(tmp_path: Path) -> None:
    path = write_pretrained(tmp_path / "weights.safetensors")
    start = read_file(tmp_path, UMAMBA, {})
    assert start.arguments == TINY
    assert start.origin == str(path)
    assert (start.plan, start.patch) == (None, None)
    overridden = read_file(path, UMAMBA, {"features": [1, 2]})
    assert overridden.arguments == {**TINY, "features": [1, 2]}  # the user's value takes precedence


def test_a_bare_checkpoint(tmp_path: Path) -> None:
    source = network_pretrained()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "bare.pth")
    start = read_file(tmp_path / "bare.pth", UMAMBA, TINY)
    other_network = network_pretrained(seed=8)
    heads = {k: v.clone() for k, v in other_network.state_dict().items() if ".seg_layers." in k}
    fill(other_network, start, UMAMBA)
    for name, tensor in other_network.state_dict().items():
        assert torch.equal(tensor, heads.get(name, source.state_dict()[name]))


def test_results_of_the_other_network(tmp_path: Path) -> None:
    source = network("umamba-enc")
    top = results(tmp_path, checkpoint(source))
    with pytest.raises(UsageError, match="contains `umamba-enc`") as caught:
        read_file(top, UMAMBA, {})
    assert "`robust finetune umamba-enc --pretrained" in caught.value.todo


def test_results_of_other_channels(tmp_path: Path) -> None:
    plan = make_plan((32, 32), ("MRI",), images=50, labels=("tumour",), features=(4, 64))
    source = network(plan=plan)
    top = results(tmp_path, checkpoint(source, plan), plan=plan)
    with pytest.raises(UsageError, match="has 1 input channels") as caught:
        read_file(top, UMAMBA, {})
    assert "The channels are MRI; images of this data set have red, green, blue" in caught.value.why


def test_another_patch_of_umamba_enc(tmp_path: Path) -> None:
    source = network("umamba-enc")
    top = results(tmp_path, checkpoint(source))
    entry = resolve("umamba-enc")
    start = read_file(top, entry, {"patch_size": (64, 64)})
    other_network = networks.create("umamba-enc", start.arguments)
    before = {k: v.clone() for k, v in other_network.state_dict().items()}
    with pytest.raises(UsageError, match="do not match"):
        fill(other_network, start, entry)
    assert all(torch.equal(v, before[k]) for k, v in other_network.state_dict().items())


def test_any_other_network_is_filled_by_the_same_rule(tmp_path: Path) -> None:
    entry = resolve("unet")
    torch.manual_seed(1)
    source = networks.create("unet", {"features": [4, 8]})
    save_file(source.state_dict(), tmp_path / "unet.safetensors")
    start = read_file(tmp_path / "unet.safetensors", entry, {"features": [4, 8]})
    target = networks.create("unet", {"features": [4, 8]})
    fill(target, start, entry)
    unchanged = {
        n for n, t in target.state_dict().items() if not torch.equal(t, source.state_dict()[n])
    }
    assert unchanged == {"conv.weight", "conv.bias"}
    assert heads_of(entry) == ("conv.",)


def test_heads_of_a_library_network() -> None:
    assert heads_of(resolve("smp:Unet/resnet18")) == ("segmentation_head.",)


CHANNELS = ("R", "G", "rgb_to_0_1")


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    plan = make_plan((32, 32), CHANNELS, images=50, labels=("road",), features=(4, 64))
    source = network(plan=plan)
    folder = results(tmp_path, checkpoint(source, plan), plan=plan)
    data = write_pairs(tmp_path / "data", 14)
    training = TrainConfig(
        "umamba", data=str(data), out=tmp_path / "run", recipe="nnunet", device="cpu"
    )
    return FinetuneConfig(training, pretrained=folder, mode="freeze", rule=make_rule(quantile=0.3))


def test_a_results_folder_brings_patch_batch_and_normalisation(config: FinetuneConfig) -> None:
    plan = plan_finetuning(replace(config, iterations=6000), Recorder())
    recipe = plan.training.recipe
    assert (recipe.window, recipe.epochs, plan.steps) == (32, 24, 6000)
    assert recipe.batch_size == plan.training.config.plan.batch_size  # type: ignore[union-attr]
    assert recipe.patches.channels == (Channel(), Channel(), Channel("rgb_to_0_1"))


def test_windows_are_squares_that_the_strides_divide(tmp_path: Path) -> None:
    plan = make_plan((32, 64), CHANNELS, images=50, features=(4, 64))
    assert plan.patch == (32, 64)
    strides = [[1, 1], [2, 2], [1, 2]]
    settings = {
        **plan.settings, "patch_size": [22, 64], "pool_op_kernel_sizes": strides,
        "conv_kernel_sizes": [[3, 3]] * 3, "n_conv_per_stage_encoder": [2] * 3,
        "n_conv_per_stage_decoder": [2] * 2,
    }  # fmt: skip
    plan = replace(plan, plans={**plan.plans, "configurations": {"2d": settings}})
    folder = results(tmp_path, checkpoint(network(plan=plan), plan), plan=plan)
    data = write_pairs(tmp_path / "data", 14)
    training = TrainConfig("umamba", data=str(data), recipe="nnunet", device="cpu")
    config = FinetuneConfig(training, pretrained=folder, iterations=10)
    assert plan_finetuning(config, Recorder()).training.recipe.window == 20  # a multiple of 2 and 4


@pytest.mark.usefixtures("unscored")
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
from tests.finetuning.test_finetuning_task import short_config
from tests.training.runs import Stopping

run_finetuning(short_config(*map(Path, sys.argv[1:])), Stopping(after=19))  # in the second epoch
"""


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize("model", ["umamba-enc", "resenc"])
def test_results_of_nnunet_are_written_as_nnunet_results(
    data: Path, tmp_path: Path, model: str
) -> None:
    source = network(model)
    top = results(tmp_path / "results", checkpoint(source))
    config = tiny_tuning(data, tmp_path / "run", top, model=model, mode="full", window=32, epochs=1)
    mode = run_finetuning(config) / "full"
    (folder,) = (mode / "nnunet").iterdir()
    assert folder.name == f"{TRAINERS[model]}__nnUNetPlans__2d"
    assert {p.name for p in folder.iterdir()} == {"plans.json", "dataset.json", "fold_all"}
    loaded = read_nnunet(folder)
    assert (loaded.model, loaded.num_classes, loaded.epochs) == (model, 2, 1)
    own_weights = load_file(mode / "weights.safetensors")
    assert loaded.weights.keys() == own_weights.keys()
    assert all(torch.equal(loaded.weights[name], own_weights[name]) for name in own_weights)
    assert loaded.plan.labels == ("background", "foreground")
    assert {channel.scheme for channel in loaded.plan.channels} == {"rgb_to_0_1"}  # as in training
    network_class = {"resenc": "ResidualEncoderUNet"}.get(model, "PlainConvUNet")
    assert loaded.plan.settings["UNet_class_name"] == network_class
    content = torch.load(folder / "fold_all" / "checkpoint_final.pth", weights_only=True)
    source_state = checkpoint(source)
    assert content.keys() == source_state.keys()
    assert content["network_weights"].keys() == source_state["network_weights"].keys()


@pytest.mark.usefixtures("unscored")
def test_without_a_plan_one_is_made_of_the_network(make_config: MakeConfig) -> None:
    run = run_finetuning(make_config(mode="freeze", epochs=1))
    (folder,) = (run / "freeze" / "nnunet").iterdir()
    loaded = read_nnunet(folder)
    assert loaded.plan.options["features"] == (4, 8)
    assert loaded.plan.patch == (16, 16)
    # Without Mamba layers that depend on the patch: the windows of the training, as in `predict`.
    run = run_finetuning(make_config(mode="freeze", epochs=1, window=32, out=run.parent / "other"))
    (folder,) = (run / "freeze" / "nnunet").iterdir()
    assert read_nnunet(folder).plan.patch == (32, 32)
    assert json.dumps(dict(loaded.plan.plans))  # as nnU-Net's JSON


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize(
    "changes",
    [
        {"model": "umamba-nomamba", "pretrained": None},
        {"ablate": "scan"},
        {"model_args": {**TINY, "in_channels": 1}},
        {"model_args": {**TINY, "num_classes": 4}},
    ],
)
def test_networks_that_no_nnunet_trainer_builds_give_no_results_folder(
    make_config: MakeConfig, changes: dict[str, Any]
) -> None:
    listener = Recorder()
    settings = {"model_args": TINY, **changes}
    run = run_finetuning(make_config(mode="scratch", epochs=1, **settings), listener)
    assert not (run / "scratch" / "nnunet").exists()
    assert "No results folder of nnU-Net is written" in "\n".join(listener.lines)


@pytest.mark.usefixtures("unscored")
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
