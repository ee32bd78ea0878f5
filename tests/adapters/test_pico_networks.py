"""`resnet-pico`, the second bundled classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import is_model_pretrained, model_entrypoint
from torch import nn

from robustcli.adapters import pico_networks
from robustcli.adapters.catalogue import CATALOGUE, ModelRequest
from robustcli.adapters.fetching import fetch, is_here, local_path
from robustcli.adapters.load import load
from robustcli.adapters.networks import create_model
from robustcli.core.errors import UsageError

ASSET = local_path(CATALOGUE["resnet-pico"])


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    made: nn.Module = timm.create_model("resnet_pico").eval()
    return made


def test_the_name_is_not_one_of_timms_own() -> None:
    """Else a newer timm would silently mean another network by it."""
    assert model_entrypoint("resnet_pico").__module__ == pico_networks.__name__
    assert not is_model_pretrained("resnet_pico")


def test_it_sees_as_many_positions_as_vmamba_pico(network: nn.Module) -> None:
    stages = timm.create_model("resnet_pico", features_only=True)
    sides = [tuple(stage.shape[1:]) for stage in stages(torch.zeros(1, 3, 32, 32))]
    assert sides == [(32, 16, 16), (64, 8, 8), (120, 4, 4)]
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_its_size_is_within_a_twentieth_of_vmamba_picos() -> None:
    sizes = [CATALOGUE[name].parameters for name in ("resnet-pico", "vmamba-pico")]
    assert abs(sizes[0] - sizes[1]) < sizes[1] / 20


@torch.no_grad()
def test_an_image_is_answered_alike_whatever_stands_beside_it(network: nn.Module) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([network(image[None]) for image in images])
    # float32 sums in another order, for another batch size
    torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_exports_without_changing_the_result(network: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    exported = torch.export.export(network, (images,)).module()
    torch.testing.assert_close(exported(images), network(images), rtol=1e-4, atol=1e-5)


def test_the_bundled_file_is_loaded_whole_and_nothing_is_downloaded(
    attempts: list[object],
) -> None:
    model = load(ModelRequest("ResNet_pico"), "cls")
    facts = model.facts
    assert (facts.name, facts.builder) == ("resnet-pico", "timm:resnet_pico")
    assert (facts.weights, facts.pretraining) == ("resnet-pico.safetensors", "CIFAR-10")
    assert not facts.untrained
    torch.testing.assert_close(model.network.state_dict(), load_file(ASSET), rtol=0, atol=0)
    assert model.preprocessing == load(ModelRequest("vmamba-pico"), "cls").preprocessing
    assert is_here(CATALOGUE["resnet-pico"])
    assert fetch("resnet-pico", offline=True).path == ASSET
    assert attempts == []


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "other network"])
def test_a_file_that_is_not_its_own_is_refused(change: str, tmp_path: Path) -> None:
    state = load_file(ASSET)
    if change == "missing":
        del state["stem.conv.weight"]
    if change == "unknown":
        state["stem.extra"] = torch.zeros(1)
    if change == "shape":
        state["stem.conv.weight"] = torch.zeros(16, 3, 3, 3)
    if change == "other network":
        state = load_file(local_path(CATALOGUE["vmamba-pico"]))
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="does not contain the weights of `resnet_pico`"):
        load(ModelRequest("resnet-pico", weights=tmp_path / "w.safetensors"), "cls")


def test_in_python_it_is_the_same_network(tmp_path: Path) -> None:
    network = create_model("resnet-pico", weights=ASSET)
    torch.testing.assert_close(network.state_dict(), load_file(ASSET), rtol=0, atol=0)
    assert create_model("resnet-pico", num_classes=3).num_classes == 3
