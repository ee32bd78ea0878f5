"""Backend for the CPU with numba kernels, forward and backward.

The kernels define a numba type and generate LLVM code for it with llvmlite. These interfaces are
not stable: if a release changes them, this backend is disabled and reports the reason.
It is also used on Apple GPUs (MPS), for which no kernel exists: the arguments are copied to the CPU
and the results back, which takes far less time than a loop over time on the GPU. Networks with and
without a scan can therefore use the same device.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, List  # noqa: UP035  torch 2.6 reads no `list[Tensor]` in a schema

import torch
from torch import Tensor

from robustcli.models.scan.base import (
    KERNEL_DTYPES,
    NeedsGrad,
    ScanInputs,
    ScanSettings,
    grads_or_zeros,
    keeps_states,
    missing,
    path,
    pixel_orders,
    spread,
    unpacked,
)

TESTED = ("0.60", "0.68.1")  # lowest and highest version of numba in the tests
_DEVICES = ("cpu", "mps")  # supported devices of the tensors


def available() -> str | None:
    """None, or why this backend cannot run."""
    return missing("numba", "robustcli.models.scan.cpu_kernels", remedy)


def remedy() -> str:
    """Advice if the kernels fail: the installed and the tested versions of numba."""
    lowest, highest = TESTED
    return (
        "The kernels use internals of numba and llvmlite, which can change between releases. "
        f"Installed are numba {_installed('numba')} and llvmlite {_installed('llvmlite')}; the "
        f"kernels are tested with numba {lowest} to {highest}: `pip install "
        f"'numba>={lowest},<={highest}'`."
    )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(version unknown)"


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None, or why `device` or `dtype` is not supported."""
    if device.type not in _DEVICES:
        return f"It supports the CPU and MPS; the tensors are on {device}."
    if dtype not in KERNEL_DTYPES:
        return f"It computes in float32; the tensors are {dtype}."
    return None


def scan(arguments: ScanInputs, settings: ScanSettings) -> tuple[Tensor, Tensor]:
    """See `base.Backend`. Computes in float32 on the CPU; copies tensors of other devices.

    A sequence is read in its memory layout: time-major (L is the last axis), as in mamba-ssm, or
    channels-last, as the tokens of a network. The results are bitwise equal.
    """
    home = arguments.x.device
    x, delta, A, B, C, D, bias = (t.cpu() for t in arguments)
    as_rows = not settings.directions and x.stride(2) != 1
    if as_rows:  # transposed by the kernel in the cache, without a channels-last copy
        x, delta = x.mT, delta.permute(1, 0, 3, 2).flatten(1, 2)  # (S, K*D, L)
        B, C = B.permute(1, 0, 3, 2), C.permute(1, 0, 3, 2)  # (S, K, N, L)
    tensors = [t.to(torch.float32).contiguous() for t in (x, delta, A, B, C, D, bias)]
    keep = keeps_states(tensors)
    if as_rows:
        y, state, _ = scan_cpu_sequence(*tensors, settings.softplus, keep)
        y = y.mT
    else:
        y, state, _ = scan_cpu(*tensors, *path(settings, delta), settings.softplus, keep)
    return y.to(home), state.to(home)


def describe() -> str:
    """Description of the threads that run the scan, for `robust doctor`."""
    if _openmp() is None:
        return (
            "in Python threads, because torch's OpenMP pool is not accessible (it has no "
            "`GOMP_parallel`, as on Windows), so that both thread pools compete for the cores"
        )
    return "in torch's OpenMP threads"


# --- The kernels as torch operators with custom backward passes ----------------------------------


@torch.library.custom_op("robustcli::scan_cpu", mutates_args=(), device_types="cpu")
def scan_cpu(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
             height: int, width: int, paths: int, group: int, softplus: bool,
             keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs y (S, L, W), last state (K, S, N, D), and with `keep` states for the backward pass.

    Layouts as in `cpu_kernels`; `height` to `group` are those of `base.path`.
    """
    K, S, L, channels = delta.shape
    dims = (K, S, L, channels, A.shape[1], x.shape[2])
    outputs = _empty_outputs(dims, x, keep)
    inputs = (x, delta, A, B, C, D, bias, *_orders(K, height, width, paths, group))
    _work("forward", S, _block_of_outputs(S, dims), dims, softplus, keep, inputs, outputs)
    return outputs


@lru_cache(maxsize=64)  # a network scans images of a few sizes again and again
def _orders(K: int, height: int, width: int, paths: int, group: int) -> tuple[Tensor, Tensor]:
    """The arrays `order` and `offset` of `cpu_kernels`."""
    with torch.device("cpu"), torch.inference_mode(False):
        order = pixel_orders(height, width, unpacked(paths, K)).contiguous()
        return order, torch.arange(K, dtype=torch.int32) * group


@scan_cpu.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      height: int, width: int, paths: int, group: int, softplus: bool,
      keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    K, S, L, channels = delta.shape
    return _empty_outputs((K, S, L, channels, A.shape[1], x.shape[2]), x, keep)


@torch.library.custom_op("robustcli::scan_cpu_sequence", mutates_args=(), device_types="cpu")
def scan_cpu_sequence(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                      bias: Tensor, softplus: bool,
                      keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `scan_cpu`, for sequences in time-major layout (see `cpu_kernels`); y as well."""
    dims = _dims(x, A)
    outputs = _empty_outputs(dims, x, keep)
    inputs, rows = (x, delta, A, B, C, D, bias), dims[0] * dims[1]
    _work("sequence", rows, _block_of_outputs(rows, dims), dims, softplus, keep, inputs, outputs)
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
                      bias: Tensor, borders: Tensor, height: int, width: int, paths: int,
                      group: int, softplus: bool, dy: Tensor, dstate: Tensor,
                      needs_grad: Sequence[bool]) -> List[Tensor]:  # noqa: UP006  # fmt: skip
    """The needed gradients of x, delta, A, B, C, D and bias, in this order, in their layouts."""
    K, S, L, channels = delta.shape
    dims = (K, S, L, channels, A.shape[1], x.shape[2])
    orders = _orders(K, height, width, paths, group)
    inputs = (x, delta, A, B, C, D, bias, *orders, borders, dy, dstate)
    return _gradients("backward", S, dims, softplus, needs_grad, inputs)


