"""Which parameters weight decay touches, by where a network comes from."""

from __future__ import annotations

import timm

from robustcli.adapters.decays import decays_of
from robustcli.adapters.load import resolve
from robustcli.models.weight_decay import everything_decays, mamba_decays, vmamba_decays


def test_everything_decays_in_every_segmenter() -> None:
    assert decays_of(resolve("ulvm_v5")) is everything_decays
    assert decays_of(resolve("smp:Unet/resnet18")) is everything_decays


def test_our_classifiers_have_their_upstreams_rules() -> None:
    assert decays_of(resolve("vmamba-pico")) is vmamba_decays
    assert decays_of(resolve("vim-t")) is mamba_decays


def test_timms_are_asked_what_they_spare() -> None:
    network = timm.create_model("vit_tiny_patch16_224", depth=1)
    decays = decays_of(resolve("vit_tiny_patch16_224"), network)
    parameters = dict(network.named_parameters())
    spared = {name for name, p in parameters.items() if not decays(name, p)}
    assert {"pos_embed", "cls_token", "norm.bias", "norm.weight"} <= spared
    assert "blocks.0.attn.qkv.weight" not in spared
