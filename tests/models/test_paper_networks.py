"""The networks of the tumour paper's table against its code: outputs, gradients, names, sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robustcli.core.errors import UsageError
from robustcli.models.architectures import ARCHITECTURES
from tests.models import golden, training

COUNTS = {
    "unet": 7_765_985,
    "resnet18_seg": 13_930_497,
    "resnet50_seg": 42_909_633,
    "segformer": 17_782_913,
    "umambabot": 9_813_700,
    "umambabot_pp": 10_076_356,
    "ulvm": 49_457,
    "ulvm_v1": 217_165,
    "ulvm_v2": 42_737,
    "ulvm_v3": 176_453,
    "ulvm_v4": 1_135_309,
    "ulvm_v5": 703_885,
    "ulvm_v6": 769_677,
}
STEPS = {"segformer": (F.binary_cross_entropy_with_logits, training.enlarged)}
SIZES = {"segformer": {"sizes": (224, 256)}}


def _build(name, **options):
    return ARCHITECTURES[name].build(**options)


def _golden(name):
    return name.removesuffix("_seg").replace("ulvm", "ul_vm_unet")


@pytest.mark.parametrize("rule", [pytest.param("A", marks=pytest.mark.slow), "B"])
@pytest.mark.parametrize("name", COUNTS)
def test_agrees_with_the_papers_outputs(name, rule):
    """Every tensor that rule A sets apart rule B does too, and the scan's as well."""
    with golden.unset():
        network = _build(name)
    assert training.output_errors(_golden(name), network, rule, **SIZES.get(name, {})) <= 1e-4


@pytest.mark.parametrize(
    "name",  # of its bottleneck blocks, which are timm's, the outputs are compared in every run
    [pytest.param(n, marks=pytest.mark.slow) if n == "resnet50_seg" else n for n in COUNTS],
)
def test_a_training_step_agrees_with_the_papers_gradients(name):
    usual = training.bce_dice if name.startswith("ulvm") else training.pooled_dice
    with golden.unset():
        network = _build(name)
    training.assert_step_agrees(_golden(name), network, *STEPS.get(name, (usual,)))


@pytest.mark.parametrize("name", COUNTS)
def test_names_shapes_and_order_are_the_papers(name):
    with torch.device("meta"):
        network = _build(name)
    assert golden.parameters(network) == COUNTS[name]
    assert list(golden.shapes(network).items()) == list(golden.layout(_golden(name)).items())


@pytest.mark.parametrize("excess", [-0.01, 0.01])
def test_gradients_that_are_one_percent_off_are_seen(excess):
    """The tolerance that rounding gives is no blank cheque: here the loss itself is right."""

    def loss_of(probabilities, target):
        wrong = probabilities + excess * (probabilities - probabilities.detach())
        return training.bce_dice(wrong, target)

    with pytest.raises(AssertionError, match=r"\[.*\]"):
        training.assert_step_agrees("ul_vm_unet", _build("ulvm"), loss_of)


@pytest.mark.parametrize(
    ("name", "options", "size", "step"),
    [
        ("unet", {}, (33, 32), 16),
        ("resnet18_seg", {}, (33, 32), 32),
        ("segformer", {}, (48, 32), 32),
        ("umambabot", {"features": (4, 8, 16)}, (33, 32), 4),
        ("ulvm", {}, (48, 64), 32),
    ],
)
def test_an_odd_size_is_refused(name, options, size, step):
    message = rf"(?s){size[0]} x {size[1]} pixels, which `{name}`.*multiples of {step}\b"
    with pytest.raises(UsageError, match=message):
        _build(name, **options)(golden.images(1, 3, *size))


def test_a_unet_has_any_number_of_levels():
    network = _build("unet", features=(4, 8, 16), num_classes=3).eval()
    assert network(golden.images(1, 3, 12, 20)).shape == (1, 3, 12, 20)


@torch.no_grad()
def test_the_output_of_a_resnet_segmenter_has_always_the_same_size():
    network = _build("resnet18_seg").eval()
    for size in ((32, 32), (64, 96)):
        assert network(golden.images(1, 3, *size)).shape == (1, 1, 256, 256)
    smaller = _build("resnet18_seg", output=128, num_classes=2).eval()
    assert smaller(golden.images(1, 3, 32, 32)).shape == (1, 2, 128, 128)
