"""VMamba and Vim as timm models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.models.vim import resize_positions
from tests.adapters.files import TIMM_NAMES, assert_holds, meta_state, random_state, small_timm


def official(path: Path, custom: bool = True) -> dict[str, Any]:
    """Options for published weights from a local copy; the release's address is the default."""
    overlay = {"file": str(path), "custom_load": custom}
    return {"pretrained": True, "pretrained_cfg_overlay": overlay}


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_official_weights_through_timm(name: str, tmp_path: Path) -> None:
    state = random_state(small_timm(name))
    torch.save({"model": state, "max_accuracy": 80.0}, tmp_path / "w.pth")
    for custom in (True, False):
        assert_holds(small_timm(name, **official(tmp_path / "w.pth", custom)), state)


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_weights_for_other_classes_and_channels_as_everywhere_in_timm(
    name: str, tmp_path: Path
) -> None:
    state = random_state(small_timm(name))
    torch.save(state, tmp_path / "w.pth")
    model = small_timm(name, num_classes=5, in_chans=1, **official(tmp_path / "w.pth"))
    conv = model.default_cfg["first_conv"] + ".weight"
    loaded, head = model.state_dict(), model.classifier_name
    for key, tensor in state.items():
        if key == conv:
            expected = tensor.sum(1, keepdim=True)
            torch.testing.assert_close(loaded[key], expected)
        elif not key.startswith(head + "."):
            torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(random_state(small_timm("vmamba_tiny_v0")), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="does not contain the weights of `TimmVMamba`"):
        small_timm("vmamba_tiny_s1l8", **official(tmp_path / "w.pth"))


def test_a_vims_positions_follow_the_image_size(tmp_path: Path) -> None:
    state = random_state(small_timm("vim_tiny"))
    torch.save(state, tmp_path / "w.pth")
    model = small_timm("vim_tiny", img_size=64, **official(tmp_path / "w.pth"))
    torch.testing.assert_close(model.pos_embed, resize_positions(state["pos_embed"], (4, 4)))


def test_an_unknown_pooling() -> None:
    with pytest.raises(
        UsageError, match=r"`global_pool=max` is unknown\.\n.*supports pooling by `avg`"
    ):
        small_timm("vmamba_tiny_v0", global_pool="max")


def test_features_that_are_not_there() -> None:
    with pytest.raises(
        UsageError, match=r"`out_indices=\(7,\)` selects features.*\nIt has 3, numbered"
    ):
        small_timm("vim_tiny", features_only=True, out_indices=(7,))
    with pytest.raises(UsageError, match=r"`out_indices=4` selects features"):
        small_timm("vim_tiny", features_only=True, out_indices=4)


def test_vim_pools_by_the_mean_when_asked() -> None:
    model = small_timm("vim_tiny", global_pool="avg").eval()
    x = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        tokens = model.forward_features(x)
        torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens.mean(1))


@pytest.mark.parametrize(("name", "folder"), [("vmamba_tiny_v0", ""), ("vim_small", "/tree/main")])
def test_without_a_network_the_address_and_the_way_to_name_a_copy(
    attempts: list[object], name: str, folder: str
) -> None:
    message = rf"The weights of `{name}` cannot be loaded\.\n.*{folder}(.|\n)*overlay="
    with pytest.raises(UsageError, match=message):
        small_timm(name, pretrained=True)
    assert attempts


def test_a_vim_of_coarser_patches_is_not_stretched_over_finer_ones(tmp_path: Path) -> None:
    state = {key: torch.zeros(tensor.shape) for key, tensor in meta_state("vim-t").items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="These are the weights of `vim-t`: use this name"):
        timm.create_model("vim_tiny_plus", **official(tmp_path / "w.pth"))


def undecayed(model: Any, **options: Any) -> set[str]:
    """Names that timm's own optimizer leaves out of weight decay."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, **options)
    left = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    return {name for name, p in model.named_parameters() if id(p) in left}


@pytest.mark.parametrize("layerwise", [{}, {"layer_decay": 0.7}])
def test_weight_decay_is_upstreams(layerwise: dict[str, float]) -> None:
    """Of VMamba every vector and bias is left out; A_logs and dt_projs_bias have two dimensions."""
    model = small_timm("vmamba_tiny_v0")
    out, op = undecayed(model, **layerwise), "layers.1.blocks.0.op."
    decayed = {name for name, _ in model.named_parameters()} - out
    assert {op + "A_logs", op + "dt_projs_bias", op + "x_proj_weight"} <= decayed
    assert {op + "Ds", op + "conv2d.bias", op + "out_norm.weight", "classifier.head.bias"} <= out
    model = small_timm("vim_tiny")
    out, mixer = undecayed(model, **layerwise), "layers.2.mixer."
    decayed = {name for name, _ in model.named_parameters()} - out
    assert {mixer + p for p in ("A_log", "A_b_log", "D", "D_b", "dt_proj_b.bias")} <= out
    assert {"pos_embed", "cls_token", "norm_f.weight", "head.bias"} <= out
    assert {mixer + "x_proj_b.weight", "head.weight", "patch_embed.proj.weight"} <= decayed


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_layers_are_grouped_from_the_stem_to_the_head(name: str) -> None:
    model = small_timm(name)
    groups = group_parameters(model, model.group_matcher())
    assert all(n.startswith(("patch_embed", "pos_embed", "cls_token")) for n in groups[0])
    assert len(groups) == 5  # stem, three blocks, head
    assert {n.split(".")[-2] for n in groups[4]} >= {"head"}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    if name.startswith("vmamba"):
        assert any("downsample" in n for n in groups[1])  # with the block before it


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_recomputation_changes_memory_and_nothing_else(name: str) -> None:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = small_timm(name, drop_path_rate=0.5).train()
    gradients, kept = [], []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        sizes: list[int] = []
        custom = {p.data_ptr() for p in model.parameters()}

        def keep(t: Tensor, sizes: list[int] = sizes, custom: set[int] = custom) -> Tensor:
            sizes.append(0 if t.data_ptr() in custom else t.numel())
            return t

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        kept.append(sum(sizes))
    assert any(isinstance(m, DropPath) and m.drop_prob for m in model.modules())
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert kept[1] < kept[0] / 2


@pytest.mark.slow  # tests/models/test_architectures.py shows it of the networks in every run
@pytest.mark.parametrize("name", TIMM_NAMES)
@torch.no_grad()
def test_compiled_and_exported_without_a_break(name: str) -> None:
    model, x = small_timm(name).eval(), torch.randn(2, 3, 32, 32)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_a_copy_is_independent(name: str) -> None:
    """As timm's averaged weights need it."""
    model = small_timm(name).eval()
    x = torch.zeros(1, 3, 32, 32)
    before = model(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 1
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
