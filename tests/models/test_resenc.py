"""nnU-Net's residual encoder, and U-Mamba without its Mamba layers: the controls by name."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models import umamba
from robustcli.models.resenc import ResEncConfig, build
from robustcli.models.umamba import UMamba, with_aliases, without_aliases
from tests.models import golden

TINY = {"features": (4, 8, 8), "strides": (1, 2, 2), "n_blocks": (1, 2, 1)}
# Source: dynamic-network-architectures 0.4.4, `ResidualEncoderUNet` with the same arguments, whose
# parameters were counted, and whose outputs ours equal to the bit with the same weights.
NNUNET = {
    (32, 64, 128, 160, 160, 160): 11_269_130,
    (32, 64, 128, 256, 512, 512): 71_817_162,
    (32, 64, 128, 256, 512, 512, 512): 105_917_388,
}


def by_hand(features, n_blocks, classes=2):
    """Parameters by the description: convolutions with biases and norms of two values a channel."""

    def conv(c_in, c_out, side=3):
        return c_in * c_out * side**2 + c_out

    total = conv(3, features[0]) + 2 * features[0]  # the stem
    for (c_in, c_out), count in zip(pairwise((features[0], *features)), n_blocks, strict=True):
        total += conv(c_in, c_out) + conv(c_out, c_out) + 4 * c_out
        total += (c_in * c_out + 2 * c_out) * (c_in != c_out)  # the shortcut, without bias
        total += (count - 1) * (2 * conv(c_out, c_out) + 4 * c_out)
    for wide, narrow in pairwise(features[::-1]):
        total += conv(wide, narrow, 2)  # enlarges
        total += conv(2 * narrow, narrow) + 2 * narrow + conv(narrow, classes, 1)
    return total


@pytest.mark.parametrize(("features", "count"), NNUNET.items())
def test_has_the_parameters_of_nnunets_own(features, count):
    blocks = (1, 3, 4, 6, 6, 6, 6)[: len(features)]
    strides = (1, *(2,) * (len(features) - 1))
    with torch.device("meta"):
        network = build("resenc", features=features, n_blocks=blocks, strides=strides)
    assert golden.parameters(network) == by_hand(features, blocks) == count


def test_names_are_those_of_nnunets_checkpoints():
    """As the package registers them: a convolution and its norm twice, the encoder twice."""
    names = set(with_aliases(build("resenc", **TINY).state_dict()))
    for name in (
        "encoder.stem.convs.0.conv.weight",
        "encoder.stem.convs.0.all_modules.1.bias",
        "encoder.stages.1.blocks.0.skip.1.all_modules.0.weight",
        "encoder.stages.1.blocks.1.conv2.norm.weight",
        "decoder.encoder.stages.2.blocks.0.conv1.conv.bias",
        "decoder.stages.0.convs.0.conv.weight",
        "decoder.transpconvs.1.weight",
        "decoder.seg_layers.1.bias",
    ):
        assert name in names
    assert len(names) == 180  # of dynamic-network-architectures 0.4.4, with the same arguments
    assert set(without_aliases(dict.fromkeys(names, torch.zeros(1)))) == set(
        build("resenc", **TINY).state_dict()
    )


@torch.no_grad()
def test_agrees_with_nnunets_outputs():
    """Sums of outputs of dynamic-network-architectures 0.4.4 with the same weights and input."""
    network = golden.fill(build("resenc", **TINY, deep_supervision=True), golden.strong).eval()
    outputs = network(golden.images(1, 3, 16, 16))
    assert [tuple(output.shape) for output in outputs] == [(1, 2, 16, 16), (1, 2, 8, 8)]
    measured = [value for out in outputs for value in (float(out.sum()), float(out.square().sum()))]
    assert measured == pytest.approx(EXPECTED, rel=1e-4)
    network.decoder.deep_supervision = False
    assert torch.equal(network(golden.images(1, 3, 16, 16)), outputs[0])


EXPECTED = [31.317945, 51.507507, 31.906212, 45.706406]


def test_each_block_begins_as_its_shortcut():
    stage = build("resenc", **TINY).encoder.stages[1]
    x = torch.rand(1, 8, 6, 6)
    assert torch.equal(stage.blocks[1](x), x)


def test_other_sizes_and_wrong_plans_are_refused():
    with pytest.raises(UsageError, match=r"multiples of 4"):
        build("resenc", **TINY)(torch.zeros(1, 3, 18, 16))
    with pytest.raises(UsageError, match="`n_blocks` has 2 entries"):
        ResEncConfig(features=(4, 8, 8), strides=(1, 2, 2), n_blocks=(1, 2))


@torch.no_grad()
@pytest.mark.parametrize("variant", ["umamba", "umamba-enc"])
def test_umamba_whose_layers_pass_their_map_on_is_the_network_without_mamba(variant, monkeypatch):
    options = {"features": (4, 8, 16), "strides": (1, 2, 2), "patch_size": 16}
    network = golden.fill(umamba.build(variant, **options), golden.strong)
    control = umamba.build("umamba-nomamba", **options)
    kept = {k: t for k, t in network.state_dict().items() if "mamba_layer" not in k}
    control.load_state_dict(kept)
    x = golden.images(2, 3, 16, 16)
    assert not torch.allclose(control(x), network(x), atol=1e-3)
    monkeypatch.setattr(umamba.MambaLayer, "forward", lambda self, x: x)
    assert torch.equal(control(x), network(x))


def test_umamba_without_mamba_has_the_parameters_of_both_but_their_layers():
    networks = {n: golden.published(n) for n in ("umamba", "umamba-enc", "umamba-nomamba")}
    assert all(isinstance(network, UMamba) for network in networks.values())
    for name in ("umamba", "umamba-enc"):
        layers = sum(
            p.numel() for key, p in networks[name].named_parameters() if "mamba_layer" in key
        )
        assert golden.parameters(networks[name]) - layers == 9_561_864
    assert golden.parameters(networks["umamba-nomamba"]) == 9_561_864
