"""The peak of memory over a stretch of time, which can be started anew.

On a CUDA device it is what torch allocated; elsewhere what the process had in memory, where the
system tells (Linux).
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # Source: Linux, Documentation/filesystems/proc.rst, clear_refs


def start_anew(device: torch.device) -> None:
    """From now on the peak is counted; memory that nobody uses is given back first."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # not Linux, or not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK, encoding="ascii")


def peak_resident(device: torch.device) -> int:
    """Bytes at the peak since `start_anew`; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration):
        lines = (_PROCESS / "status").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return 0
