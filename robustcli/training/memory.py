"""How much memory there is to use."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

_UNKNOWN = 4 << 30
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int:
    """Bytes that this process may still take, by the system and by the container it is in."""
    return min(_of_machine(), _of_container())


def _of_machine() -> int:
    with suppress(OSError, StopIteration):
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    with suppress(ValueError, AttributeError, OSError):  # not every system tells
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return _UNKNOWN


def _of_container() -> int:
    """What the control group still allows; a container is killed when it takes more."""
    with suppress(OSError, ValueError):  # no limit is written as `max`
        most = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        return max(0, most - int((_CGROUP / "memory.current").read_text(encoding="ascii")))
    return sys.maxsize


def peak_bytes() -> int:
    """The most that this process has had in memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
