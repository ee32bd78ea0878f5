"""Checkpoints of nnU-Net, read with their plans and loaded as models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.adapters import networks
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.nnunet_models import read_nnunet
from robustcli.core.errors import UsageError
from robustcli.nnunet.normalisation import Channel
from robustcli.nnunet.plans_json import make_plan
from tests.adapters.files import assert_holds, saved
from tests.nnunet.nnunet_files import PLAN, checkpoint, network, results


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        *(("umamba", kind) for kind in ("dataset", "trainer", "fold", "file", "bare")),
        ("umamba-enc", "dataset"),
    ],
)
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


ORGANS = make_plan(
    (48, 32), ("R", "G", "B"), images=50, labels=("liver", "kidney"), features=(8, 32)
)


@pytest.mark.parametrize("model", ["umamba", "umamba-enc", "resenc"])
@torch.no_grad()
def test_the_plan_defines_the_network_without_options(tmp_path: Path, model: str) -> None:
    source = network(model, ORGANS).eval()
    top = results(tmp_path, checkpoint(source, ORGANS), plan=ORGANS)
    file = top / "fold_3" / "checkpoint_final.pth"
    for weights in (top.parent, top, file):
        loaded = load(ModelRequest(model, weights), "seg")
        assert loaded.facts.weights == str(file)
        assert loaded.classes == ("liver", "kidney")
        assert loaded.preprocessing.window == (48, 32)
        loaded.try_out()
        assert loaded.preprocessing.nnunet is not None
        images = torch.randn(1, 3, *ORGANS.patch)
        torch.testing.assert_close(loaded.network(images), source(images), rtol=0, atol=0)
        recorded = load(ModelRequest(model, file, arguments=loaded.facts.arguments), "seg")
        assert_holds(recorded.network, source.state_dict())


def test_the_plan_names_the_classes_of_networks_that_no_plan_defines(tmp_path: Path) -> None:
    content = checkpoint(network("umamba", ORGANS), ORGANS)
    for num_classes, names in ((3, ("liver", "kidney")), (5, ())):
        state = networks.create("swin-umamba-pico", {"num_classes": num_classes}).state_dict()
        top = results(tmp_path, {**content, "network_weights": state}, plan=ORGANS)
        loaded = load(ModelRequest("swin-umamba-pico", top / "fold_3/checkpoint_final.pth"), "seg")
        assert loaded.classes == names


def test_a_window_that_is_set_replaces_that_of_the_plan(tmp_path: Path) -> None:
    top = results(tmp_path, checkpoint(network("umamba", ORGANS), ORGANS), plan=ORGANS)
    request = ModelRequest("umamba", top, preprocessing={"window": 64})
    loaded = load(request, "seg")
    assert loaded.preprocessing.window == 64
    assert loaded.preprocessing.nnunet is not None
    loaded.try_out()


def test_the_folder_is_not_the_name_of_a_network(tmp_path: Path) -> None:
    top = results(tmp_path, checkpoint(network()))
    with pytest.raises(UsageError, match=r"(?s)results folder of nnU-Net.*--model umamba --weigh"):
        load(ModelRequest(str(top)), "seg")


def test_foreground_and_background_have_no_names(tmp_path: Path) -> None:
    top = results(tmp_path, checkpoint(network()))
    assert load(ModelRequest("umamba", top), "seg").classes == ()


def test_a_checkpoint_of_the_other_u_mamba_is_named(tmp_path: Path) -> None:
    top = results(tmp_path, checkpoint(network("umamba-enc")))
    with pytest.raises(UsageError, match=r"(?s)weights of `umamba-enc`\.\nUse .*`umamba-enc`"):
        load(ModelRequest("umamba", top), "seg")


def test_options_that_contradict_the_plan_are_refused(tmp_path: Path) -> None:
    top = results(tmp_path, checkpoint(network()))
    with pytest.raises(UsageError, match="num_classes"):
        load(ModelRequest("umamba", top, arguments={"num_classes": 5}), "seg")


def test_several_trainings_in_a_results_folder(tmp_path: Path) -> None:
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
        saved(checkpoint(network()), tmp_path / f"fold_{fold}" / "checkpoint_final.pth")
    with pytest.raises(UsageError, match=r"(?s)contains 2 trainings.*fold_0.*fold_1"):
        load(ModelRequest("umamba", tmp_path), "seg")
