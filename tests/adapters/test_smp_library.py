"""Any network of segmentation_models_pytorch."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from robustcli.adapters.networks import create_model
from robustcli.adapters.smp_library import create, smp_entry, with_weights
from robustcli.core.errors import MachineError, UsageError
from tests.adapters.files import assert_holds

smp = pytest.importorskip("segmentation_models_pytorch")
SMALL: dict[str, Any] = {"encoder_depth": 3, "decoder_channels": (8, 8, 4)}


@pytest.mark.parametrize(
    ("typed", "variant"),
    [
        ("smp:Unet/resnet34", "Unet/resnet34"),
        ("smp:unet/ResNet34", "Unet/resnet34"),
        ("smp:unetplusplus/mit-b0", "UnetPlusPlus/mit_b0"),
        ("smp:DPT/tu-vit_tiny_patch16_224", "DPT/tu-vit_tiny_patch16_224"),
    ],
)
def test_a_name_in_any_spelling(typed: str, variant: str) -> None:
    entry = smp_entry(typed)
    assert (entry.variant, entry.name, entry.network) == (variant, *[f"smp:{variant}"] * 2)
    assert (entry.task, entry.builder, entry.family) == ("seg", "smp", "smp")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("smp:Unet", r"`smp:Unet` contains no encoder\.\nWrite `smp:ARCHITECTURE/ENCODER`"),
        ("smp:Unet/", "contains no encoder"),
        ("smp:Unnet/resnet34", r"No architecture of smp is called `Unnet`\.\nDid you mean `Unet`"),
        ("smp:Unet/resnet35", r"No encoder of smp is called `resnet35`\.\nDid you mean `resnet"),
        ("smp:Unet/timm-resnest14d", r"No encoder of smp is called `timm-resnest14d`"),
        ("smp:Unet/tu-resnet188", r"timm has no encoder `resnet188`\.\nDid you mean `tu-resnet18"),
    ],
)
def test_names_that_the_library_does_not_have(typed: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        smp_entry(typed)


def test_the_network_is_the_librarys_with_random_weights(attempts: list[object]) -> None:
    torch.manual_seed(3)
    ours = create("Unet/resnet18", SMALL)
    torch.manual_seed(3)
    theirs = smp.Unet("resnet18", encoder_weights=None, **SMALL).eval()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    x = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    assert ours.num_classes == 1
    assert not ours.training
    assert attempts == []


def test_weights_from_a_file_and_from_another_network() -> None:
    torch.manual_seed(5)
    state = create("Unet/resnet18", SMALL).state_dict()
    torch.manual_seed(6)
    assert_holds(with_weights("Unet/resnet18", state, "w", SMALL), state)
    message = r"`w` does not contain the weights of `smp:Unet/resnet34`"
    with pytest.raises(UsageError, match=message):
        with_weights("Unet/resnet34", state, "w", SMALL)


def test_the_door_in_python(tmp_path: Any) -> None:
    network = create_model("smp:unet/resnet18", num_classes=2, **SMALL)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    again = create_model("smp:Unet/resnet18", weights=tmp_path / "w.pth", num_classes=2, **SMALL)
    torch.testing.assert_close(again.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_arguments_that_change_the_meaning_of_the_output_or_do_not_exist() -> None:
    for name in ("activation", "classes", "encoder_weights", "aux_params"):
        message = rf"`smp:Unet/resnet18` has no option `{name}=\.\.\.`"
        with pytest.raises(UsageError, match=message):
            create("Unet/resnet18", {name: "sigmoid"})
    with pytest.raises(
        UsageError, match=r"has no option `nonsense=\.\.\.`\.\nIts options are encoder_"
    ):
        create("Unet/resnet18", {"nonsense": 3})
    with pytest.raises(UsageError, match=r"`smp:Unet/resnet18` cannot be built(.|\n)*depth"):
        create("Unet/resnet18", {"encoder_depth": 9})
    with pytest.raises(UsageError, match=r"`smp:DPT/resnet18` cannot be built(.|\n)*Timm encoders"):
        create("DPT/resnet18", {})


def test_an_odd_size_is_refused_as_our_own_networks_do() -> None:
    network = create("Linknet/resnet18", {})
    message = r"33 x 32 pixels, which the network does(.|\n)*multiples of 32"
    with pytest.raises(UsageError, match=message):
        network(torch.zeros(1, 3, 33, 32))


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18", "tu-test_resnet"])
def test_offline_no_encoder_is_fetched(attempts: list[object], encoder: str) -> None:
    with pytest.raises(UsageError, match=r"could not be downloaded\.\nThe reason: `--offline`"):
        create(f"Unet/{encoder}", {}, pretrained=True, offline=True)
    assert attempts == []
    with pytest.raises(UsageError, match=rf"ImageNet weights of `{encoder}` could(.|\n)*host name"):
        create(f"Unet/{encoder}", {}, pretrained=True)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(MachineError, match=r"not installed\.\nInstall it: `pip install 'robustcli"):
        smp_entry("smp:Unet/resnet34")
