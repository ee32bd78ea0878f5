"""The scan on the CPU through numba, as torch operators with a backward pass of their own."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.models.scan.orders import CROSS, pixel_orders
from robustcli.models.scan.reasons import KERNEL_DTYPES, missing

LOSS = "The scan runs as a loop over time in torch instead, 20 to 100 times slower."

_BLOCK = 256  # channels a task takes at most: long loops, and a state of a few kilobytes
_CHUNK_BYTES = 1 << 18  # state the backward pass keeps per chunk: fits in the second-level cache


def available() -> str | None:
    """None, or why this backend cannot run."""
    return missing("numba", "robustcli.models.scan.cpu_kernels")


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None, or why this backend cannot take tensors on `device` of `dtype`."""
    if device.type != "cpu":
        return f"It serves the CPU; the tensors are on {device}."
    if dtype not in KERNEL_DTYPES:
        return f"It computes in float32; the tensors are {dtype}."
    return None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `robustcli.models.scan.selective_scan`."""
    batch, channels, length = u.shape
    B, C = (t[:, None] if t.ndim == 3 else t for t in (B, C))
    G, N = B.shape[1], A.shape[1]
    order = torch.arange(length, dtype=torch.int32).expand(G, length)
    offset = torch.arange(G, dtype=torch.int32) * (channels // G)
    y, state = _scan(
        u.transpose(1, 2),
        delta.reshape(batch, G, channels // G, length).permute(1, 0, 3, 2),
        A.reshape(G, -1, N),
        B.permute(1, 0, 3, 2),
        C.permute(1, 0, 3, 2),
        _rows(D, G, A),
        _rows(delta_bias, G, A),
        order,
        offset,
        delta_softplus,
    )
    y = y.transpose(1, 2)
    if z is not None:
        y = y * F.silu(z.float())
    y = y.to(u.dtype)
    last = state.permute(1, 0, 3, 2).reshape(batch, channels, N)
    return (y, last) if return_last_state else y


def ss2d_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    directions: tuple[str, ...] = CROSS,
) -> Tensor:
    """See `robustcli.models.scan.ss2d_scan`."""
    batch, channels, height, width = x.shape
    K, N = len(directions), A.shape[1]
    y, _ = _scan(
        x.permute(0, 2, 3, 1).reshape(batch, height * width, channels),
        _by_step(delta),
        A.reshape(K, channels, N),
        _by_step(B),
        _by_step(C),
        _rows(D, K, A),
        _rows(delta_bias, K, A),
        pixel_orders(height, width, directions),
        torch.zeros(K, dtype=torch.int32),
        delta_softplus,
    )
    return y.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _by_step(t: Tensor) -> Tensor:
    """`t` (B, K, D, H, W) as (K, B, H*W, D)."""
    return t.permute(1, 0, 3, 4, 2).flatten(2, 3)


def _rows(values: Tensor | None, K: int, A: Tensor) -> Tensor:
    """`values` (K*D) as (K, D), zeros for None."""
    return (A.new_zeros(A.shape[0]) if values is None else values).reshape(K, -1)


def _scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
          order: Tensor, offset: Tensor, softplus: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    tensors = (x, delta, A.transpose(1, 2), B, C, D, bias)
    ready = [t.to(torch.float32).contiguous() for t in tensors]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in ready)
    y, state, _ = torch.ops.robustcli.scan_cpu(*ready, order.contiguous(), offset, softplus, keep)
    return y, state


@torch.library.custom_op("robustcli::scan_cpu", mutates_args=(), device_types="cpu")
def scan_cpu(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
             order: Tensor, offset: Tensor, softplus: bool,
             keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Y (S, L, W), the last state (K, S, N, D), and if `keep` the states that backward starts from.

    Layouts as in `cpu_kernels`.
    """
    from robustcli.models.scan.cpu_kernels import forward

    y, state, borders = _empty_outputs(x, delta, A, keep)
    inputs = _flat(x, delta, A, B, C, D, bias, order, offset)
    outputs = _flat(y, state, borders)
    K, S, L, channels = delta.shape
    block, chunk = _block(S, channels), _chunk(A.shape[1], L)
    dims = (K, S, L, channels, A.shape[1], x.shape[2])
    _parallel(
        S * math.ceil(channels / block),
        lambda a, b: forward(dims, *inputs, softplus, block, chunk, keep, a, b, *outputs),
    )
    return y, state, borders


