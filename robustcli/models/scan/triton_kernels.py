"""The scan for the GPU: forward, the carry from one section of the sequence to the next, backward.

A program owns one sequence s, one block of DB channels, `each` directions one after the other, and
one section of the steps. It walks the section chunk by chunk: inside a chunk of T steps the
recurrence is a parallel scan, between chunks the state is carried. Cross-scan and
cross-merge are arithmetic: the pixel of step t is computed, no index is read, no copy is made; with
`each` = K the sum over the directions is added into `out` by one program, in a fixed order.

Traffic per channel and step of one direction, 4-byte elements, N states: x 4 and delta 4 are read,
out is written (first direction: 4) or read and written (8); B and C add 8 N / DB per block, the
kept states (training) 4 N / T. What a program carries from chunk to chunk (states, sums) lies in
memory that only it touches and that stays in the cache: registers are for the tiles. Four
directions: 60 bytes per channel and pixel at N = 1, of which out's 24 of re-reading stay in the
cache when the image is small. Filling the GPU with a small batch has a price (`triton.plan`):
directions apart write their outputs side by side, 8 more for the sum over them, and sections read
x and delta twice. Speed is not measured: no GPU was at hand.

Layout as in `cpu_kernels`: x, out (S, L, W); delta (K, S, L, D); A (K, N, D); B, C (K, S, L, N);
skip, bias (K, D); borders (K, S, chunks, N, D); starts (K, S, sections, N, D); spans
(K, S, sections, D). Direction k reads and writes the channels of x from k * group on.
"""

# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def"
# Arguments carry no types: Triton takes an annotation in a kernel for one of its own.

from __future__ import annotations

import triton
import triton.language as tl

# --- The way through the pixels, step sizes, and the scan's operator ------------------------------
#
# Channels are the fastest axis of every tensor, so that a row of a tile is one coalesced read
# whichever way the pixels are walked. A tile is (T steps, DB channels); states are walked one by
# one, because only one (T, DB) state then has to fit in registers.


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
def compose_back(a1, f1, g1, a2, f2, g2):
    """The gradients by the states of a stretch of steps: first 1, the later one, then 2.

    A stretch is the decay of its first step, the factor f with which the gradient that leaves the
    step after it reaches its first state, and the gradient g there if nothing comes from after it.
    """
    passed = f2 * a1
    return a2, passed * f1, g2 + passed * g1


