"""Effective receptive fields against their closed form."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.explanation.layer_methods import receptive_field, untrained_receptive_field
from tests.explanation.networks import assert_unchanged, explained, fingerprint, small_vmamba
from tests.models import golden

ZERO = torch.zeros(2, dtype=torch.long)


class Convolutions(nn.Module):
    """Linear convolutions that add up their window, then the mean."""

    def __init__(self, count: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 3, kernel, stride, padding, bias=False) for _ in range(count))
        )
        for layer in self.layers:
            nn.init.ones_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


def test_a_stack_of_convolutions_has_a_binomial_field():
    net, pixels = explained(Convolutions(4, 3)), golden.images(2, 3, 15, 15)
    got = receptive_field(net, pixels, ZERO, batch_size=2).maps
    line = np.ones(1)
    for _ in range(4):
        line = np.convolve(line, np.ones(3))  # trinomial coefficients, 9 of them
    field = np.zeros((15, 15))
    field[3:12, 3:12] = np.outer(line, line)
    field /= field.mean()
    torch.testing.assert_close(got, torch.tensor(field, dtype=torch.float32).expand(2, 15, 15))


@pytest.mark.parametrize(("size", "places"), [((12, 12), 3), ((16, 16), 4)])
def test_the_field_of_one_place_lies_in_the_middle_of_the_image(size, places):
    net, pixels = explained(Convolutions(1, 4, stride=4)), golden.images(2, 3, *size)
    got = receptive_field(net, pixels, ZERO, batch_size=2).maps
    middle = size[0] // 2
    field = torch.zeros(size)
    field[middle - 2 : middle + 2, middle - 2 : middle + 2] = 1
    assert net.module.layers(pixels).shape[-1] == places
    torch.testing.assert_close(got, (field / field.mean()).expand(2, *size))


def test_of_a_network_with_nonlinearities_it_is_the_gradient_of_the_middle_place():
    network = small_vmamba(depths=(1, 1))
    net, pixels = explained(network, "vmamba"), golden.images(3, 3, 24, 24)
    before = fingerprint(network)
    got = receptive_field(net, pixels, ZERO, batch_size=2).maps
    leaf = pixels.clone().requires_grad_(True)
    features = network.forward_features(leaf)  # (3, 3, 3, C)
    (gradient,) = torch.autograd.grad(features[:, 1, 1].sum(), leaf)
    expected = gradient.abs().sum(1)
    expected = expected / expected.mean((1, 2), keepdim=True)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert_unchanged(network, before)


def test_before_training_it_is_that_of_the_initial_network():
    trained, pixels = Convolutions(2, 3), golden.images(2, 3, 9, 9)
    net = explained(trained, initial=lambda: Convolutions(1, 3))
    before = untrained_receptive_field(net, pixels, ZERO, batch_size=2).maps
    expected = receptive_field(explained(Convolutions(1, 3)), pixels, ZERO, batch_size=2).maps
    torch.testing.assert_close(before, expected)
    with pytest.raises(UsageError, match=r"(?s)cannot build this network again.*`--method erf`"):
        untrained_receptive_field(explained(trained), pixels, ZERO, batch_size=2)


def test_a_photo_without_any_gradient_has_a_field_of_zeros():
    network = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    nn.init.constant_(network[0].bias, -1e6)
    got = receptive_field(explained(network), golden.images(2, 3, 9, 9), ZERO, batch_size=1).maps
    assert torch.equal(got, torch.zeros(2, 9, 9))
