"""Kernels of the CPU scan: the computation of one task, and the C functions that threads run.

All arrays are flat, channels last, and float32 unless stated. Layout: x, out (S, L, W); delta
(K, S, L, D); A (K, N, D); B, C (K, S, L, N); skip, bias (K, D); state (K, S, N, D); borders
(K, S, chunks, N, D), the state before each chunk; order (K, L) int32, the pixel of each step;
offset (K) int32, the first channel of x of direction or group k. `dims` is (K, S, L, D, N, W).
Local states h are (vectors, N, 16).

Indices are unsigned: for signed ones numba adds a branch, because negative ones count from the end.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from robustcli.models.scan.base import NeedsGrad
from robustcli.models.scan.cpu_lanes import (
    WIDTH,
    exp,
    fill,
    load,
    multiply_add,
    prefetch,
    sigmoid,
    softplus,
    store,
    total,
    turn,
)

# mypy: allow-untyped-decorators

# --- Forward pass, channels-last layout ----------------------------------------------------------
#
# A task is one sequence of the batch and one block of channels; no two tasks write the same memory.
# Sixteen channels are one SIMD value; their states stay in the level-1 cache for the complete
# sequence. Steps are prefetched, because the processor's prefetcher does not predict the column
# and reversed orders of an image.

_F, _U = np.float32, np.uintp
LANES = _U(WIDTH)
AHEAD = 4  # steps from a prefetch to the read


@njit(forceinline=True)
def step_size(delta: Any, at: Any, bias: Any, kd: Any, softplus_on: bool, count: Any) -> Any:
    """Step sizes of up to 16 channels: delta plus bias, with `softplus_on` through softplus."""
    raw = load(delta, at, count) + load(bias, kd, count)
    return softplus(raw) if softplus_on else raw


@njit(forceinline=True)
def advance(
    dt: Any, u: Any, skip: Any, A: Any, an: Any, D: Any, B: Any, C: Any, bc: Any, stride: Any,
    h: Any, to: Any, states: Any, count: Any,
) -> Any:  # fmt: skip
    """One step of up to 16 channels: updates their states in h and returns y.

    B and C of state n are at index bc + n * stride.
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
    """Copies the local states h to `target` (N, D), which starts at index `to`."""
    for i in range(_U(0), w, LANES):
        for n in range(states):
            kept = load(h, i * states + n * LANES, LANES)
            store(target, to + n * D + i, min(LANES, w - i), kept)


@njit(forceinline=True)
def fetch(array: Any, at: Any, w: Any) -> None:
    """Prefetches `w` floats, starting with array[at]."""
    for i in range(_U(0), w, LANES):
        prefetch(array, at + i)