@scan_cpu.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      order: Tensor, offset: Tensor, softplus: bool,
      keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_outputs(x, delta, A, keep)


def _empty_outputs(
    x: Tensor, delta: Tensor, A: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    K, S, L, channels = delta.shape
    N = A.shape[1]
    chunks = math.ceil(L / _chunk(N, L)) if keep else 0
    borders = x.new_empty(K, S, chunks, N, channels)
    return torch.empty_like(x), x.new_empty(K, S, N, channels), borders


@torch.library.custom_op("robustcli::scan_cpu_backward", mutates_args=(), device_types="cpu")
def scan_cpu_backward(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                      bias: Tensor, order: Tensor, offset: Tensor, borders: Tensor, softplus: bool,
                      dy: Tensor, dstate: Tensor) -> list[Tensor]:  # fmt: skip
    """The gradients of x, delta, A, B, C, D and bias, in their layouts."""
    from robustcli.models.scan.cpu_kernels import backward

    K, S, L, channels = delta.shape
    N, block, chunk = A.shape[1], _block(S, channels), _chunk(A.shape[1], L)
    blocks = math.ceil(channels / block)
    dx, ddelta = torch.zeros_like(x), torch.empty_like(delta)
    dA, dBC = x.new_zeros(S, *A.shape), x.new_empty(2, blocks, *B.shape)
    dD, dbias = x.new_zeros(2, S, *D.shape)
    inputs = _flat(x, delta, A, B, C, D, bias, order, offset)
    slopes = _flat(borders, dy.contiguous(), dstate.contiguous())
    outputs = _flat(dx, ddelta, dA, dBC[0], dBC[1], dD, dbias)
    dims = (K, S, L, channels, N, x.shape[2])
    _parallel(
        S * blocks,
        lambda a, b: backward(dims, *inputs, softplus, block, chunk, a, b, *slopes, *outputs),
    )
    dB, dC = dBC.sum(1)
    return [dx, ddelta, dA.sum(0), dB.clone(), dC.clone(), dD.sum(0), dbias.sum(0)]


@scan_cpu_backward.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      order: Tensor, offset: Tensor, borders: Tensor, softplus: bool, dy: Tensor,
      dstate: Tensor) -> list[Tensor]:  # fmt: skip
    return [torch.empty_like(t) for t in (x, delta, A, B, C, D, bias)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _differentiate(ctx: Any, dy: Tensor, dstate: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.robustcli.scan_cpu_backward(*ctx.saved_tensors, ctx.softplus, dy, dstate)
    return (*gradients, None, None, None, None)


scan_cpu.register_autograd(_differentiate, setup_context=_keep)


def _flat(*tensors: Tensor) -> list[Any]:
    return [t.detach().view(-1).numpy() for t in tensors]


def _chunk(states: int, length: int) -> int:
    """Steps between kept states: what the backward pass keeps of one chunk fits in the cache."""
    return max(1, min(length, _CHUNK_BYTES // (8 * states * _BLOCK)))


def _block(batch: int, channels: int) -> int:
    """Channels per task: small enough that every thread has work, a multiple of 16."""
    share = channels * batch / torch.get_num_threads()
    return max(16, min(_BLOCK, math.ceil(share / 16) * 16))


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process; `process` is in the key because threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="robust-scan")


def _parallel(tasks: int, work: Callable[[int, int], None]) -> None:
    """`work(first, last)` over 0..tasks-1, in as many ranges as torch has threads."""
    threads = min(tasks, torch.get_num_threads())
    if threads == 1:
        work(0, tasks)
        return
    borders = [tasks * i // threads for i in range(threads + 1)]
    futures = [
        _pool(threads, os.getpid()).submit(work, first, last) for first, last in pairwise(borders)
    ]
    for future in futures:
        future.result()
