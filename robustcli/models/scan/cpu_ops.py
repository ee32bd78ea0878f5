"""The scan on the CPU as torch operators with a backward pass of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, List  # noqa: UP035  torch 2.6 reads no `list[Tensor]` in a schema

import torch
from torch import Tensor

from robustcli.models.scan.cpu_team import run
from robustcli.models.scan.wanted import Wanted, slopes_or_zeros, spread

_MOST_CHANNELS = 64  # of a task: four lines of memory side by side, and a state of few kilobytes
_TASKS = 8  # of a scan, at least, where there are channels enough: work for so many threads
_SMALL = 1 << 16  # updates of one state that the calling thread does sooner than two would, 50 us
_CHUNK = 128  # steps times states between kept states: what is kept of a chunk fits in the cache


@torch.library.custom_op("robustcli::scan_cpu", mutates_args=(), device_types="cpu")
def scan_cpu(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
             order: Tensor, offset: Tensor, softplus: bool,
             keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Y (S, L, W), the last state (K, S, N, D), and if `keep` the states that backward starts from.

    Layouts as in `cpu_forward`.
    """
    K, S, L, channels = delta.shape
    dims = (K, S, L, channels, A.shape[1], x.shape[2])
    outputs = _empty_outputs(dims, x, keep)
    inputs = (x, delta, A, B, C, D, bias, order, offset)
    _work("forward", S * _blocks(dims), dims, softplus, keep, inputs, outputs)
    return outputs


@scan_cpu.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      order: Tensor, offset: Tensor, softplus: bool,
      keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    K, S, L, channels = delta.shape
    return _empty_outputs((K, S, L, channels, A.shape[1], x.shape[2]), x, keep)


