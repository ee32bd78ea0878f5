"""Triton kernels of the scan: forward, carry between sections of a sequence, backward.

A program computes one sequence s, one block of DB channels, `each` directions sequentially, and one
section of the steps. It processes the section chunk by chunk: a parallel scan within a chunk of T
steps, and the state is carried from chunk to chunk. Cross-scan and cross-merge need no indices and
no copies: the pixel of step t is computed. If `each` = K, one program adds the outputs of all
directions to `out`, in a fixed order.

Memory traffic in bytes per channel and step of one direction, for 4-byte elements and N states:
reading x 4, reading delta 4, writing out 4 (first direction) or reading and writing it 8; B and C
add 8 N / DB per block, the saved states (training) 4 N / T. Values that a program carries from
chunk to chunk (states, sums) are in memory that only this program uses and that stays in the cache,
because the tiles need the registers. Four directions: 60 bytes per channel and pixel at N = 1, of
which 24, for reading and rewriting out, stay in the cache if the image is small. Filling the GPU
with a small batch increases traffic (`triton.plan`): separate programs per direction write separate
outputs, 8 bytes more for their sum, and with several sections x and delta are read twice. Speed is
not measured: no GPU was available.

Layout as in `cpu_kernels`: x, out (S, L, W); delta (K, S, L, D); A (K, N, D); B, C (K, S, L, N);
skip, bias (K, D); borders (K, S, chunks, N, D); starts (K, S, sections, N, D); spans
(K, S, sections, D). Direction k reads and writes the channels of x from index k * group on.
"""

# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def"
# Arguments have no type hints: Triton interprets annotations in kernels as its own types.

from __future__ import annotations

import triton
import triton.language as tl

# --- Pixel orders, step sizes, and the operators of the parallel scans ----------------------------
#
# Channels are the last axis of every tensor, so that a row of a tile is one coalesced read in any
# pixel order. A tile is (T steps, DB channels); states are processed one after the other, so that
# only one (T, DB) tile of a state has to fit in registers.


@triton.jit
def direction(paths, k):
    """The code of direction k: two of the 32 bits of `paths` (0 for a sequence)."""
    return (paths >> (2 * tl.minimum(k, 15))) & 3


