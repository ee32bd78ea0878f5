"""The catalogue: every number and address against what it describes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from robustcli.adapters.catalogue import CATALOGUE, FOREGROUND, IN1K, TRAINED_AS, ModelEntry
from robustcli.adapters.model import shapes_only
from robustcli.adapters.networks import BUILDERS
from robustcli.models import cifar_networks, vim, vmamba
from robustcli.models.architectures import ARCHITECTURES
from tests.models import golden

RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download/"
# Typed from VMamba's README and assets/performance.md: published top-1, parameters, asset.
OFFICIAL = {
    "vmamba-t-v0": (82.2, 22_893_448, "%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth"),
    "vmamba-s-v0": (83.5, 44_417_416, "%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth"),
    "vmamba-b-v0": (83.7, 76_254_056, "%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth"),
    "vmamba-t-s2l5": (82.5, 30_705_832, "%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
    "vmamba-s-s2l15": (83.6, 50_147_752, "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"),
    "vmamba-b-s2l15": (83.9, 88_557_800, "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"),
    "vmamba-t-s1l8": (82.6, 30_249_064, "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"),
    "vmamba-s-s1l20": (83.3, 49_012_840, "%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
    "vmamba-b-s1l20": (83.8, 86_614_504, "%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
}
FRONT_PAGE = {"vmamba-t": "vmamba-t-s1l8", "vmamba-s": "vmamba-s-s2l15",
              "vmamba-b": "vmamba-b-s2l15"}  # fmt: skip
VIM_HUB = "https://huggingface.co/hustvl/Vim-"
RELEASED = ("vmamba", RELEASES, "MIT"), ("vim", VIM_HUB, "Apache-2.0")
# Typed from Vim's README: published top-1, parameters, file on the hub.
VIM = {
    "vim-t": (76.1, 7_148_008, "tiny-midclstok/resolve/main/vim_t_midclstok_76p1acc.pth"),
    "vim-t-plus": (78.3, 7_250_344, "tiny-midclstok/resolve/main/vim_t_midclstok_ft_78p3acc.pth"),
    "vim-s": (80.5, 25_796_584, "small-midclstok/resolve/main/vim_s_midclstok_80p5acc.pth"),
    "vim-s-plus": (81.6, 26_001_256, "small-midclstok/resolve/main/vim_s_midclstok_ft_81p6acc.pth"),
    "vim-b": (81.9, 97_598_440, "base-midclstok/resolve/main/vim_b_midclstok_81p9acc.pth"),
}
CIFAR = ("vim", "vit", "resnet9", "cifar-resnet18", "cifar-resnet50")
BARE = {
    "swin-t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin-s": "swin_small_patch4_window7_224.ms_in1k",
    "swin-b": "swin_base_patch4_window7_224.ms_in1k",
    "convnext-t": "convnext_tiny.fb_in1k",
    "convnext-s": "convnext_small.fb_in1k",
    "convnext-b": "convnext_base.fb_in1k",
}


def built(entry: ModelEntry) -> torch.nn.Module:
    """The network without its numbers."""
    if entry.variant in ARCHITECTURES:
        network: torch.nn.Module = golden.published(entry.variant)
        return network
    with shapes_only():
        if entry.builder == "timm":
            return timm.create_model(entry.variant)
        return BUILDERS[entry.builder].create(entry.variant, {})


def test_the_names_are_those_of_the_interface() -> None:
    classifiers = {entry.name for entry in CATALOGUE.values() if entry.task == "cls"}
    bundled = {"vmamba-pico", "resnet-pico"}
    assert {*OFFICIAL, *FRONT_PAGE, *VIM, *BARE, *CIFAR, *bundled} == classifiers
    assert all(name == entry.name for name, entry in CATALOGUE.items())


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_it_is_built_with_these_parameters_and_as_many_classes_as_it_says(
    entry: ModelEntry,
) -> None:
    network = built(entry)
    assert golden.parameters(network) == entry.parameters
    if entry.variant in ARCHITECTURES:
        assert network.num_classes == network.config.num_classes


@pytest.mark.parametrize("name", [*OFFICIAL, *VIM])
def test_a_release_is_as_its_authors_describe_it(name: str) -> None:
    builder, address, licence = RELEASED[name in VIM]
    published, parameters, file = {**OFFICIAL, **VIM}[name]
    entry = CATALOGUE[name]
    assert (entry.published, entry.parameters) == (published, parameters)
    assert entry.weights_url == address + file
    assert entry.weights_file == file.rpartition("/")[2]
    assert (entry.variant, entry.builder, entry.alias) == (name, builder, False)
    assert (entry.pretraining, entry.licence, entry.label_space) == (IN1K, licence, "imagenet-1k")


def test_addresses_that_nobody_confirmed_say_so() -> None:
    unchecked = [entry for entry in CATALOGUE.values() if entry.unchecked]
    assert {entry.name for entry in unchecked} == set(VIM) - {"vim-t"}
    for entry in unchecked:
        folder = str(entry.weights_url).split("/resolve/")[0]
        assert f"its folder is {folder}/tree/main" in entry.unchecked


@pytest.mark.parametrize(("bare", "release"), FRONT_PAGE.items())
def test_the_three_of_the_front_page_are_releases_under_another_name(
    bare: str, release: str
) -> None:
    entry, same = CATALOGUE[bare], CATALOGUE[release]
    assert (entry.variant, entry.alias) == (release, True)
    assert ARCHITECTURES[bare].variant == release
    assert (entry.weights_url, entry.parameters) == (same.weights_url, same.parameters)
    assert entry.published == same.published


@pytest.mark.parametrize(("bare", "variant"), BARE.items())
def test_bare_names_saw_imagenet_1k_only_at_224(bare: str, variant: str) -> None:
    """Timm's own bare names would resolve to weights that saw ImageNet-22k."""
    entry = CATALOGUE[bare]
    assert (entry.variant, entry.pretraining, entry.builder) == (variant, IN1K, "timm")
    config = timm.models.get_pretrained_cfg(variant)
    assert config.input_size == (3, 224, 224)
    assert config.num_classes == 1000
    assert entry.licence.lower() == config.license.lower()
    assert entry.source == f"https://huggingface.co/{config.hf_hub_id}"
    assert entry.weights_url is None
    assert entry.weights_file is None