@torch.library.custom_op("robustcli::scan_cpu_sequence", mutates_args=(), device_types="cpu")
def scan_cpu_sequence(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                      bias: Tensor, softplus: bool,
                      keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `scan_cpu`, of sequences laid out as in `cpu_sequence`, and y like them."""
    dims = _dims(x, A)
    outputs = _empty_outputs(dims, x, keep)
    tasks = dims[0] * dims[1] * _blocks(dims)
    _work("sequence", tasks, dims, softplus, keep, (x, delta, A, B, C, D, bias), outputs)
    return outputs


@scan_cpu_sequence.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      softplus: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_outputs(_dims(x, A), x, keep)


def _dims(x: Tensor, A: Tensor) -> tuple[int, ...]:
    (S, W, L), (K, N, channels) = x.shape, A.shape
    return K, S, L, channels, N, W


def _empty_outputs(dims: tuple[int, ...], x: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    K, S, L, channels, N, _ = dims
    chunks = math.ceil(L / _chunk(N, L)) if keep else 0
    borders = x.new_empty(K, S, chunks, N, channels)
    return x.new_empty(x.shape), x.new_empty(K, S, N, channels), borders


@torch.library.custom_op("robustcli::scan_cpu_backward", mutates_args=(), device_types="cpu")
def scan_cpu_backward(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                      bias: Tensor, order: Tensor, offset: Tensor, borders: Tensor, softplus: bool,
                      dy: Tensor, dstate: Tensor,
                      wanted: Sequence[bool]) -> List[Tensor]:  # noqa: UP006  # fmt: skip
    """The gradients wanted of x, delta, A, B, C, D and bias, in this order and their layouts."""
    K, S, L, channels = delta.shape
    dims = (K, S, L, channels, A.shape[1], x.shape[2])
    blocks = _blocks(dims)
    # x and delta are written by one task each; the others are summed over tasks: of A, D and the
    # bias over sequences, of B and C over blocks of channels.
    parts = [x.shape, delta.shape, (S, *A.shape), (blocks, *B.shape), (blocks, *C.shape),
             (S, *D.shape), (S, *bias.shape)]  # fmt: skip
    added = (False, False, True, False, False, True, True)  # to what is there: must come zeroed
    made = [
        None if not asked else x.new_zeros(shape) if zeroed else x.new_empty(shape)
        for asked, shape, zeroed in zip(wanted, parts, added, strict=True)
    ]
    inputs = (x, delta, A, B, C, D, bias, order, offset, borders, dy, dstate)
    _work("backward", S * blocks, dims, softplus, wanted, inputs, made)
    whole = [t.sum(0) if n > 1 and t is not None else t for n, t in enumerate(made)]
    return [t for t in whole if t is not None]


@scan_cpu_backward.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      order: Tensor, offset: Tensor, borders: Tensor, softplus: bool, dy: Tensor,
      dstate: Tensor, wanted: Sequence[bool]) -> list[Tensor]:  # fmt: skip
    tensors = (x, delta, A, B, C, D, bias)
    return [torch.empty_like(t) for t, asked in zip(tensors, wanted, strict=True) if asked]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dy: Tensor | None, dstate: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:7]
    x, _, A, *_ = kept = ctx.saved_tensors
    found = torch.ops.robustcli.scan_cpu_backward(
        *kept, ctx.softplus, *slopes_or_zeros(x, A, dy, dstate), wanted
    )
    return (*spread(found, wanted), None, None, None, None)


def _differentiate_sequence(
    ctx: Any, dy: Tensor | None, dstate: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    """The gradients of `scan_cpu_sequence`'s arguments.

    A step back does many times the work of a step, beside which turning the channels to be the
    fastest axis is little: one backward pass serves both operators.
    """
    x, delta, A, B, C, D, bias, borders = ctx.saved_tensors
    (K, _, channels), L = A.shape, x.shape[2]
    order = torch.arange(L, dtype=torch.int32).expand(K, L).contiguous()
    offset = torch.arange(K, dtype=torch.int32) * channels
    wanted = ctx.needs_input_grad[:7]
    dy, dstate = slopes_or_zeros(x, A, dy, dstate)
    found = torch.ops.robustcli.scan_cpu_backward(
        x.mT.contiguous(), delta.unflatten(1, (K, -1)).permute(1, 0, 3, 2).contiguous(), A,
        B.permute(1, 0, 3, 2).contiguous(), C.permute(1, 0, 3, 2).contiguous(), D, bias, order,
        offset, borders, ctx.softplus, dy.mT, dstate, wanted,
    )  # fmt: skip
    dx, ddelta, dA, dB, dC, dD, dbias = spread(found, wanted)
    ddelta, dB, dC = (None if t is None else t.permute(1, 0, 3, 2) for t in (ddelta, dB, dC))
    return (
        None if dx is None else dx.mT, None if ddelta is None else ddelta.flatten(1, 2),
        dA, dB, dC, dD, dbias, None, None,
    )  # fmt: skip


scan_cpu.register_autograd(_differentiate, setup_context=_keep)
scan_cpu_sequence.register_autograd(_differentiate_sequence, setup_context=_keep)


def _work(
    name: str, tasks: int, dims: tuple[int, ...], softplus: bool, asked: bool | Wanted,
    inputs: tuple[Tensor, ...], outputs: Sequence[Tensor | None],
) -> None:  # fmt: skip
    """Runs a compiled entry over all its tasks.

    `asked` of a forward entry: whether to keep states; of the backward entry: the gradients wanted.
    """
    from robustcli.models.scan import cpu_kernels as kernels

    read = [t.contiguous() for t in inputs]  # must outlive the run: the kernels hold addresses
    addresses = [0 if t is None else t.data_ptr() for t in (*read, *outputs)]
    block, chunk = _block(dims), _chunk(dims[4], dims[2])
    if isinstance(asked, bool):
        entry, flags = kernels.entry(name), int(asked)
    else:
        entry, flags = kernels.backward_entry(asked), kernels.bits(asked)
    work = kernels.pack(tasks, dims, softplus, block, chunk, flags, addresses)
    run(entry, work.ctypes.data, alone=math.prod(dims[:5]) <= _SMALL)


def _chunk(states: int, length: int) -> int:
    """Steps between kept states."""
    return max(1, min(length, _CHUNK // states))


def _blocks(dims: tuple[int, ...]) -> int:
    """Blocks of channels of one sequence."""
    return math.ceil(dims[3] / _block(dims))


def _block(dims: tuple[int, ...]) -> int:
    """Channels per task, a multiple of 16.

    The number of threads has no say: sums over channels are made block by block, and the same bits
    come out for any number of them.
    """
    _, S, _, channels, _, _ = dims
    share = math.ceil(S * channels / _TASKS / 16) * 16
    return max(16, min(_MOST_CHANNELS, share))
