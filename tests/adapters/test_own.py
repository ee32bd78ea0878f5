"""Our networks by name, fresh or with weights."""

from __future__ import annotations

import pytest
import torch

from robustcli.adapters.own import create, load
from robustcli.core.errors import UsageError
from robustcli.models.aliases import with_aliases
from robustcli.models.positions import resize_positions
from tests.adapters.files import assert_holds, random_state

SMALL: dict[str, dict[str, object]] = {
    "vmamba-pico": {},
    "vmamba-t-v0": {"depths": (1, 1), "dim": 16},
    "vim": {"depth": 1},
    "umamba": {"features": (4, 8), "strides": (1, 2)},
    "umamba-enc": {"features": (4, 8), "strides": (1, 2), "patch_size": 16},
    "vmunet": {"depths": (1, 1), "depths_decoder": (1, 1), "dim": 16},
    "ulvm_v4": {},
    "umambabot_pp": {"features": (8, 16)},
    "unet": {"features": (4, 8)},
    "segformer": {"depths": (1, 1, 1, 1)},
    "resnet18_seg": {},
}


@pytest.mark.parametrize("name", SMALL)
def test_every_tensor_of_a_file_arrives(name: str) -> None:
    state = random_state(create(name, SMALL[name]))
    network = load(name, state, origin="w.pth", options=SMALL[name])
    assert_holds(network, state)
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["umamba", "umamba-enc", "umambabot_pp"])
def test_the_copies_in_official_files_are_understood(name: str) -> None:
    state = random_state(create(name, SMALL[name]))
    assert len(with_aliases(state)) > len(state)
    assert_holds(load(name, with_aliases(state), origin="w", options=SMALL[name]), state)


def test_copies_that_differ_are_refused() -> None:
    state = with_aliases(random_state(create("umamba", SMALL["umamba"])))
    key = "decoder.encoder.stem.0.conv1.weight"
    with pytest.raises(UsageError, match=r"two versions of `encoder\.stem\.0\.conv1\.weight`"):
        load("umamba", {**state, key: state[key] + 1}, origin="w", options=SMALL["umamba"])


def test_a_vims_positions_are_resized_to_the_image_size_that_is_given() -> None:
    state = random_state(create("vim", {"depth": 1}))
    network = load("vim", state, origin="w", options={"depth": 1, "img_size": 48})
    expected = resize_positions(state["pos_embed"], (12, 12))
    assert_holds(network, {**state, "pos_embed": expected})
    assert network(torch.zeros(1, 3, 48, 48)).shape == (1, 10)


def test_options_reach_the_builder() -> None:
    network = create("VMamba_Pico", {"num_classes": 3, "depths": [1, 1]})
    assert (network.num_classes, len(network.layers)) == (3, 2)
    assert not network.training


@pytest.mark.parametrize("name", SMALL)
def test_an_option_that_the_builder_does_not_take(name: str) -> None:
    message = rf"`{name}` takes no `num_clases=\.\.\.`\.\nDid you mean `num_classes`\?\nIt takes "
    with pytest.raises(UsageError, match=message):
        create(name, {"num_clases": 3})


@pytest.mark.parametrize("value", [{"depths": 3}, {"num_classes": "ten"}, {"dim": -4}])
def test_a_value_that_the_builder_cannot_use(value: dict[str, object]) -> None:
    (name, said), *_ = value.items()
    message = rf"`vmamba-pico` cannot be built with `{name}={said}`\.\nIt says: .*\nCompare with"
    with pytest.raises(UsageError, match=message):
        create("vmamba-pico", value)
