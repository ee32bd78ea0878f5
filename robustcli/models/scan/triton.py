"""Backend for GPUs with Triton kernels (CUDA; ROCm if torch is installed with Triton for it).

With Triton's interpreter (`TRITON_INTERPRET=1`) the same kernels run slowly on CPU tensors, for
tests on machines without a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, List  # noqa: UP035  torch 2.6 reads no `list[Tensor]` in a schema

import torch
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.models.scan.base import (
    KERNEL_DTYPES,
    ScanInputs,
    ScanSettings,
    grads_or_zeros,
    keeps_states,
    missing,
    needs_state_grads,
    needs_states,
    path,
    spread,
)

_MOST = 2**31 - 1  # kernels use 32-bit indices within a sequence, 64-bit across sequences
TILE = 512  # steps times channels of a tile: 4 values of a tile per thread with 4 warps
_CHANNELS = 32  # maximum per tile: a row is one cache line of float32
_PER_PROCESSOR = 4  # programs per multiprocessor, limited by the registers
_MOST_REGISTERS = 128  # per thread: 65,536 for four programs of 128 threads
_NAMES = ("X", "DELTA", "A", "B", "C", "D", "BIAS")  # suffixes of the kernels' `OF_` flags
_FUSED: dict[str, Any] = {"enable_fp_fusion": True}  # explicit: Triton 3.10 changes the default


def available() -> str | None:
    """None, or why this backend cannot run."""
    reason = missing("triton", "robustcli.models.scan.triton_kernels")
    if reason is None and not (interpreted() or torch.cuda.is_available()):
        return f"no CUDA device: torch {torch.__version__} finds none."
    return reason


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None, or why `device` or `dtype` is not supported."""
    if device.type != "cuda" and not interpreted():
        return f"It supports CUDA devices; the tensors are on {device}."
    if dtype not in KERNEL_DTYPES:
        return f"It computes in float32; the tensors are {dtype}."
    return None


def compiler_options(kernel: str, states: int) -> dict[str, Any]:
    """Options of Triton's compiler for `kernel`, a name in `triton_kernels`, with N `states`.

    Without a limit, NVIDIA's assembler uses up to 168 registers for prefetching, or spills some to
    stay below one of its thresholds. The limit is set for kernels that it improved
    (`benchmarks/triton_registers.py`). Triton has no such option for AMD.
    """
    limited = kernel == "backward" or (kernel == "forward" and states > 1)
    return _FUSED | ({"maxnreg": _MOST_REGISTERS} if limited and not torch.version.hip else {})


def interpreted() -> bool:
    """Whether Triton's interpreter executes the kernels in Python."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def remedy() -> str:
    """Empty: Triton is installed with torch, and its errors name what is missing."""
    return ""


def scan(arguments: ScanInputs, settings: ScanSettings) -> tuple[Tensor, Tensor]:
    """See `base.Backend`. Half inputs are not converted; A, D and bias are cast to float32."""
    _, L, channels = arguments.x.shape
    if L * channels > _MOST:
        raise UsageError(
            f"The input's {L} steps of {channels} channels are too many.",
            f"The Triton kernels support at most {_MOST} within one sequence or image.",
            "Cut the input, or force another scan backend.",
        )
    x, delta, B, C = (
        (t if t.dtype in KERNEL_DTYPES else t.float()).contiguous()
        for t in (arguments.x, arguments.delta, arguments.B, arguments.C)
    )
    A, D, bias = (t.float().contiguous() for t in (arguments.A, arguments.D, arguments.bias))
    tensors = (x, delta, A, B, C, D, bias)
    steps = path(settings, delta)
    y, state, _ = scan_triton(*tensors, *steps, settings.softplus, keeps_states(tensors))
    return y, state


# --- Division of a scan into programs ------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Division of one kernel call into programs.

    Args:
        T: Steps per chunk.
        DB: Channels per block.
        blocks: Number of blocks of channels.
        chunks: Number of chunks of the sequence.
        sections: Number of sections, ranges of chunks that are computed in parallel.
        per_section: Chunks per section.
        per_program: Directions that one program computes sequentially, adding up their outputs.
    """

    T: int
    DB: int
    blocks: int
    chunks: int
    sections: int
    per_section: int
    per_program: int


def plan(dims: tuple[int, ...], merged: bool, target: int) -> Plan:
    """The division of a scan with `dims` (K, S, L, D) into about `target` programs.

    At least half of `target` is sufficient if more programs would increase memory traffic: separate
    programs per direction write separate outputs, to be summed afterwards, and the inputs of a
    sequence with several sections are read twice.

    Args:
        dims: Sizes (K, S, L, D) of the scan.
        merged: Whether the outputs of the directions are summed, as for an image.
        target: Wanted number of programs.
    """
    K, S, L, D = dims
    T, DB = tile(D)
    blocks, chunks = math.ceil(D / DB), math.ceil(L / T)
    per_program = K if merged and 2 * S * blocks >= target else 1
    programs = S * blocks * K // per_program
    sections = 1 if 2 * programs >= target else min(chunks, math.ceil(target / programs))
    per_section = math.ceil(chunks / sections)
    return Plan(T, DB, blocks, chunks, math.ceil(chunks / per_section), per_section, per_program)


