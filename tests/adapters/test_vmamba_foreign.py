"""Files of another VMamba than the one that was named: the message says which."""

from __future__ import annotations

import pytest
import torch

from robustcli.adapters.loading import shapes_of
from robustcli.adapters.vmamba import load
from robustcli.core.errors import UsageError
from robustcli.models.vmamba import build
from tests.adapters.files import assert_holds, empty, on_meta, random_state


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
        rf"These are the weights of `{really}`: use `--model {really}`\."
    )
    with pytest.raises(UsageError, match=message):
        load(named, state, origin="w.pth", arguments={})


def test_the_first_differing_keys_and_shapes_are_named() -> None:
    state = empty(shapes_of(on_meta("vmamba-t-s2l5").state_dict()))
    with pytest.raises(UsageError) as caught:
        load("vmamba-t-s1l8", state, origin="w.pth", arguments={})
    assert "`layers.0.blocks.0.op.x_proj_weight` is (4, 8, 192), not (4, 8, 96)" in caught.value.why
    assert "missing (`layers.2.blocks.5.norm.weight`" in caught.value.why


def test_a_file_of_no_release_gets_no_name() -> None:
    with pytest.raises(
        UsageError, match=r"Of \d+ expected.*\nName the model that the file was made"
    ):
        load("vmamba-pico", {"x": torch.ones(1)}, origin="w.pth", arguments={})


def test_another_number_of_classes_is_told() -> None:
    state = random_state(build("vmamba-pico", num_classes=37))
    message = (
        r"`classifier\.head\.weight` is \(37, 128\), not \(10, 128\).*\n"
        r"They are of this model with 37 classes: use `--model-arg num_classes=37` and name them"
    )
    with pytest.raises(UsageError, match=message):
        load("vmamba-pico", state, origin="w.pth", arguments={})
    assert_holds(load("vmamba-pico", state, origin="w.pth", arguments={"num_classes": 37}), state)


def test_a_changed_network_and_a_published_file() -> None:
    state = random_state(build("vmamba-pico"))
    with pytest.raises(
        UsageError, match="weights of `vmamba-pico` as published: leave out `--model"
    ):
        load("vmamba-pico", state, origin="w.pth", arguments={"d_state": 2})


def test_a_backbone_without_head() -> None:
    state = random_state(build("vmamba-pico"))
    body = {key: tensor for key, tensor in state.items() if not key.startswith("classifier.head.")}
    with pytest.raises(
        UsageError, match=r"2 missing \(`classifier\.head\.weight`.*\nName the model"
    ):
        load("vmamba-pico", body, origin="w.pth", arguments={})
