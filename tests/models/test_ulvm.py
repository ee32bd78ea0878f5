"""The blocks of the UL-VM-UNet family against the papers' code, and how the networks start."""

from __future__ import annotations

import math

import pytest
import torch

from robustcli.models.ulvm import ParallelMamba, SkipBridge, build
from tests.models import golden


@pytest.mark.parametrize(
    ("name", "widths"),
    [("scbridge5_A", (8, 16, 24, 32, 48)), ("scbridge4_B5", (16, 32, 64, 128))],
)
def test_agrees_with_the_papers_code(name, widths):
    maps = [golden.images(2, c, 32 >> i, 32 >> i, seed=i) for i, c in enumerate(widths)]
    assert golden.block_error(name, SkipBridge(widths), *maps) < 1e-5


LAYERS = [
    ("pvm4_24to32", 24, 32, 4, False, 8),
    ("pvm8_24to32", 24, 32, 8, False, 8),
    ("pvm8_pp_64to128", 64, 128, 8, True, 8),
    ("pvm8_pptrue_256to512", 256, 512, 8, True, 4),
]


def test_the_base_agrees_with_upstream():
    expected = golden.arrays("ultralight_vm_unet.strong.npz")["out0"]
    network = golden.fill(build("ulvm"), golden.strong)
    with torch.no_grad():
        output = network(golden.images(1, 3, 256, 256))
    assert golden.distance(output[:, :, ::8, ::8], expected) <= 1e-4


@pytest.mark.parametrize(("name", "c_in", "c_out", "branches", "pyramid", "size"), LAYERS)
def test_a_parallel_layer_agrees_with_the_papers(name, c_in, c_out, branches, pyramid, size):
    layer = ParallelMamba(c_in, c_out, branches=branches, pyramid=pyramid)
    assert golden.block_error(name, layer, golden.images(2, c_in, size, size)) < 1e-5


def test_the_branches_share_one_mamba_and_one_pass():
    layer = ParallelMamba(12, 5, branches=3, pyramid=False)
    calls = []
    layer.mamba.register_forward_hook(lambda _, x, __: calls.append(tuple(x[0].shape)))
    layer(golden.images(2, 12, 4, 6))
    assert calls == [(6, 24, 4)]


def test_outputs_are_probabilities():
    output = build("ulvm_v3")(golden.images(2, 3, 32, 32))
    assert output.shape == (2, 1, 32, 32)
    assert bool(((output >= 0) & (output <= 1)).all())


def test_outputs_of_several_classes_are_logits():
    output = build("ulvm_v3", num_classes=3)(golden.images(2, 3, 32, 32))
    assert output.shape == (2, 3, 32, 32)
    assert bool((output < 0).any())


@torch.no_grad()
def test_starts_as_upstream_starts():
    torch.manual_seed(0)
    network = build("ulvm_v5")
    layer = network.encoder6[0]
    assert float(layer.mamba.dt_proj.bias.abs().max()) == 0
    assert float(layer.mamba.in_proj.weight.std()) == pytest.approx(0.02, rel=0.05)
    expected = math.sqrt(2 / (4 * 64))  # four taps, 64 output channels
    assert float(layer.mamba.conv1d.weight.std()) == pytest.approx(expected, rel=0.15)
    expected = math.sqrt(2 / (9 * 64))
    assert float(network.encoder3[0].weight.std()) == pytest.approx(expected, rel=0.05)
    assert float(network.encoder3[0].bias.abs().max()) == 0
