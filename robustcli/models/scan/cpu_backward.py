"""The backward scan over steps that lie as vectors of channels, one task of it.

Tasks, layouts and indices are those of `cpu_forward`. States are recomputed chunk by chunk, from
those that the forward pass kept at the chunks' borders, into buffers that fit in the cache.

`wanted` says in bits which gradients to compute. The bits of `COMPILED` are constants of a compiled
entry, so that what only an unwanted gradient needs is not in its machine code; the others are
looked at once a vector and step, which costs next to nothing and saves compiling more entries.
"""

# mypy: allow-untyped-decorators
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from robustcli.models.scan.cpu_forward import AHEAD, LANES, fetch, step_size
from robustcli.models.scan.cpu_lanes import (
    WIDTH,
    exp,
    fill,
    load,
    multiply_add,
    sigmoid,
    store,
    total,
)

_F, _U = np.float32, np.uintp

OF_X, OF_DELTA, OF_A, OF_B, OF_C, OF_D, OF_BIAS = (1 << n for n in range(7))
OF_STEP = 1 << 7  # delta's or the bias's, before either is written
COMPILED = OF_X | OF_A | OF_B | OF_C | OF_STEP
_BY_STATES = OF_STEP | OF_A | OF_C  # gradients that read the states
_BY_SLOPES = OF_STEP | OF_A | OF_B | OF_X  # gradients that read the slopes by the states


@njit(forceinline=True)
def _replay_vector(
    dts: Any, dj: Any, dt: Any, u: Any, A: Any, an: Any, D: Any, B: Any, bn: Any,
    decays: Any, states: Any, at: Any, row: Any, N: Any, wanted: int, count: Any,
) -> None:  # fmt: skip
    """One step of up to 16 channels: keeps step size, decays and states."""
    store(dts, dj, LANES, dt)
    du = dt * u
    for n in range(N):
        place = at + n * LANES
        decay = exp(dt * load(A, an + n * D, count))
        if wanted & _BY_SLOPES:
            store(decays, place, LANES, decay)
        if wanted & _BY_STATES:
            moved = multiply_add(decay, load(states, place, LANES), du * B[bn + n])
            store(states, place + row, LANES, moved)


@njit(forceinline=True, error_model="numpy")
def _replay(
    dims: Any, softplus_on: bool, k: int, s: int, a: int, first: Any, w: Any, t0: int, t1: int,
    wanted: int, x: Any, delta: Any, A: Any, B: Any, bias: Any, order: Any,
    dts: Any, decays: Any, states: Any,
) -> None:  # fmt: skip
    """Recomputes steps t0..t1-1, keeping what the way back needs.

    dts (T, vectors, 16); decays (T, vectors, N, 16); states (T + 1, vectors, N, 16), whose first
    row comes filled with the state before t0.
    """
    _, S, L, D, N_, W = dims
    kd, ks, N, D_, full = _U(k * D + a), _U(k * S + s), _U(N_), _U(D), w - w % LANES
    an, padded = _U(k * N_ * D + a), (w + LANES - _U(1)) // LANES * LANES
    row = padded * N
    for t in range(t0, t1):
        j = _U(t - t0)
        p, q = _U(order[_U(k * L + t)]), _U(order[_U(k * L + min(t + AHEAD, t1 - 1))])
        fetch(delta, (ks * _U(L) + q) * D_ + _U(a), w)
        if wanted & _BY_STATES:
            fetch(x, (_U(s * L) + q) * _U(W) + first, w)
        xp, kp = (_U(s * L) + p) * _U(W) + first, ks * _U(L) + p
        dp = kp * D_ + _U(a)
        for i in range(_U(0), full, LANES):
            dt = step_size(delta, dp + i, bias, kd + i, softplus_on, LANES)
            _replay_vector(
                dts, j * padded + i, dt, load(x, xp + i, LANES), A, an + i, D_, B, kp * N,
                decays, states, j * row + i * N, row, N, wanted, LANES,
            )  # fmt: skip
        if full < w:
            left = w - full
            dt = step_size(delta, dp + full, bias, kd + full, softplus_on, left)
            _replay_vector(
                dts, j * padded + full, dt, load(x, xp + full, left), A, an + full, D_, B, kp * N,
                decays, states, j * row + full * N, row, N, wanted, left,
            )  # fmt: skip


