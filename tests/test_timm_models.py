"""Contracts of timm for models (after its own tests/test_models.py) and features, per release."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import get_channel_dim, get_spatial_dim
from timm.models import FeatureInfo

import robustcli.timm_models  # registers
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.models import vim, vmamba
from tests.models import golden

VMAMBA = {
    "vmamba_tiny_s1l8": "vmamba-t-s1l8", "vmamba_tiny_s2l5": "vmamba-t-s2l5",
    "vmamba_tiny_v0": "vmamba-t-v0", "vmamba_small_s2l15": "vmamba-s-s2l15",
    "vmamba_small_s1l20": "vmamba-s-s1l20", "vmamba_small_v0": "vmamba-s-v0",
    "vmamba_base_s2l15": "vmamba-b-s2l15", "vmamba_base_s1l20": "vmamba-b-s1l20",
    "vmamba_base_v0": "vmamba-b-v0",
}  # fmt: skip
VIM = {
    "vim_tiny": "vim-t", "vim_tiny_plus": "vim-t-plus", "vim_small": "vim-s",
    "vim_small_plus": "vim-s-plus", "vim_base": "vim-b",
}  # fmt: skip
ALL = VMAMBA | VIM
# The others differ from these in depth and width alone, which `small` replaces.
KINDS = ["vmamba_tiny_s1l8", "vmamba_tiny_s2l5", "vmamba_tiny_v0", "vim_tiny", "vim_tiny_plus"]
SIDE = 64


def small(name: str, **options: Any) -> Any:
    """The model with few, narrow blocks: everything that distinguishes it else is kept."""
    if name in VMAMBA:
        return timm.create_model(name, depths=(1, 1, 2, 1), dim=16, **options)
    return timm.create_model(name, depth=4, dim=32, img_size=SIDE, **options)


def images(count: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@cache
def published(name: str) -> Any:
    """The network in its own size, without numbers; not to be changed."""
    with torch.device("meta"):
        return timm.create_model(name)


def test_every_release_is_registered_once() -> None:
    assert set(robustcli.timm_models.__all__) == set(ALL)
    assert set(timm.list_models("vmamba*")) == set(VMAMBA)
    assert set(timm.list_models("vim*")) >= set(VIM)
    assert {f"{name}.in1k" for name in ALL} <= set(timm.list_pretrained())


@pytest.mark.parametrize("name", ALL)
def test_it_is_the_release_itself(name: str) -> None:
    model, ours = published(name), golden.published(ALL[name])
    assert {k: t.shape for k, t in model.state_dict().items()} == {
        k: t.shape for k, t in ours.state_dict().items()
    }
    assert list(model.state_dict()) == list(ours.state_dict())
    size = {"img_size": 224} if name in VIM else {}  # timm gives a pair
    arguments = {**vars(model.config), **size}
    assert arguments == vars(ours.config)


@pytest.mark.parametrize("name", KINDS)
def test_same_weights_same_logits(name: str) -> None:
    model = small(name).eval()
    module = vmamba.VMamba if name in VMAMBA else vim.Vim
    ours = module(model.config).eval()
    ours.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images(2)), ours(images(2)), rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_default_configuration(name: str) -> None:
    model = published(name)
    config, state, entry = model.default_cfg, model.state_dict(), CATALOGUE[ALL[name]]
    assert config["url"] == entry.weights_url
    assert config["classifier"] + ".weight" in state
    assert config["first_conv"] + ".weight" in state
    assert state[config["classifier"] + ".weight"].shape[0] == config["num_classes"] == 1000
    data = resolve_model_data_config(model)
    assert (data["input_size"], data["interpolation"]) == ((3, 224, 224), "bicubic")
    assert math.floor(224 / data["crop_pct"]) == 256
    assert data["mean"] == (0.485, 0.456, 0.406)
    assert data["std"] == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", KINDS)
def test_backward_reaches_every_parameter(name: str) -> None:
    model = small(name, num_classes=42).train()
    outputs = model(images(2))
    assert outputs.shape == (2, 42)
    outputs.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_features_head_and_their_replacement(name: str) -> None:
    model = small(name).eval()
    features = model.forward_features(images())
    assert features.shape[get_channel_dim(model.output_fmt)] == model.num_features
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (1, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(images()))

    model.reset_classifier(0)
    assert model.num_classes == 0
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    torch.testing.assert_close(model(images()), before)
    model.reset_classifier(0, "")
    assert model(images()).shape == features.shape
    model.reset_classifier(7, model.pools[0])
    assert model(images()).shape == (1, 7)
    assert model.get_classifier().out_features == model.num_classes == 7
    unpooled = small(name, num_classes=0, global_pool="").eval()
    assert unpooled(images()).shape == features.shape


@pytest.mark.parametrize("name", KINDS[:3])
@torch.no_grad()
def test_the_last_map_has_the_size_that_the_configuration_states(name: str) -> None:
    model = small(name).eval()
    shape = model.forward_features(torch.zeros(1, 3, 224, 224)).shape
    spatial = get_spatial_dim(model.output_fmt)
    assert tuple(shape[axis] for axis in spatial) == model.default_cfg["pool_size"] == (7, 7)


@pytest.mark.parametrize("name", ["vmamba_tiny_s2l5", "vim_tiny"])
@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(name: str, channels: int) -> None:
    model = small(name, in_chans=channels).eval()
    assert model(images(channels=channels)).shape == (1, 1000)


def test_stochastic_depth_is_the_releases_own_unless_said_otherwise() -> None:
    with torch.device("meta"):
        ours = timm.create_model("vmamba_base_s2l15")
        none = timm.create_model("vmamba_base_s2l15", drop_path_rate=0.0)
    assert ours.layers[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.6)
    assert none.layers[-1].blocks[-1].drop_path.drop_prob == 0


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_features_only(name: str) -> None:
    model = small(name, features_only=True).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    if name in VMAMBA:
        assert (channels, reductions) == ([16, 32, 64, 128], [4, 8, 16, 32])
    else:
        assert len(channels) == 3
    maps = model(images())
    assert len(maps) == len(channels)
    for many, reduction, features in zip(channels, reductions, maps, strict=True):
        assert features.shape[:2] == (1, many)
        assert math.ceil(SIDE / reduction) - 1 <= features.shape[2] <= math.ceil(SIDE / reduction)
        assert not features.isnan().any()


@pytest.mark.parametrize("name", ["vmamba_tiny_v0", "vim_tiny"])
@pytest.mark.parametrize("indices", [(0, 2), (-1,), 2, (1, 2, 3)])
def test_chosen_features_are_those_of_the_whole_network(name: str, indices: Any) -> None:
    torch.manual_seed(0)
    full = small(name).eval()
    torch.manual_seed(0)
    chosen = small(name, features_only=True, out_indices=indices).eval()
    with torch.no_grad():
        everything = full.forward_intermediates(images(), intermediates_only=True)
        features = chosen(images())
    numbers = range(4 - indices, 4) if isinstance(indices, int) else [i % 4 for i in indices]
    assert len(features) == len(numbers)
    for number, single in zip(numbers, features, strict=True):
        torch.testing.assert_close(single, everything[number], rtol=0, atol=0)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_intermediates(name: str) -> None:
    model = small(name).eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    final, maps = model.forward_intermediates(images())
    torch.testing.assert_close(final, model.forward_features(images()), rtol=0, atol=0)
    assert [m.shape[1] for m in maps] == info.channels()
    other = model.forward_intermediates(
        images(), output_fmt=model.output_fmt, intermediates_only=True
    )
    for a, b in zip(maps, other, strict=True):
        same = a.flatten(2).transpose(1, 2) if name in VIM else a.permute(0, 2, 3, 1)
        torch.testing.assert_close(same, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vmamba_tiny_s2l5", "vim_tiny"])
def test_a_pruned_trunk_trains_all_that_it_has(name: str) -> None:
    """Unused parameters would stop a distributed run."""
    model = small(name, features_only=True, out_indices=(0, 1)).train()
    sum(m.square().mean() for m in model(images(2))).backward()
    trained = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert trained == []
