"""The tumour paper's U-Mamba against its code."""

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models.umambabot import build
from tests.models import golden, training

COUNTS = {"umambabot": 9_813_700, "umambabot_pp": 10_076_356}


@pytest.mark.parametrize("rule", ["A", "B"])
@pytest.mark.parametrize("name", COUNTS)
def test_agrees_with_the_papers_outputs(name, rule):
    assert training.output_errors(name, build(name), rule) <= 1e-4


@pytest.mark.parametrize("name", COUNTS)
def test_a_training_step_agrees_with_the_papers_gradients(name):
    training.assert_step_agrees(name, build(name), training.pooled_dice)


@pytest.mark.parametrize("name", COUNTS)
def test_names_shapes_and_order_are_the_papers(name):
    with torch.device("meta"):
        network = build(name)
    assert golden.parameters(network) == COUNTS[name]
    assert list(golden.shapes(network).items()) == list(golden.layout(name).items())


def test_an_odd_size_is_refused():
    network = build("umambabot", features=(4, 8, 16))
    with pytest.raises(UsageError, match=r"(?s)33 x 32 pixels; `umambabot`.*multiples of 4"):
        network(golden.images(1, 3, 33, 32))
