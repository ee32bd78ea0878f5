"""Adapters on projections, against peft's own merging."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robustcli.adapters import own
from robustcli.core.errors import UsageError
from robustcli.finetuning.lora import ALPHA, RANK, adapt, merged, projections
from tests.finetuning.tunings import network

HEADS = ("decoder.seg_layers.",)
IMAGES = torch.linspace(0, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
VMUNET = {"dim": 8, "depths": [1, 1, 1, 1], "depths_decoder": [1, 1, 1, 1]}


def adapted(seed: int = 0) -> nn.Module:
    made = network().eval()
    adapt(made, HEADS, name="umamba", seed=seed)
    return made


def test_only_adapters_and_heads_train() -> None:
    trained = {n for n, p in adapted().named_parameters() if p.requires_grad}
    assert trained == {
        "decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias",
        *(f"mamba_layer.mamba.{layer}.lora_{part}.default.weight"
          for layer in ("in_proj", "x_proj", "out_proj") for part in "AB"),
    }  # fmt: skip


def test_the_output_is_at_first_as_it_was() -> None:
    with torch.no_grad():
        found, expected = adapted()(IMAGES), network().eval()(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_adapters_are_those_of_the_seed() -> None:
    one, twin, other = (adapted(seed).state_dict() for seed in (0, 0, 1))
    key = "mamba_layer.mamba.in_proj.lora_A.default.weight"
    assert torch.equal(one[key], twin[key])
    assert not torch.equal(one[key], other[key])
    assert one[key].shape == (RANK, 8)


def test_merged_weights_say_the_same_as_the_adapters_and_as_pefts() -> None:
    made = adapted()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.5)
        expected = made(IMAGES)
        plain = network(seed=99).eval()
        plain.load_state_dict(merged(made.state_dict()))
        found = plain(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, network().eval()(IMAGES), atol=1e-3)
    theirs = copy.deepcopy(made).get_submodule("mamba_layer.mamba.x_proj")
    theirs.merge()  # type: ignore[operator]
    torch.testing.assert_close(
        plain.get_parameter("mamba_layer.mamba.x_proj.weight"),
        theirs.get_parameter("base_layer.weight"),
    )


def test_merging_by_hand() -> None:
    state = {
        "x.base_layer.weight": torch.eye(2),
        "x.base_layer.bias": torch.ones(2),
        "x.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "x.lora_B.default.weight": torch.tensor([[1.0], [0.0]]),
        "y.weight": torch.zeros(1),
    }
    plain = merged(state)
    assert list(plain) == ["x.weight", "x.bias", "y.weight"]
    scale = ALPHA / RANK
    assert plain["x.weight"].tolist() == [[1 + scale, 2 * scale], [0, 1]]


def test_projections_are_found_by_the_type_of_their_module() -> None:
    found = projections(own.create("vmunet", VMUNET))
    assert len(found) == 2 * 8  # in and out of eight blocks
    assert {name.rsplit(".", 1)[1] for name in found} == {"in_proj", "out_proj"}
    bidirectional = projections(own.create("vim-t", {"depth": 1, "img_size": 32}))
    assert {name.rsplit(".", 1)[1] for name in bidirectional} == {
        "in_proj", "x_proj", "x_proj_b", "out_proj",
    }  # fmt: skip


def test_a_network_without_projections() -> None:
    with pytest.raises(UsageError, match="`--mode lora` finds nothing to adapt in `unet`"):
        adapt(own.create("unet", {"features": [4, 8]}), ("conv.",), name="unet", seed=0)
