"""The scan's loops for the CPU, compiled by numba: forward and backward over one range of tasks.

A task is one sequence of the batch and one block of channels; no two tasks write the same memory.
Channels are the fastest axis, so that a step of the recurrence is SIMD over channels. The state
lives in the cache; the backward pass recomputes it chunk by chunk, from states at their borders.

Layout, all float32 and contiguous: x, out (B, L, D_all); delta (K, B, L, D); A (K, N, D);
B, C (K, B, L, N); skip, bias (K, D); order (K, L) int32; offset (K) int32: the channel of x at
which direction or group k starts. Inside: w channels of a block, path the pixels in scan order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from robustcli.models.scan.cpu_math import exp32, sigmoid32, softplus32

_F = np.float32
_CONTRACT = {"contract"}  # fused multiply-add; NaN and infinity keep their meaning
_REASSOCIATE = {"contract", "reassoc"}  # also lets sums over channels be vector sums


@njit(inline="always", fastmath=_CONTRACT)
def _steps(delta_t: Any, bias: Any, softplus: bool, dt: Any) -> None:
    if softplus:
        for i in range(dt.shape[0]):
            dt[i] = softplus32(delta_t[i] + bias[i])
    else:
        for i in range(dt.shape[0]):
            dt[i] = delta_t[i] + bias[i]


@njit(inline="always", fastmath=_CONTRACT)
def _advance(h: Any, dt: Any, A: Any, b: Any, c: Any, x: Any, y: Any) -> None:
    """One step of one state index n: h (w) moves on, y (w) gains c*h."""
    for i in range(h.shape[0]):
        v = exp32(dt[i] * A[i]) * h[i] + b * (dt[i] * x[i])
        h[i] = v
        y[i] += c * v


@njit(nogil=True, cache=True, fastmath=_CONTRACT, error_model="numpy")
def forward(
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any, offset: Any,
    softplus: bool, block: int, first: int, last: int, out: Any, state: Any,
) -> None:  # fmt: skip
    """Tasks first..last-1 of the forward pass; adds to `out`, fills `state` (K, B, N, D)."""
    K, _, L, D = delta.shape
    N = A.shape[1]
    blocks = (D + block - 1) // block
    for task in range(first, last):
        batch, d0 = task // blocks, (task % blocks) * block
        d1 = min(D, d0 + block)
        dt, y = np.empty(d1 - d0, _F), np.empty(d1 - d0, _F)
        for k in range(K):
            h = np.zeros((N, d1 - d0), _F)
            c0, c1 = offset[k] + d0, offset[k] + d1
            for t in range(L):
                p = order[k, t]
                xt = x[batch, p, c0:c1]
                _steps(delta[k, batch, p, d0:d1], bias[k, d0:d1], softplus, dt)
                for i in range(d1 - d0):
                    y[i] = skip[k, d0 + i] * xt[i]
                for n in range(N):
                    _advance(h[n], dt, A[k, n, d0:d1], B[k, batch, p, n], C[k, batch, p, n], xt, y)
                out_t = out[batch, p, c0:c1]
                for i in range(d1 - d0):
                    out_t[i] += y[i]
            state[k, batch, :, d0:d1] = h


@njit(inline="always", fastmath=_CONTRACT)
def _remember(h: Any, dt: Any, A: Any, b: Any, x: Any, a: Any, kept: Any) -> None:
    """As `_advance`, keeping the decay in `a` and the new state in `kept` (w each)."""
    for i in range(h.shape[0]):
        a[i] = exp32(dt[i] * A[i])
        h[i] = a[i] * h[i] + b * (dt[i] * x[i])
        kept[i] = h[i]


@njit(inline="always", fastmath=_REASSOCIATE)
def _retreat(
    g: Any, a: Any, A: Any, h: Any, before: Any, dt: Any, x: Any, dy: Any, b: Any, c: Any,
    ddt: Any, dx: Any, dA: Any,
) -> Any:  # fmt: skip
    """One step back for one state index; g (w) holds d loss/d h_t and becomes that of h_{t-1}.

    Returns (dB, dC) of this step, summed over the block's channels.
    """
    db, dc = _F(0.0), _F(0.0)
    for i in range(g.shape[0]):
        dc += dy[i] * h[i]
        gh = g[i] + c * dy[i]
        db += gh * (dt[i] * x[i])
        ga = gh * a[i]
        through_decay = ga * before[i]
        ddt[i] += through_decay * A[i] + gh * (b * x[i])
        dx[i] += gh * (b * dt[i])
        dA[i] += through_decay * dt[i]
        g[i] = ga
    return db, dc


@njit(cache=True, fastmath=_CONTRACT, error_model="numpy")
def _replay(
    x: Any, delta: Any, A: Any, B: Any, bias: Any, order: Any, softplus: bool,
    k: int, s: int, a: int, c: int, t0: int, t1: int, h: Any, dts: Any, decays: Any, states: Any,
) -> None:  # fmt: skip
    """Steps t0..t1-1 of sequence s from the state `h` (N, w) on, keeping what the way back needs.

    The last of `dts`, `decays` and `states` stays; earlier steps are kept as far as they have room.
    """
    N, w = h.shape
    room = dts.shape[0]
    for t in range(t0, t1):
        p, j = order[k, t], min(t - t0, room - 1)
        xt = x[s, p, c : c + w]
        _steps(delta[k, s, p, a : a + w], bias[k, a : a + w], softplus, dts[j])
        for n in range(N):
            _remember(
                h[n], dts[j], A[k, n, a : a + w], B[k, s, p, n], xt, decays[j, n], states[j, n]
            )


@njit(cache=True, fastmath=_REASSOCIATE, error_model="numpy")
def _way_back(
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any, softplus: bool,
    k: int, s: int, nb: int, a: int, c: int, t0: int, t1: int,
    before: Any, dts: Any, decays: Any, states: Any, dy: Any, g: Any, ddt: Any, dxt: Any,
    dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Gradients of steps t1-1..t0; `g` (N, w) is carried from chunk to chunk."""
    N, w = g.shape
    z = a + w
    for t in range(t1 - 1, t0 - 1, -1):
        p, j = order[k, t], t - t0
        xt, dyt, dt = x[s, p, c : c + w], dy[s, p, c : c + w], dts[j]
        for i in range(w):
            ddt[i] = _F(0.0)
            dxt[i] = skip[k, a + i] * dyt[i]
            dskip[s, k, a + i] += dyt[i] * xt[i]
        for n in range(N):
            earlier = before[n] if j == 0 else states[j - 1, n]
            db, dc = _retreat(
                g[n], decays[j, n], A[k, n, a:z], states[j, n], earlier, dt, xt, dyt,
                B[k, s, p, n], C[k, s, p, n], ddt, dxt, dA[s, k, n, a:z],
            )  # fmt: skip
            dB[nb, k, s, p, n] = db
            dC[nb, k, s, p, n] = dc
        delta_t, ddelta_t = delta[k, s, p, a:z], ddelta[k, s, p, a:z]
        if softplus:
            for i in range(w):
                ddt[i] *= sigmoid32(delta_t[i] + bias[k, a + i])
        dx_t = dx[s, p, c : c + w]
        for i in range(w):
            ddelta_t[i] = ddt[i]
            dbias[s, k, a + i] += ddt[i]
            dx_t[i] += dxt[i]


