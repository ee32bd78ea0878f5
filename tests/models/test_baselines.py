"""The networks that the tumour paper compares with: U-Net, ResNet segmenters, SegFormer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robustcli.core.errors import UsageError
from robustcli.models.conv_segmenters import _build_resnet as build_resnet_seg
from robustcli.models.conv_segmenters import _build_unet
from robustcli.models.segformer import _build_unet as build_segformer
from tests.models import golden, training


@pytest.mark.parametrize("rule", ["A", "B"])
def test_agrees_with_the_papers_outputs(rule):
    assert training.output_errors("unet", _build_unet("unet"), rule) <= 1e-4


def test_a_training_step_agrees_with_the_papers_gradients():
    training.assert_step_agrees("unet", _build_unet("unet"), training.pooled_dice)


@pytest.mark.parametrize("excess", [-0.01, 0.01])
def test_gradients_that_are_one_percent_off_are_seen(excess):
    """The tolerance that rounding gives is no blank cheque: here the loss itself is right."""

    def loss_of(logits, target):
        return training.pooled_dice(logits + excess * (logits - logits.detach()), target)

    with pytest.raises(AssertionError, match=r"\[.*\]"):
        training.assert_step_agrees("unet", _build_unet("unet"), loss_of)


def test_names_shapes_and_order_are_the_papers():
    with torch.device("meta"):
        network = _build_unet("unet")
    assert golden.parameters(network) == 7_765_985
    assert list(golden.shapes(network).items()) == list(golden.layout("unet").items())


def test_any_number_of_levels():
    network = _build_unet("unet", features=(4, 8, 16), num_classes=3).eval()
    assert network(golden.images(1, 3, 12, 20)).shape == (1, 3, 12, 20)


def test_an_odd_size_is_refused():
    with pytest.raises(UsageError, match=r"(?s)33 x 32 pixels; `unet`.*multiples of 16"):
        _build_unet("unet")(golden.images(1, 3, 33, 32))


COUNTS = {"resnet18_seg": 13_930_497, "resnet50_seg": 42_909_633}


def _golden(name):
    return name.removesuffix("_seg")


@pytest.mark.parametrize("rule", ["A", "B"])
@pytest.mark.parametrize("name", COUNTS)
def test_agrees_with_the_papers_outputs_resnet_seg(name, rule):
    assert training.output_errors(_golden(name), build_resnet_seg(name), rule) <= 1e-4


@pytest.mark.parametrize("name", COUNTS)
def test_a_training_step_agrees_with_the_papers_gradients_resnet_seg(name):
    training.assert_step_agrees(_golden(name), build_resnet_seg(name), training.pooled_dice)


@pytest.mark.parametrize("name", COUNTS)
def test_names_shapes_and_order_are_the_papers_resnet_seg(name):
    with torch.device("meta"):
        network = build_resnet_seg(name)
    assert golden.parameters(network) == COUNTS[name]
    assert list(golden.shapes(network).items()) == list(golden.layout(_golden(name)).items())


@torch.no_grad()
def test_the_output_has_always_the_same_size():
    network = build_resnet_seg("resnet18_seg").eval()
    for size in ((32, 32), (64, 96)):
        assert network(golden.images(1, 3, *size)).shape == (1, 1, 256, 256)
    smaller = build_resnet_seg("resnet18_seg", output=128, num_classes=2).eval()
    assert smaller(golden.images(1, 3, 32, 32)).shape == (1, 2, 128, 128)


def test_an_odd_size_is_refused_resnet_seg():
    with pytest.raises(UsageError, match=r"(?s)33 x 32 pixels; `resnet18_seg`.*multiples of 32"):
        build_resnet_seg("resnet18_seg")(golden.images(1, 3, 33, 32))


@pytest.mark.parametrize("rule", ["A", "B"])
def test_agrees_with_the_papers_outputs_segformer(rule):
    error = training.output_errors(
        "segformer", build_segformer("segformer"), rule, sizes=(224, 256)
    )
    assert error <= 1e-4


def test_a_training_step_agrees_with_the_papers_gradients_segformer():
    network, loss = build_segformer("segformer"), F.binary_cross_entropy_with_logits
    training.assert_step_agrees("segformer", network, loss, training.enlarged)


def test_names_shapes_and_order_are_the_papers_segformer():
    with torch.device("meta"):
        network = build_segformer("segformer")
    assert golden.parameters(network) == 17_782_913
    assert list(golden.shapes(network).items()) == list(golden.layout("segformer").items())


def test_an_odd_size_is_refused_segformer():
    with pytest.raises(UsageError, match=r"(?s)48 x 32 pixels; `segformer`.*multiples of 32"):
        build_segformer("segformer")(golden.images(1, 3, 48, 32))