@triton.jit
def pixel(t, code, L, height, width):
    """Row-major index of the pixel of step t; `code`: 1 for column by column, 2 for reversed."""
    t = tl.where((code & 2) != 0, L - 1 - t, t)
    return tl.where((code & 1) != 0, (t % height) * width + t // height, t)


@triton.jit
def compose(a1, b1, a2, b2):
    """Composition h -> a2 (a1 h + b1) + b2 of two maps h -> a h + b, as a pair (factor, term)."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def compose_back(a1, f1, g1, a2, f2, g2):
    """Operator of the backward scan: joins two ranges of steps; range 1 is later in time.

    A range is a triple: a, the decay of its first step; f, the factor from the gradient that the
    step after the range passes back to the gradient of the first state of the range; g, the
    gradient of this state if the step after the range passes back zero.
    """
    passed = f2 * a1
    return a2, passed * f1, g2 + passed * g1


@triton.jit
def softplus(x):
    """log(1 + e**x) to a few units in the last place, also for small values; NaN remains NaN.

    The logarithm of the GPU is accurate only in absolute terms, and step sizes can be as small as
    1e-4. Therefore log(1 + t) / t for 0 <= t <= 1 is computed by a polynomial, as in `cpu_lanes`.
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
    """The step sizes of a tile; 0 outside of the sequence, which keeps the state unchanged."""
    if SOFTPLUS:
        raw = softplus(raw)
    return tl.where(live, raw, 0.0)


@triton.jit
def row(tile, rows, n):
    """Row n of a tile, as a masked sum, because registers cannot be indexed."""
    return tl.sum(tl.where(rows[:, None] == n, tile, 0.0), 0)


@triton.jit
def add(sums, values, mask, i):
    """Adds `values` to `sums` in memory, which is uninitialised before chunk i = 0.

    Sums over chunks are not kept in registers, because the tiles need all of these. The caller must
    call a barrier between two chunks.
    """
    before = tl.load(sums, mask=mask & (i > 0), other=0.0)
    tl.debug_barrier()  # every thread has read what is overwritten next
    tl.store(sums, before + values, mask=mask)


# --- The forward pass, and the carry between sections ---------------------------------------------

# Numbers whose values do not change the machine code, and numbers of which it matters whether they
# are multiples of 16.
SIZES = [
    "K", "S", "L", "height", "width", "paths", "chunks", "per_section", "sections", "per_program",
]  # fmt: skip
BY_CHANNELS = ["D", "W", "group", "slot"]


@triton.jit(do_not_specialize=SIZES)
def forward(  # noqa: C901  branches on constants are resolved by the compiler
    x, delta, A, B, C, skip, bias,
    out, state, borders, starts, spans,
    S, L, D, W, group, slot, height, width, paths,
    chunks, sections, per_section, per_program,
    N: tl.constexpr, T: tl.constexpr, DB: tl.constexpr,
    SOFTPLUS: tl.constexpr, KEEP: tl.constexpr, LOCAL: tl.constexpr,
):  # fmt: skip
    """Fills `out` and the last `state`; with KEEP also `borders`, the state before every chunk.

    LOCAL is the first of two passes over several sections: every section starts with a state of
    zero, and only `starts` (the last state of the section) and `spans` (the sum of its step sizes)
    are filled. Without LOCAL, `starts` must contain the true state before each section. `slot` is
    the offset between the outputs of programs for different directions.
    """
    blocks = tl.cdiv(D, DB)
    s = (tl.program_id(0) // blocks).to(tl.int64)
    section = tl.program_id(2)
    d, j = (tl.program_id(0) % blocks) * DB + tl.arange(0, DB), tl.arange(0, T)
    in_d = d < D
    first = tl.program_id(1) * per_program
    x += s * L * W
    out += s * L * W + tl.program_id(1).to(tl.int64) * slot
    for i_k in range(per_program):
        k = first + i_k
        ks = k * S + s
        code, channel = direction(paths, k), k * group + d
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
            xs = tl.load(x + p[:, None] * W + channel[None, :], mask=live, other=0.0).to(tl.float32)
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
                tl.debug_barrier()  # every thread has read the state that is overwritten next
                tl.store(running + n * D, last, mask=in_d)
                if not LOCAL:
                    c = tl.load(C_k + p * N + n, mask=t < L, other=0.0).to(tl.float32)
                    y += h * c[:, None]
            if not LOCAL:
                skip_d = tl.load(skip + k * D + d, mask=in_d, other=0.0)
                y += skip_d[None, :] * xs
                to = out + p[:, None] * W + channel[None, :]
                if i_k > 0:
                    y += tl.load(to, mask=live, other=0.0)
                tl.store(to, y, mask=live)
            tl.debug_barrier()  # the next chunk reads states that other threads have written
        if LOCAL:
            tl.store(spans + (ks * sections + section) * D + d, span, mask=in_d)
        elif section == sections - 1:
            for n in range(N):
                last = tl.load(running + n * D, mask=in_d, other=0.0)
                tl.store(state + (ks * N + n) * D + d, last, mask=in_d)
        tl.debug_barrier()  # the next direction reads what other threads have written


@triton.jit(do_not_specialize=["S", "sections"])
def carry(
    ends, spans, A, before, S, D, sections,
    N: tl.constexpr, NB: tl.constexpr, DB: tl.constexpr, REVERSED: tl.constexpr,
):  # fmt: skip
    """Computes the initial state of each section from the last states of LOCAL passes, in place.

    `ends` (K, S, sections, N, D) contains on entry the last state of each section if it starts with
    zero, on return its true initial state. `before` (K, S, N, D) is the initial state of the first
    section. With REVERSED, the same for gradients, from the last section to the first. A section
    multiplies its initial state by exp(A * span).
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
# The states are recomputed chunk by chunk, in the order of time, from those saved before every
# chunk, into a buffer per program (`work`: N T DB floats, which stay in the cache); the backward
# computation reads them in reverse. The rows of its tiles are in reversed order of time, so that
# both scans run from the first row to the last: reversing a tile takes five shuffles per value.
# Let g_t be the gradient of the loss with respect to h_t, v_t = C_t dy_t and a_t = exp(dt_t A).
# Then g_t = v_t + a_{t+1} g_{t+1}, a scan from the end; dx += g dt B,
# d dt += g (A a h_{t-1} + B x), dA += g dt a h_{t-1}, dB = sum_d g dt x, dC = sum_d h dy. If
# several programs contribute to a gradient, each writes a partial sum, and these are added
# afterwards, so that results do not depend on the order of the programs.
#
# Memory traffic in bytes per channel and step of one direction, for 4-byte elements: reading x, dy
# and delta 12 (delta of the neighbouring step comes from the cache), writing ddelta 4, dx 4 or 8,
# saved states 4 N / T, and 16 N / DB for B, C and the partial sums of their gradients.


@triton.jit(do_not_specialize=SIZES)
def slope_ends(
    delta, A, C, bias, dy, ends, spans,
    S, L, D, W, group, height, width, paths,
    chunks, sections, per_section,
    N: tl.constexpr, T: tl.constexpr, DB: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Gradient of the state before each section, assuming zero from later sections, and spans.

    Rows are in reversed order of time, so that q_t = a_t g_t = a_t v_t + a_t q_{t+1} is a scan from
    the first row.
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
            tl.debug_barrier()  # every thread has read the row that is overwritten next
            tl.store(running + n * D, leaving, mask=in_d)
        tl.debug_barrier()  # the next chunk reads the rows that other threads have written
    tl.store(spans + (ks * sections + section) * D + d, span, mask=in_d)


@triton.jit(do_not_specialize=SIZES)
def backward(  # noqa: C901  branches on constants are resolved by the compiler
    x, delta, A, B, C, skip, bias, borders, dy,
    state_grads, work, dx, ddelta, dA, dB, dC, dskip, dbias,
    K, S, L, D, W, group, slot, height, width,
    paths, chunks, sections, per_section, per_program,
    N: tl.constexpr, T: tl.constexpr, DB: tl.constexpr, SOFTPLUS: tl.constexpr,
    OF_X: tl.constexpr, OF_DELTA: tl.constexpr, OF_A: tl.constexpr, OF_B: tl.constexpr,
    OF_C: tl.constexpr, OF_D: tl.constexpr, OF_BIAS: tl.constexpr,
    STATES: tl.constexpr, STATE_GRADS: tl.constexpr,
):  # fmt: skip
    """The needed gradients, each enabled by a separate `OF_` flag.

    `state_grads` (K, S, sections, N, D) is the gradient that each section receives from later
    steps. Partial sums: dA (S, sections, K, N, D), dskip and dbias (S, sections, K, D), dB and dC
    (blocks, K, S, L, N). STATES and STATE_GRADS are whether any needed gradient requires the states
    or their gradients. Gradients that are not needed are neither computed nor accessed: their
    pointers may be arbitrary.
    """
    blocks = tl.cdiv(D, DB)
    s, block = (tl.program_id(0) // blocks).to(tl.int64), (tl.program_id(0) % blocks).to(tl.int64)
    section = tl.program_id(2)
    d, j = tl.program_id(0) % blocks * DB + tl.arange(0, DB), tl.arange(0, T)
    in_d = d < D
    first = tl.program_id(1) * per_program
    x += s * L * W
    dy += s * L * W
    dx += s * L * W + tl.program_id(1).to(tl.int64) * slot
    program = (section * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0)
    states = work + (program + tl.program_id(0)).to(tl.int64) * (N * T * DB)
    lane = tl.arange(0, DB)[None, :]
    start, stop = section * per_section, tl.minimum(chunks, (section + 1) * per_section)
    for i_k in range(per_program):
        k = first + i_k
        ks, code, channel = k * S + s, direction(paths, k), k * group + d
        delta_k, ddelta_k = delta + ks * L * D, ddelta + ks * L * D
        B_k, C_k = B + ks * L * N, C + ks * L * N
        parts = (block * K * S + ks) * L * N
        dB_k, dC_k = dB + parts, dC + parts
        part = (s * sections + section) * K + k
        running, dA_k = state_grads + (ks * sections + section) * N * D + d, dA + part * N * D + d
        for i in range(stop - start):
            chunk = stop - 1 - i
            bias_d = tl.load(bias + k * D + d, mask=in_d, other=0.0)
            if STATES:  # recomputed in the order of time, read in reverse below
                t = chunk * T + j
                live = (t < L)[:, None] & in_d[None, :]
                p = pixel(t, code, L, height, width)
                raw = tl.load(delta_k + p[:, None] * D + d[None, :], mask=live, other=0.0)
                dt = step_size(raw.to(tl.float32) + bias_d[None, :], live, SOFTPLUS)
                xs = tl.load(x + p[:, None] * W + channel[None, :], mask=live, other=0.0)
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
                tl.debug_barrier()  # other threads read what was written
            t = chunk * T + T - 1 - j
            in_t, live = t < L, (t < L)[:, None] & in_d[None, :]
            p = pixel(t, code, L, height, width)
            at, at_x = p[:, None] * D + d[None, :], p[:, None] * W + channel[None, :]
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
                        decayed = h - dt * xs * b  # a h_{t-1}, up to a few units in the last place
                    if OF_X:
                        dxs += g * dt * b
                    if OF_DELTA or OF_BIAS:
                        ddt += g * (a * decayed + b * xs)
                    if OF_A:
                        add(dA_k + n * D, tl.sum(g * decayed * dt, 0), in_d, i)
                    if OF_B:
                        tl.store(dB_k + to, tl.sum(g * dt * xs, 1), mask=in_t)
                    tl.debug_barrier()  # every thread has read the row that is overwritten next
                    tl.store(running + n * D, leaving, mask=in_d)
            if SOFTPLUS and (OF_DELTA or OF_BIAS):
                # Loaded again: keeping it over the loop would need the registers of a tile.
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
        tl.debug_barrier()  # the next direction reads what other threads have written
