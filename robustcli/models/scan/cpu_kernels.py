"""The scan's loops for the CPU, compiled by numba: forward and backward over one range of tasks.

A task is one sequence of the batch and one block of channels; no two tasks write the same memory.
Channels are the fastest axis, so that a step of the recurrence is SIMD over channels. The state
lives in the cache; the backward pass recomputes it chunk by chunk, from states at their borders.

Layout, all flat and float32: x, out (S, L, W); delta (K, S, L, D); A (K, N, D); B, C (K, S, L, N);
skip, bias (K, D); borders (K, S, chunks, N, D); order (K, L) int32, the place of each step;
offset (K) int32, the channel of x where direction or group k starts; `dims` is (K, S, L, D, N, W).

How the loops are written decides whether LLVM turns them into SIMD: indices are unsigned (numba
lets a signed one count from the end, which is a branch), arrays are flat (a slice costs two
reference counts), and a loop touches few arrays (each pair costs a check for overlap).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from robustcli.models.scan.cpu_math import exp32, sigmoid32, softplus32

_F, _U = np.float32, np.uintp
_CONTRACT = {"contract"}  # fused multiply-add; NaN and infinity keep their meaning
_REASSOCIATE = {"contract", "reassoc"}  # also lets sums over channels be vector sums


@njit(inline="always", fastmath=_CONTRACT)
def _step_sizes(
    delta: Any, at: Any, bias: Any, kd: Any, softplus: bool, dt: Any, to: Any, w: Any
) -> None:
    """dt[to:to+w] of one position: delta plus bias, through softplus if asked."""
    if softplus:
        for i in range(w):
            dt[to + i] = softplus32(delta[at + i] + bias[kd + i])
    else:
        for i in range(w):
            dt[to + i] = delta[at + i] + bias[kd + i]


@njit(inline="always")
def _copy(source: Any, at: Any, target: Any, to: Any, w: Any) -> None:
    for i in range(w):
        target[to + i] = source[at + i]


@njit(inline="always")
def _emit(y: Any, out: Any, xp: Any, w: Any, alone: bool) -> None:
    """Writes y, or adds it to what an earlier direction wrote."""
    if alone:
        for i in range(w):
            out[xp + i] = y[i]
    else:
        for i in range(w):
            out[xp + i] += y[i]


@njit(inline="always", fastmath=_CONTRACT)
def _advance(
    dt: Any, du: Any, A: Any, an: Any, b: Any, c: Any, h: Any, hn: Any, y: Any, w: Any
) -> None:
    """One step of state index n: h moves on, y gains c*h."""
    for i in range(w):
        v = exp32(dt[i] * A[an + i]) * h[hn + i] + b * du[i]
        h[hn + i] = v
        y[i] += c * v


@njit(nogil=True, cache=True, fastmath=_CONTRACT, error_model="numpy")
def forward(
    dims: Any, x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any,
    offset: Any, softplus: bool, block: int, chunk: int, keep: bool, first: int, last: int,
    out: Any, state: Any, borders: Any,
) -> None:  # fmt: skip
    """Tasks first..last-1: fills `out`, `state` (K, S, N, D), and `borders` if `keep`."""
    K, S, L, D, N, W = dims
    blocks, chunks, count = (D + block - 1) // block, (L + chunk - 1) // chunk, _U(N)
    dt, du, y = np.empty(block, _F), np.empty(block, _F), np.empty(block, _F)
    h = np.empty(N * block, _F)
    for task in range(first, last):
        s, a = task // blocks, (task % blocks) * block
        w = _U(min(D, a + block) - a)
        for k in range(K):
            kd, ks = _U(k * D + a), _U(k * S + s)
            # The first direction of a channel writes every step, so `out` need not come zeroed.
            alone = k == 0 or offset[k] != offset[k - 1]
            h[:] = _F(0.0)
            for t in range(L):
                if keep and t % chunk == 0:
                    to = (ks * _U(chunks) + _U(t // chunk)) * count * _U(D) + _U(a)
                    for n in range(count):
                        _copy(h, n * w, borders, to + n * _U(D), w)
                p = _U(order[_U(k * L + t)])
                xp, kp = (_U(s * L) + p) * _U(W) + _U(offset[k] + a), ks * _U(L) + p
                _step_sizes(delta, kp * _U(D) + _U(a), bias, kd, softplus, dt, _U(0), w)
                for i in range(w):
                    y[i] = skip[kd + i] * x[xp + i]
                    du[i] = dt[i] * x[xp + i]
                for n in range(count):
                    b, c, an = B[kp * count + n], C[kp * count + n], _U(k * N * D + a) + n * _U(D)
                    _advance(dt, du, A, an, b, c, h, n * w, y, w)
                _emit(y, out, xp, w, alone)
            for n in range(count):
                _copy(h, n * w, state, (ks * count + n) * _U(D) + _U(a), w)


@njit(cache=True, fastmath=_CONTRACT, error_model="numpy")
def _replay(
    dims: Any, x: Any, delta: Any, A: Any, B: Any, bias: Any, order: Any, softplus: bool,
    k: int, s: int, a: int, c: int, w: Any, t0: int, t1: int, dts: Any, decays: Any, states: Any,
) -> None:  # fmt: skip
    """Recomputes steps t0..t1-1, keeping what the way back needs.

    dts (T, w); decays (T, N, w); states (T + 1, N, w), whose first row comes filled with the state
    before t0.
    """
    _, S, L, D, N, W = dims
    kd, ks, count = _U(k * D + a), _U(k * S + s), _U(N)
    for t in range(t0, t1):
        j, p = _U(t - t0), _U(order[_U(k * L + t)])
        xp, kp, dj = (_U(s * L) + p) * _U(W) + _U(c), ks * _U(L) + p, j * w
        _step_sizes(delta, kp * _U(D) + _U(a), bias, kd, softplus, dts, dj, w)
        for n in range(count):
            b, an = B[kp * count + n], _U(k * N * D + a) + n * _U(D)
            at = (j * count + n) * w
            to = at + count * w
            for i in range(w):
                decays[at + i] = exp32(dts[dj + i] * A[an + i])
            for i in range(w):
                states[to + i] = decays[at + i] * states[at + i] + b * (dts[dj + i] * x[xp + i])


@njit(inline="always", fastmath=_REASSOCIATE)
def _retreat(
    g: Any, gn: Any, decays: Any, states: Any, before: Any, after: Any, A: Any, an: Any,
    dts: Any, dj: Any, x: Any, xp: Any, dy: Any, b: Any, c: Any,
    ddt: Any, dxt: Any, dA: Any, da: Any, w: Any,
) -> Any:  # fmt: skip
    """One step back for one state index; g becomes d loss/d the state before. Returns (dB, dC)."""
    db, dc = _F(0.0), _F(0.0)
    for i in range(w):
        g[gn + i] += c * dy[xp + i]
    for i in range(w):
        db += g[gn + i] * (dts[dj + i] * x[xp + i])
        dc += dy[xp + i] * states[after + i]
    for i in range(w):
        dxt[i] += g[gn + i] * (b * dts[dj + i])
    for i in range(w):
        through_decay = decays[before + i] * states[before + i] * A[an + i]
        ddt[i] += g[gn + i] * (through_decay + b * x[xp + i])
    for i in range(w):
        g[gn + i] *= decays[before + i]
    for i in range(w):
        dA[da + i] += g[gn + i] * (states[before + i] * dts[dj + i])
    return db, dc


@njit(inline="always", fastmath=_CONTRACT)
def _through_softplus(ddt: Any, delta: Any, dp: Any, bias: Any, kd: Any, w: Any) -> None:
    for i in range(w):
        ddt[i] *= sigmoid32(delta[dp + i] + bias[kd + i])


@njit(cache=True, fastmath=_REASSOCIATE, error_model="numpy")
def _way_back(
    dims: Any, x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any,
    softplus: bool, k: int, s: int, nb: int, a: int, c: int, w: Any, t0: int, t1: int,
    dts: Any, decays: Any, states: Any, dy: Any, g: Any, ddt: Any, dxt: Any,
    dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Gradients of steps t1-1..t0; `g` (N, w), d loss/d state, is carried from chunk to chunk."""
    K, S, L, D, N, W = dims
    kd, ks, count, sd = _U(k * D + a), _U(k * S + s), _U(N), _U((s * K + k) * D + a)
    for t in range(t1 - 1, t0 - 1, -1):
        j, p = _U(t - t0), _U(order[_U(k * L + t)])
        xp, kp, dj = (_U(s * L) + p) * _U(W) + _U(c), ks * _U(L) + p, j * w
        dp = kp * _U(D) + _U(a)
        for i in range(w):
            ddt[i] = _F(0.0)
            dxt[i] = skip[kd + i] * dy[xp + i]
        for i in range(w):
            dskip[sd + i] += dy[xp + i] * x[xp + i]
        for n in range(count):
            before, an = (j * count + n) * w, _U(k * N * D + a) + n * _U(D)
            to, da = kp * count + n, _U((s * K + k) * N * D + a) + n * _U(D)
            db, dc = _retreat(
                g, n * w, decays, states, before, before + count * w, A, an, dts, dj, x, xp, dy,
                B[to], C[to], ddt, dxt, dA, da, w,
            )  # fmt: skip
            to += _U(nb * K * S * L * N)
            dB[to], dC[to] = db, dc
        if softplus:
            _through_softplus(ddt, delta, dp, bias, kd, w)
        for i in range(w):
            ddelta[dp + i] = ddt[i]
            dbias[sd + i] += ddt[i]
        for i in range(w):
            dx[xp + i] += dxt[i]


