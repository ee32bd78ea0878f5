"""The weights that training starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from robustcli.adapters import timm_library
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.load import resolve
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.trainable import sized_preprocessing, start_classifier, start_weights
from robustcli.core.errors import UsageError
from tests.adapters.files import assert_holds
from tests.adapters.runs import trained
from tests.models import golden

LEARNING = [e.name for e in CATALOGUE.values() if e.task == "seg" and e.name != "otsu"]
RESNETS = ["resnet18_seg", "resnet50_seg"]


@pytest.mark.parametrize("name", ["ulvm_v5", "unet", "umambabot"])
def test_the_seed_and_the_name_decide_and_nothing_else(name: str) -> None:
    first, origin = start_weights(name, seed=4)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, _ = start_weights(name, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert_holds(again, dict(first.state_dict()))
    other, _ = start_weights(name, seed=5)
    key = next(k for k, t in first.state_dict().items() if t.ndim == 4)
    assert not torch.equal(other.state_dict()[key], first.state_dict()[key])
    assert origin == "none: initialised with seed 4"


def test_the_documented_initialisation_is_kept() -> None:
    network: Any = start_weights("ulvm_v5")[0]
    assert float(network.encoder6[0].mamba.dt_proj.bias.detach().abs().max()) == 0


@pytest.mark.parametrize("name", RESNETS)
def test_a_resnet_does_not_start_untrained_silently(name: str, attempts: list[object]) -> None:
    message = (
        rf"`{name}` starts from ImageNet weights, which are not here\.\n"
        r".*`--offline` forbids(.|\n)*`--weights FILE`; or .*`--untrained`"
    )
    with pytest.raises(UsageError, match=message):
        start_weights(name, offline=True)
    assert attempts == []


def test_without_a_network_the_same_is_said(attempts: list[object]) -> None:
    with pytest.raises(UsageError, match=r"which are not here\.\n.*the network knows no"):
        start_weights("resnet18_seg")


def test_an_encoder_of_smp_does_not_start_untrained_silently(attempts: list[object]) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    message = r"`smp:Unet/resnet18` starts from ImageNet weights, which are not here"
    with pytest.raises(UsageError, match=message):
        start_weights("smp:Unet/resnet18", offline=True)
    network, origin = start_weights("smp:Unet/resnet18", untrained=True, seed=1)
    assert origin == "none: initialised with seed 1"
    assert not network.training
    assert attempts == []


@pytest.mark.parametrize("name", RESNETS)
def test_untrained_on_request(name: str, attempts: list[object]) -> None:
    _, origin = start_weights(name, untrained=True, seed=2)
    assert (origin, attempts) == ("none: initialised with seed 2", [])


@pytest.mark.parametrize(("name", "depth"), [("resnet18_seg", 18), ("resnet50_seg", 50)])
def test_timms_weights_of_torchvision_go_into_the_encoder(
    name: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def create(source: str, **options: Any) -> nn.Module:
        asked.append((source, options["pretrained"], options["offline"]))
        return golden.fill(timm.create_model(source), golden.rule_b)

    monkeypatch.setattr(timm_library, "create", create)
    network: Any
    network, origin = start_weights(name)
    source = f"resnet{depth}.tv_in1k"
    assert asked == [(source, True, False)]
    assert timm.models.get_pretrained_cfg(source).url  # timm has weights of this name
    assert origin == f"encoder: https://huggingface.co/timm/{source}"
    expected: Any = golden.fill(timm.create_model(source), golden.rule_b)
    assert torch.equal(network.encoder[7][1].conv2.weight, expected.layer4[1].conv2.weight)


@pytest.mark.parametrize("name", ["resnet18_seg", "smp:Unet/resnet18"])
def test_a_file_of_the_encoder(name: str, tmp_path: Path) -> None:
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch")
    whole: Any = golden.fill(torchvision.models.resnet18(), golden.rule_b)
    torch.save(whole.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    network: Any
    network, origin = start_weights(name, tmp_path / "resnet18-f37072fd.pth", seed=3)
    assert origin == f"encoder: {tmp_path / 'resnet18-f37072fd.pth'}"
    held = {tuple(t.shape): t for t in network.encoder.state_dict().values() if t.ndim == 4}
    assert torch.equal(held[(64, 3, 7, 7)], whole.conv1.weight)
    again, _ = start_weights(name, tmp_path / "resnet18-f37072fd.pth", seed=3)
    assert_holds(again, dict(network.state_dict()))  # the decoder follows the seed


def test_a_run_to_go_on_from(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "unet", features=[4, 8])
    network: Any
    network, origin = start_weights("unet", run)
    assert origin == str(run / "weights.safetensors")
    assert network.config.features == (4, 8)


def test_a_whole_resnet_segmenter_to_go_on_from(tmp_path: Path) -> None:
    network, _ = start_weights("resnet18_seg", untrained=True, seed=8)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    again, origin = start_weights("resnet18_seg", tmp_path / "w.pth")
    assert_holds(again, dict(network.state_dict()))
    assert origin == str(tmp_path / "w.pth")


def test_a_file_of_another_network_says_which_it_is(tmp_path: Path) -> None:
    torch.save(start_weights("ulvm")[0].state_dict(), tmp_path / "w.pth")
    for name in ("resnet18_seg", "ulvm_v5"):
        with pytest.raises(UsageError, match="These are the weights of `ulvm`: use that name"):
            start_weights(name, tmp_path / "w.pth")
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(UsageError, match="Name weights of the encoder's own architecture"):
        start_weights("resnet18_seg", tmp_path / "encoder.pth")


def test_options_reach_the_network() -> None:
    network: Any = start_weights("unet", arguments={"features": (4, 8)})[0]
    assert network.config.features == (4, 8)


@pytest.mark.parametrize("name", ["otsu", "vmamba-pico"])
def test_what_does_not_learn_to_segment_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}` is no segmenter that learns"):
        start_weights(name)


@pytest.mark.parametrize("name", LEARNING)
def test_every_other_name_starts(name: str) -> None:
    with torch.device("meta"):
        network, _ = start_weights(name, untrained=True)
    assert sum(p.numel() for p in network.parameters()) == CATALOGUE[name].parameters


TINY = {"depths": [1, 1], "dim": 8}
PICO = resolve("vmamba-pico")


def test_the_seed_decides_and_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, words = start_classifier(PICO, 3, TINY, seed=0)
    assert torch.equal(torch.rand(3), expected)
    again, _ = start_classifier(PICO, 3, TINY, seed=0)
    other, _ = start_classifier(PICO, 3, TINY, seed=1)
    key = "layers.0.blocks.0.op.in_proj.weight"
    assert torch.equal(one.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])
    assert words == "none: initialised with seed 0"
    assert one(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_the_preprocessing_is_the_networks_own_or_that_of_a_window() -> None:
    own = sized_preprocessing(PICO, TINY, None)
    assert (own.resize, own.crop, own.interpolation) == (32, 32, "bilinear")
    resnet = resolve("resnet10t")
    assert sized_preprocessing(resnet, {}, 44) == Preprocessing(
        resize=sized_preprocessing(resnet, {}, None).resize * 44 // 176, crop=44,
        interpolation="bicubic",
    )  # fmt: skip


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(UsageError, match="Give its own size with `--window`") as told:
        sized_preprocessing(resolve("vim-t"), {"depth": 1}, 40)
    assert "--model-arg img_size=40" in str(told.value)
