"""Files of another network than the one that was named: the message says which."""

from __future__ import annotations

import pytest
import torch

from robustcli.adapters.loading import shapes_of
from robustcli.adapters.own import load
from robustcli.core.errors import UsageError
from robustcli.models.registry import architecture
from robustcli.models.vmamba import build
from tests.adapters.files import assert_holds, empty, meta_state, on_meta, random_state


@pytest.mark.parametrize(
    ("named", "really"),
    [("vmamba-t-s1l8", "vmamba-t-s2l5"), ("vmamba-t-s2l5", "vmamba-t-s1l8"),
     ("vmamba-t-s1l8", "vmamba-t-v0"), ("vmamba-t-v0", "vmamba-b-s2l15"),
     ("vmamba-pico", "vmamba-s-s1l20")],
)  # fmt: skip
def test_another_release_is_told_by_name(named: str, really: str) -> None:
    state = empty(shapes_of(on_meta(really).state_dict()))
    message = (
        rf"`w\.pth` does not hold the weights of `{named}`\.\nOf \d+ expected tensors: \d+ .*\n"
        rf"These are the weights of `{really}`: use that name\."
    )
    with pytest.raises(UsageError, match=message):
        load(named, state, origin="w.pth", options={})


def test_the_first_differing_keys_and_shapes_are_named() -> None:
    state = empty(shapes_of(on_meta("vmamba-t-s2l5").state_dict()))
    with pytest.raises(UsageError) as caught:
        load("vmamba-t-s1l8", state, origin="w.pth", options={})
    assert "`layers.0.blocks.0.op.x_proj_weight` is (4, 8, 192), not (4, 8, 96)" in caught.value.why
    assert "missing (`layers.2.blocks.5.norm.weight`" in caught.value.why


def test_a_file_of_no_release_gets_no_name() -> None:
    with pytest.raises(
        UsageError, match=r"Of \d+ expected.*\nName the model that the file was made"
    ):
        load("vmamba-pico", {"x": torch.ones(1)}, origin="w.pth", options={})


def test_another_number_of_classes_is_told() -> None:
    state = random_state(build("vmamba-pico", num_classes=37))
    message = (
        r"`classifier\.head\.weight` is \(37, 128\), not \(10, 128\).*\n"
        r"They are of this model with 37 classes: set `num_classes=37` \(`--model-arg num_cla"
    )
    with pytest.raises(UsageError, match=message):
        load("vmamba-pico", state, origin="w.pth", options={})
    assert_holds(load("vmamba-pico", state, origin="w.pth", options={"num_classes": 37}), state)


def test_a_changed_network_and_a_published_file() -> None:
    state = random_state(build("vmamba-pico"))
    with pytest.raises(
        UsageError, match="weights of `vmamba-pico` as published: leave out the options"
    ):
        load("vmamba-pico", state, origin="w.pth", options={"d_state": 2})


def test_a_backbone_without_head() -> None:
    state = random_state(build("vmamba-pico"))
    body = {key: tensor for key, tensor in state.items() if not key.startswith("classifier.head.")}
    with pytest.raises(
        UsageError, match=r"2 missing \(`classifier\.head\.weight`.*\nThey have no head"
    ):
        load("vmamba-pico", body, origin="w.pth", options={})


FOREIGN = [
    ("vmamba-t", "vim-t", "vim-t"), ("vim-s", "vmamba-s-v0", "vmamba-s-v0"),
    ("vmunet", "vmamba-s-v0", "vmamba-s-v0"), ("vmamba-s-v0", "vmunet", "vmunet"),
    ("umamba", "umamba-enc", "umamba-enc"), ("umamba-enc", "umamba", "umamba"),
    ("umamba", "umambabot", "umambabot"), ("umambabot", "umambabot_pp", "umambabot_pp"),
    ("ulvm_v5", "ulvm_v4", "ulvm_v4"), ("ulvm", "vim", "vim"), ("vim", "ulvm_v1", "ulvm_v1"),
    ("vim-t-plus", "vim-t", "vim-t"), ("unet", "ulvm", "ulvm"), ("ulvm", "unet", "unet"),
    ("resnet18_seg", "resnet50_seg", "resnet50_seg"), ("segformer", "umamba", "umamba"),
    ("umambabot", "segformer", "segformer"),
]  # fmt: skip


@pytest.mark.parametrize(("named", "file", "told"), FOREIGN)
def test_a_file_of_any_family_is_told_by_name(named: str, file: str, told: str) -> None:
    state = meta_state(file)
    with pytest.raises(UsageError, match=rf"These are the weights of `{told}`: use that name"):
        load(named, state, origin="w.pth", options={})


def test_a_vim_of_coarser_patches_is_not_stretched_over_finer_ones() -> None:
    """`img_size` resizes positions, but a stride-16 file is no file of the stride-8 network."""
    with pytest.raises(UsageError, match="These are the weights of `vim-t`: use that name"):
        load("vim-t-plus", meta_state("vim-t"), origin="w.pth", options={"img_size": 224})


def test_a_file_of_no_member_gets_its_familys_name_and_advice() -> None:
    other = architecture("vim").build(depth=2).state_dict()
    with pytest.raises(UsageError, match=r"It is a file of Vim \(vim-t, vim-t-plus"):
        load("ulvm", other, origin="w.pth", options={})
    with pytest.raises(UsageError, match="fits none of them as published: give the options"):
        load("vim", other, origin="w.pth", options={})
    shallow = architecture("umamba").build(features=(4, 8), strides=(1, 2)).state_dict()
    with pytest.raises(UsageError, match=r"plan_options` reads them from"):
        load("umamba", shallow, origin="w.pth", options={})


@pytest.mark.parametrize(
    ("name", "options", "way_out"),
    [
        ("vmamba-pico", {}, r"call `model\.reset_classifier\(3\)`"),
        ("vim", {"depth": 1}, r"call `model\.reset_classifier\(3\)`"),
        ("ulvm", {}, r"replace `final`"),
        ("vmunet", {}, r"replace `vmunet\.final_conv`"),
        ("umamba", {"features": (4, 8), "strides": (1, 2)}, r"replace `decoder\.seg_layers`"),
        ("unet", {"features": (4, 8)}, r"replace `conv`"),
        ("resnet18_seg", {}, r"replace `decoder\.6`"),
    ],
)
def test_asking_for_other_classes_than_the_files_names_the_way_out(
    name: str, options: dict[str, object], way_out: str
) -> None:
    with torch.device("meta"):
        network = architecture(name).build(**options)
    own = network.num_classes
    message = rf"Load them with their own `num_classes={own}`, then {way_out} and train it"
    with pytest.raises(UsageError, match=message):
        load(name, network.state_dict(), origin="w.pth", options={**options, "num_classes": 3})


def test_a_vim_for_another_image_size_says_how_to_ask_for_it() -> None:
    state = architecture("vim").build(img_size=64, depth=1).state_dict()
    with pytest.raises(UsageError, match="for images with 16 x 16 patches: give `img_size`"):
        load("vim", state, origin="w.pth", options={"depth": 1})
