"""The scan's forward pass for the GPU, and the carry from one section of the sequence to the next.

A program owns one sequence s, one block of DB channels, `each` directions one after the other, and
one section of the steps. It walks the section chunk by chunk: inside a chunk of T steps the
recurrence is a parallel scan, between chunks the state is carried in registers. Cross-scan and
cross-merge are arithmetic: the pixel of step t is computed, no index is read, no copy is made; with
`each` = K the sum over the directions is added into `out` by one program, in a fixed order.

Traffic per channel and step of one direction, 4-byte elements, N states: x 4 and delta 4 are read,
out is written (first direction: 4) or read and written (8); B and C add 8 N / DB per block, the
kept states (training) 4 N / T. Four directions: 60 bytes per channel and pixel at N = 1, of which
out's 24 of re-reading stay in the cache when the image is small. Filling the GPU with a small batch
has a price (`triton_ops.plan`): directions apart write their outputs side by side, 8 more for the
sum over them, and sections read x and delta twice. Speed is not measured: no GPU was at hand.

Layout as in `cpu_kernels`: x, out (S, L, W); delta (K, S, L, D); A (K, N, D); B, C (K, S, L, N);
skip, bias (K, D); borders (K, S, chunks, N, D); starts (K, S, sections, N, D); spans
(K, S, sections, D). Direction k reads and writes the channels of x from k * group on.
"""
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def"
# Arguments carry no types: Triton takes an annotation in a kernel for one of its own.

from __future__ import annotations

import triton
import triton.language as tl

from robustcli.models.scan.triton_math import compose, direction, pixel, row, step_size

SIZES = ["K", "S", "L", "height", "width", "paths", "chunks", "per_section", "sections", "each"]


@triton.jit(do_not_specialize=SIZES)
def forward(  # noqa: C901  branches on constants are the compiler's, not the GPU's
    x, delta, A, B, C, skip, bias,
    out, state, borders, starts, spans,
    S, L, D, W, group, slot, height, width, paths,
    chunks, sections, per_section, each,
    N: tl.constexpr, NB: tl.constexpr, T: tl.constexpr, DB: tl.constexpr,
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
    d, n_all, j = (
        (tl.program_id(0) % blocks) * DB + tl.arange(0, DB),
        tl.arange(0, NB),
        tl.arange(0, T),
    )
    in_d = d < D
    at_state = n_all[:, None] * D + d[None, :]
    in_state = (n_all[:, None] < N) & in_d[None, :]
    first = tl.program_id(1) * each
    x += s * L * W
    out += s * L * W + tl.program_id(1).to(tl.int64) * slot
    for i_k in range(each):
        k = first + i_k
        ks = k * S + s
        code, own = direction(paths, k), k * group + d
        delta_k, B_k, C_k = delta + ks * L * D, B + ks * L * N, C + ks * L * N
        bias_d = tl.load(bias + k * D + d, mask=in_d, other=0.0)
        skip_d = tl.load(skip + k * D + d, mask=in_d, other=0.0)
        span = tl.zeros([DB], tl.float32)
        if LOCAL:
            h_in = tl.zeros([NB, DB], tl.float32)
        else:
            h_in = tl.load(
                starts + (ks * sections + section) * N * D + at_state, mask=in_state, other=0.0
            )
        for chunk in range(section * per_section, tl.minimum(chunks, (section + 1) * per_section)):
            if KEEP:
                tl.store(borders + (ks * chunks + chunk) * N * D + at_state, h_in, mask=in_state)
            t = chunk * T + j
            p = pixel(t, code, L, height, width)
            live = (t < L)[:, None] & in_d[None, :]
            raw = tl.load(delta_k + p[:, None] * D + d[None, :], mask=live, other=0.0)
            dt = step_size(raw.to(tl.float32) + bias_d[None, :], live, SOFTPLUS)
            xs = tl.load(x + p[:, None] * W + own[None, :], mask=live, other=0.0).to(tl.float32)
            y = skip_d[None, :] * xs
            if LOCAL:
                span += tl.sum(dt, 0)
            for n in range(N):
                a = tl.load(A + (k * N + n) * D + d, mask=in_d, other=0.0)
                b = tl.load(B_k + p * N + n, mask=t < L, other=0.0).to(tl.float32)
                decay = tl.exp(dt * a[None, :])
                factor, h = tl.associative_scan((decay, dt * xs * b[:, None]), 0, compose)
                h += factor * row(h_in, n_all, n)[None, :]
                h_in = tl.where(n_all[:, None] == n, row(h, j, T - 1)[None, :], h_in)
                if not LOCAL:
                    c = tl.load(C_k + p * N + n, mask=t < L, other=0.0).to(tl.float32)
                    y += h * c[:, None]
            if not LOCAL:
                to = out + p[:, None] * W + own[None, :]
                if i_k > 0:
                    y += tl.load(to, mask=live, other=0.0)
                tl.store(to, y, mask=live)
        if LOCAL:
            tl.store(starts + (ks * sections + section) * N * D + at_state, h_in, mask=in_state)
            tl.store(spans + (ks * sections + section) * D + d, span, mask=in_d)
        elif section == sections - 1:
            tl.store(state + ks * N * D + at_state, h_in, mask=in_state)
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
