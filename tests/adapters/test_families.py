"""Which network a file is of, from its names and shapes alone."""

from __future__ import annotations

import re

import pytest
import torch

from robustcli.adapters.loading import (
    FAMILIES,
    classes_in,
    family_of,
    members,
    recognise,
    shapes_of,
    vmamba_names,
)
from robustcli.adapters.networks import create, with_weights
from robustcli.models.architectures import ARCHITECTURES, architecture
from robustcli.models.umamba import with_aliases
from tests.adapters.files import assert_holds, meta_state, on_meta, random_state
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


GOLDEN = {
    f"vmamba-{size[0]}-{kind}": f"vmamba_{size}_{kind}"
    for size, kinds in {
        "tiny": ("s1l8", "s2l5", "v0"),
        "small": ("s2l15", "s1l20", "v0"),
        "base": ("s2l15", "s1l20", "v0"),
    }.items()
    for kind in kinds
}
# What the smallest of all builds in milliseconds.
SMALL = {"depths": (1, 1), "dim": 16, "num_classes": 3}


OLD = (
    ("patch_embed.0.", "patch_embed.proj."),
    ("patch_embed.2.", "patch_embed.norm."),
    ("classifier.norm.", "norm."),
    ("classifier.head.", "head."),
)


def old_name(key: str) -> str:
    """The name in a v0 file of what is called `key` today (VMamba issue 53)."""
    key = re.sub(r"^(layers\.\d+\.blocks\.\d+)\.norm\.", r"\1.ln_1.", key)
    key = re.sub(r"^(layers\.\d+\.blocks\.\d+)\.op\.", r"\1.self_attention.", key)
    for new, old in OLD:
        key = old + key.removeprefix(new) if key.startswith(new) else key
    return key


def test_the_old_names_of_v0_files_are_converted() -> None:
    state = random_state(create("vmamba-t-v0", SMALL))
    old = {old_name(key): tensor for key, tensor in state.items()}
    assert not [key for key in old if key.startswith("classifier.") or ".op." in key]
    assert {"patch_embed.proj.weight", "layers.0.blocks.0.ln_1.bias", "norm.weight", "head.bias",
            "layers.1.blocks.0.self_attention.out_norm.weight"} <= set(old)  # fmt: skip
    assert_holds(with_weights("vmamba-t-v0", old, origin="w.pth", options=SMALL), state)


def test_a_real_v0_file_is_recognised_by_its_old_names() -> None:
    old = {old_name(key): t for key, t in on_meta("vmamba-t-v0").state_dict().items()}
    assert recognise(old) == "vmamba-t-v0"


@pytest.mark.parametrize("variant", GOLDEN)
def test_todays_names_pass_unchanged(variant: str) -> None:
    state = on_meta(variant).state_dict()
    assert list(vmamba_names(state)) == list(state)


POINTWISE = re.compile(r"\.(in_proj|out_proj|fc1|fc2|reduction|head)\.weight$")


@pytest.mark.parametrize("variant", ["vmamba-t-s1l8", "vmamba-t-v0"])
def test_projections_stored_as_1x1_convolutions_become_matrices(variant: str) -> None:
    state = random_state(create(variant, SMALL))
    stored = {k: t[..., None, None] if POINTWISE.search(k) else t for k, t in state.items()}
    assert sum(tensor.ndim == 4 for tensor in stored.values()) > 4
    assert_holds(with_weights(variant, stored, origin="w.pth", options=SMALL), state)


def test_real_convolutions_stay() -> None:
    state = {"layers.0.blocks.0.op.conv2d.weight": torch.ones(4, 1, 1, 1),
             "layers.0.blocks.0.mlp.fc1.weight": torch.ones(4, 2, 3, 3)}  # fmt: skip
    assert [tuple(t.shape) for t in vmamba_names(state).values()] == [(4, 1, 1, 1), (4, 2, 3, 3)]
