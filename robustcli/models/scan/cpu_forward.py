"""The forward scan over steps that lie as vectors of channels, one task of it.

A task is one sequence of the batch and one block of channels; no two tasks write the same memory.
Sixteen channels are one SIMD value; their states live in the first-level cache for the whole
sequence. Steps are fetched ahead, because a direction that walks down the columns of an image, or
back, is one that the processor's own prefetching does not see coming.

Layout, all flat and float32: x, out (S, L, W); delta (K, S, L, D); A (K, N, D); B, C (K, S, L, N);
skip, bias (K, D); state (K, S, N, D); borders (K, S, chunks, N, D); order (K, L) int32, the place
of each step; offset (K) int32, the channel of x where direction or group k starts; `dims` is
(K, S, L, D, N, W). Local states h are (vectors, N, 16).

Indices are unsigned: numba lets a signed one count from the end, which is a branch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from robustcli.models.scan.cpu_lanes import WIDTH, exp, load, prefetch, softplus, store, turn

# mypy: allow-untyped-decorators


_F, _U = np.float32, np.uintp
LANES = _U(WIDTH)
AHEAD = 4  # steps between asking for memory and reading it


@njit(forceinline=True)
def step_size(delta: Any, at: Any, bias: Any, kd: Any, softplus_on: bool, count: Any) -> Any:
    """Delta plus bias, through softplus if asked, of up to 16 channels."""
    raw = load(delta, at, count) + load(bias, kd, count)
    return softplus(raw) if softplus_on else raw


@njit(forceinline=True)
def advance(
    dt: Any, u: Any, skip: Any, A: Any, an: Any, D: Any, B: Any, C: Any, bc: Any, stride: Any,
    h: Any, to: Any, states: Any, count: Any,
) -> Any:  # fmt: skip
    """One step of up to 16 channels: their states in h move on; returns y.

    B and C of state n lie at bc + n * stride.
    """
    y, du = skip * u, dt * u
    for n in range(states):
        place, bn = to + n * LANES, bc + n * stride
        moved = exp(dt * load(A, an + n * D, count)) * load(h, place, LANES) + du * B[bn]
        store(h, place, LANES, moved)
        y = y + moved * C[bn]
    return y


@njit(forceinline=True)
def save(h: Any, states: Any, w: Any, target: Any, to: Any, D: Any) -> None:
    """Copies the local states to target (N, D) from `to` on."""
    for i in range(_U(0), w, LANES):
        for n in range(states):
            kept = load(h, i * states + n * LANES, LANES)
            store(target, to + n * D + i, min(LANES, w - i), kept)


@njit(forceinline=True)
def fetch(array: Any, at: Any, w: Any) -> None:
    """Asks for `w` floats from array[at] on."""
    for i in range(_U(0), w, LANES):
        prefetch(array, at + i)


@njit(forceinline=True)
def _vector(
    delta: Any, dp: Any, bias: Any, skip: Any, kd: Any, softplus_on: bool, x: Any, xp: Any,
    A: Any, an: Any, D: Any, B: Any, C: Any, bc: Any, h: Any, to: Any, states: Any,
    out: Any, alone: bool, count: Any,
) -> None:  # fmt: skip
    """One step of up to 16 channels, from x to out."""
    dt = step_size(delta, dp, bias, kd, softplus_on, count)
    u, s = load(x, xp, count), load(skip, kd, count)
    y = advance(dt, u, s, A, an, D, B, C, bc, _U(1), h, to, states, count)
    store(out, xp, count, y if alone else y + load(out, xp, count))


@njit(error_model="numpy")
def forward(
    task: int, dims: Any, softplus_on: bool, block: int, chunk: int, keep: bool,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any, offset: Any,
    out: Any, state: Any, borders: Any,
) -> None:  # fmt: skip
    """Fills `out`, `state`, and `borders` if `keep`, of one task."""
    K, S, L, D, N, W = dims
    blocks, chunks, states, D_ = (D + block - 1) // block, (L + chunk - 1) // chunk, _U(N), _U(D)
    s, a = task // blocks, (task % blocks) * block
    w = _U(min(D, a + block) - a)
    full = w - w % LANES
    h = np.empty((block + WIDTH - 1) // WIDTH * WIDTH * N, _F)
    for k in range(K):
        kd, ks, first = _U(k * D + a), _U(k * S + s), _U(offset[k] + a)
        an = _U(k * N * D + a)
        # The first direction of a channel writes every step, so `out` need not come zeroed.
        alone = k == 0 or offset[k] != offset[k - 1]
        h[:] = _F(0.0)
        for t in range(L):
            if keep and t % chunk == 0:
                save(
                    h,
                    states,
                    w,
                    borders,
                    (ks * _U(chunks) + _U(t // chunk)) * states * D_ + _U(a),
                    D_,
                )
            p, q = _U(order[_U(k * L + t)]), _U(order[_U(k * L + min(t + AHEAD, L - 1))])
            xq = (_U(s * L) + q) * _U(W) + first
            fetch(delta, (ks * _U(L) + q) * D_ + _U(a), w)
            fetch(x, xq, w)
            fetch(out, xq, w)
            xp, kp = (_U(s * L) + p) * _U(W) + first, ks * _U(L) + p
            dp, bc = kp * D_ + _U(a), kp * states
            for i in range(_U(0), full, LANES):
                _vector(delta, dp + i, bias, skip, kd + i, softplus_on, x, xp + i, A, an + i, D_,
                        B, C, bc, h, i * states, states, out, alone, LANES)  # fmt: skip
            if full < w:
                _vector(delta, dp + full, bias, skip, kd + full, softplus_on, x, xp + full, A,
                        an + full, D_, B, C, bc, h, full * states, states, out, alone,
                        w - full)  # fmt: skip
        save(h, states, w, state, ks * states * D_ + _U(a), D_)


# The forward scan over sequences that lie as rows of time, one task of it.
#
# A task is one sequence, one group, and one block of its channels. Tiles of 16 steps are turned in
# the cache, so that no copy of the input or output with the channels side by side is ever made.
#
# Layout, all flat and float32: x, delta, out (S, K*D, L); B, C (S, K, N, L); A (K, N, D); skip,
# bias (K, D); state (K, S, N, D); borders (K, S, chunks, N, D); `dims` is (K, S, L, D, N, W), K
# groups.


# mypy: allow-untyped-decorators


@njit(forceinline=True)
def _ask(x: Any, delta: Any, out: Any, rows: Any, L: Any, t: Any, w: Any) -> None:
    """Asks for step t of each of the `w` rows."""
    for i in range(w):
        prefetch(x, rows + i * L + t)
        prefetch(delta, rows + i * L + t)
        prefetch(out, rows + i * L + t)


@njit(forceinline=True)
def _tile_vector(
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
                _tile_vector(deltas, inputs, outputs, j * padded + i, bias, skip, kd + i,
                        softplus_on, A, an + i, D_, B, C, steps + t, L_, h, i * states,
                        states, LANES)  # fmt: skip
            if full < w:
                _tile_vector(deltas, inputs, outputs, j * padded + full, bias, skip, kd + full,
                        softplus_on, A, an + full, D_, B, C, steps + t, L_, h, full * states,
                        states, w - full)  # fmt: skip
        for i in range(_U(0), w, LANES):
            turn(outputs, i, padded, span, min(LANES, w - i), out, rows + i * L_ + t0, L_)
    save(h, states, w, state, ks * states * D_ + _U(a), D_)
