"""Weights of another task in a network whose heads are new."""

from __future__ import annotations

import re

import pytest
import timm
import torch

from robustcli.adapters import own
from robustcli.adapters.body import fill_body
from robustcli.adapters.load import resolve
from robustcli.adapters.loading import heads_in
from robustcli.core.errors import UsageError

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
    assert heads_in(own.create("vmamba-pico", TINY)) == ("classifier.head.",)
    assert heads_in(own.create("vim", {"depth": 1, "dim": 16})) == ("head.",)


def test_all_but_the_head_is_copied_also_from_another_number_of_classes() -> None:
    state = own.create("vmamba-pico", TINY).state_dict()
    network = own.create("vmamba-pico", {**TINY, "num_classes": 3})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fill_body(network, state, ENTRY, ("classifier.head.",), "here")
    for name, tensor in network.state_dict().items():
        expected = before[name] if name.startswith("classifier.head.") else state[name]
        assert torch.equal(tensor, expected), name


def test_what_does_not_fit_is_named_and_nothing_is_copied() -> None:
    state = dict(own.create("vmamba-pico", {**TINY, "dim": 16}).state_dict())
    state.pop("patch_embed.0.bias")
    network = own.create("vmamba-pico", TINY)
    before = network.state_dict()["layers.1.blocks.0.op.Ds"].clone()
    with pytest.raises(UsageError, match=r"`patch_embed\.0\.weight` is \(8,") as told:
        fill_body(network, state, ENTRY, ("classifier.head.",), "here")
    assert "`patch_embed.0.bias` is missing" in str(told.value)
    assert "classifier.head" not in str(told.value)
    assert torch.equal(network.state_dict()["layers.1.blocks.0.op.Ds"], before)


def test_a_deeper_network_of_the_same_names_is_refused() -> None:
    """ResNet-18's names and shapes are all in ResNet-34's file: loading would look right."""
    state = timm.create_model("resnet34").state_dict()
    network = timm.create_model("resnet18", num_classes=3)
    with pytest.raises(UsageError, match=r"`layer1\.2\.conv1\.weight` is unknown"):
        fill_body(network, state, resolve("resnet18"), ("fc.",), "here")


def test_old_files_without_counters_of_batches() -> None:
    state = {k: t for k, t in timm.create_model("resnet10t").state_dict().items()
             if not k.endswith("num_batches_tracked")}  # fmt: skip
    network = timm.create_model("resnet10t", num_classes=3)
    fill_body(network, state, resolve("resnet10t"), ("fc.",), "here")
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
    fill_body(network, state, resolve(name), ("head.fc.",), "w.pth")
    assert network.num_classes == 3
    for key, tensor in network.state_dict().items():
        if not key.startswith("head.fc."):
            assert torch.equal(tensor, theirs[key]), key
    assert "prefix `encoder.` removed" in caplog.text
    assert "timm's own filter" in caplog.text
