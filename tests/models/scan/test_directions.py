"""Any tuple of directions: the backends against the reference, the reference against loops."""

import itertools
import math

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models.scan import cpu, reference, ss2d_scan
from robustcli.models.scan.base import CODES, CROSS, packed, pixel_orders
from tests.models.scan.cases import assert_like_reference, image, ss2d_by

ONE_WAY = ("row",) * 4
TWO_WAYS = ("row", "row", "row-reversed", "row-reversed")
THREE = ("column", "row-reversed", "column-reversed")


def walk(direction: str, height: int, width: int) -> list[tuple[int, int]]:
    """The pixels in the order a person would name them."""
    if direction.startswith("row"):
        path = [(i, j) for i in range(height) for j in range(width)]
    else:
        path = [(i, j) for j in range(width) for i in range(height)]
    return path[::-1] if direction.endswith("reversed") else path


def by_loops(arguments, directions):
    """The definition, number by number."""
    t = {name: tensor.double() for name, tensor in arguments.items()}
    batch, channels, height, width = t["x"].shape
    y = torch.zeros_like(t["x"])
    for s, d, (k, direction) in itertools.product(
        range(batch), range(channels), enumerate(directions)
    ):
        row = k * channels + d
        state = [0.0] * t["A"].shape[1]
        for i, j in walk(direction, height, width):
            step = math.log1p(math.exp(t["delta"][s, k, d, i, j] + t["delta_bias"][row]))
            u = t["x"][s, d, i, j].item()
            for n in range(len(state)):
                decay = math.exp(step * t["A"][row, n])
                state[n] = decay * state[n] + step * t["B"][s, k, n, i, j].item() * u
                y[s, d, i, j] += t["C"][s, k, n, i, j].item() * state[n]
            y[s, d, i, j] += t["D"][row] * u
    return y


@pytest.mark.parametrize("backend", [reference, cpu])
@pytest.mark.parametrize("directions", [CROSS, ONE_WAY, TWO_WAYS, THREE, ("column",)])
def test_against_loops(backend, directions):
    arguments = image(2, 2, 3, 4, 2, directions=len(directions))
    found = ss2d_by(backend, **arguments, directions=directions)
    torch.testing.assert_close(found.double(), by_loops(arguments, directions), rtol=0, atol=1e-5)


@pytest.mark.parametrize("directions", [ONE_WAY, TWO_WAYS, THREE, CROSS * 4])
def test_gradients_on_the_cpu(directions):
    arguments = image(2, 5, 4, 3, 2, directions=len(directions))
    assert_like_reference(cpu, "ss2d_scan", arguments, 5e-6, directions=directions)


def test_the_door_takes_directions():
    arguments = image(1, 3, 2, 3, 1, directions=3)
    torch.testing.assert_close(
        ss2d_scan(**arguments, directions=THREE),
        ss2d_by(reference, **arguments, directions=THREE),
    )


@pytest.mark.parametrize("direction", CODES)
def test_codes_say_what_the_orders_do(direction):
    height, width = 3, 5
    code = packed((direction,))
    steps = range(height * width)
    t = [height * width - 1 - step if code & 2 else step for step in steps]
    places = [(i % height) * width + i // height if code & 1 else i for i in t]
    assert pixel_orders(height, width, (direction,))[0].tolist() == places
    assert [(p // width, p % width) for p in places] == walk(direction, height, width)


def test_codes_lie_side_by_side():
    assert packed(CROSS) == 0b11_10_01_00
    assert packed(("column-reversed",) * 16) == 2**32 - 1


def test_an_unknown_direction_is_named():
    with pytest.raises(UsageError, match=r"No direction is called `diagonal`.\nExpected `row`, `c"):
        ss2d_scan(**image(1, 3, 2, 3, 1, directions=1), directions=("diagonal",))


@pytest.mark.parametrize("count", [0, 17])
def test_a_wrong_number_of_directions_is_named(count):
    with pytest.raises(UsageError, match=f"`directions` has .*\n.* 1 to 16 .*, got {count}"):
        ss2d_scan(**image(1, 3, 2, 3, 1), directions=("row",) * count)


def test_arguments_must_have_as_many_directions():
    with pytest.raises(UsageError, match=r"`delta` has .*\nExpected \(1, 3, 3, 2, 3\), got \(1, 4"):
        ss2d_scan(**image(1, 3, 2, 3, 1), directions=THREE)
