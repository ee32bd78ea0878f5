"""The share of the machine that this process may use: processor cores and memory.

A container or a batch system gives a process part of a machine through Linux control groups
(cgroups). The limits of a process are those of its own group and of every group above it; the
smallest holds. Group paths are read from `/proc/self/cgroup`, where each hierarchy is mounted from
`/proc/self/mountinfo`.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; man 7 cgroups;
man 5 proc_pid_mountinfo.
"""

from __future__ import annotations

import math
import os
import platform
import re
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from robustcli import __version__
from robustcli.core.errors import MachineError

# How the threads of numerical libraries wait for each other.


# Iterations of the spin loop. `benchmarks/sharing.py` on two cores: as fast as libgomp's default of
# 300,000 on an idle machine, and 0.6 and 0.5 of its time beside one and two busy processes. 20,000
# give no gain beside one process; none at all (`OMP_WAIT_POLICY=passive`) cost 40 % when idle.
_SPIN = "1000"


def wait_briefly() -> None:
    """Shortens the time that waiting OpenMP threads spin before they sleep.

    On a busy machine, a thread waits at the end of a loop for another one that is not running, and
    spinning takes the processor time that the other one needs. Settings of the user are kept. Must
    be called before libgomp is loaded (with torch on Linux), which then reads the setting.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN)


def complete_user() -> None:
    """Sets `HOME` and `USER` if the user has neither these nor an entry in the password file.

    As in containers that run with any user id. Libraries would fail (MONAI at its import), or write
    into a folder named `~`.
    """
    from getpass import getuser

    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"  # as container runtimes do
    try:
        getuser()
    except (KeyError, OSError, ImportError):  # OSError since Python 3.13, ImportError on Windows
        os.environ["USER"] = "unknown"


_PROC = Path("/proc/self")


def usable_cores() -> int:
    """Number of processor cores that this process can use, at least 1.

    The cores in the affinity mask of the process, limited by the time quota of its control groups
    (rounded up to full cores).
    """
    cores = _affinity()
    for group in _groups("cpu"):
        quota = _quota(group)
        if quota is not None:
            cores = min(cores, math.ceil(quota))
    return max(1, cores)


def available_bytes() -> int:
    """Bytes of memory that this process can allocate before it swaps or is killed.

    The free memory of the machine, limited by the control groups of the process. Cached file
    content counts as free, because the kernel drops it on demand.
    """
    import psutil  # only commands that compute need it

    free = int(psutil.virtual_memory().available)
    for group in _groups("memory"):
        remaining = _remaining(group)
        if remaining is not None:
            free = min(free, remaining)
    return max(0, free)


def start_method() -> Literal["fork", "spawn"]:
    """The start method of loader processes: `fork` on Linux, `spawn` elsewhere.

    Windows cannot fork, and on macOS a fork can crash after system libraries were used. Python's
    default depends on its version.
    """
    return "fork" if sys.platform == "linux" else "spawn"


def may_start_processes() -> bool:
    """Whether this process may start others; a process of `multiprocessing.Pool` may not."""
    from multiprocessing import current_process  # slow; not needed by `robust --help`

    return not current_process().daemon


def _affinity() -> int:
    counted = getattr(os, "process_cpu_count", None)  # Python 3.13 and later
    if counted is not None:
        return int(counted() or 1)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    import psutil

    with suppress(AttributeError, OSError, psutil.Error):  # Windows has an affinity, macOS has none
        return len(psutil.Process().cpu_affinity() or ()) or os.cpu_count() or 1
    return os.cpu_count() or 1


class _Group(NamedTuple):
    """One control group: its folder, and the version (1 or 2) of its hierarchy."""

    folder: Path
    version: int


def _groups(controller: str) -> Iterator[_Group]:
    """The groups of this process under `controller` (`cpu`, `memory`), innermost first."""
    with suppress(OSError):
        mounts = list(_mounts(controller))
        for line in (_PROC / "cgroup").read_text(encoding="utf-8").splitlines():
            number, controllers, path = line.split(":", 2)
            version = 2 if number == "0" and not controllers else 1
            if version == 1 and controller not in controllers.split(","):
                continue
            for mount in mounts:
                if mount.version == version:
                    for folder in _upwards(mount, path):
                        yield _Group(folder, version)


class _Mount(NamedTuple):
    """A mounted hierarchy: its mount point, and the group at the mount point."""

    point: Path
    root: str
    version: int


def _mounts(controller: str) -> Iterator[_Mount]:
    for line in (_PROC / "mountinfo").read_text(encoding="utf-8").splitlines():
        mount, _, source = line.partition(" - ")
        fields, kind = mount.split(" "), source.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            yield _Mount(Path(_plain(fields[4])), _plain(fields[3]), 2)
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            yield _Mount(Path(_plain(fields[4])), _plain(fields[3]), 1)


def _plain(field: str) -> str:
    r"""`field` of mountinfo, where a space is written as `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _upwards(mount: _Mount, path: str) -> Iterator[Path]:
    """The folders of the group `path` and of its parent groups, as far as they are mounted.

    A container can have a group of the host at the mount point, or paths that it cannot reach
    (`/../other`); then the mount point is the innermost visible group.
    """
    root = mount.root.rstrip("/")
    inside = path[len(root) :] if path == root or path.startswith(f"{root}/") else "/"
    parts = [part for part in inside.split("/") if part]
    if ".." in parts:
        parts = []
    for length in range(len(parts), -1, -1):
        yield mount.point.joinpath(*parts[:length])


def _quota(group: _Group) -> float | None:
    """Time quota of the group in cores; None without a limit."""
    with suppress(OSError, ValueError):  # the root group has no such file; no limit is `max`
        if group.version == 2:
            quota, period = map(int, _read(group, "cpu.max").split())
        else:
            quota, period = (int(_read(group, f"cpu.cfs_{x}_us")) for x in ("quota", "period"))
        return quota / period if quota > 0 and period > 0 else None
    return None


_LIMITS = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
_USAGE = {1: "memory.usage_in_bytes", 2: "memory.current"}
_FILE_CACHE = {
    1: ("total_inactive_file", "total_active_file"), 2: ("inactive_file", "active_file"),
}  # fmt: skip


def _remaining(group: _Group) -> int | None:
    """Bytes that the group can still allocate; None without a limit."""
    limits = []
    for name in _LIMITS[group.version]:
        with suppress(OSError, ValueError):  # the root group has no such file; no limit is `max`
            limits.append(int(_read(group, name)))
    limit = min(limits, default=sys.maxsize)
    if limit >= sys.maxsize // 2:  # version 1 writes no limit as the largest number of pages
        return None
    with suppress(OSError, ValueError):
        return max(0, limit - max(0, int(_read(group, _USAGE[group.version])) - _cached(group)))
    return limit


def _cached(group: _Group) -> int:
    """Bytes of cached file content, which counts as usage; 0 if the kernel does not report it."""
    with suppress(OSError, ValueError):
        pairs = (line.split() for line in _read(group, "memory.stat").splitlines())
        names = _FILE_CACHE[group.version]
        return sum(int(value) for name, value in pairs if name in names)
    return 0


def _read(group: _Group, name: str) -> str:
    return (group.folder / name).read_text(encoding="ascii").strip()


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor; its architecture if the system reports no name."""
    with suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name":
                return name.strip()
    return platform.processor() or platform.machine()


# The identity of the machine and its processes.


def machine_id() -> str:
    """Identifies the machine or container.

    On Linux a container can share name and kernel with the host, but has separate process ids.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{platform.system()}/{uuid.getnode():x}"


def start_of_process(pid: int) -> str | None:
    """Start time of process `pid` as a constant text; None if there is no such process."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            # The name in parentheses can contain anything. Field 22: clock ticks since boot.
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.3f}"
    except psutil.Error:
        return None


# The versions of this program, of Python, and of the packages that decide the numbers.


_PACKAGES = (
    "torch", "torchvision", "timm", "numba", "imaug", "imagecorruptions-imaug", "numpy", "pillow",
    "opencv-python-headless", "scikit-image", "scipy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of this program, of Python, and of all packages that affect results."""
    found = {package: installed_version(package) for package in _PACKAGES}
    # Another distribution may bring the import of an absent one (opencv-python).
    packages = {package: installed for package, installed in found.items() if installed}
    return {"robust": __version__, "python": platform.python_version(), **packages}


def check_opencv() -> None:
    """Checks that OpenCV can be loaded.

    imgaug requires two distributions of OpenCV that contain the same files. pip installs
    `opencv-python` last, which needs the OpenGL library of the system; images of containers
    (`python:3.12-slim`) do not contain it.

    Raises:
        MachineError: It cannot be loaded; the message contains the command that mends it.
    """
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        installed = installed_version("opencv-python-headless")
        number = f"=={installed}" if installed else ""
        command = f"`pip install --force-reinstall --no-deps opencv-python-headless{number}`"
        why = f"{type(error).__name__}: {error}"
        todo = f"{command} installs it again."
        if "cannot open shared object file" in str(error):
            why = (
                f"{error}. The package `opencv-python` needs this library of the system, and "
                "`opencv-python-headless` does not; imgaug requires both, and the one that was "
                "installed last is used."
            )
            todo = (
                f"{command} replaces the files, without administrator rights; or install the "
                "library (Debian and Ubuntu: `apt-get install libgl1`)."
            )
        raise MachineError(
            "OpenCV, which transforms images, cannot be loaded.", why, todo
        ) from error


def with_earlier(old: str, new: str) -> str:
    """A version or device of a run that one process began with `old` and another continues."""
    return old if new in old.split(" and ") else f"{old} and {new}"


def versions_with_earlier(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The `versions` of a run that was begun with `old` and is continued with `new`."""
    return {name: with_earlier(old.get(name, version), version) for name, version in new.items()}


def installed_version(package: str) -> str | None:
    """Version of the installed distribution `package`; None without it."""
    try:
        return _installed_version(package)
    except PackageNotFoundError:
        return None


@cache
def _installed_version(package: str) -> str:
    """As `importlib.metadata.version`, which parses a file at every call; an error is not kept."""
    return version(package)