@torch.library.custom_op(
    "robustcli::scan_cpu_sequence_backward", mutates_args=(), device_types="cpu"
)
def scan_cpu_sequence_backward(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                               bias: Tensor, borders: Tensor, softplus: bool, dy: Tensor,
                               dstate: Tensor, needs_grad: Sequence[bool],
                               ) -> List[Tensor]:  # noqa: UP006  # fmt: skip
    """The needed gradients of the arguments of `scan_cpu_sequence`, in their layouts."""
    dims = K, S, *_ = _dims(x, A)
    inputs = (x, delta, A, B, C, D, bias, borders, dy, dstate)
    return _gradients("backward_sequence", S * K, dims, softplus, needs_grad, inputs)


def _gradients(
    name: str, rows: int, dims: tuple[int, ...], softplus: bool, needs_grad: NeedsGrad,
    inputs: tuple[Tensor, ...],
) -> list[Tensor]:  # fmt: skip
    """The needed gradients of the first seven `inputs`, computed by the compiled entry `name`."""
    S, block = dims[1], _block(dims)
    blocks = math.ceil(dims[3] / block)
    # Each element of the gradients of x and delta is written by one task. The other gradients are
    # summed over tasks: those of A, D and the bias over sequences, of B and C over channel blocks.
    x, delta, A, B, C, D, bias, *_ = inputs
    parts = [x.shape, delta.shape, (S, *A.shape), (blocks, *B.shape), (blocks, *C.shape),
             (S, *D.shape), (S, *bias.shape)]  # fmt: skip
    added = (False, False, True, False, False, True, True)  # accumulated: initialised with 0
    grads = [
        None if not needed else x.new_zeros(shape) if zeroed else x.new_empty(shape)
        for needed, shape, zeroed in zip(needs_grad, parts, added, strict=True)
    ]
    _work(name, rows, block, dims, softplus, needs_grad, inputs, grads)
    return [
        t if n < 2 else t[0] if len(t) == 1 else t.sum(0)
        for n, t in enumerate(grads) if t is not None
    ]  # fmt: skip


@scan_cpu_backward.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      borders: Tensor, height: int, width: int, paths: int, group: int, softplus: bool,
      dy: Tensor, dstate: Tensor, needs_grad: Sequence[bool]) -> list[Tensor]:  # fmt: skip
    return _empty_gradients((x, delta, A, B, C, D, bias), needs_grad)


@scan_cpu_sequence_backward.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
      borders: Tensor, softplus: bool, dy: Tensor, dstate: Tensor,
      needs_grad: Sequence[bool]) -> list[Tensor]:  # fmt: skip
    return _empty_gradients((x, delta, A, B, C, D, bias), needs_grad)


def _empty_gradients(tensors: Sequence[Tensor], needs_grad: NeedsGrad) -> list[Tensor]:
    return [torch.empty_like(t) for t, need in zip(tensors, needs_grad, strict=True) if need]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.settings = inputs[7:-1]  # all but `keep`
    ctx.save_for_backward(*inputs[:7], output[2])
    ctx.set_materialize_grads(False)


