"""The Triton kernels as torch operators: what is launched, over how many programs, into what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

TILE = 1024  # steps times channels of a tile: 8 values of each kind in a thread of 4 warps
_CHANNELS = 32  # of a tile at most: a row is one cache line of float32
_PER_PROCESSOR = 4  # programs wanted per multiprocessor: as many as the registers allow
_FUSED: dict[str, Any] = {"enable_fp_fusion": True}  # said aloud: Triton 3.10 changes its default


@dataclass(frozen=True)
class Plan:
    """How one call is cut into programs.

    Args:
        T: Steps of a chunk.
        DB: Channels of a block.
        blocks: Blocks of channels.
        chunks: Chunks of the sequence.
        sections: Ranges of chunks that run at the same time.
        per_section: Chunks of a section.
        each: Directions that one program walks one after the other, adding up their outputs.
    """

    T: int
    DB: int
    blocks: int
    chunks: int
    sections: int
    per_section: int
    each: int


def plan(dims: tuple[int, ...], merged: bool, wanted: int) -> Plan:
    """The cut of a scan with `dims` (K, S, L, D) that makes about `wanted` programs.

    Half of them will do where more would cost traffic: directions of their own programs write their
    outputs side by side, to be summed afterwards; a sequence cut into sections is read twice.
    """
    K, S, L, D = dims
    T, DB = tile(D)
    blocks, chunks = math.ceil(D / DB), math.ceil(L / T)
    each = K if merged and 2 * S * blocks >= wanted else 1
    programs = S * blocks * K // each
    sections = 1 if 2 * programs >= wanted else min(chunks, math.ceil(wanted / programs))
    per_section = math.ceil(chunks / sections)
    return Plan(T, DB, blocks, chunks, math.ceil(chunks / per_section), per_section, each)


def tile(channels: int) -> tuple[int, int]:
    """Steps and channels of a tile, powers of two."""
    block = min(_CHANNELS, _power(channels))
    return max(1, TILE // block), block


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def wanted_programs(device: torch.device) -> int:
    """Programs that keep the GPU busy; under the interpreter one is as good as many."""
    return _processors(device.index or 0) * _PER_PROCESSOR if device.type == "cuda" else 1


@lru_cache(maxsize=16)
def _processors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


@torch.library.custom_op("robustcli::scan_triton", mutates_args=())
def scan_triton(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
                height: int, width: int, paths: int, group: int, softplus: bool,
                keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Y (S, L, W), the last state (K, S, N, D), and if `keep` the states that backward starts from.

    Layouts as in `triton_kernels`, any float dtype for x, delta, B and C. `group` 0: the directions
    of an image, whose outputs are summed; else the channels of a group of a sequence.
    """
    from robustcli.models.scan import triton_kernels as kernels

    (K, S, L, width_d), N, W = delta.shape, A.shape[1], x.shape[2]
    cut = plan((K, S, L, width_d), group == 0, wanted_programs(x.device))
    y, state, borders = _empty_outputs(x, delta, A, keep)
    starts = A.new_zeros(K, S, cut.sections, N, width_d)
    spans = A.new_empty(K, S, cut.sections, width_d)
    parts, slot = _parts(y, K, group, cut)

    def launch(local: bool, keep: bool) -> None:
        kernels.forward[(S * cut.blocks, K // cut.each, cut.sections)](
            x, delta, A, B, C, D, bias, parts, state, borders, starts, spans,
            S, L, width_d, W, group, slot, height, width, paths,
            cut.chunks, cut.sections, cut.per_section, cut.each,
            N=N, NB=_power(N), T=cut.T, DB=cut.DB, SOFTPLUS=softplus, KEEP=keep, LOCAL=local,
            **_FUSED,
        )  # fmt: skip

    with torch.cuda.device_of(x):
        if cut.sections > 1:
            launch(local=True, keep=False)
            _carry(starts, spans, A, torch.zeros_like(state), cut, reverse=False)
        launch(local=False, keep=keep)
    return (y if parts is y else parts.sum(0)), state, borders


@scan_triton.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      height: int, width: int, paths: int, group: int, softplus: bool,
      keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_outputs(x, delta, A, keep)


def _empty_outputs(
    x: Tensor, delta: Tensor, A: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    K, S, L, channels = delta.shape
    N, (T, _) = A.shape[1], tile(channels)
    chunks = (L + T - 1) // T if keep else 0
    borders = A.new_empty(K, S, chunks, N, channels)
    return torch.empty_like(x, dtype=torch.float32), A.new_empty(K, S, N, channels), borders


def _parts(total: Tensor, K: int, group: int, cut: Plan) -> tuple[Tensor, int]:
    """Where programs add their outputs, and the distance between those of two directions."""
    if group or cut.each == K:
        return total, 0
    return total.new_empty(K, *total.shape), total.numel()


def _carry(
    ends: Tensor, spans: Tensor, A: Tensor, before: Tensor, cut: Plan, reverse: bool
) -> None:
    from robustcli.models.scan import triton_kernels as kernels

    K, S, sections, N, channels = ends.shape
    kernels.carry[(S * cut.blocks, K)](
        ends, spans, A, before, S, channels, sections,
        N=N, NB=_power(N), DB=cut.DB, REVERSED=reverse, **_FUSED,
    )  # fmt: skip


@torch.library.custom_op("robustcli::scan_triton_backward", mutates_args=())
def scan_triton_backward(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                         bias: Tensor, borders: Tensor, height: int, width: int, paths: int,
                         group: int, softplus: bool, dy: Tensor,
                         dstate: Tensor) -> list[Tensor]:  # fmt: skip
    """The gradients of x, delta, A, B, C, D and bias, in their layouts and dtypes."""
    from robustcli.models.scan import triton_backward as kernels

    (K, S, L, width_d), N, W = delta.shape, A.shape[1], x.shape[2]
    cut = plan((K, S, L, width_d), group == 0, wanted_programs(x.device))
    dy, slopes = dy.contiguous(), dstate.contiguous()
    dx, slot = _parts(torch.empty_like(dy), K, group, cut)
    ddelta, dBC = torch.empty_like(delta), A.new_empty(2, cut.blocks, *B.shape)
    dA = A.new_empty(S, cut.sections, *A.shape)
    dD, dbias = A.new_empty(2, S, cut.sections, *D.shape)
    sizes = (height, width, paths, cut.chunks, cut.sections, cut.per_section)
    shape: dict[str, Any] = {
        "N": N, "NB": _power(N), "T": cut.T, "DB": cut.DB, "SOFTPLUS": softplus, **_FUSED,
    }  # fmt: skip
    with torch.cuda.device_of(x):
        if cut.sections > 1:
            slopes = A.new_empty(K, S, cut.sections, N, width_d)
            spans = A.new_empty(K, S, cut.sections, width_d)
            kernels.slope_ends[(S * cut.blocks, K, cut.sections)](
                delta, A, C, bias, dy, slopes, spans, S, L, width_d, W, group, *sizes, **shape
            )
            _carry(slopes, spans, A, dstate.contiguous(), cut, reverse=True)
        kernels.backward[(S * cut.blocks, K // cut.each, cut.sections)](
            x, delta, A, B, C, D, bias, borders, dy, slopes,
            dx, ddelta, dA, dBC[0], dBC[1], dD, dbias,
            K, S, L, width_d, W, group, slot, *sizes, cut.each, **shape,
        )  # fmt: skip
    dx = dx.sum(0) if slot else dx
    dB, dC = dBC[0].sum(0).to(B.dtype), dBC[1].sum(0).to(C.dtype)
    return [dx.to(x.dtype), ddelta, dA.sum((0, 1)), dB, dC, dD.sum((0, 1)), dbias.sum((0, 1))]


@scan_triton_backward.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      borders: Tensor, height: int, width: int, paths: int, group: int, softplus: bool, dy: Tensor,
      dstate: Tensor) -> list[Tensor]:  # fmt: skip
    return [torch.empty_like(t) for t in (x, delta, A, B, C, D, bias)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, height, width, paths, group, softplus, _ = inputs
    ctx.settings = (height, width, paths, group, softplus)
    ctx.save_for_backward(*tensors, output[2])


def _differentiate(ctx: Any, dy: Tensor, dstate: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.robustcli.scan_triton_backward(
        *ctx.saved_tensors, *ctx.settings, dy, dstate
    )
    return (*gradients, None, None, None, None, None, None)


scan_triton.register_autograd(_differentiate, setup_context=_keep)
