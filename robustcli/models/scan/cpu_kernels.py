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
from numba import carray, cfunc, types
from numba.extending import intrinsic

from robustcli.models.scan.base import NeedsGrad
from robustcli.models.scan.cpu_lanes import (
    FOUR,
    WIDTH,
    broadcast,
    exp,
    fill,
    inlined,
    later,
    load,
    load_group,
    looked_up,
    multiply_add,
    not_inlined,
    places,
    prefetch,
    prefetch_group,
    recur,
    softplus,
    softplus_and_slope,
    store,
    store_group,
    total,
    turn,
    units,
)

# mypy: allow-untyped-decorators

# --- Forward pass ---------------------------------------------------------------------------------
#
# A task is a block of channels of one sequence of the batch; in the time-major layout also of one
# group. No two tasks write the same memory. A unit of the computation is one step of one vector of
# 16 channels. Units are computed in fours, step by step and vector by vector: the exponentials of
# four units do not depend on each other, even if a unit is the next step of the channels of another
# (a block of 16 or 32 channels).

_F, _U = np.float32, np.uintp
LANES = _U(WIDTH)
_ONE, _FOUR = (_U(0),), (_U(0),) * FOUR  # groups of one unit and of four
AHEAD = 8  # steps from a prefetch to the read
WINDOW = 16  # steps that are copied or transposed at a time


@inlined
def _group(
    group: Any, first: Any, t0: Any, last: Any, padded: Any, softplus_on: bool, alone: bool,
    prefetch: bool, order: Any, x: Any, xb: Any, W: Any, delta: Any, db: Any, D: Any, B: Any,
    C: Any, bb: Any, bp: Any, bn: Any, A: Any, skip: Any, bias: Any, N: Any, h: Any, out: Any,
) -> Any:  # fmt: skip
    """Computes a group of units, and returns channel and step of the unit after it."""
    i, t, following, step = units(group, first, t0, padded)
    p = looked_up(order, t)
    if prefetch:
        q = looked_up(order, later(t, _U(AHEAD), last))
        prefetch_group(delta, places(db, q, D, i))
        prefetch_group(x, places(xb, q, W, i))
        prefetch_group(out, places(xb, q, W, i))
    at, b, state = places(xb, p, W, i), places(bb, p, bp, group), i
    dt = load_group(delta, places(db, p, D, i)) + load_group(bias, i)
    if softplus_on:
        dt = softplus(dt)
    u = load_group(x, at)
    y, du = load_group(skip, i) * u, dt * u
    for _ in range(N):
        decay = exp(dt * load_group(A, state))
        y = y + recur(decay, du, B, b, h, state, h, state) * broadcast(C, b)
        b, state = places(bn, b, _U(1), group), places(padded, state, _U(1), group)
    if not alone:
        y = y + load_group(out, at)
    store_group(out, at, y)
    return following, step


