"""Mamba blocks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from robustcli.models.mamba import (
    BidirectionalMamba,
    Mamba,
    state_decay,
    step_size_bias,
)
from tests.models import golden

BLOCKS = [
    ("mamba_d8", Mamba, 8), ("mamba_d24", Mamba, 24), ("bimamba_v2_div2_d8", BidirectionalMamba, 8),
]  # fmt: skip
FLOAT32 = [
    *((f"mamba_d{dim}_L33", Mamba, dim, 33) for dim in (1, 6, 16, 40)),
    ("mamba_d512_L16", Mamba, 512, 16),
    ("bimamba_v2_div2_d24_L17", BidirectionalMamba, 24, 17),
]


@pytest.mark.parametrize(("tag", "block", "dim"), BLOCKS)
def test_agrees_with_the_official_block_and_its_gradients(tag, block, dim):
    assert golden.worst_module_error(tag, block(dim)) < 1e-12


@pytest.mark.parametrize(("name", "block", "dim", "length"), FLOAT32)
def test_agrees_in_float32_at_every_width_of_the_papers(name, block, dim, length):
    assert golden.block_error(name, block(dim), golden.images(2, length, dim)) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 7])
def test_equals_its_definition_step_by_step(length):
    torch.manual_seed(0)
    block, x = Mamba(5).double(), torch.randn(2, length, 5, dtype=torch.float64)
    assert torch.allclose(block(x), _by_definition(block, x), atol=1e-12)


def test_the_backward_direction_mirrors_the_forward_one():
    torch.manual_seed(0)
    block, x = BidirectionalMamba(6).double(), torch.randn(2, 9, 6, dtype=torch.float64)
    swapped = BidirectionalMamba(6).double()
    state = block.state_dict()
    other = {"A_log": "A_b_log", "D": "D_b", "conv1d": "conv1d_b", "x_proj": "x_proj_b"}
    other |= {"dt_proj": "dt_proj_b"}
    other |= {b: a for a, b in other.items()}
    renamed = {}
    for key, tensor in state.items():
        head, _, tail = key.partition(".")
        renamed[".".join(filter(None, (other.get(head, head), tail)))] = tensor
    swapped.load_state_dict(renamed)
    assert torch.allclose(swapped(x.flip(1)), block(x).flip(1), atol=1e-12)


@torch.no_grad()
def test_starts_as_published():
    torch.manual_seed(0)
    block = Mamba(64)
    assert torch.allclose(state_decay(block.A_log)[3], -torch.arange(1.0, 17))
    assert float(F.softplus(block.dt_proj.bias).min()) >= 1e-4
    assert float(F.softplus(block.dt_proj.bias).max()) <= 0.1 * 1.001
    assert float(block.dt_proj.weight.abs().max()) == pytest.approx(4**-0.5, rel=0.01)
    assert list(golden.shapes(block)) == [
        "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight",
        "dt_proj.weight", "dt_proj.bias", "out_proj.weight",
    ]  # fmt: skip


def test_step_sizes_are_log_uniform():
    torch.manual_seed(0)
    steps = F.softplus(step_size_bias((20_000,))).log10()
    assert float(steps.mean()) == pytest.approx(-2, abs=0.02)
    assert float(steps.std()) == pytest.approx(2 / math.sqrt(12), abs=0.02)


def test_the_decay_is_never_half_precision():
    assert state_decay(torch.zeros(2, 3, dtype=torch.float16)).dtype == torch.float32
    assert state_decay(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64


def _by_definition(block, x):
    inner = block.out_proj.in_features
    states = block.A_log.shape[1]
    rank = block.dt_proj.in_features
    out = []
    for sequence in x:
        both = sequence @ block.in_proj.weight.T
        u, z = both[:, :inner], both[:, inner:]
        padded = torch.cat((torch.zeros(3, inner, dtype=x.dtype), u))
        kernel = block.conv1d.weight[:, 0].T  # (4, D)
        u = torch.stack([(padded[t : t + 4] * kernel).sum(0) for t in range(len(u))])
        u = F.silu(u + block.conv1d.bias)
        h, steps = torch.zeros(inner, states, dtype=x.dtype), []
        for t in range(len(u)):
            low, B, C = (block.x_proj.weight @ u[t]).split((rank, states, states))
            dt = torch.log1p(torch.exp(block.dt_proj.weight @ low + block.dt_proj.bias))
            h = torch.exp(-dt[:, None] * block.A_log.exp()) * h + dt[:, None] * B * u[t][:, None]
            y = h @ C + block.D * u[t]
            steps.append(block.out_proj.weight @ (y * z[t] * torch.sigmoid(z[t])))
        out.append(torch.stack(steps))
    return torch.stack(out)