@njit(forceinline=True)
def _add(target: Any, at: Any, count: Any, left: Any, right: Any) -> None:
    store(target, at, count, multiply_add(left, right, load(target, at, count)))


@njit(forceinline=True)
def _retreat(
    dt: Any, u: Any, dy: Any, A: Any, an: Any, D: Any, B: Any, C: Any, bn: Any, g: Any, gn: Any,
    decays: Any, states: Any, at: Any, row: Any, dA: Any, da: Any, sums: Any, N: Any, wanted: int,
    count: Any,
) -> Any:  # fmt: skip
    """One step back of up to 16 channels; g becomes d loss / d the states before.

    Adds to dA and to the sums over channels of dB and dC, (2, N, 16). Returns d loss / d dt and
    what the states add to d loss / d u. What is not `wanted` stays as it is, or zero.
    """
    ddt, du = fill(_F(0.0)), fill(_F(0.0))
    for n in range(N):
        place, lane = at + n * LANES, gn + n * LANES
        if wanted & OF_C:
            _add(sums, (N + n) * LANES, LANES, dy, load(states, place + row, LANES))
        if wanted & _BY_SLOPES:
            slope = multiply_add(dy, C[bn + n], load(g, lane, LANES))
            back = slope * load(decays, place, LANES)  # d loss / d the state before
            store(g, lane, LANES, back)
            if wanted & OF_B:
                _add(sums, n * LANES, LANES, slope, dt * u)
            if wanted & OF_X:
                du = multiply_add(slope, dt * B[bn + n], du)
            if wanted & (OF_A | OF_STEP):
                through = back * load(states, place, LANES)
                if wanted & OF_A:
                    _add(dA, da + n * D, count, through, dt)
                if wanted & OF_STEP:
                    direct = slope * (u * B[bn + n])
                    ddt = ddt + multiply_add(through, load(A, an + n * D, count), direct)
    return ddt, du


@njit(forceinline=True)
def _back_vector(
    dims: Any, softplus_on: bool, kd: Any, an: Any, sd: Any, da: Any, dp: Any, xp: Any, bn: Any,
    alone: bool, wanted: int,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, dy: Any,
    dts: Any, dj: Any, decays: Any, states: Any, at: Any, row: Any, g: Any, gn: Any, sums: Any,
    dx: Any, ddelta: Any, dA: Any, dskip: Any, dbias: Any, count: Any,
) -> None:  # fmt: skip
    """One step back of up to 16 channels, to every gradient wanted but those of B and C."""
    N, D = _U(dims[4]), _U(dims[3])
    dt, u, slope = load(dts, dj, LANES), load(x, xp, count), load(dy, xp, count)
    ddt, du = _retreat(
        dt, u, slope, A, an, D, B, C, bn, g, gn, decays, states, at, row, dA, da, sums, N, wanted,
        count,
    )  # fmt: skip
    if wanted & OF_STEP:
        if softplus_on:
            ddt = ddt * sigmoid(load(delta, dp, count) + load(bias, kd, count))
        if wanted & OF_DELTA:
            store(ddelta, dp, count, ddt)
        if wanted & OF_BIAS:
            store(dbias, sd, count, load(dbias, sd, count) + ddt)
    if wanted & OF_X:
        du = multiply_add(load(skip, kd, count), slope, du)
        store(dx, xp, count, du if alone else du + load(dx, xp, count))
    if wanted & OF_D:
        _add(dskip, sd, count, slope, u)