def _differentiate(operator: str) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward function that calls `operator`; only the seven tensors have gradients."""

    def differentiate(
        ctx: Any, dy: Tensor | None, dstate: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        needs_grad = ctx.needs_input_grad[:7]
        x, _, A, *_ = saved = ctx.saved_tensors
        grads = getattr(torch.ops.robustcli, operator)(
            *saved, *ctx.settings, *grads_or_zeros(x, A, dy, dstate), needs_grad
        )
        without = len(ctx.settings) + 1  # and `keep`
        return (*spread(grads, needs_grad), *(None,) * without)

    return differentiate


scan_cpu.register_autograd(_differentiate("scan_cpu_backward"), setup_context=_keep)
scan_cpu_sequence.register_autograd(
    _differentiate("scan_cpu_sequence_backward"), setup_context=_keep
)


# --- Division of a scan into tasks, one per block of channels ------------------------------------

_MOST_CHANNELS = 64  # of a task: four adjacent cache lines, and a state of a few kilobytes
_TASKS = 8  # lower bound per scan if there are enough channels: work for this many threads
_SMALL = 1 << 16  # state updates up to which one thread is faster than two (50 us)
_CHUNK = 128  # steps times states between saved states: the data of a chunk fit in the cache


def _work(
    name: str, rows: int, block: int, dims: tuple[int, ...], softplus: bool,
    request: bool | NeedsGrad, inputs: tuple[Tensor, ...], outputs: Sequence[Tensor | None],
) -> None:  # fmt: skip
    """Runs a compiled entry for all tasks: the blocks of channels of each of the `rows` sequences.

    `request` is whether to save states (forward) or the needed gradients (backward).
    """
    from robustcli.models.scan import cpu_kernels as kernels

    read = [t.contiguous() for t in inputs]  # kept alive: the kernels use addresses
    addresses = [0 if t is None else t.data_ptr() for t in (*read, *outputs)]
    chunk, tasks = _chunk(dims[4], dims[2]), rows * math.ceil(dims[3] / block)
    if isinstance(request, bool):
        entry, flags = kernels.entry(name), int(request)
    else:
        entry, flags = kernels.backward_entry(name, request), kernels.bits(request)
    work = kernels.pack(tasks, dims, softplus, block, chunk, flags, addresses)
    run(entry, work.ctypes.data, _threads(dims))


def _threads(dims: tuple[int, ...]) -> int:
    """Number of threads for a scan."""
    return 1 if math.prod(dims[:5]) <= _SMALL else torch.get_num_threads()


def _chunk(states: int, length: int) -> int:
    """Steps between saved states: a power of two, so that chunks align with tiles of 16 steps."""
    most = max(1, _CHUNK // states)
    return min(length, 1 << (most.bit_length() - 1))


def _block_of_outputs(rows: int, dims: tuple[int, ...]) -> int:
    """Number of channels per task of a forward pass: the least work for the busiest thread.

    Of equals the widest, which reads the longest parts of memory without a gap: 64 channels take a
    tenth less time than 32. The outputs have the same bits for any block, because no channel
    depends on another.
    """
    channels, threads = dims[3], _threads(dims)
    if threads == 1:
        return _MOST_CHANNELS

    def work_of_busiest(block: int) -> int:
        return math.ceil(rows * math.ceil(channels / block) / threads) * block

    return min(range(_MOST_CHANNELS, 0, -16), key=work_of_busiest)


def _block(dims: tuple[int, ...]) -> int:
    """Number of channels per task of a backward pass, a multiple of 16.

    Does not depend on the number of threads: sums over channels are computed block by block, so
    that the results are bitwise equal for any number of threads.
    """
    _, S, _, channels, _, _ = dims
    share = math.ceil(S * channels / _TASKS / 16) * 16
    return max(16, min(_MOST_CHANNELS, share))


# --- The threads that run the tasks: torch's OpenMP threads, else Python threads -----------------
#
# Torch's threads busy-wait for milliseconds after every operation; separate threads would compete
# with them for the cores. An entry therefore runs in torch's OpenMP pool, through the function that
# compilers call for `#pragma omp parallel`. If this function is not available, it runs in a pool of
# Python threads.

_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")
_HOME = os.getpid()  # the process that owns the OpenMP pool


def run(entry: int, work: int, threads: int) -> None:
    """Runs the C function at address `entry` on `work` in `threads` threads.

    The function is called once per thread and must distribute the work itself.

    Args:
        entry: Address of a `void (*)(void *)`.
        work: Address that is passed to the function.
        threads: Number of threads, including the calling one; at most those of torch.
    """
    if threads == 1:
        _TASK(entry)(work)
        return
    parallel = _openmp()
    # A forked process has the data structures of the OpenMP pool, but not its threads.
    if parallel is None or os.getpid() != _HOME:
        _in_python_threads(_TASK(entry), work, threads)
    else:
        parallel(entry, work, threads, 0)


@lru_cache
def _openmp() -> Callable[..., None] | None:
    """`GOMP_parallel` of the OpenMP library that torch is linked with, or None.

    Both GNU's and LLVM's OpenMP library contain this function. It is looked up in torch's library
    and its dependencies, because another copy of OpenMP would have a separate pool.
    """
    for name in _LIBRARIES:
        path = Path(torch.__file__).parent / "lib" / name
        try:
            parallel: Any = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel  # type: ignore[no-any-return]
    return None


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Thread pool of this process; `process` is a cache key, as threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="robust-scan")


def _in_python_threads(task: Callable[[int], None], work: int, threads: int) -> None:
    futures = [_pool(threads - 1, os.getpid()).submit(task, work) for _ in range(threads - 1)]
    task(work)
    wait(futures)
