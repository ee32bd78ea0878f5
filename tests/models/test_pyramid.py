"""Pyramid pooling against the papers' code and its definition."""

import pytest
import torch

from robustcli.models.pyramid import PyramidPooling
from tests.models import golden


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
