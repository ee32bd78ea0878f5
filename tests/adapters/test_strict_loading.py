"""Weights into a network: which set of a file fits, and which family a file is of."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import Tensor, nn

from robustcli.adapters.checkpoint import WEIGHTS_KEYS, Weights
from robustcli.adapters.model import shapes_only
from robustcli.adapters.networks import create, with_weights
from robustcli.adapters.strict_loading import (
    FAMILIES,
    choose,
    classes_in,
    family_of,
    head_classes,
    heads_in,
    load_strictly,
    members,
    recognise,
    shapes_of,
    tensor_differences,
    vmamba_names,
)
from robustcli.core.errors import UsageError
from robustcli.models.architectures import ARCHITECTURES, architecture
from tests.adapters.files import assert_holds, meta_state, old_name, random_state
from tests.models import golden

EXPECTED = {"a": (2, 3), "b": (4,), "c": (), "d": (1,), "e": (1,)}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({**EXPECTED, "a": (3, 2)}, "1 with a different shape (`a` is (3, 2), not (2, 3))."),
        ({k: v for k, v in EXPECTED.items() if k != "b"}, "1 missing (`b`)."),
        ({**EXPECTED, "x": (1,), "y": (2,)}, "2 unknown (`x`, `y`)."),
        ({}, "5 missing (`a`, `b`, `c`)."),
        ({**EXPECTED, **{f"x{n}": (1,) for n in range(100)}}, "100 unknown (`x0`, `x1`, `x2`)."),
        (
            {"a": (9,), "x": (1,)},
            "1 with a different shape (`a` is (9,), not (2, 3)), 4 missing (`b`, `c`, `d`), 1 "
            "unknown (`x`).",
        ),
    ],
)
def test_differences_in_words(value: dict[str, tuple[int, ...]], words: str) -> None:
    assert tensor_differences(EXPECTED, value) == f"Of 5 expected tensors: {words}"


def test_weights_of_another_network_change_nothing() -> None:
    network = nn.Linear(3, 2)
    before = network.weight.clone()
    state = {**nn.Linear(3, 2).state_dict(), "bias": torch.zeros(5)}
    message = (
        r"`w\.pth` does not contain the weights of `resnet50`\.\nOf 2 expected tensors: 1 with a "
        r"different shape \(`bias` is \(5,\), not \(2,\)\)\.\nSpecify the model for which the "
        r"file was created\."
    )
    with pytest.raises(UsageError, match=message):
        load_strictly(network, state, model="resnet50", origin="w.pth", advice=None)
    torch.testing.assert_close(network.weight, before, rtol=0, atol=0)
    with pytest.raises(UsageError, match=r"missing \(`weight`, `bias`\)\.\nUse `--model x`\.$"):
        load_strictly(network, {}, model="m", origin="o", advice="Use `--model x`.")


NETWORK = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
SHAPES = shapes_of(NETWORK.state_dict())


def values(number: float = 1.0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    return {key: torch.full(shape, number) for key, shape in shapes.items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        *(f"{place.key}." for place in WEIGHTS_KEYS),
        "model.module.",
        "net.encoder.",
        "my.own.very.deep.",
    ],
)
def test_a_common_prefix_is_found_and_named(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    choice = choose(under(prefix, values()), SHAPES)
    assert (choice.fits, choice.prefix, choice.left_out) == (True, prefix, ())
    load_strictly(NETWORK, choice.state, model="m", origin="o", advice=None)
    choice.announce("w.ckpt")
    assert caplog.messages == [
        f"`w.ckpt`: the prefix `{prefix}` removed from the names of its tensors."
    ]


def test_what_is_not_below_the_prefix_is_named(caplog: pytest.LogCaptureFixture) -> None:
    choose(values(), SHAPES).announce("w.pth")
    assert caplog.messages == []  # nothing was chosen
    state = {**under("model.", values()), "criterion.weight": torch.ones(2)}
    choice = choose(state, SHAPES)
    choice.announce("w.ckpt")
    assert choice.fits
    assert caplog.messages[0].endswith("; 1 tensor without it skipped (`criterion.weight`).")


@pytest.mark.parametrize(
    ("prefixes", "taken", "value"),
    [
        (("model.", "ema_model."), "ema_model.", 2.0),
        (("teacher.", "student."), "student.", 2.0),
        (("ema.module.", "net."), "ema.module.", 1.0),
    ],
)
def test_of_several_prefixes_the_averaged_one_is_taken_and_both_are_named(
    prefixes: tuple[str, str], taken: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    state = {**under(prefixes[0], values(1)), **under(prefixes[1], values(2))}
    choice = choose(state, SHAPES)
    choice.announce("w.ckpt")
    assert choice.prefix == taken
    assert {float(tensor.max()) for tensor in choice.state.values()} == {value}
    assert all(f"`{prefix}*`" in caplog.text for prefix in prefixes)


def test_the_set_that_fits_is_taken_and_the_others_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    generator = values(1, {"deconv.weight": (3, 3), "a": (1,), "b": (1,), "c": (1,)})
    state = Weights(generator, "model", other_sets=[Weights(values(2), "net")])
    choice = choose(state, SHAPES)
    choice.announce("w.pth")
    assert (choice.fits, choice.weights.key_path) == (True, "net")
    assert caplog.messages == ["`w.pth`: the weights `net` are used, not `model`."]


def test_the_larger_network_of_the_same_names_is_not_taken() -> None:
    wide = {key: tuple(2 * size for size in shape) for key, shape in SHAPES.items()}
    choice = choose({**under("teacher.", values(1)), **under("student.", values(2, wide))}, SHAPES)
    assert (choice.fits, choice.prefix) == (True, "teacher.")


def test_a_prefix_never_hides_what_is_missing() -> None:
    state = under("model.", values())
    del state["model.3.bias"]
    choice = choose(state, SHAPES)
    assert not choice.fits
    with pytest.raises(UsageError, match=r"1 missing \(`3\.bias`\)"):
        load_strictly(NETWORK, choice.state, model="m", origin="o", advice=None)


def test_files_from_before_batches_were_counted_as_in_torch() -> None:
    """Torch's own strict loading is the judge, with and without the counters."""
    old = {key: tensor for key, tensor in values().items() if "num_batches" not in key}
    for state in (old, values()):
        NETWORK.load_state_dict(state, strict=True)
        load_strictly(NETWORK, state, model="m", origin="o", advice=None)
        assert choose(state, SHAPES).fits
    for lacking in ("1.running_mean", "1.weight"):
        state = {key: tensor for key, tensor in old.items() if key != lacking}
        with pytest.raises(RuntimeError, match="Missing key"):
            NETWORK.load_state_dict(state, strict=True)
        with pytest.raises(UsageError, match=rf"1 missing \(`{lacking}`\)\."):
            load_strictly(NETWORK, state, model="m", origin="o", advice=None)


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224", "levit_128s"])
def test_the_classes_of_a_head(name: str) -> None:
    with shapes_only():
        network, other = timm.create_model(name), timm.create_model(name, num_classes=4)
    state = other.state_dict()
    assert head_classes(network, state) == 4
    headless = {key: t for key, t in state.items() if not key.startswith(heads_in(network))}
    assert head_classes(network, headless) is None


