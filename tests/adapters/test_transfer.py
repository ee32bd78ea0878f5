"""Pretrained weights into a network for another task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from robustcli.adapters import create
from robustcli.adapters.load import resolve
from robustcli.adapters.loading import heads_in
from robustcli.adapters.transfer import is_encoder_file, load_encoder, transfer
from robustcli.core.errors import UsageError
from robustcli.finetuning.starts import heads_of
from robustcli.models.architectures import architecture
from robustcli.models.umamba import UMamba
from robustcli.nnunet.files import upstream_state
from robustcli.nnunet.planner import make_plan
from tests.adapters.files import meta_state, random_state
from tests.adapters.nnunet_files import PLAN, network
from tests.models import golden

TINY = {"depths": [1, 1], "dim": 8}
ENTRY = resolve("vmamba-pico")


@pytest.mark.parametrize(
    ("name", "options", "heads"),
    [
        ("resnet10t", {}, ("fc.",)),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, ("head.", "head_dist.")),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, ("head.fc.",)),
    ],
)
def test_the_heads_are_those_of_timms_contract(
    name: str, options: dict[str, object], heads: tuple[str, ...]
) -> None:
    assert heads_in(timm.create_model(name, **options)) == heads


def test_ours_have_the_same_contract() -> None:
    assert heads_in(create.create("vmamba-pico", TINY)) == ("classifier.head.",)
    assert heads_in(create.create("vim", {"depth": 1, "dim": 16})) == ("head.",)


def test_all_but_the_head_is_copied_also_from_another_number_of_classes() -> None:
    state = create.create("vmamba-pico", TINY).state_dict()
    network = create.create("vmamba-pico", {**TINY, "num_classes": 3})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    transfer(network, state, ENTRY, ("classifier.head.",), "here")
    for name, tensor in network.state_dict().items():
        expected = before[name] if name.startswith("classifier.head.") else state[name]
        assert torch.equal(tensor, expected), name


def test_what_does_not_fit_is_named_and_nothing_is_copied() -> None:
    state = dict(create.create("vmamba-pico", {**TINY, "dim": 16}).state_dict())
    state.pop("patch_embed.0.bias")
    network = create.create("vmamba-pico", TINY)
    before = network.state_dict()["layers.1.blocks.0.op.Ds"].clone()
    with pytest.raises(UsageError, match=r"`patch_embed\.0\.weight` is \(8,") as told:
        transfer(network, state, ENTRY, ("classifier.head.",), "here")
    assert "`patch_embed.0.bias` is missing" in str(told.value)
    assert "classifier.head" not in str(told.value)
    assert torch.equal(network.state_dict()["layers.1.blocks.0.op.Ds"], before)


def test_a_deeper_network_of_the_same_names_is_refused() -> None:
    """ResNet-18's names and shapes are all in ResNet-34's file: loading would look right."""
    state = timm.create_model("resnet34").state_dict()
    network = timm.create_model("resnet18", num_classes=3)
    with pytest.raises(UsageError, match=r"`layer1\.2\.conv1\.weight` is unknown"):
        transfer(network, state, resolve("resnet18"), ("fc.",), "here")


def test_old_files_without_counters_of_batches() -> None:
    state = {k: t for k, t in timm.create_model("resnet10t").state_dict().items()
             if not k.endswith("num_batches_tracked")}  # fmt: skip
    network = timm.create_model("resnet10t", num_classes=3)
    transfer(network, state, resolve("resnet10t"), ("fc.",), "here")
    assert torch.equal(network.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


def test_a_file_with_prefix_and_authors_names(caplog: pytest.LogCaptureFixture) -> None:
    name, shallow = "swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}
    theirs = timm.create_model(name, **shallow).state_dict()
    state = {f"encoder.{key.replace('head.fc.', 'head.')}": t for key, t in theirs.items()}
    state = {
        re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", key): tensor
        for key, tensor in state.items()
    }
    network = timm.create_model(name, num_classes=3, **shallow)
    caplog.clear()
    transfer(network, state, resolve(name), ("head.fc.",), "w.pth")
    assert network.num_classes == 3
    for key, tensor in network.state_dict().items():
        if not key.startswith("head.fc."):
            assert torch.equal(tensor, theirs[key]), key
    assert "prefix `encoder.` removed" in caplog.text
    assert "timm's own filter" in caplog.text


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


ORGANS = replace(PLAN, dataset={**PLAN.dataset, "labels": {"background": 0, "a": 1, "b": 2}})


def transferred(
    target: UMamba, state: Mapping[str, Tensor], patch: tuple[int, int] | None = None
) -> list[str]:
    entry = resolve("umamba" if target.config.mamba == "bottleneck" else "umamba-enc")
    return transfer(target, state, entry, heads_of(entry), "there", patch=patch)


@pytest.mark.parametrize("model", ["umamba", "umamba-enc"])
@pytest.mark.parametrize("copies", [True, False])
def test_all_but_the_heads_is_copied_from_either_spelling(model: str, copies: bool) -> None:
    source, target = network(model, ORGANS, seed=1), network(model, seed=2)
    heads = {k: v.clone() for k, v in target.state_dict().items() if ".seg_layers." in k}
    state = upstream_state(source) if copies else source.state_dict()
    names = transferred(target, state)
    after = target.state_dict()
    assert names == [name for name in after if ".seg_layers." not in name]
    assert all(torch.equal(after[name], source.state_dict()[name]) for name in names)
    assert heads
    assert all(torch.equal(after[name], head) for name, head in heads.items())


def test_heads_stay_new_even_where_they_would_fit() -> None:
    source, target = network(seed=1), network(seed=2)
    before = target.get_parameter("decoder.seg_layers.0.weight").clone()
    transferred(target, source.state_dict())
    assert torch.equal(target.get_parameter("decoder.seg_layers.0.weight"), before)


def test_tensors_that_are_missing_are_named_and_nothing_is_copied() -> None:
    state = network(seed=1).state_dict()
    del state["mamba_layer.mamba.D"], state["encoder.stem.0.conv1.bias"]
    target = network(seed=2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        transferred(target, state)
    assert "2 differ: `encoder.stem.0.conv1.bias` is missing; `mamba_layer.mamba.D` is missing" in (
        caught.value.why
    )
    assert "nnUNetv2_move_plans_between_datasets" in caught.value.todo
    assert all(torch.equal(before[name], t) for name, t in target.state_dict().items())


def test_other_input_channels_say_so() -> None:
    grey = make_plan((32, 32), ("MR",), images=50, features=(4, 64))
    with pytest.raises(UsageError, match=r"(?s)is \(4, 1, 3, 3\), not \(4, 3, 3, 3\).*channels mu"):
        transferred(network(), network(plan=grey).state_dict())


def test_another_patch_size_of_the_encoder_variant_says_so() -> None:
    other = make_plan((48, 32), ("R", "G", "B"), images=50, features=(4, 64))
    with pytest.raises(UsageError, match=r"(?s)mamba_layers.*`umamba-enc` depend on the patch"):
        transferred(network("umamba-enc"), network("umamba-enc", other).state_dict())
    assert transferred(network("umamba"), network("umamba", other).state_dict())


def test_shapes_that_agree_by_chance_do_not_hide_another_patch_size() -> None:
    """Last stage: 16 channels of 16 pixels as tokens at one patch, 24 pixels of 16 at the other."""
    plans = [
        make_plan((side, 32), ("R", "G", "B"), images=50, features=(4, 16)) for side in (32, 48)
    ]
    target, source = (network("umamba-enc", plan) for plan in plans)
    assert transferred(target, source.state_dict())
    with pytest.raises(UsageError, match=r"(?s)for patches of 48 x 32 pixels.*for 32 x 32.*umamba"):
        transferred(target, source.state_dict(), patch=plans[1].patch)
    assert transferred(target, source.state_dict(), patch=plans[0].patch)
    bottleneck = network("umamba", plans[0])
    assert transferred(bottleneck, network("umamba", plans[1]).state_dict(), patch=plans[1].patch)