@njit(forceinline=True, error_model="numpy")
def _way_back(
    dims: Any, softplus_on: bool, k: int, s: int, nb: int, a: int, first: Any, w: Any, t0: int,
    t1: int, alone: bool, wanted: int,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any, dy: Any,
    dts: Any, decays: Any, states: Any, g: Any, sums: Any,
    dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Gradients of steps t1-1..t0; `g`, d loss / d state, is carried from chunk to chunk."""
    K, S, L, D, N_, W = dims
    kd, ks, N, D_, full = _U(k * D + a), _U(k * S + s), _U(N_), _U(D), w - w % LANES
    padded = (w + LANES - _U(1)) // LANES * LANES
    row, an = padded * N, _U(k * N_ * D + a)
    sd, da = _U((s * K + k) * D + a), _U((s * K + k) * N_ * D + a)
    for t in range(t1 - 1, t0 - 1, -1):
        j = _U(t - t0)
        p, q = _U(order[_U(k * L + t)]), _U(order[_U(k * L + max(t - AHEAD, 0))])
        xq, xp = (_U(s * L) + q) * _U(W) + first, (_U(s * L) + p) * _U(W) + first
        fetch(dy, xq, w)
        if wanted & OF_X:
            fetch(dx, xq, w)
        if wanted & OF_DELTA:
            fetch(ddelta, (ks * _U(L) + q) * D_ + _U(a), w)
        kp = ks * _U(L) + p
        dp, bn = kp * D_ + _U(a), kp * N
        sums[:] = _F(0.0)
        for i in range(_U(0), full, LANES):
            _back_vector(
                dims, softplus_on, kd + i, an + i, sd + i, da + i, dp + i, xp + i, bn, alone,
                wanted, x, delta, A, B, C, skip, bias, dy, dts, j * padded + i, decays, states,
                j * row + i * N, row, g, i * N, sums, dx, ddelta, dA, dskip, dbias, LANES,
            )  # fmt: skip
        if full < w:
            _back_vector(
                dims, softplus_on, kd + full, an + full, sd + full, da + full, dp + full, xp + full,
                bn, alone, wanted, x, delta, A, B, C, skip, bias, dy, dts, j * padded + full,
                decays, states, j * row + full * N, row, g, full * N, sums, dx, ddelta, dA, dskip,
                dbias, w - full,
            )  # fmt: skip
        to = _U(nb * K * S * L * N_) + bn
        for n in range(N):
            if wanted & OF_B:
                dB[to + n] = total(load(sums, n * LANES, LANES))
            if wanted & OF_C:
                dC[to + n] = total(load(sums, (N + n) * LANES, LANES))


@njit(forceinline=True)
def _restore(source: Any, at: Any, D: Any, h: Any, N: Any, w: Any) -> None:
    """Copies states (N, D) from source[at] on to the local h (vectors, N, 16)."""
    for i in range(_U(0), w, LANES):
        for n in range(N):
            kept = load(source, at + n * D + i, min(LANES, w - i))
            store(h, i * N + n * LANES, LANES, kept)


@njit(forceinline=True, error_model="numpy")
def backward(
    task: int, dims: Any, softplus_on: bool, block: int, chunk: int, wanted: int,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any, offset: Any,
    borders: Any, dy: Any, dstate: Any,
    dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Every gradient `wanted` of one task; arrays that only others need are not touched.

    dA (S, K, N, D), dskip and dbias (S, K, D) are per sequence, dB and dC (blocks, K, S, L, N) per
    block of channels: the caller sums them. dA, dskip and dbias must come zeroed.
    """
    _, S, L, D, N, _ = dims
    blocks, chunks = (D + block - 1) // block, (L + chunk - 1) // chunk
    s, nb = task // blocks, task % blocks
    a = nb * block
    w = _U(min(D, a + block) - a)
    widest = (block + WIDTH - 1) // WIDTH * WIDTH
    dts, decays = np.empty(chunk * widest, _F), np.empty(chunk * N * widest, _F)
    states = np.empty((chunk + 1) * N * widest, _F)
    g, sums = np.empty(N * widest, _F), np.empty(2 * N * WIDTH, _F)
    for k in range(dims[0]):
        first, ks, alone = _U(offset[k] + a), k * S + s, k == 0 or offset[k] != offset[k - 1]
        _restore(dstate, _U(ks * N * D + a), _U(D), g, _U(N), w)
        for section in range(chunks - 1, -1, -1):
            t0, t1 = section * chunk, min(L, section * chunk + chunk)
            if wanted & _BY_STATES:
                _restore(borders, _U((ks * chunks + section) * N * D + a), _U(D), states, _U(N), w)
            _replay(
                dims, softplus_on, k, s, a, first, w, t0, t1, wanted, x, delta, A, B, bias, order,
                dts, decays, states,
            )  # fmt: skip
            _way_back(
                dims, softplus_on, k, s, nb, a, first, w, t0, t1, alone, wanted, x, delta, A, B,
                C, skip, bias, order, dy, dts, decays, states, g, sums,
                dx, ddelta, dA, dB, dC, dskip, dbias,
            )  # fmt: skip