# Their official files hold copies of tensors; those of the others have our names and no more, as
# tests/models show.
OFFICIAL = {
    "umamba": "UMambaBot_2d", "umamba-enc": "UMambaEnc_2d", "umambabot": "umambabot",
    "umambabot_pp": "umambabot_pp", "vmamba-b-v0": "vmamba_base_v0", "vim-s": "vim_small",
}  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_file_is_recognised(name: str) -> None:
    """Its layout is of the original class, with every extra copy of a tensor."""
    layout = golden.layout(OFFICIAL[name])
    state = {key: torch.empty(shape, device="meta") for key, shape in layout.items()}
    assert recognise(state) == name


NAMED_AS_TIMMS = [name for name, a in ARCHITECTURES.items() if a.family == "cifar-resnet"]
OF_THEIR_NAMES = [name for name in ARCHITECTURES if name not in NAMED_AS_TIMMS]


def test_names_that_timms_networks_have_too_say_nothing() -> None:
    assert recognise({}) is None
    assert classes_in({"conv1.weight": (3, 3)}, "ulvm") is None
    for name in NAMED_AS_TIMMS:
        assert family_of(meta_state(name)) is None
        assert recognise(meta_state(name)) is None


@pytest.mark.parametrize("name", OF_THEIR_NAMES)
def test_every_network_is_recognised_and_none_is_taken_for_another(name: str) -> None:
    state, family = meta_state(name), ARCHITECTURES[name].family
    assert family_of(state) == family
    assert recognise(state) == ARCHITECTURES[name].variant
    assert recognise({**state, "extra": torch.empty(1)}) is None


ONE_OF_EACH_FAMILY = {entry.family: name for name, entry in ARCHITECTURES.items()}.values()


@pytest.mark.parametrize("name", ["swin-umamba", *ONE_OF_EACH_FAMILY])
def test_whatever_the_number_of_classes(name: str) -> None:
    with shapes_only():
        state = architecture(name).build(num_classes=7).state_dict()
    if name in OF_THEIR_NAMES:
        assert recognise(state) == ARCHITECTURES[name].variant
    assert classes_in(shapes_of(state), ARCHITECTURES[name].family) == 7


def test_every_family_of_the_registry_is_described() -> None:
    assert {a.family for a in ARCHITECTURES.values()} == set(FAMILIES)
    assert "vmamba-t" not in members("vmamba")
    assert members("umamba") == ["umamba", "umamba-enc", "umamba-nomamba", "umamba-pico"]


# What the smallest of all builds in milliseconds.
SMALL = {"depths": (1, 1), "dim": 16, "num_classes": 3}


def test_the_old_names_of_v0_files_are_converted() -> None:
    state = random_state(create("vmamba-t-v0", SMALL))
    old = {old_name(key): tensor for key, tensor in state.items()}
    assert not [key for key in old if key.startswith("classifier.") or ".op." in key]
    assert {"patch_embed.proj.weight", "layers.0.blocks.0.ln_1.bias", "norm.weight", "head.bias",
            "layers.1.blocks.0.self_attention.out_norm.weight"} <= set(old)  # fmt: skip
    assert_holds(with_weights("vmamba-t-v0", old, origin="w.pth", options=SMALL), state)


def test_a_real_v0_file_is_recognised_by_its_old_names() -> None:
    old = {old_name(key): t for key, t in meta_state("vmamba-t-v0").items()}
    assert recognise(old) == "vmamba-t-v0"


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
