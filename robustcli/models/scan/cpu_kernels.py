"""The compiled entries of the CPU scan: C functions that any thread may run, on one piece of work.

A piece of work is a row of 64-bit integers: the next task, the number of tasks, K, S, L, D, N, W,
softplus, block, chunk, keep (backward: the gradients wanted, in bits), then the addresses of the
arrays, in the order of the function that does a task. Every thread takes tasks until none is left;
no two tasks write the same memory, so that results do not depend on who took which.
"""

# mypy: allow-untyped-decorators
from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from robustcli.models.scan.cpu_backward import COMPILED, OF_BIAS, OF_DELTA, OF_STEP, backward
from robustcli.models.scan.cpu_forward import forward, forward_sequence
from robustcli.models.scan.layout import Wanted

HEAD = 12  # integers before the addresses
_SIGNATURE = types.void(types.CPointer(types.int64))
_ANY = 1 << 40  # an array's length, which no kernel asks for


@intrinsic
def _take(_context: Any, work: Any) -> Any:
    """The next task, which no other thread gets."""

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", values[0], ir.IntType(64)(1), "monotonic")

    return types.int64(work), codegen


def _pointer(kind: Any) -> Any:
    @intrinsic
    def as_pointer(_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(sig.return_type))

        return types.CPointer(kind)(address), codegen

    return as_pointer


_floats, _ints = _pointer(types.float32), _pointer(types.int32)


@njit(forceinline=True)
def _array(work: Any, number: int) -> Any:
    return carray(_floats(work[HEAD + number]), (_ANY,))


@njit(forceinline=True)
def _indices(work: Any, number: int) -> Any:
    return carray(_ints(work[HEAD + number]), (_ANY,))


@njit(forceinline=True)
def _dims(work: Any) -> Any:
    return work[2], work[3], work[4], work[5], work[6], work[7]


def _forward(digest: int, _: int) -> Any:
    def scan_forward(work: Any) -> None:
        task = _take(work)
        while digest and task < work[1]:
            forward(
                task, _dims(work), work[8] != 0, work[9], work[10], work[11] != 0,
                _array(work, 0), _array(work, 1), _array(work, 2), _array(work, 3),
                _array(work, 4), _array(work, 5), _array(work, 6), _indices(work, 7),
                _indices(work, 8), _array(work, 9), _array(work, 10), _array(work, 11),
            )  # fmt: skip
            task = _take(work)

    return scan_forward


def _sequence(digest: int, _: int) -> Any:
    def scan_sequence(work: Any) -> None:
        task = _take(work)
        while digest and task < work[1]:
            forward_sequence(
                task, _dims(work), work[8] != 0, work[9], work[10], work[11] != 0,
                _array(work, 0), _array(work, 1), _array(work, 2), _array(work, 3),
                _array(work, 4), _array(work, 5), _array(work, 6), _array(work, 7),
                _array(work, 8), _array(work, 9),
            )  # fmt: skip
            task = _take(work)

    return scan_sequence


def _backward(digest: int, compiled: int) -> Any:
    def scan_backward(work: Any) -> None:
        task = _take(work)
        while digest and task < work[1]:
            backward(
                task, _dims(work), work[8] != 0, work[9], work[10], compiled | work[11] & ~COMPILED,
                _array(work, 0), _array(work, 1), _array(work, 2), _array(work, 3),
                _array(work, 4), _array(work, 5), _array(work, 6), _indices(work, 7),
                _indices(work, 8), _array(work, 9), _array(work, 10), _array(work, 11),
                _array(work, 12), _array(work, 13), _array(work, 14), _array(work, 15),
                _array(work, 16), _array(work, 17), _array(work, 18),
            )  # fmt: skip
            task = _take(work)

    return scan_backward


_ENTRIES = {"forward": _forward, "sequence": _sequence, "backward": _backward}


@lru_cache
def entry(name: str, constant: int = 0) -> int:
    """The address of the compiled entry `forward`, `sequence` or `backward`.

    Compiled at its first use in an installation, then loaded from numba's cache; where that cannot
    be written, compiled in every process. The cache looks at this file only; the digest, which the
    entry closes over, makes it look at the others.

    Args:
        name: Of the entry.
        constant: Of `backward`: the bits of `COMPILED` that it computes.
    """
    made = _ENTRIES[name](_digest(), constant)
    try:
        compiled = cfunc(_SIGNATURE, cache=True, error_model="numpy")(made)
    except (OSError, RuntimeError):  # numba finds no folder to write its cache to, or a full disk
        compiled = cfunc(_SIGNATURE, error_model="numpy")(made)
    _kept.append(compiled)
    return int(compiled.address)


_kept: list[Any] = []  # an address is good for as long as what it points to is alive


@lru_cache
def _digest() -> int:
    sources = sorted(Path(__file__).parent.glob("cpu_*.py"))
    found = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    return int.from_bytes(found.digest()[:4], "big") | 1


def bits(wanted: Wanted) -> int:
    """The gradients wanted as the backward entry reads them."""
    asked = sum(1 << n for n, yes in enumerate(wanted) if yes)
    return asked | (OF_STEP if asked & (OF_DELTA | OF_BIAS) else 0)


def backward_entry(wanted: Wanted) -> int:
    """The address of the entry that computes the gradients wanted."""
    return entry("backward", bits(wanted) & COMPILED)


def pack(
    tasks: int, dims: tuple[int, ...], softplus: bool, block: int, chunk: int, keep: int,
    addresses: list[int],
) -> np.ndarray[Any, np.dtype[np.int64]]:  # fmt: skip
    """The piece of work that an entry takes; `dims` is (K, S, L, D, N, W)."""
    return np.array([0, tasks, *dims, softplus, block, chunk, keep, *addresses], np.int64)