@not_inlined
def _steps(
    begin: Any, end: Any, last: Any, padded: Any, softplus_on: bool, alone: bool, prefetch: bool,
    order: Any, x: Any, xb: Any, W: Any, delta: Any, db: Any, D: Any, B: Any, C: Any, bb: Any,
    bp: Any, bn: Any, A: Any, skip: Any, bias: Any, N: Any, h: Any, out: Any,
) -> None:  # fmt: skip
    """Computes steps begin..end-1 of `padded` channels: updates h, and fills `out`.

    Step t reads the pixel p = order[t]: x and out at xb + p * W, delta at db + p * D, and B and C
    of state n at bb + p * bp + n * bn. A and h are (N, padded), skip and bias (padded). Adds to
    `out` unless `alone`. With `prefetch`, later steps up to `last` are prefetched.
    """
    i, t, number = _U(0), begin, (end - begin) * (padded // LANES)
    for _ in range(number // _U(FOUR)):
        i, t = _group(
            _FOUR, i, t, last, padded, softplus_on, alone, prefetch, order, x, xb, W, delta, db, D,
            B, C, bb, bp, bn, A, skip, bias, N, h, out,
        )  # fmt: skip
    for _ in range(number % _U(FOUR)):
        i, t = _group(
            _ONE, i, t, last, padded, softplus_on, alone, prefetch, order, x, xb, W, delta, db, D,
            B, C, bb, bp, bn, A, skip, bias, N, h, out,
        )  # fmt: skip


@inlined
def _copy_in(source: Any, at: Any, D: Any, target: Any, padded: Any, rows: Any, w: Any) -> None:
    """Copies `w` channels of rows (rows, D), starting with source[at], to (rows, padded)."""
    for n in range(rows):
        for i in range(_U(0), w, LANES):
            store(target, n * padded + i, LANES, load(source, at + n * D + i, min(LANES, w - i)))


@inlined
def _copy_out(source: Any, padded: Any, rows: Any, w: Any, target: Any, at: Any, D: Any) -> None:
    """The inverse of `_copy_in`."""
    for n in range(rows):
        for i in range(_U(0), w, LANES):
            store(target, at + n * D + i, min(LANES, w - i), load(source, n * padded + i, LANES))


@not_inlined  # tiles take long to compile
def _transpose_in(
    source: Any, at: Any, step: Any, rows: Any, columns: Any, target: Any, leap: Any
) -> None:
    """target[c*leap + r] = source[at + r*step + c]."""
    for r in range(_U(0), rows, LANES):
        for c in range(_U(0), columns, LANES):
            height, width = min(LANES, rows - r), min(LANES, columns - c)
            turn(source, at + r * step + c, step, height, width, target, c * leap + r, leap)


@not_inlined  # tiles take long to compile
def _transpose_out(
    source: Any, leap: Any, rows: Any, columns: Any, target: Any, at: Any, step: Any
) -> None:
    """target[at + r*step + c] = source[c*leap + r]."""
    for r in range(_U(0), rows, LANES):
        for c in range(_U(0), columns, LANES):
            height, width = min(LANES, columns - c), min(LANES, rows - r)
            turn(source, c * leap + r, leap, height, width, target, at + r * step + c, step)


@not_inlined
def _gather(
    path: Any, t0: Any, t1: Any, source: Any, at: Any, D: Any, target: Any, padded: Any, w: Any
) -> None:
    """Copies `w` channels of steps t0..t1-1 of a `path` to `target` (T, padded)."""
    for j in range(t1 - t0):
        _copy_in(source, at + _U(path[t0 + j]) * D, D, target[j * padded :], padded, _U(1), w)


@not_inlined
def _scatter(
    path: Any, t0: Any, t1: Any, source: Any, padded: Any, target: Any, at: Any, D: Any, w: Any,
    alone: bool,
) -> None:  # fmt: skip
    """The inverse of `_gather`: writes to `target`, or adds to it unless `alone`."""
    for j in range(t1 - t0):
        place = at + _U(path[t0 + j]) * D
        for i in range(_U(0), w, LANES):
            count, value = min(LANES, w - i), load(source, j * padded + i, LANES)
            store(
                target, place + i, count, value if alone else value + load(target, place + i, count)
            )


@not_inlined
def forward(
    task: int, dims: Any, softplus_on: bool, block: int, chunk: int, keep: bool,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any, offset: Any,
    out: Any, state: Any, borders: Any,
) -> None:  # fmt: skip
    """Computes one task, channels-last: fills `out`, `state`, and with `keep` also `borders`."""
    K, S, L, D, N, W = dims
    blocks, chunks, states, D_, W_ = (
        (D + block - 1) // block,
        (L + chunk - 1) // chunk,
        _U(N),
        _U(D),
        _U(W),
    )
    s, a = task // blocks, (task % blocks) * block
    w = _U(min(D, a + block) - a)
    padded = (w + LANES - _U(1)) // LANES * LANES
    As, h = np.zeros(N * padded, _F), np.empty(N * padded, _F)
    skips, biases = np.zeros(padded, _F), np.zeros(padded, _F)
    identity = np.arange(WINDOW).astype(np.int32)
    xs, deltas = np.zeros(WINDOW * padded, _F), np.zeros(WINDOW * padded, _F)
    outs = np.empty(WINDOW * padded, _F)
    small = WINDOW * N + WIDTH  # B and C are copied by whole vectors
    Bs, Cs = np.empty(small, _F), np.empty(small, _F)
    for k in range(K):
        kd, ks, an = _U(k * D + a), _U(k * S + s), _U(k * N * D + a)
        xb, db, bb = _U(s * L * W + offset[k] + a), ks * _U(L) * D_ + _U(a), ks * _U(L) * states
        # The first direction of a channel writes every step, so `out` need not be initialised.
        alone = k == 0 or offset[k] != offset[k - 1]
        _copy_in(A, an, D_, As, padded, states, w)
        _copy_in(skip, kd, D_, skips, padded, _U(1), w)
        _copy_in(bias, kd, D_, biases, padded, _U(1), w)
        path, last = order[k * L : k * L + L], _U(L - 1)
        h[:] = _F(0.0)
        # Channels that fill whole vectors are read and written in place, others in windows.
        length = chunk if keep else L
        length = length if w == padded else min(length, WINDOW)
        for start in range(0, L, length):
            t0, t1 = _U(start), _U(min(L, start + length))
            if keep and start % chunk == 0:
                saved = (ks * _U(chunks) + _U(start // chunk)) * states * D_ + _U(a)
                _copy_out(h, padded, states, w, borders, saved, D_)
            if w == padded:
                _steps(
                    t0, t1, last, padded, softplus_on, alone, True, path, x, xb, W_, delta, db, D_,
                    B, C, bb, states, _U(1), As, skips, biases, states, h, out,
                )  # fmt: skip
                continue
            _gather(path, t0, t1, x, xb, W_, xs, padded, w)
            _gather(path, t0, t1, delta, db, D_, deltas, padded, w)
            _gather(path, t0, t1, B, bb, states, Bs, states, states)
            _gather(path, t0, t1, C, bb, states, Cs, states, states)
            _steps(
                _U(0), t1 - t0, last, padded, softplus_on, True, False, identity, xs, _U(0), padded,
                deltas, _U(0), padded, Bs, Cs, _U(0), states, _U(1), As, skips, biases, states, h,
                outs,
            )  # fmt: skip
            _scatter(path, t0, t1, outs, padded, out, xb, W_, w, alone)
        _copy_out(h, padded, states, w, state, ks * states * D_ + _U(a), D_)


# --- Forward pass, time-major layout (rows of steps) ---------------------------------------------
#
# Tiles of 16 steps are transposed in the cache, so that no channels-last copy of the input or
# output is made. These layouts differ from those above: x, delta, out (S, K*D, L); B, C
# (S, K, N, L); K is the number of groups.


@inlined
def _ask(x: Any, delta: Any, out: Any, rows: Any, L: Any, t: Any, w: Any) -> None:
    """Prefetches step t of each of the `w` rows."""
    for i in range(w):
        prefetch(x, rows + i * L + t)
        prefetch(delta, rows + i * L + t)
        prefetch(out, rows + i * L + t)


@not_inlined
def forward_sequence(
    task: int, dims: Any, softplus_on: bool, block: int, chunk: int, keep: bool,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any,
    out: Any, state: Any, borders: Any,
) -> None:  # fmt: skip
    """Computes one task, time-major: fills `out`, `state`, and with `keep` also `borders`."""
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
    padded = (w + LANES - _U(1)) // LANES * LANES
    kd, ks, an = _U(k * D + a), _U(k * S + s), _U(k * N * D + a)
    rows, bb = _U(s * W * L) + kd * L_, _U((s * K + k) * N * L)
    identity = np.arange(WINDOW).astype(np.int32)
    xs, deltas = np.zeros(WINDOW * padded, _F), np.zeros(WINDOW * padded, _F)
    outs, As, h = np.empty(WINDOW * padded, _F), np.zeros(N * padded, _F), np.zeros(N * padded, _F)
    skips, biases = np.zeros(padded, _F), np.zeros(padded, _F)
    _copy_in(A, an, D_, As, padded, states, w)
    _copy_in(skip, kd, D_, skips, padded, _U(1), w)
    _copy_in(bias, kd, D_, biases, padded, _U(1), w)
    part = min(_U(chunk), LANES) if keep else LANES
    for t in range(_U(0), L_, LANES):
        span = min(LANES, L_ - t)
        _ask(x, delta, out, rows, L_, min(t + _U(31), L_ - _U(1)), w)
        _transpose_in(x, rows + t, L_, w, span, xs, padded)
        _transpose_in(delta, rows + t, L_, w, span, deltas, padded)
        for j in range(_U(0), span, part):
            if keep and (t + j) % _U(chunk) == 0:
                saved = (ks * _U(chunks) + (t + j) // _U(chunk)) * states * D_ + _U(a)
                _copy_out(h, padded, states, w, borders, saved, D_)
            _steps(
                j, min(span, j + part), span - _U(1), padded, softplus_on, True, False, identity,
                xs, _U(0), padded, deltas, _U(0), padded, B, C, bb + t, _U(1), L_, As, skips,
                biases, states, h, outs,
            )  # fmt: skip
        _transpose_out(outs, padded, w, span, out, rows + t, L_)
    _copy_out(h, padded, states, w, state, ks * states * D_ + _U(a), D_)


# --- Backward pass --------------------------------------------------------------------------------
#
# Tasks, units and layouts are those of the forward pass. States are recomputed chunk by chunk from
# those that the forward pass saved before each chunk, into buffers that fit in the cache.
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


@inlined
def _replay_group(
    group: Any, first: Any, t0: Any, begin: Any, last: Any, padded: Any, softplus_on: bool,
    prefetch: bool, needed: int, order: Any, x: Any, xb: Any, W: Any, delta: Any, db: Any, D: Any,
    B: Any, bb: Any, bp: Any, bn: Any, A: Any, bias: Any, N: Any, dts: Any, slopes: Any,
    decays: Any, states: Any,
) -> Any:  # fmt: skip
    """Recomputes a group of units, and returns channel and step of the unit after it."""
    i, t, following, step = units(group, first, t0, padded)
    p = looked_up(order, t)
    if prefetch:
        q = looked_up(order, later(t, _U(AHEAD), last))
        prefetch_group(delta, places(db, q, D, i))
        if needed & _BY_STATES:
            prefetch_group(x, places(xb, q, W, i))
    b, row, state = places(bb, p, bp, group), N * padded, i
    at = places(_U(0) - begin * padded, t, padded, i)
    to = places(_U(0) - begin * row, t, row, i)
    dt = load_group(delta, places(db, p, D, i)) + load_group(bias, i)
    if softplus_on:
        dt, slope = softplus_and_slope(dt)
        if needed & OF_STEP:
            store_group(slopes, at, slope)
    store_group(dts, at, dt)
    du = dt * load_group(x, places(xb, p, W, i))
    for _ in range(N):
        decay = exp(dt * load_group(A, state))
        if needed & _BY_STATE_GRADS:
            store_group(decays, to, decay)
        if needed & _BY_STATES:
            recur(decay, du, B, b, states, to, states, places(row, to, _U(1), group))
        b, state = places(bn, b, _U(1), group), places(padded, state, _U(1), group)
        to = places(padded, to, _U(1), group)
    return following, step


@inlined
def _replay(
    begin: Any, end: Any, padded: Any, softplus_on: bool, prefetch: bool, needed: int, order: Any,
    x: Any, xb: Any, W: Any, delta: Any, db: Any, D: Any, B: Any, bb: Any, bp: Any, bn: Any,
    A: Any, bias: Any, N: Any, dts: Any, slopes: Any, decays: Any, states: Any,
) -> None:  # fmt: skip
    """Recomputes steps begin..end-1 and stores the values that the backward pass needs.

    Fills dts and slopes (T, padded), decays (T, N, padded) and states (T + 1, N, padded); slopes
    are the derivatives of softplus. The caller must fill the first row of `states` with the state
    before the first step. Other arguments as for `_steps`.
    """
    i, t, last, number = _U(0), begin, end - _U(1), (end - begin) * (padded // LANES)
    for _ in range(number // _U(FOUR)):
        i, t = _replay_group(
            _FOUR, i, t, begin, last, padded, softplus_on, prefetch, needed, order, x, xb, W, delta,
            db, D, B, bb, bp, bn, A, bias, N, dts, slopes, decays, states,
        )  # fmt: skip
    for _ in range(number % _U(FOUR)):
        i, t = _replay_group(
            _ONE, i, t, begin, last, padded, softplus_on, prefetch, needed, order, x, xb, W, delta,
            db, D, B, bb, bp, bn, A, bias, N, dts, slopes, decays, states,
        )  # fmt: skip


@inlined
def _add(target: Any, at: Any, left: Any, right: Any) -> None:
    store(target, at, LANES, multiply_add(left, right, load(target, at, LANES)))


@inlined
def _retreat(
    dt: Any, u: Any, dy: Any, A: Any, B: Any, C: Any, bc: Any, bn: Any, g: Any, i: Any,
    padded: Any, decays: Any, states: Any, at: Any, dA: Any, sums: Any, N: Any, needed: int,
) -> Any:  # fmt: skip
    """One backward step of 16 channels; updates g to d loss / d previous states.

    Adds to dA and to the sums over channels of dB and dC, (2, N, 16). Returns d loss / d dt and
    the part of d loss / d u that comes from the states. Values that are not `needed` are unchanged
    or returned as zero.
    """
    ddt, du = fill(_F(0.0)), fill(_F(0.0))
    row = N * padded
    for n in range(N):
        place, lane, b = at + n * padded, i + n * padded, bc + n * bn
        if needed & OF_C:
            _add(sums, (N + n) * LANES, dy, load(states, place + row, LANES))
        if needed & _BY_STATE_GRADS:
            grad = multiply_add(dy, C[b], load(g, lane, LANES))
            back = grad * load(decays, place, LANES)  # d loss / d previous state
            store(g, lane, LANES, back)
            if needed & OF_B:
                _add(sums, n * LANES, grad, dt * u)
            if needed & OF_X:
                du = multiply_add(grad, dt * B[b], du)
            if needed & (OF_A | OF_STEP):
                through = back * load(states, place, LANES)
                if needed & OF_A:
                    _add(dA, lane, through, dt)
                if needed & OF_STEP:
                    direct = grad * (u * B[b])
                    ddt = ddt + multiply_add(through, load(A, lane, LANES), direct)
    return ddt, du


@inlined
def _fetch_back(needed: int, padded: Any, dy: Any, dx: Any, xp: Any, ddelta: Any, dp: Any) -> None:
    """Prefetches what `_steps_backward` reads and writes in one step."""
    for i in range(_U(0), padded, LANES):
        prefetch(dy, xp + i)
        if needed & OF_X:
            prefetch(dx, xp + i)
        if needed & OF_DELTA:
            prefetch(ddelta, dp + i)


@inlined
def _put_step(needed: int, ddt: Any, ddelta: Any, dp: Any, dbias: Any, i: Any) -> None:
    """Writes the gradient of delta and adds to that of the bias, where `needed`."""
    if needed & OF_DELTA:
        store(ddelta, dp, LANES, ddt)
    if needed & OF_BIAS:
        store(dbias, i, LANES, load(dbias, i, LANES) + ddt)


@inlined
def _put_input(
    needed: int, alone: bool, grad: Any, u: Any, du: Any, skip: Any, i: Any, dx: Any, xp: Any,
    dskip: Any,
) -> None:  # fmt: skip
    """Writes the gradient of the input, or adds to it, and adds to that of D, where `needed`."""
    if needed & OF_X:
        du = multiply_add(load(skip, i, LANES), grad, du)
        store(dx, xp, LANES, du if alone else du + load(dx, xp, LANES))
    if needed & OF_D:
        _add(dskip, i, grad, u)


@inlined
def _steps_backward(
    begin: int, end: int, padded: Any, softplus_on: bool, alone: bool, prefetch: bool, needed: int,
    order: Any, x: Any, xb: Any, W: Any, dy: Any, db: Any, D: Any, B: Any, C: Any, bb: Any, bp: Any,
    bn: Any, A: Any, skip: Any, N: Any, dts: Any, slopes: Any, decays: Any, states: Any, g: Any,
    sums: Any, dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, pb: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Gradients of steps end-1..begin; `g`, d loss / d state, is passed from chunk to chunk.

    dy and dx lie as x, and ddelta as delta; dB and dC of state n are at pb + p * bp + n * bn.
    """
    for t in range(end - 1, begin - 1, -1):
        j, p = _U(t - begin), _U(order[_U(t)])
        at, bc = xb + p * W, bb + p * bp
        if prefetch:
            q = _U(order[_U(max(t - AHEAD, begin))])
            _fetch_back(needed, padded, dy, dx, xb + q * W, ddelta, db + q * D)
        sums[:] = _F(0.0)
        for i in range(_U(0), padded, LANES):
            dj = j * padded + i
            dt, u, grad = load(dts, dj, LANES), load(x, at + i, LANES), load(dy, at + i, LANES)
            ddt, du = _retreat(
                dt, u, grad, A, B, C, bc, bn, g, i, padded, decays, states, j * N * padded + i, dA,
                sums, N, needed,
            )  # fmt: skip
            if needed & OF_STEP:
                if softplus_on:
                    ddt = ddt * load(slopes, dj, LANES)
                _put_step(needed, ddt, ddelta, db + p * D + i, dbias, i)
            _put_input(needed, alone, grad, u, du, skip, i, dx, at + i, dskip)
        for n in range(N):
            if needed & OF_B:
                dB[pb + p * bp + n * bn] = total(load(sums, n * LANES, LANES))
            if needed & OF_C:
                dC[pb + p * bp + n * bn] = total(load(sums, (N + n) * LANES, LANES))


@inlined
def _window_out(
    needed: int, alone: bool, path: Any, t0: Any, t1: Any, dxs: Any, ddeltas: Any, dBs: Any,
    dCs: Any, padded: Any, w: Any, N: Any, dx: Any, xb: Any, W: Any, ddelta: Any, db: Any, D: Any,
    dB: Any, dC: Any, pb: Any,
) -> None:  # fmt: skip
    """Copies the needed gradients of steps t0..t1-1 to their pixels."""
    if needed & OF_X:
        _scatter(path, t0, t1, dxs, padded, dx, xb, W, w, alone)
    if needed & OF_DELTA:
        _scatter(path, t0, t1, ddeltas, padded, ddelta, db, D, w, True)
    if needed & OF_B:
        _scatter(path, t0, t1, dBs, N, dB, pb, N, N, True)
    if needed & OF_C:
        _scatter(path, t0, t1, dCs, N, dC, pb, N, N, True)


@inlined
def _sums_out(
    needed: int, dAs: Any, dskips: Any, dbiases: Any, padded: Any, N: Any, w: Any, dA: Any,
    dskip: Any, dbias: Any, row: Any, a: Any, D: Any,
) -> None:  # fmt: skip
    """Copies the needed gradients of A, D and the bias, of channels a..a+w-1, to the results."""
    if needed & OF_A:
        _copy_out(dAs, padded, N, w, dA, row * N + a, D)
    if needed & OF_D:
        _copy_out(dskips, padded, _U(1), w, dskip, row + a, D)
    if needed & OF_BIAS:
        _copy_out(dbiases, padded, _U(1), w, dbias, row + a, D)


@inlined
def backward(
    task: int, dims: Any, softplus_on: bool, block: int, chunk: int, needed: int,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any, offset: Any,
    borders: Any, dy: Any, dstate: Any,
    dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Computes the `needed` gradients of one task, channels-last.

    Arrays of other gradients are not accessed. dA (S, K, N, D), dskip and dbias (S, K, D) are per
    sequence, dB and dC (blocks, K, S, L, N) per block of channels: the caller sums them.
    """
    K, S, L, D, N, W = dims
    blocks, chunks, N_, D_, W_ = (
        (D + block - 1) // block,
        (L + chunk - 1) // chunk,
        _U(N),
        _U(D),
        _U(W),
    )
    s, nb = task // blocks, task % blocks
    a = nb * block
    w = _U(min(D, a + block) - a)
    padded = (w + LANES - _U(1)) // LANES * LANES
    direct = w == padded  # the channels fill whole vectors: they are read and written in place
    room = _U(0) if direct else _U(chunk) * padded
    small = _U(0) if direct else _U(chunk * N + WIDTH)  # copied by whole vectors
    identity = np.arange(chunk).astype(np.int32)
    As, skips, biases = np.zeros(N * padded, _F), np.zeros(padded, _F), np.zeros(padded, _F)
    dAs, dskips, dbiases = np.empty(N * padded, _F), np.empty(padded, _F), np.empty(padded, _F)
    xs, deltas, dys = np.empty(room, _F), np.empty(room, _F), np.empty(room, _F)
    dxs, ddeltas = np.empty(room, _F), np.empty(room, _F)
    Bs, Cs, dBs, dCs = (
        np.empty(small, _F), np.empty(small, _F), np.empty(small, _F), np.empty(small, _F)
    )  # fmt: skip
    dts, slopes = np.empty(chunk * padded, _F), np.empty(chunk * padded, _F)
    decays, states = np.empty(chunk * N * padded, _F), np.empty((chunk + 1) * N * padded, _F)
    g, sums = np.empty(N * padded, _F), np.empty(2 * N * WIDTH, _F)
    for k in range(K):
        ks, alone = _U(k * S + s), k == 0 or offset[k] != offset[k - 1]
        kd, an, path = _U(k * D + a), _U(k * N * D + a), order[k * L : k * L + L]
        xb, db, bb = _U(s * L * W + offset[k] + a), ks * _U(L) * D_ + _U(a), ks * _U(L) * N_
        pb = _U(nb * K * S * L * N) + bb
        _copy_in(A, an, D_, As, padded, N_, w)
        _copy_in(skip, kd, D_, skips, padded, _U(1), w)
        _copy_in(bias, kd, D_, biases, padded, _U(1), w)
        _copy_in(dstate, ks * N_ * D_ + _U(a), D_, g, padded, N_, w)
        dAs[:], dskips[:], dbiases[:] = _F(0.0), _F(0.0), _F(0.0)
        for section in range(chunks - 1, -1, -1):
            t0, t1 = _U(section * chunk), _U(min(L, section * chunk + chunk))
            if needed & _BY_STATES:
                saved = (ks * _U(chunks) + _U(section)) * N_ * D_ + _U(a)
                _copy_in(borders, saved, D_, states, padded, N_, w)
            if not direct:
                _gather(path, t0, t1, x, xb, W_, xs, padded, w)
                _gather(path, t0, t1, delta, db, D_, deltas, padded, w)
                _gather(path, t0, t1, dy, xb, W_, dys, padded, w)
                _gather(path, t0, t1, B, bb, N_, Bs, N_, N_)
                _gather(path, t0, t1, C, bb, N_, Cs, N_, N_)
            begin, end = (t0, t1) if direct else (_U(0), t1 - t0)
            order_, writes = path if direct else identity, alone or not direct
            x_, delta_, dy_ = (x, delta, dy) if direct else (xs, deltas, dys)
            B_, C_, dB_, dC_ = (B, C, dB, dC) if direct else (Bs, Cs, dBs, dCs)
            dx_, ddelta_ = (dx, ddelta) if direct else (dxs, ddeltas)
            xb_, W__, db_, D__ = (xb, W_, db, D_) if direct else (_U(0), padded, _U(0), padded)
            bb_, pb_ = (bb, pb) if direct else (_U(0), _U(0))
            _replay(
                begin, end, padded, softplus_on, direct, needed, order_, x_, xb_, W__, delta_, db_,
                D__, B_, bb_, N_, _U(1), As, biases, N_, dts, slopes, decays, states,
            )  # fmt: skip
            _steps_backward(
                int(begin), int(end), padded, softplus_on, writes, direct, needed, order_,
                x_, xb_, W__, dy_, db_, D__, B_, C_, bb_, N_, _U(1), As, skips, N_, dts, slopes,
                decays, states, g, sums, dx_, ddelta_, dAs, dB_, dC_, pb_, dskips, dbiases,
            )  # fmt: skip
            if not direct:
                _window_out(
                    needed, alone, path, t0, t1, dxs, ddeltas, dBs, dCs, padded, w, N_, dx, xb, W_,
                    ddelta, db, D_, dB, dC, pb,
                )  # fmt: skip
        sd = _U((s * K + k) * D)
        _sums_out(needed, dAs, dskips, dbiases, padded, N_, w, dA, dskip, dbias, sd, _U(a), D_)


# --- Backward pass, time-major layout ------------------------------------------------------------
#
# Tasks and layouts are those of the time-major forward pass; partial sums of dB and dC are
# (blocks, S, K, N, L). A window of steps (one chunk, or several short ones) is transposed into
# local channels-last arrays and processed as above, and its gradients are transposed back: no copy
# of a complete sequence is made. Local arrays consist of complete vectors; lanes beyond the last
# channel are zero and remain zero.


@inlined
def backward_sequence(
    task: int, dims: Any, softplus_on: bool, block: int, chunk: int, needed: int,
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, borders: Any, dy: Any,
    dstate: Any, dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Computes the `needed` gradients of one task, time-major; see `backward`."""
    K, S, L, D, N, W = dims
    blocks, chunks = (D + block - 1) // block, (L + chunk - 1) // chunk
    s, k, nb = task // blocks // K, task // blocks % K, task % blocks
    a, ks = nb * block, k * S + s
    w, L_, N_, D_ = _U(min(D, a + block) - a), _U(L), _U(N), _U(D)
    padded = (w + LANES - _U(1)) // LANES * LANES
    kd, an, sd = _U(k * D + a), _U(k * N * D + a), _U((s * K + k) * D)
    rows, bb = _U(s * W * L) + kd * L_, _U((s * K + k) * N * L)
    pb = _U(nb * S * K * N * L) + bb
    window = max(chunk, WINDOW)
    identity = np.arange(window).astype(np.int32)
    As, skips, biases = np.zeros(N * padded, _F), np.zeros(padded, _F), np.zeros(padded, _F)
    dAs, dskips, dbiases = np.zeros(N * padded, _F), np.zeros(padded, _F), np.zeros(padded, _F)
    xs, deltas = np.zeros(window * padded, _F), np.zeros(window * padded, _F)
    dys, dxs = np.zeros(window * padded, _F), np.empty(window * padded, _F)
    ddeltas, slopes = np.empty(window * padded, _F), np.empty(chunk * padded, _F)
    dts, decays = np.empty(chunk * padded, _F), np.empty(chunk * N * padded, _F)
    states = np.empty((chunk + 1) * N * padded, _F)
    g, sums = np.empty(N * padded, _F), np.empty(2 * N * WIDTH, _F)
    _copy_in(A, an, D_, As, padded, N_, w)
    _copy_in(skip, kd, D_, skips, padded, _U(1), w)
    _copy_in(bias, kd, D_, biases, padded, _U(1), w)
    _copy_in(dstate, _U(ks * N * D + a), D_, g, padded, N_, w)
    for start in range((L - 1) // window * window, -1, -window):
        t, span = _U(start), _U(min(window, L - start))
        _transpose_in(x, rows + t, L_, w, span, xs, padded)
        _transpose_in(delta, rows + t, L_, w, span, deltas, padded)
        _transpose_in(dy, rows + t, L_, w, span, dys, padded)
        end = min(window, L - start)
        for t0 in range((end - 1) // chunk * chunk, -1, -chunk):
            t1, section = min(end, t0 + chunk), (start + t0) // chunk
            if needed & _BY_STATES:
                saved = _U((ks * chunks + section) * N * D + a)
                _copy_in(borders, saved, D_, states, padded, N_, w)
            _replay(
                _U(t0), _U(t1), padded, softplus_on, False, needed, identity, xs, _U(0), padded,
                deltas, _U(0), padded, B, bb + t, _U(1), L_, As, biases, N_, dts, slopes, decays,
                states,
            )  # fmt: skip
            _steps_backward(
                t0, t1, padded, softplus_on, True, False, needed, identity, xs, _U(0), padded, dys,
                _U(0), padded, B, C, bb + t, _U(1), L_, As, skips, N_, dts, slopes, decays, states,
                g, sums, dxs, ddeltas, dAs, dB, dC, pb + t, dskips, dbiases,
            )  # fmt: skip
        if needed & OF_X:
            _transpose_out(dxs, padded, w, span, dx, rows + t, L_)
        if needed & OF_DELTA:
            _transpose_out(ddeltas, padded, w, span, ddelta, rows + t, L_)
    _sums_out(needed, dAs, dskips, dbiases, padded, N_, w, dA, dskip, dbias, sd, _U(a), D_)


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


@inlined
def _array(work: Any, number: int) -> Any:
    return carray(_floats(work[HEAD + number]), (_ANY,))


@inlined
def _indices(work: Any, number: int) -> Any:
    return carray(_ints(work[HEAD + number]), (_ANY,))


@inlined
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
