"""Networks of ours by name, with the weights of any file of their own project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from robustcli.adapters import networks
from robustcli.adapters.model import shapes_only
from robustcli.adapters.networks import create, create_model, with_weights
from robustcli.core.errors import UsageError
from robustcli.models.architectures import architecture
from robustcli.models.umamba import canonical_key, with_aliases
from robustcli.models.vim import resize_positions
from robustcli.models.vmamba import build
from tests.adapters.files import assert_holds, meta_state, random_state
from tests.models import golden

TIMM = "test_resnet.r160_in1k"


def official(name: str, rule: golden.Rule = golden.strong) -> dict[str, Tensor]:
    """The state dict of the original class `name`, copies included, filled by `rule`."""
    state = {}
    for key, shape in golden.layout(name).items():
        value = np.asarray(rule(canonical_key(key), shape), np.float32)
        state[key] = torch.from_numpy(value)
    return state


def nnunet(state: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint as nnU-Net writes it."""
    return {
        "network_weights": state,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.8)], "ema_fg_dice": [np.float64(0.7)]},
        "_best_ema": np.float64(0.81),
        "current_epoch": 1000,
        "init_args": {"fold": "all", "device": torch.device("cuda"), "unpack_dataset": True},
        "trainer_name": "nnUNetTrainerUMambaBot",
        "inference_allowed_mirroring_axes": (0, 1),
    }


