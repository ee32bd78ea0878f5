"""The reference against the official numbers, calculus, the textbook and, for directions, loops."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete

from robustcli.core.errors import UsageError
from robustcli.models.scan import cpu, reference, ss2d_scan
from robustcli.models.scan.base import CODES, CROSS, packed, pixel_orders
from tests.models.scan.cases import (
    assert_like_reference,
    image,
    leaves,
    selective_by,
    sequence,
    ss2d_by,
)

GOLDEN = Path(__file__).parents[2] / "golden"
SHARED = Path(__file__).parents[3].parent / "shared" / "golden"


def tensors(file: Path) -> dict[str, torch.Tensor]:
    with np.load(file) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def test_official_scan_and_gradients():
    golden = tensors(GOLDEN / "scan1d.npz")
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    given = leaves({name: golden[name] for name in names})
    y, last = selective_by(reference, **given, delta_softplus=True, return_last_state=True)
    torch.testing.assert_close(y, golden["y"], rtol=0, atol=1e-13)
    torch.testing.assert_close(last, golden["last_state"], rtol=0, atol=1e-13)
    y.backward(golden["g_y"])
    for name in names:
        torch.testing.assert_close(given[name].grad, golden[f"grad_{name}"], rtol=0, atol=1e-12)


def test_official_scan_without_its_options():
    golden = tensors(GOLDEN / "scan1d.npz")
    delta = golden["delta"].abs() * 0.1
    y = selective_by(reference, golden["u"], delta, golden["A"], golden["B"], golden["C"])
    expected = golden["y_delta_absx0p1_noD_nobias_nosoftplus"]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
@pytest.mark.parametrize("states", [1, 16])
def test_official_cross_scan_and_merge(states):
    every = tensors(SHARED / "ss2d_core.npz")
    golden = {
        k.removeprefix(f"n{states}_"): v for k, v in every.items() if k.startswith(f"n{states}_")
    }
    B, _, H, W = golden["x"].shape
    back = pixel_orders(H, W).argsort(1)  # golden delta, B and C lie in scan order, ours by pixel

    def by_pixel(t: torch.Tensor) -> torch.Tensor:
        in_order = t.reshape(B, 4, -1, H * W)
        return torch.stack([in_order[:, k][..., back[k]] for k in range(4)], 1).reshape(
            B, 4, -1, H, W
        )

    given = leaves({
        "x": golden["x"], "delta": by_pixel(golden["delta"]), "A": golden["A"],
        "B": by_pixel(golden["B"]), "C": by_pixel(golden["C"]), "D": golden["D"],
        "delta_bias": golden["delta_bias"],
    })  # fmt: skip
    y = ss2d_by(reference, **given)
    torch.testing.assert_close(y.flatten(2), golden["merged"], rtol=0, atol=1e-13)
    (y.flatten(2) * golden["g_merged"]).sum().backward()
    for name in ("x", "A", "D", "delta_bias"):
        torch.testing.assert_close(given[name].grad, golden[f"grad_{name}"], rtol=0, atol=1e-12)
    for name in ("delta", "B", "C"):
        expected = by_pixel(golden[f"grad_{name}"])
        torch.testing.assert_close(given[name].grad, expected, rtol=0, atol=1e-12)


def test_gradcheck():
    given = leaves(sequence(2, 3, 5, 2), torch.float64)
    assert torch.autograd.gradcheck(
        lambda *t: selective_by(reference, *t, delta_softplus=True), tuple(given.values())
    )
    given = leaves(image(1, 2, 2, 3, 2), torch.float64)
    assert torch.autograd.gradcheck(lambda *t: ss2d_by(reference, *t), tuple(given.values()))


def test_pixel_orders_by_hand():
    orders = pixel_orders(2, 3).tolist()
    assert orders == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_constant_system_is_a_convolution():
    """With A, B, C and the step fixed, y = x * K, K_j = C exp(dt A)^j dt B (S4's two views)."""
    steps, states = 40, 4
    generator = torch.Generator().manual_seed(0)
    A = -torch.rand((1, states), generator=generator, dtype=torch.float64)
    B, C = torch.randn((2, states), generator=generator, dtype=torch.float64)
    x = torch.randn(steps, generator=generator, dtype=torch.float64)
    dt = 0.3
    y = selective_by(reference,
        x.view(1, 1, -1), torch.full((1, 1, steps), dt, dtype=torch.float64), A,
        B.view(1, -1, 1).expand(1, states, steps), C.view(1, -1, 1).expand(1, states, steps),
    )  # fmt: skip
    kernel = torch.stack([(C * torch.exp(dt * A[0]) ** j * dt * B).sum() for j in range(steps)])
    expected = np.convolve(x.numpy(), kernel.numpy())[:steps]
    np.testing.assert_allclose(y[0, 0].numpy(), expected, rtol=0, atol=1e-12)


def test_zero_order_hold_is_the_continuous_system_and_a_convolution():
    """Abar = exp(dA), Bbar = (dA)^-1 (exp(dA) - I) dB, K = (C Bbar, C Abar Bbar, ...)."""
    steps, states, d = 30, 4, 0.3
    rng = np.random.default_rng(0)
    a, b, c, x = -rng.random(states), *rng.standard_normal((2, states)), rng.standard_normal(steps)
    a_bar, b_bar = np.exp(d * a), (np.exp(d * a) - 1) / (d * a) * d * b
    A, B, C, _, _ = cont2discrete((np.diag(a), b[:, None], c[None], np.zeros((1, 1))), d, "zoh")
    np.testing.assert_allclose(A, np.diag(a_bar), rtol=0, atol=1e-14)
    np.testing.assert_allclose(B[:, 0], b_bar, rtol=0, atol=1e-14)
    h, y = np.zeros(states), []
    for value in x:
        h = a_bar * h + b_bar * value
        y.append(C[0] @ h)
    kernel = [float(c @ (a_bar**j * b_bar)) for j in range(steps)]
    np.testing.assert_allclose(y, np.convolve(x, kernel)[:steps], rtol=0, atol=1e-12)
    scanned = selective_by(reference,  # whose Bbar is d B: here B is that of the zero-order hold
        torch.from_numpy(x).view(1, 1, -1), torch.full((1, 1, steps), d, dtype=torch.float64),
        torch.from_numpy(a)[None],
        torch.from_numpy(b_bar / d).view(1, -1, 1).expand(1, states, steps),
        torch.from_numpy(c).view(1, -1, 1).expand(1, states, steps),
    )  # fmt: skip
    np.testing.assert_allclose(scanned[0, 0].numpy(), y, rtol=0, atol=1e-12)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
@pytest.mark.parametrize("backend", [reference, cpu])
def test_the_scan_of_the_tumour_paper(backend):
    def made(seed: int, *shape: int) -> torch.Tensor:
        values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        return torch.from_numpy(values)

    with np.load(SHARED / "seeds_blocks.npz") as arrays:
        expected = torch.from_numpy(arrays["scan.out"])
    y = selective_by(backend,
        made(1, 2, 5, 20), made(2, 2, 5, 20), -made(3, 5, 4).exp(), made(4, 2, 4, 20),
        made(5, 2, 4, 20), made(6, 5), made(7, 2, 5, 20), made(8, 5), delta_softplus=True,
    )  # fmt: skip
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


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


def test_unknown_directions_and_wrong_numbers_of_them_are_named():
    with pytest.raises(UsageError, match=r"No direction is called `diagonal`.\nExpected `row`, `c"):
        ss2d_scan(**image(1, 3, 2, 3, 1, directions=1), directions=("diagonal",))

    for count in (0, 17):
        with pytest.raises(UsageError, match=f"`directions` has .*\n.* 1 to 16 .*, got {count}"):
            ss2d_scan(**image(1, 3, 2, 3, 1), directions=("row",) * count)
    with pytest.raises(UsageError, match=r"`delta` has .*\nExpected \(1, 3, 3, 2, 3\), got \(1, 4"):
        ss2d_scan(**image(1, 3, 2, 3, 1), directions=THREE)
