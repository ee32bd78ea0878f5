"""Blocks that several networks share: residual convolutions, pyramid pooling, drop rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustcli.models.blocks import BasicBlockD, BasicResBlock, PyramidPooling, rising_rates
from tests.models import golden


def test_the_shortcut_pools_then_projects_then_normalises():
    torch.manual_seed(0)
    block, x = BasicBlockD(3, 5, stride=(2, 2), affine=False), torch.randn(2, 3, 8, 6)
    y = F.conv2d(x, block.conv1.conv.weight, block.conv1.conv.bias, 2, 1)
    y = F.leaky_relu(F.instance_norm(y), 0.01)
    y = F.instance_norm(F.conv2d(y, block.conv2.conv.weight, block.conv2.conv.bias, 1, 1))
    skip = F.instance_norm(F.conv2d(F.avg_pool2d(x, 2), block.skip[1].conv.weight))
    assert torch.allclose(block(x), F.leaky_relu(y + skip, 0.01), atol=1e-6)


def test_a_block_that_keeps_the_shape_adds_its_input():
    torch.manual_seed(0)
    block, x = BasicBlockD(4, 4), torch.randn(2, 4, 6, 6)
    assert not any("skip" in name for name in block.state_dict())
    with torch.no_grad():
        block.conv2.norm.weight.zero_()
    assert torch.allclose(block(x), F.leaky_relu(x, 0.01))


def test_the_residual_block_projects_always_and_bare():
    torch.manual_seed(0)
    block, x = BasicResBlock(4, 4, stride=(1, 2)), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        block.norm2.weight.zero_()
        expected = F.conv2d(x, block.conv3.weight, block.conv3.bias, (1, 2))
        assert torch.allclose(block(x), F.leaky_relu(expected, 0.01), atol=1e-6)


@pytest.mark.parametrize("size", [4, 7, 10, 16])
def test_agrees_with_the_papers_code_also_below_the_largest_pool(size):
    block = PyramidPooling(64)
    error = golden.block_error(f"ppm_c64_hw{size}", block, golden.images(2, 64, size, size))
    assert error < 1e-5


def test_the_first_eighth_is_the_projected_mean_everywhere():
    torch.manual_seed(0)
    block, x = PyramidPooling(16), torch.randn(1, 16, 9, 5)
    conv = block.conv_layers[0]
    mean = x.mean((2, 3)) @ conv.weight[:, :, 0, 0].T + conv.bias
    expected = mean.relu()[..., None, None].expand(-1, -1, 9, 5)
    assert torch.allclose(block(x)[:, :2], expected, atol=1e-6)


@pytest.mark.parametrize("depths", [(2, 2, 5, 2), (24,), (1, 1)])
def test_rises_evenly_over_all_stages(depths):
    rates = rising_rates(0.3, depths)
    assert [len(stage) for stage in rates] == list(depths)
    expected = np.linspace(0, 0.3, sum(depths))
    assert np.allclose([rate for stage in rates for rate in stage], expected)


def test_a_single_block_is_never_dropped():
    assert rising_rates(0.3, (1,)) == [[0.0]]
