"""Weights from anywhere into a network whose heads are new, and the defaults."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robustcli.adapters import networks
from robustcli.adapters.load import resolve
from robustcli.adapters.trainable import heads_of
from robustcli.core.errors import UsageError
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.starts import (
    Pretrained,
    SegmenterFinetuning,
    fill_body,
    light,
    no_weights,
    read_nnunet,
)
from robustcli.nnunet.normalisation import Channel
from robustcli.nnunet.plans_json import make_plan
from robustcli.training.config import TrainConfig
from tests.adapters import nnunet_files
from tests.adapters.files import assert_holds, saved
from tests.adapters.nnunet_files import PLAN, checkpoint, network, results
from tests.finetuning.tunings import TINY, write_pretrained
from tests.finetuning.tunings import network as network_pretrained

TASK, UMAMBA = SegmenterFinetuning(), resolve("umamba")
AS_TYPED = FinetuneConfig(TrainConfig("umamba"))


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_command_as_typed_takes_what_is_bundled_and_says_so() -> None:
    said: list[str] = []
    training = TASK.with_defaults(AS_TYPED, UMAMBA, said.append).training
    assert (training.model, training.data) == ("umamba-pico", "nuclei-mini:stained")
    assert [line.split(";")[0] for line in said] == [
        "`--pretrained` and `--data` are not set",
        "`--data` is not set",
    ]
    assert "pretrained on the fluorescence images" in said[0]
    assert "the intervals are wide" in said[1]


def test_named_weights_or_data_mean_the_network_itself() -> None:
    said: list[str] = []
    named = replace(AS_TYPED, pretrained=Path("x"))
    assert TASK.with_defaults(named, UMAMBA, said.append).training.model == "umamba"
    elsewhere = replace(AS_TYPED, training=TrainConfig("umamba", "roads"))
    assert TASK.with_defaults(elsewhere, UMAMBA, said.append).training == elsewhere.training
    assert len(said) == 1  # of the data of the first


def test_data_of_the_user_go_before_the_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_DATA_SEGMENTATION", "/my/cells")
    said: list[str] = []
    assert TASK.with_defaults(AS_TYPED, UMAMBA, said.append).training.data == "/my/cells"
    assert said[1] == (
        "`--data` is not set; using /my/cells (environment variable ROBUST_DATA_SEGMENTATION)."
    )


@pytest.mark.parametrize(("quick", "steps"), [(False, 360), (True, 60)])
def test_bundled_data_have_a_recipe_for_two_cores(quick: bool, steps: int) -> None:
    config = TrainConfig("umamba-pico", quick=quick)
    assert TASK.usual_steps(config, config, "nuclei-mini:stained") == steps
    made = light(config, "nuclei-mini:stained")
    assert (made.window, made.batch_size, made.quick) == (128, 4, False)


def test_what_the_user_says_holds() -> None:
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
def test_other_data_protocols_and_recipes_are_left_alone(config: TrainConfig, data: str) -> None:
    assert light(config, data) is config
    assert TASK.usual_steps(config, config, data) is None


@pytest.mark.parametrize("name", ["umamba", "umamba-nomamba", "resenc"])
def test_a_network_of_a_plan_on_data_of_the_user_is_trained_as_nnunet_does_and_it_is_said(
    name: str,
) -> None:
    said: list[str] = []
    typed = TrainConfig(name)
    made = TASK.usual_recipe(typed, resolve(name), "roads", said.append)
    assert (made.recipe, TASK.usual_steps(typed, made, "roads")) == ("nnunet", 6000)
    assert said == [
        f"`--recipe` is not set; `{name}` is trained with nnU-Net's recipe, which needs a GPU. "
        "`--recipe nnunet-light` is a smaller version for a CPU, `--recipe patient` is the recipe "
        "of this program."
    ]
    assert TASK.usual_steps(made, made, "roads") is None  # named by the user: its 1000 epochs
    assert TASK.usual_steps(replace(typed, epochs=3), made, "roads") is None
    assert TASK.usual_steps(replace(typed, quick=True), made, "roads") is None


@pytest.mark.parametrize(
    ("config", "data"),
    [
        (TrainConfig("unet"), "roads"),
        (TrainConfig("umamba", recipe="patient"), "roads"),
        (TrainConfig("umamba", protocol="paper"), "roads"),
    ],
)
def test_nothing_else_is(config: TrainConfig, data: str) -> None:
    said: list[str] = []
    assert TASK.usual_recipe(config, resolve(config.model), data, said.append) is config
    bundled = TASK.usual_recipe(
        TrainConfig("umamba-pico"), resolve("umamba-pico"), "nuclei-mini", said.append
    )
    assert (bundled.recipe, bundled.window) == (None, 128)
    assert said == []


def test_without_weights_the_ways_to_them_are_named() -> None:
    error = no_weights(resolve("umamba"))
    assert error.what == "`umamba` has no weights on this machine to fine-tune."
    assert "`umamba-pico` is bundled with weights" in error.why
    assert "--mode scratch" in error.todo
    assert "is bundled with weights" not in no_weights(resolve("unet")).why


@pytest.mark.parametrize("model", ["umamba", "umamba-enc"])
@pytest.mark.parametrize("way", ["dataset", "trainer", "fold", "file", "bare"])
def test_reads_every_way_to_a_model(tmp_path: Path, model: str, way: str) -> None:
    made = network(model)
    top = results(tmp_path, checkpoint(made))
    file = top / "fold_3" / "checkpoint_final.pth"
    bare = saved(checkpoint(made), tmp_path / "bare.pth")
    ways = {"dataset": top.parent, "trainer": top, "fold": file.parent, "file": file, "bare": bare}
    found = read_nnunet(ways[way])
    assert (found.model, found.fold, found.epochs, found.mirror_axes) == (model, "3", 24, (0, 1))
    assert (found.in_channels, found.num_classes) == (3, 2)
    assert found.plan.patch == (32, 32)
    assert found.plan.channels == (Channel("zscore"),) * 3
    again = networks.with_weights(
        found.model, found.weights, origin=str(found.path), options=found.options
    )
    assert_holds(again, made.state_dict())


def test_the_plan_beside_the_fold_comes_before_the_checkpoints_own(tmp_path: Path) -> None:
    other = make_plan((32, 32), ("noNorm",) * 3, images=50, labels=("road",), features=(4, 64))
    top = results(tmp_path, checkpoint(network()), plan=other)
    assert read_nnunet(top).plan.channels == (Channel("none"),) * 3


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'created'}",)

    for place in ("_best_ema", "logging", "init_args"):
        content = {**checkpoint(network()), place: Attack()}
        path = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UsageError, match=r"x\.pth` was refused, and no code in it was run"):
            read_nnunet(path)
    assert not (tmp_path / "created").exists()


def refused(path: Path, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_nnunet(path)


def test_a_bare_state_dict_has_no_plan(tmp_path: Path) -> None:
    path = saved(network().state_dict(), tmp_path / "x.pth")
    refused(path, r"(?s)`.*x\.pth` is no checkpoint of nnU-Net\..*`network_weights`.*--weights")


def test_a_checkpoint_without_any_plan(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = saved(checkpoint(network(), init_args={}), tmp_path / "a" / "b" / "x.pth")
    refused(path, r"(?s)The plan of `.*x\.pth` is missing\..*no `plans\.json` in.*results folder")


def test_another_network(tmp_path: Path) -> None:
    weights = {"encoder.stages.0.weight": torch.zeros(1)}
    content = checkpoint(network(), network_weights=weights, trainer_name="nnUNetTrainer")
    path = saved(content, tmp_path / "x.pth")
    refused(path, r"(?s)contains no U-Mamba\..*`nnUNetTrainer`.*nnUNetTrainerUMambaBot or nnUNet")


def test_half_a_network(tmp_path: Path) -> None:
    weights = {k: v for k, v in network().state_dict().items() if not k.startswith("decoder.")}
    path = saved(checkpoint(network(), network_weights=weights), tmp_path / "x.pth")
    refused(
        path, r"does not contain a complete U-Mamba\.\nIt lacks `decoder\.seg_layers\.0\.weight`"
    )


def test_a_trainer_that_contradicts_the_weights(tmp_path: Path) -> None:
    content = checkpoint(network(), trainer_name="nnUNetTrainerUMambaEnc")
    refused(saved(content, tmp_path / "x.pth"), r"(?s)is inconsistent.*of `umamba`")


def test_a_plan_of_other_channels(tmp_path: Path) -> None:
    grey = make_plan((32, 32), ("MR",), images=50, labels=("road",), features=(4, 64))
    path = results(tmp_path, checkpoint(network()), plan=grey)
    refused(
        path, r"(?s)does not match its weights\.\nThe data set has 1 channels \(MR\), but the weig"
    )


def test_a_plan_of_another_patch_does_not_fit_the_encoder_variant_and_says_why(
    tmp_path: Path,
) -> None:
    other = make_plan((48, 32), ("R", "G", "B"), images=50, labels=("road",), features=(4, 64))
    assert other.options["strides"] == PLAN.options["strides"]
    path = results(tmp_path, checkpoint(network("umamba-enc")), plan=other)
    refused(
        path, r"(?s)does not match.*mamba_layers.*patch is 48 x 32, on which the weights of `umamba"
    )
    assert read_nnunet(results(tmp_path / "b", checkpoint(network()), plan=other)).plan.patch == (
        48,
        32,
    )


def test_a_plan_of_other_stages(tmp_path: Path) -> None:
    other = make_plan((64, 64), ("R", "G", "B"), images=50, labels=("road",), features=(4, 64))
    path = results(tmp_path, checkpoint(network()), plan=other)
    refused(path, r"(?s)does not match its weights.*missing.*.*Use the plan of the training")


def test_what_a_file_does_not_say_is_left_open(tmp_path: Path) -> None:
    content = checkpoint(network())
    for key in ("current_epoch", "inference_allowed_mirroring_axes", "trainer_name"):
        del content[key]
    found = read_nnunet(saved(content, tmp_path / "x.pth"))
    assert (found.epochs, found.mirror_axes, found.trainer) == (None, (), "")


UMAMBA_PRETRAINED = resolve("umamba")
read_file = SegmenterFinetuning().read_file


def test_weights_of_a_training_bring_the_arguments_of_their_network(tmp_path: Path) -> None:
    path = write_pretrained(tmp_path / "weights.safetensors")
    given = read_file(tmp_path, UMAMBA_PRETRAINED, {})
    assert given.arguments == TINY
    assert given.origin == str(path)
    assert (given.plan, given.patch) == (None, None)
    said = read_file(path, UMAMBA_PRETRAINED, {"features": [1, 2]})
    assert said.arguments == {**TINY, "features": [1, 2]}  # the user's word goes first


def test_a_bare_checkpoint(tmp_path: Path) -> None:
    made = network_pretrained()
    torch.save({"state_dict": made.state_dict()}, tmp_path / "bare.pth")
    given = read_file(tmp_path / "bare.pth", UMAMBA_PRETRAINED, TINY)
    other = network_pretrained(seed=8)
    heads = {k: v.clone() for k, v in other.state_dict().items() if ".seg_layers." in k}
    fill_body(other, given, UMAMBA_PRETRAINED, heads_of(UMAMBA_PRETRAINED))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, heads.get(name, made.state_dict()[name]))


def test_nnunets_results_bring_plan_and_patch(tmp_path: Path) -> None:
    made = nnunet_files.network()
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(made))
    for place in (top, top / "fold_3" / "checkpoint_final.pth"):
        given = read_file(place, UMAMBA_PRETRAINED, {})
        assert given.patch == (32, 32)
        assert given.arguments["num_classes"] == 2
        assert given.origin.startswith("nnU-Net: ")
        assert "24 epochs" in given.origin


def test_results_of_the_other_network(tmp_path: Path) -> None:
    made = nnunet_files.network("umamba-enc")
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(made))
    with pytest.raises(UsageError, match="holds `umamba-enc`") as caught:
        read_file(top, UMAMBA_PRETRAINED, {})
    assert "`robust finetune umamba-enc --pretrained" in caught.value.todo


def test_results_of_other_channels(tmp_path: Path) -> None:
    plan = make_plan((32, 32), ("MRI",), images=50, labels=("tumour",), features=(4, 64))
    made = nnunet_files.network(plan=plan)
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(made, plan), plan=plan)
    with pytest.raises(UsageError, match="reads 1 channels") as caught:
        read_file(top, UMAMBA_PRETRAINED, {})
    assert "The channels are MRI; images of this data set have red, green, blue" in caught.value.why


def test_another_patch_of_umamba_enc(tmp_path: Path) -> None:
    made = nnunet_files.network("umamba-enc")
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(made))
    entry = resolve("umamba-enc")
    given = read_file(top, entry, {"patch_size": (64, 64)})
    other = networks.create("umamba-enc", given.arguments)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(UsageError, match="do not fit"):
        fill_body(other, given, entry, heads_of(entry))
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_any_other_network_is_filled_by_the_same_rule(tmp_path: Path) -> None:
    entry = resolve("unet")
    torch.manual_seed(1)
    theirs = networks.create("unet", {"features": [4, 8]})
    save_file(theirs.state_dict(), tmp_path / "unet.safetensors")
    given = read_file(tmp_path / "unet.safetensors", entry, {"features": [4, 8]})
    ours = networks.create("unet", {"features": [4, 8]})
    fill_body(ours, given, entry, heads_of(entry))
    kept = {n for n, t in ours.state_dict().items() if not torch.equal(t, theirs.state_dict()[n])}
    assert kept == {"conv.weight", "conv.bias"}
    assert heads_of(entry) == ("conv.",)


def test_what_does_not_fit_is_named_and_nothing_is_copied() -> None:
    entry = resolve("unet")
    ours = networks.create("unet", {"features": [4, 8]})
    state = dict(networks.create("unet", {"features": [4, 12]}).state_dict())
    gone = next(name for name in state if not name.startswith("conv."))
    del state[gone]
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    with pytest.raises(UsageError, match="The weights of `here` do not fit `unet`") as caught:
        fill_body(ours, Pretrained("here", {}, state), entry, heads_of(entry))
    assert f"`{gone}` is missing" in caught.value.why
    assert ", not (" in caught.value.why
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())


def test_heads_of_a_library_network() -> None:
    assert heads_of(resolve("smp:Unet/resnet18")) == ("segmentation_head.",)