@pytest.mark.parametrize("name", ["vmamba-pico", "resnet-pico"])
def test_the_bundled_classifiers(name: str) -> None:
    entry = CATALOGUE[name]
    assert entry.label_space == "cifar10"
    assert built(entry).num_classes == 10
    assert entry.asset == f"{name}.safetensors"
    assert entry.weights_url is None
    assert (Path(__file__).parents[2] / entry.source).is_file(), "the recipe that it names"


@pytest.mark.parametrize("name", CIFAR)
def test_the_networks_for_cifar_have_ten_classes_and_no_weights(name: str) -> None:
    entry = CATALOGUE[name]
    assert entry.label_space == "cifar10"
    assert (entry.published, entry.weights_url, entry.asset) == (None, None, None)


def test_names_that_timm_has_too_are_said_to_be_trained_as_another() -> None:
    assert all(timm.is_model(name) for name in TRAINED_AS)
    assert not any(timm.is_model(name) for name in CATALOGUE if CATALOGUE[name].builder == "cifar")
    for name, ours in TRAINED_AS.items():
        assert (
            f"`{name}` in `robust train cls`; the network of timm is `timm:{name}`"
            in CATALOGUE[ours].remark
        )


def test_every_variant_that_can_be_built_has_a_name() -> None:
    releases = {*vmamba.VARIANTS, *vim.VARIANTS, *cifar_networks.VARIANTS}
    named = {e.variant for e in CATALOGUE.values() if e.task == "cls" and e.builder != "timm"}
    assert releases == named


def test_a_run_keeps_the_name_of_its_network() -> None:
    assert replace(CATALOGUE["ulvm_v5"], name="my-run").network == "ulvm_v5"
    smp = replace(CATALOGUE["unet"], name="my-run", builder="smp", variant="Unet/resnet34")
    assert smp.network == "smp:Unet/resnet34"


def test_listing_needs_neither_torch_nor_pydantic() -> None:
    code = "import sys, robustcli.adapters.catalogue; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "timm", "pydantic", "numpy"} & set(done.stdout.split())


# Typed from the paper: Dice as printed, parameters in millions as printed.
TABLE_I = {
    "umambabot_pp": (0.8867, 10.0),
    "umambabot": (0.8799, 9.8),
    "resnet18_seg": (0.8648, 13.9),
    "resnet50_seg": (0.8672, 42.9),
    "segformer": (0.8454, 17.8),
    "unet": (0.8929, 7.8),
    "ulvm": (0.79955, 0.049),
    "ulvm_v1": (0.8409, 0.20),
    "ulvm_v2": (0.8243, 0.042),
    "ulvm_v3": (0.8109, 0.176),
    "ulvm_v4": (0.8548, 1.1),
    "ulvm_v5": (0.8633, 0.7),
    "ulvm_v6": (0.8628, 0.77),
}
BEYOND = {"vmunet", "umamba", "umamba-enc", "umamba-nomamba", "resenc", "umamba-pico", "otsu",
          "swin-umamba", "swin-umamba-d", "swin-umamba-pico"}  # fmt: skip


def test_the_names_are_those_of_the_interface_segmenter_entries() -> None:
    assert {e.name for e in CATALOGUE.values() if e.task == "seg"} == {*TABLE_I, *BEYOND}


@pytest.mark.parametrize("name", TABLE_I)
def test_dice_iou_and_size_are_those_of_the_paper(name: str) -> None:
    """Dice and IoU are means over batches: the IoU is near that of one image with this Dice."""
    dice, millions = TABLE_I[name]
    entry = CATALOGUE[name]
    assert entry.published == dice
    assert entry.parameters / 1e6 == pytest.approx(millions, rel=0.09)  # v1 is printed rounded
    assert entry.licence == "none stated"
    assert entry.source == "https://github.com/lxaw/mamba-tumor-seg"
    assert entry.published_iou == pytest.approx(dice / (2 - dice), abs=0.03)


def test_what_the_paper_and_its_code_disagree_on_is_said() -> None:
    remarked = {name: CATALOGUE[name].remark for name in TABLE_I if CATALOGUE[name].remark}
    assert set(remarked) == {"segformer", "ulvm"}
    for number in ("0.8454", "0.7260", "0.7945", "0.6750"):
        assert number in remarked["segformer"]
    assert "0.79555" in remarked["ulvm"]


def test_segmenters_have_no_published_weights_and_no_classes() -> None:
    for entry in CATALOGUE.values():
        if entry.task == "seg":
            assert (entry.weights_url, entry.label_space) == (None, FOREGROUND)
            assert (entry.asset is not None) == (entry.name == "umamba-pico")
            assert (entry.published is None) == (entry.name in BEYOND)
            assert (entry.published_iou is None) == (entry.name in BEYOND)
        else:
            assert entry.label_space != FOREGROUND
            assert entry.published_iou is None