def tile(channels: int) -> tuple[int, int]:
    """Number of steps and channels of a tile, powers of two."""
    block = min(_CHANNELS, _power(channels))
    return max(1, TILE // block), block


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def wanted_programs(device: torch.device) -> int:
    """Number of programs that occupy the complete GPU; 1 for the interpreter."""
    return _processors(device.index or 0) * _PER_PROCESSOR if device.type == "cuda" else 1


@lru_cache(maxsize=16)
def _processors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


# --- The kernels as torch operators: outputs, buffers and launches -------------------------------


@torch.library.custom_op("robustcli::scan_triton", mutates_args=())
def scan_triton(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
                height: int, width: int, paths: int, group: int, softplus: bool,
                keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs y (S, L, W), last state (K, S, N, D), and with `keep` states for the backward pass.

    Layouts as in `triton_kernels`; x, delta, B and C may have any float dtype. `height` to `group`
    are those of `base.path`.
    """
    from robustcli.models.scan import triton_kernels as kernels

    (K, S, L, width_d), N, W = delta.shape, A.shape[1], x.shape[2]
    cut = plan((K, S, L, width_d), group == 0, wanted_programs(x.device))
    y, state, borders = _empty_outputs(x, delta, A, keep)
    starts = A.new_zeros(K, S, cut.sections, N, width_d)
    spans = A.new_empty(K, S, cut.sections, width_d)
    parts, slot = _parts(y, K, group, cut)

    def launch(local: bool, keep: bool) -> None:
        kernels.forward[(S * cut.blocks, K // cut.per_program, cut.sections)](
            x, delta, A, B, C, D, bias, parts, state, borders, starts, spans,
            S, L, width_d, W, group, slot, height, width, paths,
            cut.chunks, cut.sections, cut.per_section, cut.per_program,
            N=N, T=cut.T, DB=cut.DB, SOFTPLUS=softplus, KEEP=keep, LOCAL=local,
            **compiler_options("forward", N),
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
    """Output buffer of the programs, and the offset between the outputs of two directions."""
    if group or cut.per_program == K:
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
                         dstate: Tensor, needs_grad: Sequence[bool]) -> List[Tensor]:  # noqa: UP006  # fmt: skip
    """The needed gradients of x, delta, A, B, C, D and bias, in this order, like their tensors."""
    from robustcli.models.scan import triton_kernels as kernels

    dims = (K, S, L, width_d) = tuple(delta.shape)
    N, W, cut = A.shape[1], x.shape[2], plan(dims, group == 0, wanted_programs(x.device))
    dy, state_grads = dy.contiguous(), dstate.clone(memory_format=torch.contiguous_format)
    inputs = (x, delta, A, B, C, D, bias)
    counts = _part_counts(dims, group, cut)
    dtypes = [delta.dtype if n == 1 else torch.float32 for n in range(7)]
    made = [
        t.new_empty((count, *t.shape), dtype=dtype) if need else None
        for t, count, dtype, need in zip(inputs, counts, dtypes, needs_grad, strict=True)
    ]
    targets = [dy if t is None else t for t in made]  # `dy` as an unused placeholder
    slot = x.numel() if counts[0] > 1 else 0
    asks = {f"OF_{name}": bool(need) for name, need in zip(_NAMES, needs_grad, strict=True)}
    sizes = (height, width, paths, cut.chunks, cut.sections, cut.per_section)
    shape: dict[str, Any] = {"N": N, "T": cut.T, "DB": cut.DB, "SOFTPLUS": softplus}
    with torch.cuda.device_of(x):
        if cut.sections > 1 and needs_state_grads(needs_grad):
            state_grads = A.new_zeros(K, S, cut.sections, N, width_d)
            spans = A.new_empty(K, S, cut.sections, width_d)
            kernels.slope_ends[(S * cut.blocks, K, cut.sections)](
                delta,
                A,
                C,
                bias,
                dy,
                state_grads,
                spans,
                S,
                L,
                width_d,
                W,
                group,
                *sizes,
                **shape,
                **_FUSED,
            )
            _carry(state_grads, spans, A, dstate.contiguous(), cut, reverse=True)
        grid = (S * cut.blocks, K // cut.per_program, cut.sections)
        work = A.new_empty(math.prod(grid), N, cut.T, cut.DB) if needs_states(needs_grad) else A
        kernels.backward[grid](
            x, delta, A, B, C, D, bias, borders, dy, state_grads, work, *targets,
            K, S, L, width_d, W, group, slot, *sizes, cut.per_program, **shape, **asks,
            **compiler_options("backward", N),
            STATES=needs_states(needs_grad), STATE_GRADS=needs_state_grads(needs_grad),
        )  # fmt: skip
    return [
        (t[0] if len(t) == 1 else t.sum(0)).to(like.dtype)
        for t, like in zip(made, inputs, strict=True) if t is not None
    ]  # fmt: skip


def _part_counts(dims: tuple[int, ...], group: int, cut: Plan) -> tuple[int, ...]:
    """Number of partial sums of the gradients of x, delta, A, B, C, D and bias."""
    K, S = dims[:2]
    of_x = 1 if group or cut.per_program == K else K
    of_steps, of_parameters = cut.blocks, S * cut.sections
    return of_x, 1, of_parameters, of_steps, of_steps, of_parameters, of_parameters


@scan_triton_backward.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      borders: Tensor, height: int, width: int, paths: int, group: int, softplus: bool, dy: Tensor,
      dstate: Tensor, needs_grad: Sequence[bool]) -> list[Tensor]:  # fmt: skip
    inputs = (x, delta, A, B, C, D, bias)
    return [torch.empty_like(t) for t, need in zip(inputs, needs_grad, strict=True) if need]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, height, width, paths, group, softplus, _ = inputs
    ctx.settings = (height, width, paths, group, softplus)
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dy: Tensor | None, dstate: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    needs_grad = ctx.needs_input_grad[:7]
    x, _, A, *_ = saved = ctx.saved_tensors
    grads = torch.ops.robustcli.scan_triton_backward(
        *saved, *ctx.settings, *grads_or_zeros(x, A, dy, dstate), needs_grad
    )
    return (*spread(grads, needs_grad), None, None, None, None, None, None)


scan_triton.register_autograd(_differentiate, setup_context=_keep)