@njit(nogil=True, cache=True, error_model="numpy")
def backward(
    x: Any, delta: Any, A: Any, B: Any, C: Any, skip: Any, bias: Any, order: Any, offset: Any,
    softplus: bool, block: int, chunk: int, first: int, last: int, dy: Any, dstate: Any,
    dx: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dskip: Any, dbias: Any,
) -> None:  # fmt: skip
    """Tasks first..last-1 of the backward pass.

    dA (B, K, N, D), dskip and dbias (B, K, D) are per sequence, dB and dC (blocks, K, B, L, N) per
    block of channels: the caller sums them. dx (B, L, D_all), dA, dskip and dbias must come zeroed.
    """
    K, _, L, D = delta.shape
    N = A.shape[1]
    blocks, chunks = (D + block - 1) // block, (L + chunk - 1) // chunk
    for task in range(first, last):
        s, nb = task // blocks, task % blocks
        a = nb * block
        w = min(D, a + block) - a
        dts, borders = np.empty((chunk, w), _F), np.empty((chunks, N, w), _F)
        decays, states = np.empty((chunk, N, w), _F), np.empty((chunk, N, w), _F)
        ddt, dxt = np.empty(w, _F), np.empty(w, _F)
        for k in range(K):
            c = offset[k] + a
            h = np.zeros((N, w), _F)
            for section in range(chunks):
                borders[section] = h
                t0 = section * chunk
                if section < chunks - 1:
                    _replay(
                        x, delta, A, B, bias, order, softplus, k, s, a, c, t0, t0 + chunk, h,
                        dts[:1], decays[:1], states[:1],
                    )  # fmt: skip
            g = np.ascontiguousarray(dstate[k, s, :, a : a + w])
            for section in range(chunks - 1, -1, -1):
                t0 = section * chunk
                t1 = min(L, t0 + chunk)
                h[:] = borders[section]
                _replay(
                    x, delta, A, B, bias, order, softplus, k, s, a, c, t0, t1, h,
                    dts, decays, states,
                )  # fmt: skip
                _way_back(
                    x, delta, A, B, C, skip, bias, order, softplus, k, s, nb, a, c, t0, t1,
                    borders[section], dts, decays, states, dy, g, ddt, dxt,
                    dx, ddelta, dA, dB, dC, dskip, dbias,
                )  # fmt: skip
