"""Timm models by their own names, against timm itself."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from robustcli.adapters import timm_library
from robustcli.core.errors import UsageError

NAME = "test_resnet.r160_in1k"  # timm's own smallest


def test_known() -> None:
    assert timm_library.known("resnet50")
    assert timm_library.known("resnet50.a1_in1k")
    assert not timm_library.known("resnet5O")
    assert not timm_library.known("vmamba-t")


def test_suggestions() -> None:
    assert timm_library.suggestions("resnet5O")[0] == "resnet50"
    assert "swin_base_patch4_window7_224" in timm_library.suggestions(
        "swin_base_patch4_window7.tag"
    )


def test_create_without_weights() -> None:
    network = timm_library.create(NAME, pretrained=False, arguments={"num_classes": 7})
    assert network.num_classes == 7
    assert not network.training


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_unknown_tag(pretrained: bool, attempts: list[object]) -> None:
    message = (
        r"timm cannot build `resnet18\.nosuch`\.\nIt says: .*nosuch.*\nCheck the tag after the"
    )
    with pytest.raises(UsageError, match=message):
        timm_library.create("resnet18.nosuch", pretrained=pretrained, arguments={})
    assert pretrained or attempts == []


@pytest.mark.parametrize(
    "arguments", [{"depths_typo": 3}, {"num_classes": "ten"}, {"global_pool": "none-such"}]
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_an_argument_that_does_not_fit(arguments: dict[str, object], pretrained: bool) -> None:
    with pytest.raises(UsageError, match=r"timm cannot build `.*\nIt says: .+\nCheck.*--model-arg"):
        timm_library.create(NAME, pretrained=pretrained, arguments=arguments, offline=True)


@pytest.mark.parametrize("name", [NAME, "gcvit_xxtiny.in1k"])
def test_offline_never_tries_the_network(name: str, attempts: list[object]) -> None:
    with pytest.raises(
        UsageError, match=rf"The weights of `{name}` could not be downloaded\.\nThe "
    ):
        timm_library.create(name, pretrained=True, arguments={}, offline=True)
    assert attempts == []


def test_the_address_is_the_one_that_timm_uses(attempts: list[object]) -> None:
    for name, address in {
        NAME: f"https://huggingface.co/timm/{NAME} (model.safetensors)",
        "gcvit_xxtiny.in1k": str(timm.models.get_pretrained_cfg("gcvit_xxtiny.in1k").url),
    }.items():
        with pytest.raises(UsageError, match=re.escape(f"They are at {address}: name a copy with")):
            timm_library.create(name, pretrained=True, arguments={}, offline=True)


def test_an_error_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wordless(Exception):  # noqa: N818
        """As httpx and others raise them."""

    def fail(*_: object, **__: object) -> None:
        raise Wordless

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr("robustcli.adapters.hub.unreachable", lambda: None)
    with pytest.raises(UsageError, match="The reason: Wordless: Wordless"):
        timm_library.create(NAME, pretrained=True, arguments={})


def test_weights_from_the_hubs_cache_need_no_network(home: Path, attempts: list[object]) -> None:
    network = timm_library.create(NAME, pretrained=False, arguments={})
    snapshot = home / "hub" / f"models--timm--{NAME}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    save_file(network.state_dict(), snapshot / "model.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    loaded = timm_library.create(NAME, pretrained=True, arguments={}, offline=True)
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, rtol=0, atol=0)
    assert attempts == []


def test_load_is_strict() -> None:
    network = timm_library.create(NAME, pretrained=False, arguments={})
    state = network.state_dict()
    loaded = timm_library.load(NAME, state, origin="w.pth", arguments={})
    torch.testing.assert_close(loaded.state_dict()["fc.weight"], state["fc.weight"])
    assert not loaded.training
    state.pop("fc.bias")
    message = rf"`w\.pth` does not hold the weights of `{NAME}`\.\n.*1 missing \(`fc\.bias`\)"
    with pytest.raises(UsageError, match=message):
        timm_library.load(NAME, state, origin="w.pth", arguments={})


PREPROCESSED = [
    "resnet50.a1_in1k",  # tested at 288, trained at 224
    "convnext_base.fb_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "mobilenetv2_100.ra_in1k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",  # mean 0.5
    "tf_efficientnet_b0.aa_in1k",
    "inception_v3.tv_in1k",  # 299
    "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "vit_base_patch16_clip_224.openai",
    "resnet18.tv_in1k",  # bilinear
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k",  # squash
]


@pytest.mark.parametrize("name", PREPROCESSED)
def test_preprocessing_is_timms_own(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    own = timm_library.preprocessing(network)
    config = resolve_data_config({}, model=network)
    assert (own.mean, own.std) == (tuple(config["mean"]), tuple(config["std"]))
    theirs = create_transform(**config, normalize=False)
    generator = np.random.default_rng(0)
    for size in ((400, 301), (120, 500)):
        image = generator.integers(0, 256, (*size, 3), np.uint8)
        expected = theirs(Image.fromarray(image)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(own.apply(image), expected)


def test_a_crop_mode_that_is_not_supported() -> None:
    network = timm_library.create(NAME, pretrained=False, arguments={})
    network.pretrained_cfg = {**network.pretrained_cfg, "crop_mode": "border"}
    with pytest.raises(UsageError, match=r"crop mode `border` is not supported\.\nGive `--resize`"):
        timm_library.preprocessing(network)
