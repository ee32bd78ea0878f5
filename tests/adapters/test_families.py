"""Which network a file is of, from its names and shapes alone."""

from __future__ import annotations

import pytest
import torch

from robustcli.adapters.families import FAMILIES, classes_in, family_of, members, recognise
from robustcli.adapters.loading import shapes_of
from robustcli.models.aliases import with_aliases
from robustcli.models.registry import ARCHITECTURES, architecture
from tests.adapters.files import meta_state
from tests.models import golden

OFFICIAL = {
    **{f"vmamba-{size[0]}-{kind}": f"vmamba_{size}_{kind}"
       for size, kinds in {"tiny": ("s1l8", "s2l5", "v0"), "small": ("s2l15", "s1l20", "v0"),
                           "base": ("s2l15", "s1l20", "v0")}.items() for kind in kinds},
    "vim-t": "vim_tiny", "vim-t-plus": "vim_tiny_plus", "vim-s": "vim_small",
    "vim-s-plus": "vim_small_plus", "vim-b": "vim_base", "vim": "vim_p4_c10",
    "umamba": "UMambaBot_2d", "umamba-enc": "UMambaEnc_2d", "vmunet": "vmunet",
    "ulvm": "ultralight_vm_unet", "umambabot": "umambabot", "umambabot_pp": "umambabot_pp",
    **{f"ulvm_v{i}": f"ul_vm_unet_v{i}" for i in range(1, 7)},
    "unet": "unet", "segformer": "segformer",
    "resnet18_seg": "resnet18", "resnet50_seg": "resnet50",
}  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_file_is_recognised(name: str) -> None:
    """Its layout is of the original class, with every extra copy of a tensor."""
    layout = golden.layout(OFFICIAL[name])
    state = {key: torch.empty(shape, device="meta") for key, shape in layout.items()}
    assert recognise(state) == name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_is_recognised_and_none_is_taken_for_another(name: str) -> None:
    state, family = meta_state(name), ARCHITECTURES[name].family
    assert family_of(state) == family
    assert recognise(state) == ARCHITECTURES[name].variant
    assert recognise({**state, "extra": torch.empty(1)}) is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whatever_the_number_of_classes(name: str) -> None:
    with torch.device("meta"):
        state = architecture(name).build(num_classes=7).state_dict()
    assert recognise(state) == ARCHITECTURES[name].variant
    assert classes_in(shapes_of(state), ARCHITECTURES[name].family) == 7


def test_copies_under_other_names_do_not_matter() -> None:
    assert recognise(with_aliases(meta_state("umamba-enc"))) == "umamba-enc"


def test_foreign_names() -> None:
    assert family_of(["conv1.weight", "layer1.0.bn1.bias"]) is None
    assert recognise({}) is None
    assert classes_in({"conv1.weight": (3, 3)}, "ulvm") is None


def test_every_family_of_the_registry_is_described() -> None:
    assert {a.family for a in ARCHITECTURES.values()} == set(FAMILIES)
    assert "vmamba-t" not in members("vmamba")
    assert members("umamba") == ["umamba", "umamba-enc", "umamba-pico"]
