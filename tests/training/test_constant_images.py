"""Images of one value everywhere: their gradient stays bounded, that of others stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustcli.models.architectures import architecture
from robustcli.training.constant_images import constant_ids, without_gradient_of_constants

SIDE = 64


def gradients(network: nn.Module, images: Tensor, *, bounded: bool) -> dict[str, Tensor]:
    network.zero_grad()
    if bounded:
        with without_gradient_of_constants(network):
            out = network(images)
    else:
        out = network(images)
    levels = [out] if isinstance(out, Tensor) else out
    torch.stack([level.square().mean() for level in levels]).sum().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def norm(found: dict[str, Tensor]) -> float:
    return float(torch.stack([one.norm() for one in found.values()]).norm())


def test_constant_images_are_found_by_id() -> None:
    images = torch.randint(0, 256, (4, 3, 9, 11), dtype=torch.uint8)
    images[1] = 0
    images[2] = torch.tensor([7, 90, 255], dtype=torch.uint8)[:, None, None]
    images[3] = 8
    images[3, 2, 8, 10] = 9
    assert constant_ids(images, ["a", "b", "c", "d"]) == ("b", "c")


@pytest.mark.parametrize("name", ["ulvm", "ulvm_v5", "umamba", "umambabot", "segformer", "unet"])
def test_a_black_image_does_not_spoil_the_gradient(name: str) -> None:
    torch.manual_seed(0)
    network = architecture(name).build().train()
    images = torch.rand(2, 3, SIDE, SIDE)
    usual = norm(gradients(network, images, bounded=False))
    images[1] = 0
    assert norm(gradients(network, images, bounded=True)) < 10 * usual + 1


def test_what_is_mended_is_there() -> None:
    """The fault itself: without the bound the gradient of a black image leaves float32."""
    torch.manual_seed(0)
    network = architecture("ulvm").build().train()
    assert not norm(gradients(network, torch.zeros(2, 3, SIDE, SIDE), bounded=False)) < 1e30


@pytest.mark.parametrize("name", ["ulvm", "umamba", "unet", "vmunet"])
def test_gradients_of_other_images_stay_the_same_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    network = architecture(name).build().eval()  # no dropout, no running averages
    images = torch.rand(2, 3, SIDE, SIDE)
    plain = gradients(network, images, bounded=False)
    bounded = gradients(network, images, bounded=True)
    assert plain.keys() == bounded.keys()
    assert all(torch.equal(plain[name], bounded[name]) for name in plain)


@pytest.mark.parametrize(
    "module",
    [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4), nn.LayerNorm(4)],
)
def test_each_norm_passes_nothing_of_what_does_not_vary(module: nn.Module) -> None:
    images = torch.rand(2, 4, 5, 4)
    alone = isinstance(module, (nn.GroupNorm, nn.InstanceNorm2d))
    constant = images.clone()
    constant[1 if alone else slice(None)] = 0.5
    x = constant.requires_grad_()
    with without_gradient_of_constants(module):
        out = module(x)
    (out * torch.rand_like(out)).sum().backward()
    assert x.grad is not None
    assert not x.grad[1].any()
    assert bool(x.grad[0].any()) is alone
