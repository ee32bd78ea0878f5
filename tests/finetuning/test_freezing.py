"""A frozen parameter does not move, whatever the optimizer; what it saves is counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustcli.finetuning.freezing import freeze, hold_statistics, saving
from robustcli.models.architectures import architecture


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1)
    )


def trained(net: nn.Module, steps: int = 5) -> None:
    optimizer = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad],
        lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1,
    )  # fmt: skip
    for step in range(steps):
        net.train()
        hold_statistics(net)
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x + 3).square().mean().backward()
        optimizer.step()


def test_a_frozen_parameter_is_bit_identical_after_training() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    freeze(net, ["0.weight", "0.bias"])
    trained(net)
    after = net.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["0.bias"], before["0.bias"])
    assert not torch.equal(after["3.weight"], before["3.weight"])
    assert net[0].weight.grad is None


def test_momentum_of_before_does_not_move_it() -> None:
    """The trap: a gradient set to zero under momentum and weight decay still moves the weight."""
    net = network()
    trained(net)
    freeze(net, ["3.weight"])
    before = net.get_parameter("3.weight").clone()
    trained(net)
    assert torch.equal(net.get_parameter("3.weight"), before)


def test_running_statistics_of_a_frozen_norm_stand_still() -> None:
    net = network()
    freeze(net, ["1.weight", "1.bias"])
    trained(net)
    assert torch.equal(net.get_buffer("1.running_mean"), torch.zeros(4))
    awake = network()
    freeze(awake, ["1.weight"])
    trained(awake)
    assert not torch.equal(awake.get_buffer("1.running_mean"), torch.zeros(4))


def test_a_frozen_prefix_builds_no_graph() -> None:
    net = network()
    freeze(net, ["0.weight", "0.bias", "1.weight", "1.bias"])
    assert not net[:3](torch.zeros(1, 1, 8, 8)).requires_grad
    assert net(torch.zeros(1, 1, 8, 8)).requires_grad


def test_savings_of_two_products_by_hand() -> None:
    """y = x W1 W2: 3 products of 2*1*4*4 flops for each layer, less x's own gradient."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    found = saving(net, ["0.weight"], torch.ones(1, 4), torch.sum, moments=2)
    product = 2 * 4 * 4
    assert found.flops == 5 * product
    assert found.flops_saved == 2 * product  # W1's gradient, and the way back to its output
    assert (found.parameters, found.frozen) == (32, 16)
    assert (found.optimizer_bytes, found.optimizer_bytes_saved) == (256, 128)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_freezing_the_last_layer_saves_only_its_own_gradient() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert saving(net, ["1.weight"], torch.ones(1, 4), torch.sum, moments=1).flops_saved == 32


def test_mamba_alone_saves_little_of_a_u_mamba() -> None:
    """As the report's figure cannot be had by freezing Mamba layers alone: they are little work."""
    net = architecture("umamba").build(features=(8, 16, 32), strides=(1, 2, 2), num_classes=1)
    names = [n for n, _ in net.named_parameters() if n.startswith("mamba_layer.")]
    found = saving(net, names, torch.randn(1, 3, 32, 32), torch.sum, moments=1)
    assert 0 < found.flops_saved < 0.1 * found.flops


def test_unknown_name() -> None:
    with pytest.raises(KeyError):
        freeze(network(), ["9.weight"])