@njit(nogil=True, cache=True, error_model="numpy")
def backward(
    dims: Any, x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any,
    offset: Any, softplus: bool, block: int, chunk: int, first: int, last: int,
    borders: Any, dy: Any, dstate: Any,
    dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Tasks first..last-1 of the backward pass.

    dA (S, K, N, D), dskip and dbias (S, K, D) are per sequence, dB and dC (blocks, K, S, L, N) per
    block of channels: the caller sums them. dx (S, L, W), dA, dskip and dbias must come zeroed.
    """
    K, S, L, D, N, _ = dims
    blocks, chunks = (D + block - 1) // block, (L + chunk - 1) // chunk
    dts, ddt, dxt = np.empty(chunk * block, _F), np.empty(block, _F), np.empty(block, _F)
    decays = np.empty(chunk * N * block, _F)
    states = np.empty((chunk + 1) * N * block, _F)
    g = np.empty(N * block, _F)
    for task in range(first, last):
        s, nb = task // blocks, task % blocks
        a = nb * block
        w = min(D, a + block) - a
        for k in range(K):
            c = offset[k] + a
            for n in range(N):
                at = ((k * S + s) * N + n) * D + a
                g[n * w : n * w + w] = dstate[at : at + w]
            for section in range(chunks - 1, -1, -1):
                t0 = section * chunk
                t1 = min(L, t0 + chunk)
                for n in range(N):
                    at = (((k * S + s) * chunks + section) * N + n) * D + a
                    states[n * w : n * w + w] = borders[at : at + w]
                _replay(
                    dims, x, delta, A, B, bias, order, softplus, k, s, a, c, _U(w), t0, t1,
                    dts, decays, states,
                )  # fmt: skip
                _way_back(
                    dims, x, delta, A, B, C, skip, bias, order, softplus, k, s, nb, a, c, _U(w),
                    t0, t1, dts, decays, states, dy, g, ddt, dxt,
                    dx, ddelta, dA, dB, dC, dskip, dbias,
                )  # fmt: skip