# Name, golden, how its project saves, input shape. The outputs, names and shapes of other networks
# are compared in tests/models, other ways to save in test_checkpoint.py.
FILES = [
    ("umamba", "UMambaBot_2d", nnunet, (1, 3, 256, 256)),
    ("ulvm", "ultralight_vm_unet", lambda s: {f"module.{k}": t for k, t in s.items()},
     (1, 3, 256, 256)),
    pytest.param("swin-umamba", "swin_umamba", nnunet, (1, 3, 64, 96), marks=pytest.mark.slow),
    pytest.param("swin-umamba-d", "swin_umamba_d", nnunet, (1, 3, 64, 96), marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layout", "wrap", "shape"), FILES)
def test_a_file_as_its_project_writes_it_gives_the_official_outputs(
    tmp_path: Path, name: str, layout: str, wrap: Any, shape: tuple[int, ...]
) -> None:
    stored = golden.arrays(f"{layout}.strong.npz")
    torch.save(wrap(official(layout)), tmp_path / "w.pth")
    options = {"deep_supervision": True} if wrap is nnunet else {}
    with torch.no_grad():
        outputs = create_model(name, weights=tmp_path / "w.pth", **options)(golden.images(*shape))
    for number, output in enumerate(outputs if isinstance(outputs, list) else [outputs]):
        step = int(stored[f"out{number}_stride"])
        thinned = output[:, :, ::step, ::step]
        assert golden.distance(thinned, stored[f"out{number}"]) <= 1e-4


def test_float32_on_the_cpu_whatever_the_default_is() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        network = create_model("vmamba-pico")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {(p.dtype, p.device.type) for p in network.parameters()} == {(torch.float32, "cpu")}


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    state = {key: t.half() for key, t in create_model("ulvm_v2").state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    network = create_model("ULVM-v2", weights=str(tmp_path / "w.safetensors"))
    assert_holds(network, {key: tensor.float() for key, tensor in state.items()})


def test_load_then_reset_the_classifier(tmp_path: Path) -> None:
    """The way out that the message names."""
    torch.save(create_model("vmamba-pico").state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"call `model\.reset_classifier\(3\)`"):
        create_model("vmamba-pico", weights=tmp_path / "w.pth", num_classes=3)
    network = create_model("vmamba-pico", weights=tmp_path / "w.pth")
    network.reset_classifier(3)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_timms_models_too(tmp_path: Path) -> None:
    network = create_model("test_resnet.r160_in1k", num_classes=4)
    assert not network.training
    torch.save(network.state_dict(), tmp_path / "w.pth")
    again = create_model("test_resnet.r160_in1k", weights=tmp_path / "w.pth", num_classes=4)
    torch.testing.assert_close(network.state_dict(), again.state_dict(), rtol=0, atol=0)
    with shapes_only():
        short = create_model("convnext-t")
    assert type(short) is timm.models.ConvNeXt


def test_a_timm_name_without_tag_is_ambiguous() -> None:
    with pytest.raises(
        UsageError, match=r"(?s)`resnet34` is a timm name without its pretraining.*Add the tag"
    ):
        create_model("resnet34")


@pytest.mark.parametrize("name", ["test_resnet", "timm/test_resnet.r160_in1k", "vmamba-pico"])
def test_the_head_in_a_file_says_how_many_classes_there_are(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours = name == "vmamba-pico"
    saved = create_model(name, num_classes=4) if ours else timm.create_model(TIMM, num_classes=4)
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "w.pth")
    caplog.clear()
    network = create_model(name, weights=tmp_path / "w.pth")
    torch.testing.assert_close(network.state_dict(), saved.state_dict(), rtol=0, atol=0)
    assert "its head has 4 classes" in caplog.text


def test_weights_that_fit_are_compared_with_no_other_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Building all networks of the family took longer than loading the weights."""
    monkeypatch.setattr(networks, "recognise", None)  # an error if it is called
    state = create("vmamba-pico", {}).state_dict()
    network = with_weights("vmamba-pico", state, origin="w.pth", options={})
    assert_holds(network, state)


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match=r"No model is called `umanba`\.\nDid you mean `umamba`"):
        create_model("umanba")


SMALL = {name: options for name, (options, _) in golden.SMALL.items()}


@pytest.mark.parametrize("name", SMALL)
def test_every_tensor_of_a_file_arrives(name: str) -> None:
    state = random_state(create(name, SMALL[name]))
    network = with_weights(name, state, origin="w.pth", options=SMALL[name])
    assert_holds(network, state)
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["umamba", "umamba-enc", "umambabot_pp", "resenc"])
def test_the_copies_in_official_files_are_understood(name: str) -> None:
    state = random_state(create(name, SMALL[name]))
    assert len(with_aliases(state)) > len(state)
    assert_holds(with_weights(name, with_aliases(state), origin="w", options=SMALL[name]), state)


def test_a_vims_positions_are_resized_to_the_image_size_that_is_given() -> None:
    state = random_state(create("vim", {"depth": 1}))
    network = with_weights("vim", state, origin="w", options={"depth": 1, "img_size": 48})
    expected = resize_positions(state["pos_embed"], (12, 12))
    assert_holds(network, {**state, "pos_embed": expected})
    assert network(torch.zeros(1, 3, 48, 48)).shape == (1, 10)


def test_options_reach_the_builder() -> None:
    network = create("VMamba_Pico", {"num_classes": 3, "depths": [1, 1]})
    assert (network.num_classes, len(network.layers)) == (3, 2)
    assert not network.training


@pytest.mark.parametrize("name", SMALL)
def test_an_option_that_the_builder_does_not_take(name: str) -> None:
    message = rf"`{name}` has no option `num_clases=\.\.\.`\.\nDid you mean `num_classes`\?\nIts "
    with pytest.raises(UsageError, match=message):
        create(name, {"num_clases": 3})


@pytest.mark.parametrize("value", [{"depths": 3}, {"num_classes": "ten"}, {"dim": -4}])
def test_a_value_that_the_builder_cannot_use(value: dict[str, object]) -> None:
    (name, shown), *_ = value.items()
    message = rf"`vmamba-pico` cannot be built with `{name}={shown}`\.\nThe error is: .*\nCompare"
    with pytest.raises(UsageError, match=message):
        create("vmamba-pico", value)


def test_the_first_differing_keys_and_shapes_are_named() -> None:
    with pytest.raises(UsageError) as caught:
        with_weights("vmamba-t-s1l8", meta_state("vmamba-t-s2l5"), origin="w.pth", options={})
    assert "`layers.0.blocks.0.op.x_proj_weight` is (4, 8, 192), not (4, 8, 96)" in caught.value.why
    assert "missing (`layers.2.blocks.5.norm.weight`" in caught.value.why


def test_a_file_of_no_release_gets_no_name() -> None:
    with pytest.raises(
        UsageError, match=r"Of \d+ expected.*\nSpecify the model for which the file was"
    ):
        with_weights("vmamba-pico", {"x": torch.ones(1)}, origin="w.pth", options={})


def test_another_number_of_classes_is_told() -> None:
    """Of a transposed convolution too, whose weight begins with the inputs."""
    resnet = create("resnet18_seg", {"num_classes": 3}).state_dict()
    with pytest.raises(UsageError, match=r"with 3 classes: set `num_classes=3`"):
        with_weights("resnet18_seg", resnet, origin="w.pth", options={})
    state = random_state(build("vmamba-pico", num_classes=37))
    message = (
        r"`classifier\.head\.weight` is \(37, 128\), not \(10, 128\).*\nThey are weights of this "
        r"model with 37 classes: set `num_classes=37` \(`--model-arg num_cla"
    )
    with pytest.raises(UsageError, match=message):
        with_weights("vmamba-pico", state, origin="w.pth", options={})
    assert_holds(
        with_weights("vmamba-pico", state, origin="w.pth", options={"num_classes": 37}), state
    )


def test_a_changed_network_and_a_published_file() -> None:
    state = random_state(build("vmamba-pico"))
    with pytest.raises(UsageError, match="weights of `vmamba-pico` as published: omit the options"):
        with_weights("vmamba-pico", state, origin="w.pth", options={"d_state": 2})


def test_a_backbone_without_head() -> None:
    state = random_state(build("vmamba-pico"))
    body = {key: tensor for key, tensor in state.items() if not key.startswith("classifier.head.")}
    with pytest.raises(
        UsageError, match=r"2 missing \(`classifier\.head\.weight`.*\nThey have no head"
    ):
        with_weights("vmamba-pico", body, origin="w.pth", options={})


FOREIGN = [
    ("vmamba-t-s1l8", "vmamba-t-s2l5"), ("vmamba-pico", "vmamba-s-s1l20"), ("vmamba-pico", "vim-t"),
    ("vim-t-plus", "vim-t"), ("vim", "vmamba-t-v0"), ("umamba", "umamba-enc"),
    ("umambabot", "umambabot_pp"), ("ulvm_v5", "ulvm_v4"), ("unet", "ulvm"),
    ("segformer", "umamba"), ("swin-umamba-pico", "swin-umamba-d"),
]  # fmt: skip


@pytest.mark.parametrize(("named", "really"), FOREIGN)
def test_a_file_of_another_network_is_told_by_name(named: str, really: str) -> None:
    """Every network is recognised in test_strict_loading.py."""
    message = (
        rf"`w\.pth` does not contain the weights of `{named}`\.\nOf \d+ expected tensors: \d+ "
        rf".*\nThese are the weights of `{really}`: use this name\."
    )
    with pytest.raises(UsageError, match=message):
        with_weights(named, meta_state(really), origin="w.pth", options={})


def test_a_vim_of_coarser_patches_is_not_stretched_over_finer_ones() -> None:
    """`img_size` resizes positions, but a stride-16 file is no file of the stride-8 network."""
    with pytest.raises(UsageError, match="These are the weights of `vim-t`: use this name"):
        with_weights("vim-t-plus", meta_state("vim-t"), origin="w.pth", options={"img_size": 224})


def test_a_file_of_no_member_gets_its_familys_name_and_advice() -> None:
    other = architecture("vim").build(depth=2).state_dict()
    with pytest.raises(UsageError, match=r"It is a file of Vim \(vim-t, vim-t-plus"):
        with_weights("ulvm", other, origin="w.pth", options={})
    with pytest.raises(
        UsageError, match="matches none of the published networks: pass the options"
    ):
        with_weights("vim", other, origin="w.pth", options={})
    shallow = architecture("umamba").build(features=(4, 8), strides=(1, 2)).state_dict()
    with pytest.raises(UsageError, match=r"plan_options` reads them from"):
        with_weights("umamba", shallow, origin="w.pth", options={})


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("vmamba-pico", r"call `model\.reset_classifier\(3\)`"),
        ("vim", r"call `model\.reset_classifier\(3\)`"),
        ("ulvm", r"replace `final`"),
        ("vmunet", r"replace `vmunet\.final_conv`"),
        ("umamba", r"replace `decoder\.seg_layers`"),
        ("unet", r"replace `conv`"),
        ("swin-umamba", r"replace `out_layers`"),
        ("resnet18_seg", r"replace `decoder\.6`"),
    ],
)
def test_asking_for_other_classes_than_the_files_names_the_way_out(name: str, way_out: str) -> None:
    options = SMALL[name]
    with shapes_only():
        network = architecture(name).build(**options)
    classes = network.num_classes
    message = rf"Load them with their own `num_classes={classes}`, then {way_out} and train it"
    with pytest.raises(UsageError, match=message):
        with_weights(
            name, network.state_dict(), origin="w.pth", options={**options, "num_classes": 3}
        )


def test_a_vim_for_another_image_size_says_how_to_ask_for_it() -> None:
    state = architecture("vim").build(img_size=64, depth=1).state_dict()
    with pytest.raises(UsageError, match="for images with 16 x 16 patches: set `img_size`"):
        with_weights("vim", state, origin="w.pth", options={"depth": 1})
