"""The tumour paper's ResNet segmenters against its code."""

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models.resnet_seg import build
from tests.models import golden, training

COUNTS = {"resnet18_seg": 13_930_497, "resnet50_seg": 42_909_633}


def _golden(name):
    return name.removesuffix("_seg")


@pytest.mark.parametrize("rule", ["A", "B"])
@pytest.mark.parametrize("name", COUNTS)
def test_agrees_with_the_papers_outputs(name, rule):
    assert training.output_errors(_golden(name), build(name), rule) <= 1e-4


@pytest.mark.parametrize("name", COUNTS)
def test_a_training_step_agrees_with_the_papers_gradients(name):
    training.assert_step_agrees(_golden(name), build(name), training.pooled_dice)


@pytest.mark.parametrize("name", COUNTS)
def test_names_shapes_and_order_are_the_papers(name):
    with torch.device("meta"):
        network = build(name)
    assert golden.parameters(network) == COUNTS[name]
    assert list(golden.shapes(network).items()) == list(golden.layout(_golden(name)).items())


@torch.no_grad()
def test_the_output_has_always_the_same_size():
    network = build("resnet18_seg").eval()
    for size in ((32, 32), (64, 96)):
        assert network(golden.images(1, 3, *size)).shape == (1, 1, 256, 256)
    smaller = build("resnet18_seg", output=128, num_classes=2).eval()
    assert smaller(golden.images(1, 3, 32, 32)).shape == (1, 2, 128, 128)


def test_an_odd_size_is_refused():
    with pytest.raises(UsageError, match=r"(?s)33 x 32 pixels; `resnet18_seg`.*multiples of 32"):
        build("resnet18_seg")(golden.images(1, 3, 33, 32))
