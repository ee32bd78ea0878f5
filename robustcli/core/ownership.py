"""One process, or one group of ranks, works in a run's folder at a time; no file locks are used.

File locks do not exclude on network folders: 2,653 violations in 2,829 tries were counted on NFS.
What every file system does guarantee is that of several processes that create one file exclusively
exactly one succeeds. `RUN/.owner/000001.json`, `000002.json`, ... are the owners so far, the last
one the present owner. Whoever takes the folder creates the next number, so that two cannot take
over from the same dead owner.

Whether an owner lives: on this machine its process says so (process id and start of the process,
so that a recycled id is no owner). From another machine, or another container, only its heartbeat
can be seen: the owner touches its file every BEAT_SECONDS, and a file that was not touched while
this process watched for SILENCE_SECONDS has a dead owner. Nothing compares clocks, so a clock that
jumps does no harm.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from robustcli.core.errors import RunError
from robustcli.core.io import refused, replacing

FOLDER = ".owner"
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0  # six heartbeats: a machine under load may miss some
_READS = 5
_KEPT = 8  # files of earlier owners; see `_claim`


@dataclass(frozen=True)
class Owner:
    """Who works, or worked, in a folder.

    Args:
        host: Name of the machine, for people.
        machine: What tells machines and containers apart: process ids mean something only within.
        pid: The process.
        started: What tells the process from a later one with the same id.
        since: When it took the folder, ISO 8601, for people.
        command: What was typed.
        released: Whether it has finished with the folder.
    """

    host: str
    machine: str
    pid: int
    started: str
    since: str
    command: str
    released: bool = False


class Ownership:
    """The folder is this process's until `release`.

    Args:
        path: The owner's file.
        owner: What it holds.
    """

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self._owner = path, owner
        self._stop, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises RunError where another process has taken the folder.

        That happens to a process that was suspended for longer than SILENCE_SECONDS.
        """
        if self._lost.is_set():
            folder = self._path.parent.parent
            raise RunError(
                f"Another process has taken over `{folder}`.",
                f"This one gave no sign of life for {SILENCE_SECONDS:.0f} s (was it suspended?).",
                "Leave the work to the other one; everything that was finished is kept.",
            )

    def release(self) -> None:
        """Lets the next process take the folder at once."""
        self._stop.set()
        self._thread.join()
        if not self._lost.is_set():
            with suppress(RunError):  # a full disk: the next process finds that this one has ended
                _write(self._path, replace(self._owner, released=True))

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._path)
                if _newest(self._path.parent) != self._path:
                    self._lost.set()
                    return


@contextmanager
def owned(run: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[Ownership]:
    """Makes the folder `run` and holds it.

    Args:
        run: The folder.
        say: Receives a line for the user where it takes long to find out whether an owner lives.

    Raises:
        RunError: Another process works there, or the file system refuses.
    """
    try:
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
        ownership = _claim(run, say)
    except OSError as error:
        raise refused(run, error) from error
    try:
        yield ownership
    finally:
        ownership.release()


def _claim(run: Path, say: Callable[[str], None]) -> Ownership:
    folder, me = run / FOLDER, _this_process()
    while True:
        newest = _newest(folder)
        if newest is not None:
            _refuse_if_alive(run, newest, say)
        number = 1 if newest is None else int(newest.stem) + 1
        path = folder / f"{number:06d}.json"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            time.sleep(0.05)  # another process was quicker; a network folder may list it late
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_text(me))
        # A process that looked long ago could create a number that was removed since: files are
        # removed late, and whoever sees a higher number than its own gives way.
        if _newest(folder) != path:
            path.unlink(missing_ok=True)
            continue
        for old in _numbered(folder):
            if int(old.stem) <= number - _KEPT:
                old.unlink(missing_ok=True)
        return Ownership(path, me)


def _refuse_if_alive(run: Path, path: Path, say: Callable[[str], None]) -> None:
    owner = _read(path)
    if owner is not None and owner.released:
        return
    if owner is not None and owner.machine == _machine():
        alive = _start_of(owner.pid) == owner.started
    else:
        who = f"process {owner.pid} on {owner.host}" if owner else "an unknown process"
        say(
            f"`{run}` belongs to {who}, which cannot be seen from here: watching up to "
            f"{SILENCE_SECONDS:.0f} s for a sign of life."
        )
        alive = _beats(path)
        owner = _read(path) or owner
        alive = alive and not (owner is not None and owner.released)
    if alive:
        raise _in_use(run, owner)


def _in_use(run: Path, owner: Owner | None) -> RunError:
    if owner is None:
        return RunError(
            f"Another process is working in `{run}`.", "", "Wait for it, or use another `--out`."
        )
    here = owner.machine == _machine()
    where = "on this machine" if here else f"on {owner.host}"
    return RunError(
        f"Another process is working in `{run}`.",
        f"Process {owner.pid} {where} ({owner.host}) has held it since {owner.since}: "
        f"`{owner.command}`.",
        f"Wait for it, or end it (`kill {owner.pid}` {where}), or use another `--out`. Processes "
        "that share the work are started together: `--devices N`, or torchrun.",
    )


def _beats(path: Path) -> bool:
    """Whether the file is touched while this process watches."""
    first, waited = _touched(path), time.monotonic()
    while time.monotonic() - waited < SILENCE_SECONDS:
        time.sleep(min(1.0, SILENCE_SECONDS / 10))
        if _touched(path) != first:
            return True
    return False


def _touched(path: Path) -> int | None:
    """When the file was last touched, by its file system's clock; None where it is gone."""
    try:
        with path.open("rb") as file:  # opening makes a network folder ask its server
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _newest(folder: Path) -> Path | None:
    return max(_numbered(folder), key=lambda path: int(path.stem), default=None)


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.json") if path.stem.isdigit()]


def _read(path: Path) -> Owner | None:
    """The owner in `path`; None where it was cut off."""
    for _ in range(_READS):
        try:
            return Owner(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            time.sleep(0.05)  # perhaps it is just being written
    return None


def _write(path: Path, owner: Owner) -> None:
    with replacing(path) as beside:
        beside.write_text(_text(owner), encoding="utf-8")


def _text(owner: Owner) -> str:
    return json.dumps(asdict(owner), indent=2) + "\n"


def _this_process() -> Owner:
    pid = os.getpid()
    return Owner(
        host=socket.gethostname(),
        machine=_machine(),
        pid=pid,
        started=_start_of(pid) or "",
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(sys.argv),
    )


def _machine() -> str:
    """What tells machines and containers apart.

    Linux: a container can have the host's name and kernel, but has process ids of its own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{platform.system()}/{uuid.getnode():x}"


def _start_of(pid: int) -> str | None:
    """When process `pid` began, in a form that is constant for it; None where there is none."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            # The name in parentheses may hold anything. Field 22: clock ticks since the boot.
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.3f}"
    except psutil.Error:
        return None
