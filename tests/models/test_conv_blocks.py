"""The convolution blocks against plain functions of torch."""

import torch
import torch.nn.functional as F

from robustcli.models.conv_blocks import BasicBlockD, BasicResBlock


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


def test_the_input_is_left_as_it_was():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 6)
    before = x.clone()
    BasicBlockD(4, 4)(x)
    BasicResBlock(4, 4)(x)
    assert torch.equal(x, before)