@triton.jit
def softplus(x):
    """log(1 + e**x) to a few units in the last place, for small values too; NaN stays NaN.

    The GPU's own logarithm is exact in absolute terms only, and step sizes are as small as 1e-4:
    so log(1 + t) / t is a polynomial for 0 <= t <= 1, the one of `cpu_lanes`.
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


@triton.jit
def add(sums, values, mask, i):
    """Adds `values` to `sums` in memory, which is empty before chunk i = 0.

    Sums over chunks do not stay in registers, of which the tiles need them all. The caller keeps
    the barriers: one between two chunks.
    """
    before = tl.load(sums, mask=mask & (i > 0), other=0.0)
    tl.debug_barrier()  # every thread has read what the next line replaces
    tl.store(sums, before + values, mask=mask)


# --- The forward pass, and the carry from one section to the next ---------------------------------

SIZES = ["K", "S", "L", "height", "width", "paths", "chunks", "per_section", "sections", "each"]


@triton.jit(do_not_specialize=SIZES)
def forward(  # noqa: C901  branches on constants are the compiler's, not the GPU's
    x, delta, A, B, C, skip, bias,
    out, state, borders, starts, spans,
    S, L, D, W, group, slot, height, width, paths,
    chunks, sections, per_section, each,
    N: tl.constexpr, T: tl.constexpr, DB: tl.constexpr,
    SOFTPLUS: tl.constexpr, KEEP: tl.constexpr, LOCAL: tl.constexpr,
):  # fmt: skip
    """Fills `out` and the last `state`; with KEEP also `borders`, the state before every chunk.

    LOCAL is the first of two passes over several sections: it starts every section from zero and
    fills only `starts` with the section's last state and `spans` with the sum of its step sizes.
    Without LOCAL `starts` is the true state before each section. `slot` is the distance of the
    outputs of programs that own different directions.
    """
    blocks = tl.cdiv(D, DB)
    s = (tl.program_id(0) // blocks).to(tl.int64)
    section = tl.program_id(2)
    d, j = (tl.program_id(0) % blocks) * DB + tl.arange(0, DB), tl.arange(0, T)
    in_d = d < D
    first = tl.program_id(1) * each
    x += s * L * W
    out += s * L * W + tl.program_id(1).to(tl.int64) * slot
    for i_k in range(each):
        k = first + i_k
        ks = k * S + s
        code, own = direction(paths, k), k * group + d
        delta_k, B_k, C_k = delta + ks * L * D, B + ks * L * N, C + ks * L * N
        running = starts + (ks * sections + section) * N * D + d
        span = tl.zeros([DB], tl.float32)
        for chunk in range(section * per_section, tl.minimum(chunks, (section + 1) * per_section)):
            t = chunk * T + j
            bias_d = tl.load(bias + k * D + d, mask=in_d, other=0.0)
            p = pixel(t, code, L, height, width)
            live = (t < L)[:, None] & in_d[None, :]
            raw = tl.load(delta_k + p[:, None] * D + d[None, :], mask=live, other=0.0)
            dt = step_size(raw.to(tl.float32) + bias_d[None, :], live, SOFTPLUS)
            xs = tl.load(x + p[:, None] * W + own[None, :], mask=live, other=0.0).to(tl.float32)
            y = tl.zeros([T, DB], tl.float32)
            if LOCAL:
                span += tl.sum(dt, 0)
            for n in range(N):
                a = tl.load(A + (k * N + n) * D + d, mask=in_d, other=0.0)
                b = tl.load(B_k + p * N + n, mask=t < L, other=0.0).to(tl.float32)
                h0 = tl.load(running + n * D, mask=in_d, other=0.0)
                if KEEP:
                    tl.store(borders + ((ks * chunks + chunk) * N + n) * D + d, h0, mask=in_d)
                decay = tl.exp(dt * a[None, :])
                factor, h = tl.associative_scan((decay, dt * xs * b[:, None]), 0, compose)
                h += factor * h0[None, :]
                last = row(h, j, T - 1)
                tl.debug_barrier()  # every thread has read the state that the next line replaces
                tl.store(running + n * D, last, mask=in_d)
                if not LOCAL:
                    c = tl.load(C_k + p * N + n, mask=t < L, other=0.0).to(tl.float32)
                    y += h * c[:, None]
            if not LOCAL:
                skip_d = tl.load(skip + k * D + d, mask=in_d, other=0.0)
                y += skip_d[None, :] * xs
                to = out + p[:, None] * W + own[None, :]
                if i_k > 0:
                    y += tl.load(to, mask=live, other=0.0)
                tl.store(to, y, mask=live)
            tl.debug_barrier()  # the next chunk reads the states that other threads have written
        if LOCAL:
            tl.store(spans + (ks * sections + section) * D + d, span, mask=in_d)
        elif section == sections - 1:
            for n in range(N):
                last = tl.load(running + n * D, mask=in_d, other=0.0)
                tl.store(state + (ks * N + n) * D + d, last, mask=in_d)
        tl.debug_barrier()  # the next direction reads what other threads have just written


@triton.jit(do_not_specialize=["S", "sections"])
def carry(
    ends, spans, A, before, S, D, sections,
    N: tl.constexpr, NB: tl.constexpr, DB: tl.constexpr, REVERSED: tl.constexpr,
):  # fmt: skip
    """Turns what each section ends with, started from zero, into what it truly starts with.

    In place in `ends` (K, S, sections, N, D); `before` (K, S, N, D) starts the first section, with
    REVERSED the last. A section multiplies what it starts with by exp(A * its span).
    """
    blocks = tl.cdiv(D, DB)
    k, s = tl.program_id(1), (tl.program_id(0) // blocks).to(tl.int64)
    d, n = (tl.program_id(0) % blocks) * DB + tl.arange(0, DB), tl.arange(0, NB)
    at, inside = n[:, None] * D + d[None, :], (n[:, None] < N) & (d < D)[None, :]
    ks = k * S + s
    a = tl.load(A + k * N * D + at, mask=inside, other=0.0)
    h = tl.load(before + ks * N * D + at, mask=inside, other=0.0)
    for i in range(sections):
        section = ks * sections + (sections - 1 - i if REVERSED else i)
        end = tl.load(ends + section * N * D + at, mask=inside, other=0.0)
        span = tl.load(spans + section * D + d, mask=d < D, other=0.0)
        tl.store(ends + section * N * D + at, h, mask=inside)
        h = tl.exp(a * span[None, :]) * h + end


# --- The backward pass; programs, tiles and layouts are those of the forward pass -----------------
#
# The states are recomputed chunk by chunk from those kept before every chunk, in the order of time,
# into a buffer of the program's own (`work`: N T DB floats, which stay in the cache); the way back
# reads them in reverse. Rows of its tiles run backwards in time, so that both are plain scans: to
# reverse a tile takes five shuffles for each value. With g_t the
# gradient of the loss by h_t, v_t = C_t dy_t and a_t = exp(dt_t A): g_t = v_t + a_{t+1} g_{t+1}, a
# scan from the end; then dx += g dt B, d dt += g (A a h_{t-1} + B x), dA += g dt a h_{t-1},
# dB = sum_d g dt x, dC = sum_d h dy. Where programs share a gradient, each writes its
# own part and the parts are summed afterwards, so that results do not depend on which program
# comes first.
#
# Traffic per channel and step of one direction, 4-byte elements: x, dy and delta 12 read (delta's
# neighbour comes from the cache), ddelta 4 written, dx 4 or 8, kept states 4 N / T, and 16 N / DB
# of B, C and the parts of their gradients.


@triton.jit(do_not_specialize=SIZES)
def slope_ends(
    delta, A, C, bias, dy, ends, spans,
    S, L, D, W, group, height, width, paths,
    chunks, sections, per_section,
    N: tl.constexpr, T: tl.constexpr, DB: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """The grad by the state before each section, if nothing came from after it, and the spans.

    Rows run backwards in time, so q_t = a_t g_t = a_t v_t + a_t q_{t+1} is a scan from the first.
    """
    blocks = tl.cdiv(D, DB)
    k, s, section = tl.program_id(1), (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(2)
    d, j = (tl.program_id(0) % blocks) * DB + tl.arange(0, DB), tl.arange(0, T)
    in_d, ks, code = d < D, k * S + s, direction(paths, k)
    delta += ks * L * D
    C += ks * L * N
    dy += s * L * W + k * group
    running = ends + (ks * sections + section) * N * D + d
    bias_d = tl.load(bias + k * D + d, mask=in_d, other=0.0)
    span = tl.zeros([DB], tl.float32)
    first, last = section * per_section, tl.minimum(chunks, (section + 1) * per_section)
    for i in range(last - first):
        t = (last - i) * T - 1 - j
        p = pixel(t, code, L, height, width)
        live = (t < L)[:, None] & in_d[None, :]
        raw = tl.load(delta + p[:, None] * D + d[None, :], mask=live, other=0.0)
        dt = step_size(raw.to(tl.float32) + bias_d[None, :], live, SOFTPLUS)
        dys = tl.load(dy + p[:, None] * W + d[None, :], mask=live, other=0.0)
        span += tl.sum(dt, 0)
        for n in range(N):
            a = tl.load(A + (k * N + n) * D + d, mask=in_d, other=0.0)
            c = tl.load(C + p * N + n, mask=t < L, other=0.0).to(tl.float32)
            decay = tl.exp(dt * a[None, :])
            q_in = tl.load(running + n * D, mask=in_d, other=0.0)
            factor, q = tl.associative_scan((decay, decay * dys * c[:, None]), 0, compose)
            leaving = row(q + factor * q_in[None, :], j, T - 1)
            tl.debug_barrier()  # every thread has read the row that the next line replaces
            tl.store(running + n * D, leaving, mask=in_d)
        tl.debug_barrier()  # the next chunk reads the rows that other threads have written
    tl.store(spans + (ks * sections + section) * D + d, span, mask=in_d)


@triton.jit(do_not_specialize=SIZES)
def backward(  # noqa: C901  branches on constants are the compiler's, not the GPU's
    x, delta, A, B, C, skip, bias, borders, dy,
    state_grads, work, dx, ddelta, dA, dB, dC, dskip, dbias,
    K, S, L, D, W, group, slot, height, width,
    paths, chunks, sections, per_section, each,
    N: tl.constexpr, T: tl.constexpr, DB: tl.constexpr, SOFTPLUS: tl.constexpr,
    OF_X: tl.constexpr, OF_DELTA: tl.constexpr, OF_A: tl.constexpr, OF_B: tl.constexpr,
    OF_C: tl.constexpr, OF_D: tl.constexpr, OF_BIAS: tl.constexpr,
    STATES: tl.constexpr, STATE_GRADS: tl.constexpr,
):  # fmt: skip
    """The needed gradients, each with an `OF_` of its own.

    `state_grads` (K, S, sections, N, D) is what comes from after each section. Parts: dA
    (S, sections, K, N, D), dskip and dbias (S, sections, K, D), dB and dC (blocks, K, S, L, N).
    STATES and STATE_GRADS say whether any of them reads the states, or the gradients by them. What
    is not needed is neither computed nor touched: its pointer may be any.
    """
    blocks = tl.cdiv(D, DB)
    s, block = (tl.program_id(0) // blocks).to(tl.int64), (tl.program_id(0) % blocks).to(tl.int64)
    section = tl.program_id(2)
    d, j = tl.program_id(0) % blocks * DB + tl.arange(0, DB), tl.arange(0, T)
    in_d = d < D
    first = tl.program_id(1) * each
    x += s * L * W
    dy += s * L * W
    dx += s * L * W + tl.program_id(1).to(tl.int64) * slot
    program = (section * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0)
    states = work + (program + tl.program_id(0)).to(tl.int64) * (N * T * DB)
    lane = tl.arange(0, DB)[None, :]
    start, stop = section * per_section, tl.minimum(chunks, (section + 1) * per_section)
    for i_k in range(each):
        k = first + i_k
        ks, code, own = k * S + s, direction(paths, k), k * group + d
        delta_k, ddelta_k = delta + ks * L * D, ddelta + ks * L * D
        B_k, C_k = B + ks * L * N, C + ks * L * N
        parts = (block * K * S + ks) * L * N
        dB_k, dC_k = dB + parts, dC + parts
        part = (s * sections + section) * K + k
        running, dA_k = state_grads + (ks * sections + section) * N * D + d, dA + part * N * D + d
        for i in range(stop - start):
            chunk = stop - 1 - i
            bias_d = tl.load(bias + k * D + d, mask=in_d, other=0.0)
            if STATES:  # recomputed in the order of time, for the way back to read in reverse
                t = chunk * T + j
                live = (t < L)[:, None] & in_d[None, :]
                p = pixel(t, code, L, height, width)
                raw = tl.load(delta_k + p[:, None] * D + d[None, :], mask=live, other=0.0)
                dt = step_size(raw.to(tl.float32) + bias_d[None, :], live, SOFTPLUS)
                xs = tl.load(x + p[:, None] * W + own[None, :], mask=live, other=0.0)
                moved = dt * xs.to(tl.float32)
                for n in range(N):
                    a = tl.load(A + (k * N + n) * D + d, mask=in_d, other=0.0)[None, :]
                    b = tl.load(B_k + p * N + n, mask=t < L, other=0.0).to(tl.float32)
                    h0 = tl.load(
                        borders + ((ks * chunks + chunk) * N + n) * D + d, mask=in_d, other=0.0
                    )
                    decay = tl.exp(dt * a)
                    factor, h = tl.associative_scan((decay, moved * b[:, None]), 0, compose)
                    tl.store(states + (n * T + j)[:, None] * DB + lane, h + factor * h0[None, :])
                tl.debug_barrier()  # other threads read what has just been written
            t = chunk * T + T - 1 - j
            in_t, live = t < L, (t < L)[:, None] & in_d[None, :]
            p = pixel(t, code, L, height, width)
            at, at_x = p[:, None] * D + d[None, :], p[:, None] * W + own[None, :]
            raw = tl.load(delta_k + at, mask=live, other=0.0).to(tl.float32) + bias_d[None, :]
            dt = step_size(raw, live, SOFTPLUS)
            xs = tl.load(x + at_x, mask=live, other=0.0).to(tl.float32)
            dys = tl.load(dy + at_x, mask=live, other=0.0)
            ddt, dxs = tl.zeros([T, DB], tl.float32), tl.zeros([T, DB], tl.float32)
            if OF_D:
                add(dskip + part * D + d, tl.sum(dys * xs, 0), in_d, i)
            for n in range(N):
                a = tl.load(A + (k * N + n) * D + d, mask=in_d, other=0.0)[None, :]
                to = p * N + n
                b = tl.load(B_k + to, mask=in_t, other=0.0).to(tl.float32)[:, None]
                c = tl.load(C_k + to, mask=in_t, other=0.0).to(tl.float32)[:, None]
                if STATES:
                    h = tl.load(states + (n * T + T - 1 - j)[:, None] * DB + lane)
                if OF_C:
                    tl.store(dC_k + to, tl.sum(h * dys, 1), mask=in_t)
                if STATE_GRADS:
                    decay = tl.exp(dt * a)
                    g_in = tl.load(running + n * D, mask=in_d, other=0.0)
                    _, factor, g = tl.associative_scan(
                        (decay, tl.full([T, DB], 1.0, tl.float32), dys * c), 0, compose_back
                    )
                    g += factor * g_in[None, :]
                    leaving = row(g * decay, j, T - 1)
                    if STATES:
                        kept = h - dt * xs * b  # a h_{t-1}, up to a few units in the last place
                    if OF_X:
                        dxs += g * dt * b
                    if OF_DELTA or OF_BIAS:
                        ddt += g * (a * kept + b * xs)
                    if OF_A:
                        add(dA_k + n * D, tl.sum(g * kept * dt, 0), in_d, i)
                    if OF_B:
                        tl.store(dB_k + to, tl.sum(g * dt * xs, 1), mask=in_t)
                    tl.debug_barrier()  # every thread has read the row that the next line replaces
                    tl.store(running + n * D, leaving, mask=in_d)
            if SOFTPLUS and (OF_DELTA or OF_BIAS):
                # Read again: kept over the states, it would cost the registers of a tile.
                bias_d = tl.load(bias + k * D + d, mask=in_d, other=0.0)
                raw = tl.load(delta_k + at, mask=live, other=0.0).to(tl.float32) + bias_d[None, :]
                ddt *= sigmoid(raw)
            if OF_BIAS:
                add(dbias + part * D + d, tl.sum(tl.where(live, ddt, 0.0), 0), in_d, i)
            if OF_DELTA:
                tl.store(ddelta_k + at, ddt.to(ddelta.dtype.element_ty), mask=live)
            if OF_X:
                skip_d = tl.load(skip + k * D + d, mask=in_d, other=0.0)
                dxs += skip_d[None, :] * dys
                if i_k > 0:
                    dxs += tl.load(dx + at_x, mask=live, other=0.0)
                tl.store(dx + at_x, dxs, mask=live)
            tl.debug_barrier()  # the next chunk reads the rows that other threads have written
        tl.debug_barrier()  # the next direction reads what other threads have just written