@njit(forceinline=True)
def _vector(
    delta: Any, dp: Any, bias: Any, skip: Any, kd: Any, softplus_on: bool, x: Any, xp: Any,
    A: Any, an: Any, D: Any, B: Any, C: Any, bc: Any, h: Any, to: Any, states: Any,
    out: Any, alone: bool, count: Any,
) -> None:  # fmt: skip
    """One step of up to 16 channels; writes y to `out`, or adds it unless `alone`."""
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
    """Computes one task: fills `out`, `state`, and with `keep` also `borders`."""
    K, S, L, D, N, W = dims
    blocks, chunks, states, D_ = (D + block - 1) // block, (L + chunk - 1) // chunk, _U(N), _U(D)
    s, a = task // blocks, (task % blocks) * block
    w = _U(min(D, a + block) - a)
    full = w - w % LANES
    h = np.empty((block + WIDTH - 1) // WIDTH * WIDTH * N, _F)
    for k in range(K):
        kd, ks, first = _U(k * D + a), _U(k * S + s), _U(offset[k] + a)
        an = _U(k * N * D + a)
        # The first direction of a channel writes every step, so `out` need not be initialised.
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


# --- Forward pass, time-major layout (rows of steps) ---------------------------------------------
#
# A task is one sequence, one group, and one block of its channels. Tiles of 16 steps are transposed
# in the cache, so that no channels-last copy of the input or output is made. These layouts differ
# from those above: x, delta, out (S, K*D, L); B, C (S, K, N, L); K is the number of groups.


@njit(forceinline=True)
def _ask(x: Any, delta: Any, out: Any, rows: Any, L: Any, t: Any, w: Any) -> None:
    """Prefetches step t of each of the `w` rows."""
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
    """One step of up to 16 channels within transposed tiles."""
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
    """Computes one task: fills `out`, `state`, and with `keep` also `borders`."""
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


# --- Backward pass, channels-last layout ---------------------------------------------------------
#
# Tasks, layouts and indices are those of the forward pass. States are recomputed chunk by chunk
# from those that the forward pass saved before each chunk, into buffers that fit in the cache.
#
# `needed` is a bit mask of the gradients to compute. The bits in `COMPILED` are constants of a
# compiled entry, so that its machine code does not contain computations for other gradients. The
# remaining bits are tested at run time, once per vector and step; this costs almost nothing and
# reduces the number of entries to compile.

OF_X, OF_DELTA, OF_A, OF_B, OF_C, OF_D, OF_BIAS = (1 << n for n in range(7))
OF_STEP = 1 << 7  # gradient of the step size, needed for delta and the bias
COMPILED = OF_X | OF_A | OF_B | OF_C | OF_STEP
_BY_STATES = OF_STEP | OF_A | OF_C  # gradients that require the states
_BY_STATE_GRADS = OF_STEP | OF_A | OF_B | OF_X  # gradients that require those of the states


@njit(forceinline=True)
def _replay_vector(
    dts: Any, dj: Any, dt: Any, u: Any, A: Any, an: Any, D: Any, B: Any, bn: Any,
    decays: Any, states: Any, at: Any, row: Any, N: Any, needed: int, count: Any,
) -> None:  # fmt: skip
    """One step of up to 16 channels: stores step size, decays and states."""
    store(dts, dj, LANES, dt)
    du = dt * u
    for n in range(N):
        place = at + n * LANES
        decay = exp(dt * load(A, an + n * D, count))
        if needed & _BY_STATE_GRADS:
            store(decays, place, LANES, decay)
        if needed & _BY_STATES:
            moved = multiply_add(decay, load(states, place, LANES), du * B[bn + n])
            store(states, place + row, LANES, moved)


@njit(forceinline=True, error_model="numpy")
def _replay(
    dims: Any, softplus_on: bool, k: int, s: int, a: int, first: Any, w: Any, t0: int, t1: int,
    needed: int, x: Any, delta: Any, A: Any, B: Any, bias: Any, order: Any,
    dts: Any, decays: Any, states: Any,
) -> None:  # fmt: skip
    """Recomputes steps t0..t1-1 and stores the values that the backward pass needs.

    Fills dts (T, vectors, 16), decays (T, vectors, N, 16) and states (T + 1, vectors, N, 16). The
    caller must fill the first row of `states` with the state before t0.
    """
    _, S, L, D, N_, W = dims
    kd, ks, N, D_, full = _U(k * D + a), _U(k * S + s), _U(N_), _U(D), w - w % LANES
    an, padded = _U(k * N_ * D + a), (w + LANES - _U(1)) // LANES * LANES
    row = padded * N
    for t in range(t0, t1):
        j = _U(t - t0)
        p, q = _U(order[_U(k * L + t)]), _U(order[_U(k * L + min(t + AHEAD, t1 - 1))])
        fetch(delta, (ks * _U(L) + q) * D_ + _U(a), w)
        if needed & _BY_STATES:
            fetch(x, (_U(s * L) + q) * _U(W) + first, w)
        xp, kp = (_U(s * L) + p) * _U(W) + first, ks * _U(L) + p
        dp = kp * D_ + _U(a)
        for i in range(_U(0), full, LANES):
            dt = step_size(delta, dp + i, bias, kd + i, softplus_on, LANES)
            _replay_vector(
                dts, j * padded + i, dt, load(x, xp + i, LANES), A, an + i, D_, B, kp * N,
                decays, states, j * row + i * N, row, N, needed, LANES,
            )  # fmt: skip
        if full < w:
            left = w - full
            dt = step_size(delta, dp + full, bias, kd + full, softplus_on, left)
            _replay_vector(
                dts, j * padded + full, dt, load(x, xp + full, left), A, an + full, D_, B, kp * N,
                decays, states, j * row + full * N, row, N, needed, left,
            )  # fmt: skip


@njit(forceinline=True)
def _add(target: Any, at: Any, count: Any, left: Any, right: Any) -> None:
    store(target, at, count, multiply_add(left, right, load(target, at, count)))


@njit(forceinline=True)
def _retreat(
    dt: Any, u: Any, dy: Any, A: Any, an: Any, D: Any, B: Any, C: Any, bn: Any, g: Any, gn: Any,
    decays: Any, states: Any, at: Any, row: Any, dA: Any, da: Any, sums: Any, N: Any, needed: int,
    count: Any,
) -> Any:  # fmt: skip
    """One backward step of up to 16 channels; updates g to d loss / d previous states.

    Adds to dA and to the sums over channels of dB and dC, (2, N, 16). Returns d loss / d dt and
    the part of d loss / d u that comes from the states. Values that are not `needed` are unchanged
    or returned as zero.
    """
    ddt, du = fill(_F(0.0)), fill(_F(0.0))
    for n in range(N):
        place, lane = at + n * LANES, gn + n * LANES
        if needed & OF_C:
            _add(sums, (N + n) * LANES, LANES, dy, load(states, place + row, LANES))
        if needed & _BY_STATE_GRADS:
            grad = multiply_add(dy, C[bn + n], load(g, lane, LANES))
            back = grad * load(decays, place, LANES)  # d loss / d previous state
            store(g, lane, LANES, back)
            if needed & OF_B:
                _add(sums, n * LANES, LANES, grad, dt * u)
            if needed & OF_X:
                du = multiply_add(grad, dt * B[bn + n], du)
            if needed & (OF_A | OF_STEP):
                through = back * load(states, place, LANES)
                if needed & OF_A:
                    _add(dA, da + n * D, count, through, dt)
                if needed & OF_STEP:
                    direct = grad * (u * B[bn + n])
                    ddt = ddt + multiply_add(through, load(A, an + n * D, count), direct)
    return ddt, du


@njit(forceinline=True)
def _back_vector(
    dims: Any, softplus_on: bool, kd: Any, an: Any, sd: Any, da: Any, dp: Any, xp: Any, bn: Any,
    alone: bool, needed: int,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, dy: Any,
    dts: Any, dj: Any, decays: Any, states: Any, at: Any, row: Any, g: Any, gn: Any, sums: Any,
    dx: Any, ddelta: Any, dA: Any, dskip: Any, dbias: Any, count: Any,
) -> None:  # fmt: skip
    """One backward step of up to 16 channels: all needed gradients except those of B and C."""
    N, D = _U(dims[4]), _U(dims[3])
    dt, u, grad = load(dts, dj, LANES), load(x, xp, count), load(dy, xp, count)
    ddt, du = _retreat(
        dt, u, grad, A, an, D, B, C, bn, g, gn, decays, states, at, row, dA, da, sums, N, needed,
        count,
    )  # fmt: skip
    if needed & OF_STEP:
        if softplus_on:
            ddt = ddt * sigmoid(load(delta, dp, count) + load(bias, kd, count))
        if needed & OF_DELTA:
            store(ddelta, dp, count, ddt)
        if needed & OF_BIAS:
            store(dbias, sd, count, load(dbias, sd, count) + ddt)
    if needed & OF_X:
        du = multiply_add(load(skip, kd, count), grad, du)
        store(dx, xp, count, du if alone else du + load(dx, xp, count))
    if needed & OF_D:
        _add(dskip, sd, count, grad, u)


@njit(forceinline=True, error_model="numpy")
def _way_back(
    dims: Any, softplus_on: bool, k: int, s: int, nb: int, a: int, first: Any, w: Any, t0: int,
    t1: int, alone: bool, needed: int,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any, dy: Any,
    dts: Any, decays: Any, states: Any, g: Any, sums: Any,
    dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Gradients of steps t1-1..t0; `g`, d loss / d state, is passed from chunk to chunk."""
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
        if needed & OF_X:
            fetch(dx, xq, w)
        if needed & OF_DELTA:
            fetch(ddelta, (ks * _U(L) + q) * D_ + _U(a), w)
        kp = ks * _U(L) + p
        dp, bn = kp * D_ + _U(a), kp * N
        sums[:] = _F(0.0)
        for i in range(_U(0), full, LANES):
            _back_vector(
                dims, softplus_on, kd + i, an + i, sd + i, da + i, dp + i, xp + i, bn, alone,
                needed, x, delta, A, B, C, skip, bias, dy, dts, j * padded + i, decays, states,
                j * row + i * N, row, g, i * N, sums, dx, ddelta, dA, dskip, dbias, LANES,
            )  # fmt: skip
        if full < w:
            _back_vector(
                dims, softplus_on, kd + full, an + full, sd + full, da + full, dp + full, xp + full,
                bn, alone, needed, x, delta, A, B, C, skip, bias, dy, dts, j * padded + full,
                decays, states, j * row + full * N, row, g, full * N, sums, dx, ddelta, dA, dskip,
                dbias, w - full,
            )  # fmt: skip
        to = _U(nb * K * S * L * N_) + bn
        for n in range(N):
            if needed & OF_B:
                dB[to + n] = total(load(sums, n * LANES, LANES))
            if needed & OF_C:
                dC[to + n] = total(load(sums, (N + n) * LANES, LANES))


@njit(forceinline=True)
def _restore(source: Any, at: Any, D: Any, h: Any, N: Any, w: Any) -> None:
    """Copies states (N, D), starting with source[at], to the local h (vectors, N, 16)."""
    for i in range(_U(0), w, LANES):
        for n in range(N):
            kept = load(source, at + n * D + i, min(LANES, w - i))
            store(h, i * N + n * LANES, LANES, kept)


@njit(forceinline=True, error_model="numpy")
def backward(
    task: int, dims: Any, softplus_on: bool, block: int, chunk: int, needed: int,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any, offset: Any,
    borders: Any, dy: Any, dstate: Any,
    dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Computes the `needed` gradients of one task; arrays of other gradients are not accessed.

    dA (S, K, N, D), dskip and dbias (S, K, D) are per sequence, dB and dC (blocks, K, S, L, N) per
    block of channels: the caller sums them. dA, dskip and dbias must be initialised with zeros.
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
            if needed & _BY_STATES:
                _restore(borders, _U((ks * chunks + section) * N * D + a), _U(D), states, _U(N), w)
            _replay(
                dims, softplus_on, k, s, a, first, w, t0, t1, needed, x, delta, A, B, bias, order,
                dts, decays, states,
            )  # fmt: skip
            _way_back(
                dims, softplus_on, k, s, nb, a, first, w, t0, t1, alone, needed, x, delta, A, B,
                C, skip, bias, order, dy, dts, decays, states, g, sums,
                dx, ddelta, dA, dB, dC, dskip, dbias,
            )  # fmt: skip


# --- Backward pass, time-major layout ------------------------------------------------------------
#
# Tasks and layouts are those of the time-major forward pass; partial sums of dB and dC are
# (blocks, S, K, N, L). A window of steps (one chunk, or several short ones) is transposed into
# local channels-last arrays and processed as above, and its gradients are transposed back: no copy
# of a complete sequence is made. Local arrays consist of complete vectors; lanes beyond the last
# channel are zero and remain zero.


@njit(error_model="numpy")  # not inlined: tiles take long to compile
def _turn_in(
    source: Any, at: Any, step: Any, rows: Any, columns: Any, target: Any, leap: Any
) -> None:
    """target[c*leap + r] = source[at + r*step + c]."""
    for r in range(_U(0), rows, LANES):
        for c in range(_U(0), columns, LANES):
            height, width = min(LANES, rows - r), min(LANES, columns - c)
            turn(source, at + r * step + c, step, height, width, target, c * leap + r, leap)


@njit(error_model="numpy")  # not inlined: tiles take long to compile
def _turn_out(
    source: Any, leap: Any, rows: Any, columns: Any, target: Any, at: Any, step: Any
) -> None:
    """target[at + r*step + c] = source[c*leap + r]."""
    for r in range(_U(0), rows, LANES):
        for c in range(_U(0), columns, LANES):
            height, width = min(LANES, columns - c), min(LANES, rows - r)
            turn(source, c * leap + r, leap, height, width, target, at + r * step + c, step)


@njit(forceinline=True)
def _copy_in(source: Any, at: Any, D: Any, target: Any, padded: Any, rows: Any, w: Any) -> None:
    """Copies `w` channels of rows (rows, D), starting with source[at], to (rows, padded)."""
    for n in range(rows):
        for i in range(_U(0), w, LANES):
            store(target, n * padded + i, LANES, load(source, at + n * D + i, min(LANES, w - i)))


@njit(forceinline=True)
def _copy_out(source: Any, padded: Any, rows: Any, w: Any, target: Any, at: Any, D: Any) -> None:
    """The inverse of `_copy_in`."""
    for n in range(rows):
        for i in range(_U(0), w, LANES):
            store(target, at + n * D + i, min(LANES, w - i), load(source, n * padded + i, LANES))


@njit(forceinline=True)
def _window_out(
    needed: int, t: Any, span: Any, w: Any, padded: Any, N: Any, L: Any, rows: Any, parts: Any,
    dxs: Any, ddeltas: Any, dBs: Any, dCs: Any, dx: Any, ddelta: Any, dB: Any, dC: Any,
) -> None:  # fmt: skip
    """Transposes the needed gradients of a window, which starts at step t, to time-major."""
    if needed & OF_X:
        _turn_out(dxs, padded, w, span, dx, rows + t, L)
    if needed & OF_DELTA:
        _turn_out(ddeltas, padded, w, span, ddelta, rows + t, L)
    if needed & OF_B:
        _turn_out(dBs, N, N, span, dB, parts + t, L)
    if needed & OF_C:
        _turn_out(dCs, N, N, span, dC, parts + t, L)


@njit(error_model="numpy")
def backward_sequence(
    task: int, dims: Any, softplus_on: bool, block: int, chunk: int, needed: int,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, borders: Any, dy: Any,
    dstate: Any, dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Computes the `needed` gradients of one task; arrays of other gradients are not accessed."""
    K, S, L, D, N, W = dims
    blocks, chunks = (D + block - 1) // block, (L + chunk - 1) // chunk
    s, k, nb = task // blocks // K, task // blocks % K, task % blocks
    a, ks = nb * block, k * S + s
    wide = (min(D, a + block) - a + WIDTH - 1) // WIDTH * WIDTH
    w, padded, L_, N_, D_ = _U(min(D, a + block) - a), _U(wide), _U(L), _U(N), _U(D)
    kd, an, sd = _U(k * D + a), _U(k * N * D + a), _U((s * K + k) * D + a)
    rows, steps = _U(s * W * L) + kd * L_, _U((s * K + k) * N * L)
    parts = _U(nb * S * K * N * L) + steps
    window = max(chunk, WIDTH)
    local, order = (1, 1, window, wide, N, wide), np.arange(window).astype(np.int32)
    As, skips, biases = np.zeros(N * wide, _F), np.zeros(wide, _F), np.zeros(wide, _F)
    dAs, dskips, dbiases = np.zeros(N * wide, _F), np.zeros(wide, _F), np.zeros(wide, _F)
    xs, deltas, dys = (
        np.zeros(window * wide, _F),
        np.zeros(window * wide, _F),
        np.zeros(window * wide, _F),
    )
    dxs, ddeltas = np.empty(window * wide, _F), np.empty(window * wide, _F)
    Bs, Cs = np.empty(window * N, _F), np.empty(window * N, _F)
    dBs, dCs = np.empty(window * N, _F), np.empty(window * N, _F)
    dts, decays = np.empty(chunk * wide, _F), np.empty(chunk * N * wide, _F)
    states = np.empty((chunk + 1) * N * wide, _F)
    g, sums = np.empty(N * wide, _F), np.empty(2 * N * WIDTH, _F)
    _copy_in(A, an, D_, As, padded, N_, w)
    _copy_in(skip, kd, D_, skips, padded, _U(1), w)
    _copy_in(bias, kd, D_, biases, padded, _U(1), w)
    _restore(dstate, _U(ks * N * D + a), D_, g, N_, w)
    for start in range((L - 1) // window * window, -1, -window):
        t, span = _U(start), _U(min(window, L - start))
        _turn_in(x, rows + t, L_, w, span, xs, padded)
        _turn_in(delta, rows + t, L_, w, span, deltas, padded)
        _turn_in(dy, rows + t, L_, w, span, dys, padded)
        _turn_in(B, steps + t, L_, N_, span, Bs, N_)
        _turn_in(C, steps + t, L_, N_, span, Cs, N_)
        end = min(window, L - start)
        for t0 in range((end - 1) // chunk * chunk, -1, -chunk):
            t1, section = min(end, t0 + chunk), (start + t0) // chunk
            if needed & _BY_STATES:
                _restore(borders, _U((ks * chunks + section) * N * D + a), D_, states, N_, w)
            _replay(
                local, softplus_on, 0, 0, 0, _U(0), padded, t0, t1, needed, xs, deltas, As, Bs,
                biases, order, dts, decays, states,
            )  # fmt: skip
            _way_back(
                local, softplus_on, 0, 0, 0, 0, _U(0), padded, t0, t1, True, needed, xs, deltas, As,
                Bs, Cs, skips, biases, order, dys, dts, decays, states, g, sums,
                dxs, ddeltas, dAs, dBs, dCs, dskips, dbiases,
            )  # fmt: skip
        _window_out(
            needed, t, span, w, padded, N_, L_, rows, parts, dxs, ddeltas, dBs, dCs,
            dx, ddelta, dB, dC,
        )  # fmt: skip
    if needed & OF_A:
        _copy_out(dAs, padded, N_, w, dA, _U((s * K + k) * N * D + a), D_)
    if needed & OF_D:
        _copy_out(dskips, padded, _U(1), w, dskip, sd, D_)
    if needed & OF_BIAS:
        _copy_out(dbiases, padded, _U(1), w, dbias, sd, D_)


# --- The compiled entries: C functions for any number of threads ---------------------------------
#
# The argument `work` is an array of 64-bit integers: the next task, the number of tasks, K, S, L,
# D, N, W, softplus, block, chunk, keep (backward: bit mask of the needed gradients), then the
# addresses of the arrays, in the order of the arguments of the function for a task. Every thread
# takes tasks until none is left. No two tasks write the same memory, so that results do not depend
# on which thread computes which task.

HEAD = 12  # integers before the addresses
_SIGNATURE = types.void(types.CPointer(types.int64))
_ANY = 1 << 40  # length of the arrays, which no kernel uses


@intrinsic
def _take(_context: Any, work: Any) -> Any:
    """Index of the next task; atomic, so that each thread gets different tasks."""

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", values[0], ir.IntType(64)(1), "monotonic")

    return types.int64(work), codegen


def _pointer(kind: Any) -> Any:
    @intrinsic
    def as_pointer(_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(sig.return_type))

        return types.CPointer(kind)(address), codegen

    return as_pointer


_floats, _ints = _pointer(types.float32), _pointer(types.int32)


@njit(forceinline=True)
def _array(work: Any, number: int) -> Any:
    return carray(_floats(work[HEAD + number]), (_ANY,))


@njit(forceinline=True)
def _indices(work: Any, number: int) -> Any:
    return carray(_ints(work[HEAD + number]), (_ANY,))


@njit(forceinline=True)
def _dims(work: Any) -> Any:
    return work[2], work[3], work[4], work[5], work[6], work[7]


def _forward(digest: int, _: int) -> Any:
    def scan_forward(work: Any) -> None:
        task = _take(work)
        while digest and task < work[1]:
            forward(
                task, _dims(work), work[8] != 0, work[9], work[10], work[11] != 0,
                _array(work, 0), _array(work, 1), _array(work, 2), _array(work, 3),
                _array(work, 4), _array(work, 5), _array(work, 6), _indices(work, 7),
                _indices(work, 8), _array(work, 9), _array(work, 10), _array(work, 11),
            )  # fmt: skip
            task = _take(work)

    return scan_forward


def _sequence(digest: int, _: int) -> Any:
    def scan_sequence(work: Any) -> None:
        task = _take(work)
        while digest and task < work[1]:
            forward_sequence(
                task, _dims(work), work[8] != 0, work[9], work[10], work[11] != 0,
                _array(work, 0), _array(work, 1), _array(work, 2), _array(work, 3),
                _array(work, 4), _array(work, 5), _array(work, 6), _array(work, 7),
                _array(work, 8), _array(work, 9),
            )  # fmt: skip
            task = _take(work)

    return scan_sequence


def _backward(digest: int, compiled: int) -> Any:
    def scan_backward(work: Any) -> None:
        task = _take(work)
        while digest and task < work[1]:
            backward(
                task, _dims(work), work[8] != 0, work[9], work[10], compiled | work[11] & ~COMPILED,
                _array(work, 0), _array(work, 1), _array(work, 2), _array(work, 3),
                _array(work, 4), _array(work, 5), _array(work, 6), _indices(work, 7),
                _indices(work, 8), _array(work, 9), _array(work, 10), _array(work, 11),
                _array(work, 12), _array(work, 13), _array(work, 14), _array(work, 15),
                _array(work, 16), _array(work, 17), _array(work, 18),
            )  # fmt: skip
            task = _take(work)

    return scan_backward


def _backward_sequence(digest: int, compiled: int) -> Any:
    def scan_backward_sequence(work: Any) -> None:
        task = _take(work)
        while digest and task < work[1]:
            backward_sequence(
                task, _dims(work), work[8] != 0, work[9], work[10], compiled | work[11] & ~COMPILED,
                _array(work, 0), _array(work, 1), _array(work, 2), _array(work, 3),
                _array(work, 4), _array(work, 5), _array(work, 6), _array(work, 7),
                _array(work, 8), _array(work, 9), _array(work, 10), _array(work, 11),
                _array(work, 12), _array(work, 13), _array(work, 14), _array(work, 15),
                _array(work, 16),
            )  # fmt: skip
            task = _take(work)

    return scan_backward_sequence


_ENTRIES = {
    "forward": _forward, "sequence": _sequence, "backward": _backward,
    "backward_sequence": _backward_sequence,
}  # fmt: skip


@lru_cache
def entry(name: str, constant: int = 0) -> int:
    """The address of the compiled entry `name`, a key of `_ENTRIES`.

    Compiled at the first use in an installation, then loaded from numba's cache; if the cache is
    not writable, compiled in every process. Numba invalidates the cache only if this file changes;
    the digest, which is part of the closure of the entry, invalidates it if other files change.

    Args:
        name: Name of the entry.
        constant: For a backward pass, the bits of `COMPILED` that it computes.
    """
    kernel = _ENTRIES[name](_digest(), constant)
    try:
        compiled = cfunc(_SIGNATURE, cache=True, error_model="numpy")(kernel)
    except (OSError, RuntimeError):  # no writable cache folder, or the disk is full
        compiled = cfunc(_SIGNATURE, error_model="numpy")(kernel)
    _kept.append(compiled)
    return int(compiled.address)


_kept: list[Any] = []  # keeps the compiled functions alive, so that addresses remain valid


@lru_cache
def _digest() -> int:
    sources = sorted(Path(__file__).parent.glob("cpu_*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    return int.from_bytes(digest.digest()[:4], "big") | 1


def bits(needed: NeedsGrad) -> int:
    """Bit mask of the needed gradients, for the backward entries."""
    mask = sum(1 << n for n, yes in enumerate(needed) if yes)
    return mask | (OF_STEP if mask & (OF_DELTA | OF_BIAS) else 0)


def backward_entry(name: str, needed: NeedsGrad) -> int:
    """The address of the entry `backward` or `backward_sequence` for the needed gradients."""
    return entry(name, bits(needed) & COMPILED)


def pack(
    tasks: int, dims: tuple[int, ...], softplus: bool, block: int, chunk: int, keep: int,
    addresses: list[int],
) -> np.ndarray[Any, np.dtype[np.int64]]:  # fmt: skip
    """The argument `work` of an entry; `dims` is (K, S, L, D, N, W)."""
    return np.array([0, tasks, *dims, softplus, block, chunk, keep, *addresses], np.int64)
