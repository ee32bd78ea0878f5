"""Training through timm: weight decay, layer-wise rates, recomputation, copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor

from tests.adapters.timm_small import NAMES, small


def undecayed(model: Any, **options: Any) -> set[str]:
    """Names that timm's own optimizer leaves out of weight decay."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, **options)
    left = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    return {name for name, p in model.named_parameters() if id(p) in left}


@pytest.mark.parametrize("layerwise", [{}, {"layer_decay": 0.7}])
def test_vmambas_decay_is_upstreams(layerwise: dict[str, float]) -> None:
    """Every vector and bias is left out; A_logs and dt_projs_bias have two dimensions."""
    model = small("vmamba_tiny_v0")
    out, op = undecayed(model, **layerwise), "layers.1.blocks.0.op."
    decayed = {name for name, _ in model.named_parameters()} - out
    assert {op + "A_logs", op + "dt_projs_bias", op + "x_proj_weight"} <= decayed
    assert {op + "Ds", op + "conv2d.bias", op + "out_norm.weight", "classifier.head.bias"} <= out


@pytest.mark.parametrize("layerwise", [{}, {"layer_decay": 0.7}])
def test_vims_decay_is_upstreams(layerwise: dict[str, float]) -> None:
    model = small("vim_tiny")
    out, mixer = undecayed(model, **layerwise), "layers.2.mixer."
    decayed = {name for name, _ in model.named_parameters()} - out
    assert {mixer + p for p in ("A_log", "A_b_log", "D", "D_b", "dt_proj_b.bias")} <= out
    assert {"pos_embed", "cls_token", "norm_f.weight", "head.bias"} <= out
    assert {mixer + "x_proj_b.weight", "head.weight", "patch_embed.proj.weight"} <= decayed


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_grouped_from_the_stem_to_the_head(name: str) -> None:
    model = small(name)
    groups = group_parameters(model, model.group_matcher())
    assert all(n.startswith(("patch_embed", "pos_embed", "cls_token")) for n in groups[0])
    assert len(groups) == 5  # stem, three blocks, head
    assert {n.split(".")[-2] for n in groups[4]} >= {"head"}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    if name.startswith("vmamba"):
        assert any("downsample" in n for n in groups[1])  # with the block before it


@pytest.mark.parametrize("name", NAMES)
def test_recomputation_changes_memory_and_nothing_else(name: str) -> None:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = small(name, drop_path_rate=0.5).train()
    gradients, kept = [], []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        sizes: list[int] = []
        own = {p.data_ptr() for p in model.parameters()}

        def keep(t: Tensor, sizes: list[int] = sizes, own: set[int] = own) -> Tensor:
            sizes.append(0 if t.data_ptr() in own else t.numel())
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


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_compiled_and_exported_without_a_break(name: str) -> None:
    model, x = small(name).eval(), torch.randn(2, 3, 32, 32)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_independent(name: str) -> None:
    """As timm's averaged weights need it."""
    model = small(name).eval()
    x = torch.zeros(1, 3, 32, 32)
    before = model(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 1
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
