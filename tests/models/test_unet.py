"""The tumour paper's U-Net against its code."""

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models.unet import build
from tests.models import golden, training


@pytest.mark.parametrize("rule", ["A", "B"])
def test_agrees_with_the_papers_outputs(rule):
    assert training.output_errors("unet", build("unet"), rule) <= 1e-4


def test_a_training_step_agrees_with_the_papers_gradients():
    training.assert_step_agrees("unet", build("unet"), training.pooled_dice)


@pytest.mark.parametrize("excess", [-0.01, 0.01])
def test_gradients_that_are_one_percent_off_are_seen(excess):
    """The tolerance that rounding gives is no blank cheque: here the loss itself is right."""

    def loss_of(logits, target):
        return training.pooled_dice(logits + excess * (logits - logits.detach()), target)

    with pytest.raises(AssertionError, match=r"\[.*\]"):
        training.assert_step_agrees("unet", build("unet"), loss_of)


def test_names_shapes_and_order_are_the_papers():
    with torch.device("meta"):
        network = build("unet")
    assert golden.parameters(network) == 7_765_985
    assert list(golden.shapes(network).items()) == list(golden.layout("unet").items())


def test_any_number_of_levels():
    network = build("unet", features=(4, 8, 16), num_classes=3).eval()
    assert network(golden.images(1, 3, 12, 20)).shape == (1, 3, 12, 20)


def test_an_odd_size_is_refused():
    with pytest.raises(UsageError, match=r"(?s)33 x 32 pixels; `unet`.*multiples of 16"):
        build("unet")(golden.images(1, 3, 33, 32))
