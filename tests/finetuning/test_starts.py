"""Initial weights from every source, new heads, and defaults."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustcli.adapters import networks
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.load import resolve
from robustcli.adapters.trainable import heads_of, transfer
from robustcli.core.errors import UsageError
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.finetuning_task import (
    Pretrained,
    SegmenterFinetuning,
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


@pytest.mark.parametrize("model", ["umamba", "umamba-enc"])
@pytest.mark.parametrize("kind", ["dataset", "trainer", "fold", "file", "bare"])
def test_every_path_to_a_model_is_read(tmp_path: Path, model: str, kind: str) -> None:
    source = network(model)
    top = results(tmp_path, checkpoint(source))
    file = top / "fold_3" / "checkpoint_final.pth"
    bare = saved(checkpoint(source), tmp_path / "bare.pth")
    paths = {
        "dataset": top.parent, "trainer": top, "fold": file.parent, "file": file, "bare": bare
    }  # fmt: skip
    loaded = read_nnunet(paths[kind])
    assert (loaded.model, loaded.fold, loaded.epochs) == (model, "3", 24)
    assert loaded.mirror_axes == (0, 1)
    assert (loaded.in_channels, loaded.num_classes) == (3, 2)
    assert loaded.plan.patch == (32, 32)
    assert loaded.plan.channels == (Channel("zscore"),) * 3
    network_again = networks.with_weights(
        loaded.model, loaded.weights, origin=str(loaded.path), options=loaded.options
    )
    assert_holds(network_again, source.state_dict())


def test_the_plan_beside_the_fold_comes_before_the_checkpoints_own(tmp_path: Path) -> None:
    other_plan = make_plan((32, 32), ("noNorm",) * 3, images=50, labels=("road",), features=(4, 64))
    top = results(tmp_path, checkpoint(network()), plan=other_plan)
    assert read_nnunet(top).plan.channels == (Channel("none"),) * 3


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'created'}",)

    for key in ("_best_ema", "logging", "init_args"):
        content = {**checkpoint(network()), key: Attack()}
        path = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UsageError, match=r"x\.pth` was refused, and no code in it was run"):
            read_nnunet(path)
    assert not (tmp_path / "created").exists()


def refuse_file(path: Path, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_nnunet(path)


def test_a_bare_state_dict_has_no_plan(tmp_path: Path) -> None:
    path = saved(network().state_dict(), tmp_path / "x.pth")
    refuse_file(path, r"(?s)`.*x\.pth` is not a checkpoint .*`network_weights`.*--weights")


def test_a_checkpoint_without_any_plan(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = saved(checkpoint(network(), init_args={}), tmp_path / "a" / "b" / "x.pth")
    refuse_file(path, r"(?s)The plan of `.*x\.pth` is missing\..*no `plans\.json`.*results folder")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = {"encoder.stages.0.weight": torch.zeros(1)}
    content = checkpoint(network(), network_weights=weights, trainer_name="nnUNetTrainer")
    path = saved(content, tmp_path / "x.pth")
    refuse_file(
        path, r"(?s)contains no U-Mamba\..*`nnUNetTrainer`.*nnUNetTrainerUMambaBot or nnUNet"
    )


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    weights = {k: v for k, v in network().state_dict().items() if not k.startswith("decoder.")}
    path = saved(checkpoint(network(), network_weights=weights), tmp_path / "x.pth")
    refuse_file(
        path, r"does not contain a complete U-Mamba\.\nIt lacks `decoder\.seg_layers\.0\.weight`"
    )


def test_a_trainer_that_contradicts_the_weights(tmp_path: Path) -> None:
    content = checkpoint(network(), trainer_name="nnUNetTrainerUMambaEnc")
    refuse_file(saved(content, tmp_path / "x.pth"), r"(?s)is inconsistent.*of `umamba`")


@pytest.mark.parametrize(
    ("patch", "channels", "message"),
    [
        (
            (32, 32),
            ("MR",),
            r"(?s)does not match its weights\.\nThe data set has 1 channels \(MR\), but the weig",
        ),
        (
            (64, 64),
            "RGB",
            r"(?s)does not match its weights.*missing.*Use the plan of the training",
        ),
    ],
)
def test_a_plan_of_other_channels_or_stages(
    tmp_path: Path, patch: tuple[int, int], channels: tuple[str, ...], message: str
) -> None:
    plan = make_plan(patch, channels, images=50, labels=("road",), features=(4, 64))
    refuse_file(results(tmp_path, checkpoint(network()), plan=plan), message)


def test_a_plan_of_another_patch_does_not_fit_the_encoder_variant_and_says_why(
    tmp_path: Path,
) -> None:
    other_plan = make_plan((48, 32), ("R", "G", "B"), images=50, labels=("road",), features=(4, 64))
    assert other_plan.options["strides"] == PLAN.options["strides"]
    path = results(tmp_path, checkpoint(network("umamba-enc")), plan=other_plan)
    refuse_file(
        path, r"(?s)does not match.*mamba_layers.*patch is 48 x 32, on which the weights of `umamba"
    )
    top = results(tmp_path / "b", checkpoint(network()), plan=other_plan)
    assert read_nnunet(top).plan.patch == (48, 32)


def test_fields_missing_in_a_checkpoint_are_empty(tmp_path: Path) -> None:
    content = checkpoint(network())
    for key in ("current_epoch", "inference_allowed_mirroring_axes", "trainer_name"):
        del content[key]
    loaded = read_nnunet(saved(content, tmp_path / "x.pth"))
    assert (loaded.epochs, loaded.mirror_axes, loaded.trainer) == (None, (), "")


UMAMBA_PRETRAINED = resolve("umamba")
read_file = SegmenterFinetuning().read_file


def fill(network: nn.Module, start: Pretrained, entry: ModelEntry) -> None:
    transfer(network, start.state, entry, heads_of(entry), start.origin, patch=start.patch)


def test_weights_of_a_training_bring_the_arguments_of_their_network(tmp_path: Path) -> None:
    path = write_pretrained(tmp_path / "weights.safetensors")
    start = read_file(tmp_path, UMAMBA_PRETRAINED, {})
    assert start.arguments == TINY
    assert start.origin == str(path)
    assert (start.plan, start.patch) == (None, None)
    overridden = read_file(path, UMAMBA_PRETRAINED, {"features": [1, 2]})
    assert overridden.arguments == {**TINY, "features": [1, 2]}  # the user's value takes precedence


def test_a_bare_checkpoint(tmp_path: Path) -> None:
    source = network_pretrained()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "bare.pth")
    start = read_file(tmp_path / "bare.pth", UMAMBA_PRETRAINED, TINY)
    other_network = network_pretrained(seed=8)
    heads = {k: v.clone() for k, v in other_network.state_dict().items() if ".seg_layers." in k}
    fill(other_network, start, UMAMBA_PRETRAINED)
    for name, tensor in other_network.state_dict().items():
        assert torch.equal(tensor, heads.get(name, source.state_dict()[name]))


def test_nnunets_results_bring_plan_and_patch(tmp_path: Path) -> None:
    source = nnunet_files.network()
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(source))
    for path in (top, top / "fold_3" / "checkpoint_final.pth"):
        start = read_file(path, UMAMBA_PRETRAINED, {})
        assert start.patch == (32, 32)
        assert start.arguments["num_classes"] == 2
        assert start.origin.startswith("nnU-Net: ")
        assert "24 epochs" in start.origin


def test_results_of_the_other_network(tmp_path: Path) -> None:
    source = nnunet_files.network("umamba-enc")
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(source))
    with pytest.raises(UsageError, match="contains `umamba-enc`") as caught:
        read_file(top, UMAMBA_PRETRAINED, {})
    assert "`robust finetune umamba-enc --pretrained" in caught.value.todo


def test_results_of_other_channels(tmp_path: Path) -> None:
    plan = make_plan((32, 32), ("MRI",), images=50, labels=("tumour",), features=(4, 64))
    source = nnunet_files.network(plan=plan)
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(source, plan), plan=plan)
    with pytest.raises(UsageError, match="has 1 input channels") as caught:
        read_file(top, UMAMBA_PRETRAINED, {})
    assert "The channels are MRI; images of this data set have red, green, blue" in caught.value.why


def test_another_patch_of_umamba_enc(tmp_path: Path) -> None:
    source = nnunet_files.network("umamba-enc")
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(source))
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
