"""VMamba's official files: today's names, the old ones, and which release a file really is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from robustcli.adapters.loading import shapes_of
from robustcli.adapters.vmamba import OFFICIAL, PICO, convert, create, load, recognise
from robustcli.core.errors import UsageError
from robustcli.models.vmamba import VARIANTS
from tests.adapters.files import assert_holds, on_meta, random_state

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


def layout(golden: Path, variant: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the official file of `variant`."""
    content = json.loads((golden / f"{GOLDEN[variant]}.layout.json").read_text())
    return {key: tuple(shape) for key, shape in content.items()}


@pytest.mark.parametrize("variant", GOLDEN)
def test_names_and_shapes_are_the_official_ones(golden: Path, variant: str) -> None:
    assert shapes_of(on_meta(variant).state_dict()) == layout(golden, variant)


@pytest.mark.parametrize("variant", GOLDEN)
def test_an_official_file_is_recognised(golden: Path, variant: str) -> None:
    assert recognise(layout(golden, variant)) == variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_recognised_and_none_is_taken_for_another(variant: str) -> None:
    shapes = shapes_of(on_meta(variant).state_dict())
    assert recognise(shapes) == variant
    assert recognise({**shapes, "classifier.head.weight": (7, 5)}) == variant
    assert recognise({**shapes, "extra": (1,)}) is None
    assert recognise({}) is None


def test_every_tensor_of_a_file_arrives() -> None:
    state = random_state(create("vmamba-pico", {}))
    network = load("vmamba-pico", state, origin="w.pth", arguments={})
    assert_holds(network, state)
    assert not network.training


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
    assert_holds(load("vmamba-t-v0", old, origin="w.pth", arguments=SMALL), state)


def test_a_real_v0_file_is_recognised_by_its_old_names() -> None:
    old = {
        old_name(k): torch.empty(t.shape) for k, t in on_meta("vmamba-t-v0").state_dict().items()
    }
    assert recognise(shapes_of(old)) is None
    assert recognise(shapes_of(convert(old))) == "vmamba-t-v0"


@pytest.mark.parametrize("variant", GOLDEN)
def test_todays_names_pass_unchanged(variant: str) -> None:
    state = on_meta(variant).state_dict()
    assert list(convert(state)) == list(state)


POINTWISE = re.compile(r"\.(in_proj|out_proj|fc1|fc2|reduction|head)\.weight$")


@pytest.mark.parametrize("variant", ["vmamba-t-s1l8", "vmamba-t-v0"])
def test_projections_stored_as_1x1_convolutions_become_matrices(variant: str) -> None:
    state = random_state(create(variant, SMALL))
    stored = {k: t[..., None, None] if POINTWISE.search(k) else t for k, t in state.items()}
    assert sum(tensor.ndim == 4 for tensor in stored.values()) > 4
    assert_holds(load(variant, stored, origin="w.pth", arguments=SMALL), state)


def test_real_convolutions_stay() -> None:
    state = {"layers.0.blocks.0.op.conv2d.weight": torch.ones(4, 1, 1, 1),
             "layers.0.blocks.0.mlp.fc1.weight": torch.ones(4, 2, 3, 3)}  # fmt: skip
    assert [tuple(t.shape) for t in convert(state).values()] == [(4, 1, 1, 1), (4, 2, 3, 3)]


def test_arguments_reach_the_builder() -> None:
    network = create("vmamba-pico", {"num_classes": 3, "depths": (1, 1)})
    assert (network.num_classes, len(network.layers)) == (3, 2)
    assert not network.training


def test_an_argument_that_the_builder_does_not_take() -> None:
    message = (
        r"`vmamba-pico` takes no `--model-arg width=\.\.\.`\.\nIt takes depths, dim, d_state, "
    )
    with pytest.raises(UsageError, match=message):
        create("vmamba-pico", {"width": 3})


@pytest.mark.parametrize("value", [{"depths": 3}, {"num_classes": "ten"}, {"dim": -4}])
def test_a_value_that_the_builder_cannot_use(value: dict[str, object]) -> None:
    (name, said), *_ = value.items()
    message = (
        rf"cannot be built with `--model-arg {name}={said}`\.\nIt says: .*\nIts own are depths="
    )
    with pytest.raises(UsageError, match=message):
        create("vmamba-pico", value)


def test_preprocessing_is_that_of_the_official_evaluation() -> None:
    assert (OFFICIAL.resize, OFFICIAL.crop, OFFICIAL.interpolation) == (256, 224, "bicubic")
    assert (OFFICIAL.mean, OFFICIAL.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (PICO.resize, PICO.crop) == (32, 32)
