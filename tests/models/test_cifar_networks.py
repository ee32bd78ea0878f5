"""The networks for CIFAR beside Vim: against vit_pytorch's outputs, torchvision, and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import resnet

from robustcli.core.errors import UsageError
from robustcli.models.architectures import mamba_decays
from robustcli.models.cifar_networks import build
from tests.models import golden

VIT = [("vit_p4_c10", 4, 1_751_186), ("vit_p8_c10", 8, 1_767_602)]


@pytest.mark.parametrize(("name", "patch", "parameters"), VIT)
def test_vit_agrees_with_the_papers_code(name: str, patch: int, parameters: int) -> None:
    network = build("vit", patch_size=patch)
    assert golden.parameters(network) == parameters
    assert list(golden.shapes(network).items()) == list(golden.layout(name).items())
    for rule, key in ((golden.rule_a, "A_out32"), (golden.rule_b, "B_out32")):
        expected = golden.arrays(f"{name}.npz")[key]
        with torch.no_grad():
            logits = golden.fill(network, rule)(golden.images(2, 3, 32, 32))
        assert golden.distance(logits, expected) <= 1e-4 * abs(expected).max()


@torch.no_grad()
def test_vit_starts_as_vit_pytorch_starts() -> None:
    """Embeddings are standard normal; linear layers are torch's, uniform up to 1 / sqrt(inputs)."""
    torch.manual_seed(0)
    network = build("vit")
    assert float(network.pos_embedding.std()) == pytest.approx(1, rel=0.05)
    assert float(network.cls_token.std()) == pytest.approx(1, rel=0.2)
    attention, perceptron = network.transformer.layers[3]
    for linear in (attention.to_qkv, attention.to_out[0], perceptron.net[1], network.mlp_head):
        bound = linear.in_features**-0.5
        assert float(linear.weight.abs().max()) == pytest.approx(bound, rel=0.02)
    assert attention.to_qkv.bias is None
    assert torch.equal(network.transformer.norm.weight, torch.ones(168))


def test_vit_takes_the_size_that_it_was_built_for() -> None:
    with pytest.raises(UsageError, match=r"(?s)32 x 40 pixels; this ViT needs 32 x 32.*`img_size`"):
        build("vit", depth=1)(torch.zeros(1, 3, 32, 40))
    assert build("vit", depth=1, img_size=48)(torch.zeros(1, 3, 48, 48)).shape == (1, 10)
    with pytest.raises(UsageError, match="cannot be divided into such patches"):
        build("vit", patch_size=5)


def test_vit_does_not_decay_its_embeddings() -> None:
    network = build("vit", depth=1)
    decayed = {name for name, p in network.named_parameters() if mamba_decays(name, p)}
    block = "transformer.layers.0."
    assert decayed == {
        "to_patch_embedding.2.weight", "mlp_head.weight", f"{block}0.to_qkv.weight",
        f"{block}0.to_out.0.weight", f"{block}1.net.1.weight", f"{block}1.net.4.weight",
    }  # fmt: skip


def conv(c_in: int, c_out: int) -> int:
    """Numbers of a 3 x 3 convolution without bias and of its batch norm."""
    return 9 * c_in * c_out + 2 * c_out


def test_resnet9_has_the_numbers_of_its_layers() -> None:
    residuals = 2 * conv(128, 128) + 2 * conv(512, 512)
    trunk = conv(3, 64) + conv(64, 128) + conv(128, 256) + conv(256, 512)
    total = trunk + residuals + 512 * 10
    assert golden.parameters(golden.published("resnet9")) == total == 6_573_120


@torch.no_grad()
def test_resnet9_computes_what_its_author_describes() -> None:
    network = golden.fill(build("resnet9", channels=(4, 8, 8, 16)), golden.rule_b)
    state = network.state_dict()

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        convolved = F.conv2d(x, state[f"{name}.conv.weight"], padding=1)
        norm = [state[f"{name}.bn.{leaf}"] for leaf in ("running_mean", "running_var")]
        affine = [state[f"{name}.bn.{leaf}"] for leaf in ("weight", "bias")]
        return F.batch_norm(convolved, *norm, *affine).relu()

    def residual(x: torch.Tensor, name: str) -> torch.Tensor:
        return x + block(block(x, f"{name}.residual.res1"), f"{name}.residual.res2")

    x = golden.images(2, 3, 32, 32)
    y = residual(F.max_pool2d(block(block(x, "prep"), "layer1"), 2), "layer1")
    y = F.max_pool2d(block(y, "layer2"), 2)
    y = residual(F.max_pool2d(block(y, "layer3"), 2), "layer3")
    logits = 0.125 * F.max_pool2d(y, 4).flatten(1) @ state["linear.weight"].T
    assert torch.allclose(network(x), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_173_962), ("resnet50", 23_520_842)]
)
def test_a_resnet_has_the_parameters_of_torchvisions_with_another_stem(
    name: str, parameters: int
) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=10)
        ours = build(f"cifar-{name}")
    stems = 64 * 3 * (7 * 7 - 3 * 3)
    assert golden.parameters(ours) == golden.parameters(theirs) - stems == parameters


@pytest.mark.parametrize(
    ("name", "block"), [("resnet18", resnet.BasicBlock), ("resnet50", resnet.Bottleneck)]
)
@torch.no_grad()
def test_a_resnet_computes_what_torchvisions_does(name: str, block: type[nn.Module]) -> None:
    ours = golden.fill(build(f"cifar-{name}", depths=(1, 1, 1, 1)), golden.rule_b)
    theirs = resnet.ResNet(block, [1, 1, 1, 1], num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = golden.images(2, 3, 16, 16)
    logits = theirs.eval()(x)
    assert golden.distance(ours(x), logits.numpy()) <= 1e-4 * float(logits.abs().max())


def test_the_stem_of_a_resnet_keeps_the_size_and_starts_as_timms() -> None:
    torch.manual_seed(0)
    network = build("cifar-resnet18", depths=(1, 1, 1, 1))
    assert network.feature_info[0]["reduction"] == 1
    maps = network.forward_intermediates(torch.zeros(1, 3, 32, 32), intermediates_only=True)
    sides = [features.shape[-1] for features in maps]
    assert sides == [32 // feature["reduction"] for feature in network.feature_info]
    assert float(network.conv1.weight.detach().std()) == pytest.approx((2 / 576) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["vit", "resnet9", "cifar-resnet18"])
def test_the_last_layer_can_be_replaced(name: str) -> None:
    network = build(name)
    head = network.get_classifier()
    network.reset_classifier(3)
    assert network.get_classifier() is not head
    assert (network.get_classifier().bias is None) == (head.bias is None)
    x = torch.zeros(2, 3, 32, 32)
    assert network(x).shape == (2, 3)
    assert network.num_classes == 3
    features = network.forward_head(network.forward_features(x), pre_logits=True)
    assert features.shape == (2, network.num_features)
    network.reset_classifier(0)
    assert network(x).shape == (2, network.num_features)
    assert build(name, in_chans=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 10)  # greyscale
