"""The threads that run the CPU scan: torch's own, where they can be borrowed.

Torch's threads wait for their next work by spinning, for milliseconds after every operation;
threads of our own would share the cores with them. So an entry runs in the very OpenMP pool that
torch computes in, through the function that compilers call for `#pragma omp parallel`; where that
is out of reach, in a pool of Python threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")
_HOME = os.getpid()  # the process whose pool it is


def run(entry: int, work: int, *, alone: bool = False) -> None:
    """Runs the C function at address `entry` on `work` in as many threads as torch uses.

    The function is called once per thread and must share its work out by itself.

    Args:
        entry: Address of a `void (*)(void *)`.
        work: Address that it is given.
        alone: Whether the calling thread does it all, because the work is worth no waiting.
    """
    threads = 1 if alone else torch.get_num_threads()
    if threads == 1:
        _TASK(entry)(work)
        return
    parallel = _openmp()
    # A process forked from one with a pool has the pool's record but not its threads.
    if parallel is None or os.getpid() != _HOME:
        _in_python_threads(_TASK(entry), work, threads)
    else:
        parallel(entry, work, threads, 0)


def describe() -> str:
    """Which threads the scan runs in, for the reader of `robust doctor`."""
    if _openmp() is None:
        return (
            "in Python threads, because torch's OpenMP pool is out of reach (no `GOMP_parallel` in "
            "it, as on Windows): both wait for the cores"
        )
    return "in torch's OpenMP threads"


@lru_cache
def _openmp() -> Callable[..., None] | None:
    """`GOMP_parallel` of the OpenMP library that torch is linked with, or None.

    GNU's library has it, and LLVM's under the same name. It is looked up through torch's library,
    whose own dependencies are searched: another copy of OpenMP would be another pool.
    """
    for name in _LIBRARIES:
        path = Path(torch.__file__).parent / "lib" / name
        try:
            found: Any = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        found.restype = None
        return found  # type: ignore[no-any-return]
    return None


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process; `process` is in the key because threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="robust-scan")


def _in_python_threads(task: Callable[[int], None], work: int, threads: int) -> None:
    others = [_pool(threads - 1, os.getpid()).submit(task, work) for _ in range(threads - 1)]
    task(work)
    wait(others)
