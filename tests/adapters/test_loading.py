"""Strict loading, and the message that says what differs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustcli.adapters.loading import differences, load_strictly, shapes_of
from robustcli.core.errors import UsageError


def test_everything_is_copied() -> None:
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    load_strictly(network, other.state_dict(), model="m", origin="o", advice=None)
    torch.testing.assert_close(network.weight, other.weight, rtol=0, atol=0)
    torch.testing.assert_close(network.bias, other.bias, rtol=0, atol=0)


def test_shapes_of() -> None:
    assert shapes_of({"a": torch.ones(2, 3), "b": torch.tensor(1)}) == {"a": (2, 3), "b": ()}


EXPECTED = {"a": (2, 3), "b": (4,), "c": (), "d": (1,), "e": (1,)}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({**EXPECTED, "a": (3, 2)}, "1 of another shape (`a` is (3, 2), not (2, 3))."),
        ({k: v for k, v in EXPECTED.items() if k != "b"}, "1 missing (`b`)."),
        ({**EXPECTED, "x": (1,), "y": (2,)}, "2 unknown (`x`, `y`)."),
        ({}, "5 missing (`a`, `b`, `c`)."),
        (
            {"a": (9,), "x": (1,)},
            "1 of another shape (`a` is (9,), not (2, 3)), 4 missing (`b`, `c`, `d`), "
            "1 unknown (`x`).",
        ),
    ],
)
def test_differences_in_words(given: dict[str, tuple[int, ...]], words: str) -> None:
    assert differences(EXPECTED, given) == f"Of 5 expected tensors: {words}"


def test_the_first_few_are_named_and_all_are_counted() -> None:
    given = {**EXPECTED, **{f"x{number}": (1,) for number in range(100)}}
    assert differences(EXPECTED, given, 2) == "Of 5 expected tensors: 100 unknown (`x0`, `x1`)."


def test_weights_of_another_network_change_nothing() -> None:
    network = nn.Linear(3, 2)
    before = network.weight.clone()
    state = {**nn.Linear(3, 2).state_dict(), "bias": torch.zeros(5)}
    message = (
        r"`w\.pth` does not hold the weights of `resnet50`\.\n"
        r"Of 2 expected tensors: 1 of another shape \(`bias` is \(5,\), not \(2,\)\)\.\n"
        r"Name the model that the file was made for\."
    )
    with pytest.raises(UsageError, match=message):
        load_strictly(network, state, model="resnet50", origin="w.pth", advice=None)
    torch.testing.assert_close(network.weight, before, rtol=0, atol=0)


def test_advice_takes_the_last_line() -> None:
    with pytest.raises(UsageError, match=r"missing \(`weight`, `bias`\)\.\nUse `--model x`\.$"):
        load_strictly(nn.Linear(1, 1), {}, model="m", origin="o", advice="Use `--model x`.")
