"""The networks of the tumour paper's table against its code: outputs, gradients, names, sizes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from robustcli.core.errors import UsageError
from robustcli.models.architectures import ARCHITECTURES
from robustcli.models.ulvm import ParallelMamba, SkipBridge, build
from tests.models import golden

NAMES = (
    *("unet", "resnet18_seg", "resnet50_seg", "segformer", "umambabot", "umambabot_pp", "ulvm"),
    *(f"ulvm_v{number}" for number in range(1, 7)),
)
STEPS = {"segformer": (F.binary_cross_entropy_with_logits, golden.enlarged)}
SIZES = {"segformer": (224, 256)}


def _build(name, **options):
    return ARCHITECTURES[name].build(**options)


def _golden(name):
    return name.removesuffix("_seg").replace("ulvm", "ul_vm_unet")


@pytest.mark.parametrize(
    ("rule", "sizes"),  # of rule B and 64 pixels every tensor and the scan matter
    [("B", ()), *(pytest.param(rule, (256,), marks=pytest.mark.slow) for rule in "AB")],
)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_papers_outputs(name, rule, sizes):
    with golden.unset():
        network = _build(name)
    sizes = SIZES.get(name, sizes) if sizes else sizes
    assert golden.output_errors(_golden(name), network, rule, sizes) <= 1e-4


@pytest.mark.parametrize(
    "name",  # their blocks are timm's, and umambabot_pp's; the outputs are compared in every run
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("resnet50_seg", "umambabot") else n
        for n in NAMES
    ],
)
def test_a_training_step_agrees_with_the_papers_gradients(name):
    usual = golden.bce_dice if name.startswith("ulvm") else golden.pooled_dice
    with golden.unset():
        network = _build(name)
    golden.assert_step_agrees(_golden(name), network, *STEPS.get(name, (usual,)))


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_order_are_the_papers(name):
    network = golden.published(name)
    assert list(golden.shapes(network).items()) == list(golden.layout(_golden(name)).items())


def test_gradients_that_are_one_percent_off_are_seen():
    """The tolerance that rounding gives is no blank cheque: here the loss itself is right."""

    def loss_of(probabilities, target):
        wrong = probabilities - 0.01 * (probabilities - probabilities.detach())
        return golden.bce_dice(wrong, target)

    with pytest.raises(AssertionError, match=r"\[.*\]"):
        golden.assert_step_agrees("ul_vm_unet", _build("ulvm"), loss_of)


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
    message = rf"(?s){size[0]} x {size[1]} pixels, which the network.*multiples of {step}\b"
    with pytest.raises(UsageError, match=message):
        (_build(name, **options) if options else golden.published(name))(golden.images(1, 3, *size))


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


@pytest.mark.parametrize(
    ("name", "widths"),
    [("scbridge5_A", (8, 16, 24, 32, 48)), ("scbridge4_B5", (16, 32, 64, 128))],
)
def test_the_skip_bridge_agrees_with_the_papers(name, widths):
    maps = [golden.images(2, c, 32 >> i, 32 >> i, seed=i) for i, c in enumerate(widths)]
    assert golden.block_error(name, SkipBridge(widths), *maps) < 1e-5


LAYERS = [
    ("pvm4_24to32", 24, 32, 4, False, 8),
    ("pvm8_24to32", 24, 32, 8, False, 8),
    ("pvm8_pp_64to128", 64, 128, 8, True, 8),
    ("pvm8_pptrue_256to512", 256, 512, 8, True, 4),
]


def test_the_base_ulvm_agrees_with_upstream():
    expected = golden.arrays("ultralight_vm_unet.strong.npz")["out0"]
    network = golden.fill(build("ulvm"), golden.strong)
    with torch.no_grad():
        output = network(golden.images(1, 3, 256, 256))
    assert golden.distance(output[:, :, ::8, ::8], expected) <= 1e-4


@pytest.mark.parametrize(("name", "c_in", "c_out", "branches", "pyramid", "size"), LAYERS)
def test_a_parallel_layer_agrees_with_the_papers(name, c_in, c_out, branches, pyramid, size):
    layer = ParallelMamba(c_in, c_out, branches=branches, pyramid=pyramid)
    assert golden.block_error(name, layer, golden.images(2, c_in, size, size)) < 1e-5


def test_the_branches_of_a_parallel_layer_share_one_mamba_and_one_pass():
    layer = ParallelMamba(12, 5, branches=3, pyramid=False)
    calls = []
    layer.mamba.register_forward_hook(lambda _, x, __: calls.append(tuple(x[0].shape)))
    layer(golden.images(2, 12, 4, 6))
    assert calls == [(6, 24, 4)]


def test_outputs_of_a_ulvm_are_probabilities_of_one_class_and_logits_of_several():
    x = golden.images(2, 3, 32, 32)
    output, several = build("ulvm_v3")(x), build("ulvm_v3", num_classes=3)(x)
    assert (output.shape, several.shape) == ((2, 1, 32, 32), (2, 3, 32, 32))
    assert bool(((output >= 0) & (output <= 1)).all())
    assert bool((several < 0).any())


@torch.no_grad()
def test_a_ulvm_starts_as_upstream_starts():
    torch.manual_seed(0)
    network = build("ulvm_v5")
    layer = network.encoder6[0]
    assert float(layer.mamba.dt_proj.bias.abs().max()) == 0
    assert float(layer.mamba.in_proj.weight.std()) == pytest.approx(0.02, rel=0.05)
    expected = math.sqrt(2 / (4 * 64))  # four taps, 64 output channels
    assert float(layer.mamba.conv1d.weight.std()) == pytest.approx(expected, rel=0.15)
    expected = math.sqrt(2 / (9 * 64))
    assert float(network.encoder3[0].weight.std()) == pytest.approx(expected, rel=0.05)
    assert float(network.encoder3[0].bias.abs().max()) == 0
