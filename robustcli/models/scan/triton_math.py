"""What the Triton kernels share: the way through the pixels, step sizes, and the scan's operator.

Channels are the fastest axis of every tensor, so that a row of a tile is one coalesced read
whichever way the pixels are walked. A tile is (T steps, DB channels); states are walked one by one,
because only one (T, DB) state then has to fit in registers.
"""
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def"
# Arguments carry no types: Triton takes an annotation in a kernel for one of its own.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def direction(paths, k):
    """The code of direction k: two bits of `paths`, of which there are 32 (a sequence has none)."""
    return (paths >> (2 * tl.minimum(k, 15))) & 3


@triton.jit
def pixel(t, code, L, height, width):
    """The row-major place of step t; `code` has bit 1 for column by column, bit 2 for reversed."""
    t = tl.where((code & 2) != 0, L - 1 - t, t)
    return tl.where((code & 1) != 0, (t % height) * width + t // height, t)


@triton.jit
def compose(a1, b1, a2, b2):
    """The map h -> a2 (a1 h + b1) + b2, as (factor, term): first 1, then 2."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def softplus(x):
    """log(1 + e**x) to a few units in the last place, for small values too; NaN stays NaN.

    The GPU's own logarithm is exact in absolute terms only, and step sizes are as small as 1e-4:
    so log(1 + t) / t is a polynomial for 0 <= t <= 1, the one of `cpu_math`.
    """
    t = tl.exp(-tl.abs(x))
    p = -0.0032563784727292254 * t + 0.019907160925644585
    p = p * t - 0.05706420076122008
    p = p * t + 0.10614264687062452
    p = p * t - 0.15311863102217202
    p = p * t + 0.19678117256353023
    p = p * t - 0.2495455887108236
    p = p * t + 0.333300040352213
    p = p * t - 0.4999990399276394
    p = p * t + 0.9999999953848531
    return tl.where(x > 0, x, 0.0) + p * t


@triton.jit
def sigmoid(x):
    """1 / (1 + e**-x), without overflow."""
    t = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, t) / (1.0 + t)


@triton.jit
def step_size(raw, live, SOFTPLUS: tl.constexpr):
    """The step sizes of a tile; 0 outside of the sequence, where they leave the state alone."""
    if SOFTPLUS:
        raw = softplus(raw)
    return tl.where(live, raw, 0.0)


@triton.jit
def row(tile, rows, n):
    """Row n of a tile, by a masked sum: registers cannot be indexed."""
    return tl.sum(tl.where(rows[:, None] == n, tile, 0.0), 0)
