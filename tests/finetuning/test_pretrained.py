"""Weights from anywhere into a network whose heads are new."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustcli.adapters import own
from robustcli.adapters.load import resolve
from robustcli.adapters.nnunet_planner import make_plan
from robustcli.core.errors import UsageError
from robustcli.finetuning.pretrained import Pretrained, fill, heads_of, read_pretrained
from tests.adapters import nnunet_files
from tests.finetuning.tunings import TINY, network, write_pretrained

UMAMBA = resolve("umamba")


def test_weights_of_a_training_bring_the_arguments_of_their_network(tmp_path: Path) -> None:
    path = write_pretrained(tmp_path / "weights.safetensors")
    given = read_pretrained(tmp_path, UMAMBA, {})
    assert given.arguments == TINY
    assert given.origin == str(path)
    assert (given.plan, given.patch) == (None, None)
    said = read_pretrained(path, UMAMBA, {"features": [1, 2]})
    assert said.arguments == {**TINY, "features": [1, 2]}  # the user's word goes first


def test_a_bare_checkpoint(tmp_path: Path) -> None:
    made = network()
    torch.save({"state_dict": made.state_dict()}, tmp_path / "bare.pth")
    given = read_pretrained(tmp_path / "bare.pth", UMAMBA, TINY)
    other = network(seed=8)
    heads = {k: v.clone() for k, v in other.state_dict().items() if ".seg_layers." in k}
    fill(other, given, UMAMBA, heads_of(UMAMBA))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, heads.get(name, made.state_dict()[name]))


def test_nnunets_results_bring_plan_and_patch(tmp_path: Path) -> None:
    made = nnunet_files.network()
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(made))
    for place in (top, top / "fold_3" / "checkpoint_final.pth"):
        given = read_pretrained(place, UMAMBA, {})
        assert given.patch == (32, 32)
        assert given.arguments["num_classes"] == 2
        assert given.origin.startswith("nnU-Net: ")
        assert "24 epochs" in given.origin


def test_results_of_the_other_network(tmp_path: Path) -> None:
    made = nnunet_files.network("umamba-enc")
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(made))
    with pytest.raises(UsageError, match="holds `umamba-enc`") as caught:
        read_pretrained(top, UMAMBA, {})
    assert "`robust finetune umamba-enc --pretrained" in caught.value.todo


def test_results_of_other_channels(tmp_path: Path) -> None:
    plan = make_plan((32, 32), ("MRI",), images=50, labels=("tumour",), features=(4, 64))
    made = nnunet_files.network(plan=plan)
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(made, plan), plan=plan)
    with pytest.raises(UsageError, match="reads 1 channels") as caught:
        read_pretrained(top, UMAMBA, {})
    assert "They are MRI; images here have red, green, blue" in caught.value.why


def test_another_patch_of_umamba_enc(tmp_path: Path) -> None:
    made = nnunet_files.network("umamba-enc")
    top = nnunet_files.results(tmp_path, nnunet_files.checkpoint(made))
    entry = resolve("umamba-enc")
    given = read_pretrained(top, entry, {"patch_size": (64, 64)})
    other = own.create("umamba-enc", given.arguments)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(UsageError, match="do not fit"):
        fill(other, given, entry, heads_of(entry))
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_any_other_network_is_filled_by_the_same_rule(tmp_path: Path) -> None:
    entry = resolve("unet")
    torch.manual_seed(1)
    theirs = own.create("unet", {"features": [4, 8]})
    save_file(theirs.state_dict(), tmp_path / "unet.safetensors")
    given = read_pretrained(tmp_path / "unet.safetensors", entry, {"features": [4, 8]})
    ours = own.create("unet", {"features": [4, 8]})
    fill(ours, given, entry, heads_of(entry))
    kept = {n for n, t in ours.state_dict().items() if not torch.equal(t, theirs.state_dict()[n])}
    assert kept == {"conv.weight", "conv.bias"}
    assert heads_of(entry) == ("conv.",)


def test_what_does_not_fit_is_named_and_nothing_is_copied() -> None:
    entry = resolve("unet")
    ours = own.create("unet", {"features": [4, 8]})
    state = dict(own.create("unet", {"features": [4, 12]}).state_dict())
    gone = next(name for name in state if not name.startswith("conv."))
    del state[gone]
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    with pytest.raises(UsageError, match="The weights of `here` do not fit `unet`") as caught:
        fill(ours, Pretrained("here", {}, state), entry, heads_of(entry))
    assert f"`{gone}` is missing" in caught.value.why
    assert ", not (" in caught.value.why
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())


def test_heads_of_a_library_network() -> None:
    assert heads_of(resolve("smp:Unet/resnet18")) == ("segmentation_head.",)
