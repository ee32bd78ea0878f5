"""The tumour paper's SegFormer against its code."""

import pytest
import torch
import torch.nn.functional as F

from robustcli.core.errors import UsageError
from robustcli.models.segformer import build
from tests.models import golden, training


@pytest.mark.parametrize("rule", ["A", "B"])
def test_agrees_with_the_papers_outputs(rule):
    error = training.output_errors("segformer", build("segformer"), rule, sizes=(224, 256))
    assert error <= 1e-4


def test_a_training_step_agrees_with_the_papers_gradients():
    network, loss = build("segformer"), F.binary_cross_entropy_with_logits
    training.assert_step_agrees("segformer", network, loss, training.enlarged)


def test_names_shapes_and_order_are_the_papers():
    with torch.device("meta"):
        network = build("segformer")
    assert golden.parameters(network) == 17_782_913
    assert list(golden.shapes(network).items()) == list(golden.layout("segformer").items())


def test_an_odd_size_is_refused():
    with pytest.raises(UsageError, match=r"(?s)48 x 32 pixels; `segformer`.*multiples of 32"):
        build("segformer")(golden.images(1, 3, 48, 32))
