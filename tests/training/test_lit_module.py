"""A loss or a gradient that is no number stops the training and says where."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from robustcli.adapters.load import resolve
from robustcli.core.errors import RunError
from robustcli.models.architectures import everything_decays, mamba_decays, vmamba_decays
from robustcli.training.lit_module import check_gradient, check_loss, decays_of, gradient_norm


def test_everything_decays_in_every_segmenter() -> None:
    assert decays_of(resolve("ulvm_v5")) is everything_decays
    assert decays_of(resolve("smp:Unet/resnet18")) is everything_decays


def test_our_classifiers_have_their_upstreams_rules() -> None:
    assert decays_of(resolve("vmamba-pico")) is vmamba_decays
    assert decays_of(resolve("vim-t")) is mamba_decays


def test_timms_are_asked_what_they_spare() -> None:
    network = timm.create_model("vit_tiny_patch16_224", depth=1)
    decays = decays_of(resolve("vit_tiny_patch16_224"), network)
    parameters = dict(network.named_parameters())
    spared = {name for name, p in parameters.items() if not decays(name, p)}
    assert {"pos_embed", "cls_token", "norm.bias", "norm.weight"} <= spared
    assert "blocks.0.attn.qkv.weight" not in spared


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_message_names_images_epoch_and_step(value: float) -> None:
    ids = [f"image-{i}" for i in range(10)]
    with pytest.raises(RunError, match=r"The loss is -?(nan|inf) in epoch 3, step 121") as caught:
        check_loss(torch.tensor(value), ids, (), epoch=2, step=120)
    assert "image-0, image-1" in caught.value.why
    assert caught.value.why.endswith("image-7 and 2 more.")
    assert "`--lr`" in caught.value.todo


def test_an_image_of_one_value_is_named() -> None:
    with pytest.raises(RunError) as caught:
        check_loss(torch.tensor(math.nan), ["a", "b", "c"], ["b"], 0, 0)
    assert "Of one value everywhere, and so most likely the reason: b." in caught.value.why


def test_finite_ones_pass() -> None:
    check_loss(torch.tensor(1e30), ["a"], (), 0, 0)
    check_gradient(torch.tensor(1e30), [], ["a"], (), 0, 0)


def test_a_gradient_names_its_parameters() -> None:
    last = nn.Linear(2, 1)
    network = nn.Sequential(nn.Linear(2, 2), last)
    network(torch.ones(1, 2)).sum().backward()
    assert last.bias.grad is not None
    last.bias.grad.fill_(math.nan)
    norm = gradient_norm(network.parameters())
    with pytest.raises(RunError, match=r"gradient of 1 parameters \(`1.bias`\) is not finite"):
        check_gradient(norm, network.named_parameters(), ["a"], (), 0, 0)


def test_the_norm_is_over_all_gradients_that_there_are() -> None:
    network = nn.Linear(3, 2)
    assert gradient_norm(network.parameters()) == 0
    network.weight.grad = torch.full((2, 3), 2.0)
    network.bias.grad = torch.full((2,), 1.0)
    assert gradient_norm(network.parameters()).item() == pytest.approx(math.sqrt(6 * 4 + 2))
    expected = nn.utils.get_total_norm(p.grad for p in network.parameters() if p.grad is not None)
    assert gradient_norm(network.parameters()).item() == pytest.approx(expected.item())
