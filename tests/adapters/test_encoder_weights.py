"""A classifier's weights in a segmenter's encoder, against torchvision's own networks."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from robustcli.adapters.encoder_weights import is_encoder_file, load_encoder
from robustcli.core.errors import UsageError
from robustcli.models.registry import architecture
from tests.adapters.files import meta_state, random_state
from tests.models import golden


class Features(nn.Module):
    """Torchvision's ResNet up to its last map."""

    def __init__(self, whole: torchvision.models.ResNet) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        w = self.whole
        x = w.maxpool(w.relu(w.bn1(w.conv1(x))))
        out: Tensor = w.layer4(w.layer3(w.layer2(w.layer1(x))))
        return out


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_encoder_computes_what_the_classifier_computes(depth: int, library: str) -> None:
    whole = getattr(torchvision.models, f"resnet{depth}")()
    golden.fill(whole, golden.rule_b)
    state = whole.state_dict()
    if library == "timm":
        assert list(timm.create_model(f"resnet{depth}").state_dict()) == list(state)
    network: Any = architecture(f"resnet{depth}_seg").build().eval()
    load_encoder(network, state, origin="w")
    x = golden.images(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.encoder(x), Features(whole)(x), rtol=0, atol=0)


def test_old_files_without_counters_and_files_without_head() -> None:
    state = torchvision.models.resnet18().state_dict()
    old = {k: t for k, t in state.items() if not k.endswith("num_batches_tracked")}
    headless = {k: t for k, t in old.items() if not k.startswith("fc.")}
    network: Any = architecture("resnet18_seg").build()
    for given in (old, headless):
        load_encoder(network, given, origin="w")
        torch.testing.assert_close(network.encoder[0].weight, state["conv1.weight"])


def test_the_decoder_stays_as_it_was() -> None:
    network: Any = architecture("resnet18_seg").build()
    before = {k: t.clone() for k, t in network.decoder.state_dict().items()}
    load_encoder(network, random_state(torchvision.models.resnet18()), origin="w")
    torch.testing.assert_close(network.decoder.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("other", ["resnet34", "resnet50", "squeezenet1_0"])
def test_another_encoder_is_refused(other: str) -> None:
    network: Any = architecture("resnet18_seg").build()
    before = network.encoder[0].weight.clone()
    state = getattr(torchvision.models, other)().state_dict()
    with pytest.raises(UsageError, match=r"`w` does not hold the w.* `the encoder`(.|\n)*own arch"):
        load_encoder(network, state, origin="w")
    assert torch.equal(network.encoder[0].weight, before)


def test_which_files_are_of_an_encoder_alone() -> None:
    assert is_encoder_file(torchvision.models.resnet18().state_dict())
    assert not is_encoder_file(meta_state("resnet18_seg"))
    assert not is_encoder_file(meta_state("segformer"))


def test_an_encoder_below_a_prefix_but_not_that_of_a_segmenter() -> None:
    state = torchvision.models.resnet18().state_dict()
    network: Any = architecture("resnet18_seg").build()
    for prefix in ("backbone.", "encoder.", "model.encoder."):
        below = {f"{prefix}{key}": tensor for key, tensor in state.items() if key[:3] != "fc."}
        assert is_encoder_file(below)
        load_encoder(network, below, origin="w")
        torch.testing.assert_close(network.encoder[0].weight, state["conv1.weight"])
    with pytest.raises(UsageError, match="unknown"):
        load_encoder(network, {**below, "decoder.weight": torch.ones(1)}, origin="w")
