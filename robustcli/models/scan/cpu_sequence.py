"""The forward scan over sequences that lie as rows of time, one task of it.

A task is one sequence, one group, and one block of its channels. Tiles of 16 steps are turned in
the cache, so that no copy of the input or output with the channels side by side is ever made.

Layout, all flat and float32: x, delta, out (S, K*D, L); B, C (S, K, N, L); A (K, N, D); skip, bias
(K, D); state (K, S, N, D); borders (K, S, chunks, N, D); `dims` is (K, S, L, D, N, W), K groups.
"""

# mypy: allow-untyped-decorators
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from robustcli.models.scan.cpu_forward import LANES, advance, save
from robustcli.models.scan.cpu_lanes import WIDTH, load, prefetch, store
from robustcli.models.scan.cpu_math import softplus
from robustcli.models.scan.cpu_tiles import turn

_F, _U = np.float32, np.uintp


@njit(forceinline=True)
def _ask(x: Any, delta: Any, out: Any, rows: Any, L: Any, t: Any, w: Any) -> None:
    """Asks for step t of each of the `w` rows."""
    for i in range(w):
        prefetch(x, rows + i * L + t)
        prefetch(delta, rows + i * L + t)
        prefetch(out, rows + i * L + t)


@njit(forceinline=True)
def _vector(
    deltas: Any, inputs: Any, outputs: Any, at: Any, bias: Any, skip: Any, kd: Any,
    softplus_on: bool, A: Any, an: Any, D: Any, B: Any, C: Any, bc: Any, L: Any, h: Any, to: Any,
    N: Any, count: Any,
) -> None:  # fmt: skip
    """One step of up to 16 channels, within turned tiles."""
    u, s = load(inputs, at, LANES), load(skip, kd, count)
    dt = load(deltas, at, LANES) + load(bias, kd, count)
    dt = softplus(dt) if softplus_on else dt
    store(outputs, at, LANES, advance(dt, u, s, A, an, D, B, C, bc, L, h, to, N, count))


@njit(error_model="numpy")
def forward_sequence(
    task: int, dims: Any, softplus_on: bool, block: int, chunk: int, keep: bool,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any,
    out: Any, state: Any, borders: Any,
) -> None:  # fmt: skip
    """Fills `out`, `state`, and `borders` if `keep`, of one task."""
    K, S, L, D, N, W = dims
    blocks, chunks, states, D_, L_ = (
        (D + block - 1) // block,
        (L + chunk - 1) // chunk,
        _U(N),
        _U(D),
        _U(L),
    )
    s, k, a = task // blocks // K, task // blocks % K, (task % blocks) * block
    w = _U(min(D, a + block) - a)
    full, padded = w - w % LANES, (w + LANES - _U(1)) // LANES * LANES
    kd, ks, an = _U(k * D + a), _U(k * S + s), _U(k * N * D + a)
    rows, steps = _U(s * W * L) + kd * L_, _U((s * K + k) * N * L)
    deltas, inputs = np.zeros(WIDTH * padded, _F), np.zeros(WIDTH * padded, _F)
    outputs, h = np.zeros(WIDTH * padded, _F), np.zeros(N * padded, _F)
    for t0 in range(_U(0), L_, LANES):
        span = min(LANES, L_ - t0)
        _ask(x, delta, out, rows, L_, min(t0 + _U(31), L_ - _U(1)), w)
        for i in range(_U(0), w, LANES):
            at, count = rows + i * L_ + t0, min(LANES, w - i)
            turn(x, at, L_, count, span, inputs, i, padded)
            turn(delta, at, L_, count, span, deltas, i, padded)
        for j in range(span):
            t = t0 + j
            if keep and t % _U(chunk) == 0:
                save(
                    h,
                    states,
                    w,
                    borders,
                    (ks * _U(chunks) + t // _U(chunk)) * states * D_ + _U(a),
                    D_,
                )
            for i in range(_U(0), full, LANES):
                _vector(deltas, inputs, outputs, j * padded + i, bias, skip, kd + i,
                        softplus_on, A, an + i, D_, B, C, steps + t, L_, h, i * states,
                        states, LANES)  # fmt: skip
            if full < w:
                _vector(deltas, inputs, outputs, j * padded + full, bias, skip, kd + full,
                        softplus_on, A, an + full, D_, B, C, steps + t, L_, h, full * states,
                        states, w - full)  # fmt: skip
        for i in range(_U(0), w, LANES):
            turn(outputs, i, padded, span, min(LANES, w - i), out, rows + i * L_ + t0, L_)
    save(h, states, w, state, ks * states * D_ + _U(a), D_)
