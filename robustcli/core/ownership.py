"""Ownership of a run: one process, or one group of ranks, works on it at a time.

`owned` takes a folder. File locks are unreliable on network folders: 2,653 violations in 2,829
attempts were counted on NFS. Every file system guarantees that exactly one of several processes
succeeds in creating a file exclusively. `RUN/.owner/000001.json`, `000002.json`, ... are the owners
so far; the last one is the current owner. A process takes the folder by creating the next number,
so that two processes cannot take over from the same dead owner.

`claim` takes a run in an object store. Object stores have no locks, and not all of them have
conditional writes, but a listing contains every object that was written before the listing started.
`RUN/.owner/ID.json` is the claim of a process. A process that needs the run writes a claim in state
"asks" and then lists the claims: of two competing processes, at least the later one sees the claim
of the other. A process that sees the claim of a live process removes its claim; it then retries
after a pause, or fails if the other claim is in state "holds". Without a competitor, it writes its
claim in state "holds" and lists once more.

An owner on this machine is alive if its process exists (process id and start time, because ids are
reused). From another machine or container only its heartbeat is visible: the owner touches its
file, or writes its claim again, every BEAT_SECONDS, and is dead if nothing changed while this
process watched for SILENCE_SECONDS (in stores STORE_BEAT_SECONDS and STORE_SILENCE_SECONDS). No
clocks are compared, so clock changes do no harm.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from robustcli.core.errors import RobustError, RunError
from robustcli.core.io import parse_json, refused, write_text
from robustcli.core.machine import machine_id, start_of_process
from robustcli.core.objects import ObjectStore

OWNER_FOLDER = ".owner"
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0  # six heartbeats: a busy machine can miss some
_READS = 5
_KEPT = 8  # files of earlier owners; see `_take`
STORE_BEAT_SECONDS = 20.0
STORE_SILENCE_SECONDS = 120.0  # six heartbeats
_TRIES = 6  # for processes that ask at the same moment
_APART_SECONDS = (0.5, 3.0)
_SUFFIX = ".json"


@dataclass(frozen=True)
class Owner:
    """A process that works or worked in a folder.

    Args:
        host: Name of the machine, for messages.
        machine: Identifies the machine or container in which the process id is valid.
        pid: Process id.
        started: Start time of the process, which distinguishes reused process ids.
        since: Time when it took the folder, ISO 8601, for messages.
        command: The typed command.
        released: Whether it has released the folder.
    """

    host: str
    machine: str
    pid: int
    started: str
    since: str
    command: str
    released: bool = False


class Ownership:
    """Ownership of a folder by this process until `release`.

    Args:
        path: The file of the owner.
        owner: Its content.
    """

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self._owner = path, owner
        self._stop, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises RunError if another process has taken the folder.

        This happens if this process was suspended for longer than SILENCE_SECONDS.
        """
        if self._lost.is_set():
            folder = self._path.parent.parent
            raise RunError(
                f"Another process has taken over `{folder}`.",
                f"This process sent no heartbeat for {SILENCE_SECONDS:.0f} s (it may have been "
                "suspended).",
                "Let the other process continue; finished results are kept.",
            )

    def release(self) -> None:
        """Releases the folder, so that the next process can take it immediately."""
        self._stop.set()
        self._thread.join()
        if not self._lost.is_set():
            with suppress(RunError):  # full disk: the next process detects that this one has ended
                write_text(self._path, _text(replace(self._owner, released=True)))

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._path)
                if _newest(self._path.parent) != self._path:
                    self._lost.set()
                    return


@contextmanager
def owned(
    run: Path, say: Callable[[str], None] = lambda _: None, shown: str | None = None
) -> Iterator[Ownership]:
    """Creates and owns the folder `run`.

    Args:
        run: The folder.
        say: Receives a message if the test for a live owner takes long.
        shown: Name of the folder in messages, if it is not its path.

    Raises:
        RunError: Another process works there, or the file system refuses.
    """
    try:
        (run / OWNER_FOLDER).mkdir(parents=True, exist_ok=True)
        ownership = _take(run, say, shown or str(run))
    except OSError as error:
        raise refused(run, error) from error
    try:
        yield ownership
    finally:
        ownership.release()


def _take(run: Path, say: Callable[[str], None], shown: str) -> Ownership:
    folder, me = run / OWNER_FOLDER, this_process()
    while True:
        newest = _newest(folder)
        if newest is not None:
            _refuse_if_alive(shown, newest, say)
        number = 1 if newest is None else int(newest.stem) + 1
        path = folder / f"{number:06d}.json"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            time.sleep(0.05)  # another process was faster; a network folder can list its file late
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_text(me))
        # A slow process could create a number that was removed in the meantime. Therefore files are
        # removed late, and a process that sees a higher number than its own gives up.
        if _newest(folder) != path:
            path.unlink(missing_ok=True)
            continue
        for old in _numbered(folder):
            if int(old.stem) <= number - _KEPT:
                old.unlink(missing_ok=True)
        return Ownership(path, me)


def _refuse_if_alive(run: str, path: Path, say: Callable[[str], None]) -> None:
    owner = _read(path)
    if owner is not None and owner.released:
        return
    alive = owner_is_alive(owner) if owner is not None else None
    if alive is None:
        say(waiting_for(run, owner, SILENCE_SECONDS))
        alive = _has_heartbeat(path)
        owner = _read(path) or owner
        alive = alive and not (owner is not None and owner.released)
    if alive:
        raise in_use(run, owner)


def owner_is_alive(owner: Owner) -> bool | None:
    """Whether `owner` lives; None where it belongs to another machine, or container."""
    if owner.machine != machine_id():
        return None
    return start_of_process(owner.pid) == owner.started


def waiting_for(run: str, owner: Owner | None, seconds: float) -> str:
    """The message before a process waits for a heartbeat of `owner`; None if it is unknown."""
    holder = f"process {owner.pid} on {owner.host}" if owner else "an unknown process"
    return (
        f"`{run}` is in use by {holder}, whose state cannot be checked from this machine: waiting "
        f"up to {seconds:.0f} s for a heartbeat."
    )


def in_use(run: str, owner: Owner | None) -> RunError:
    """The error where another process works in the folder `run`; `owner` is None if unknown."""
    if owner is None:
        return RunError(
            f"Another process is working in `{run}`.", "", "Wait for it, or use another `--out`."
        )
    is_local = owner.machine == machine_id()
    place = "on this machine" if is_local else f"on {owner.host}"
    return RunError(
        f"Another process is working in `{run}`.",
        f"Process {owner.pid} {place} ({owner.host}) has been using it since {owner.since}: "
        f"`{owner.command}`.",
        f"Wait for it, or end it (`kill {owner.pid}` {place}), or use another `--out`. Processes "
        "that share the work are started together: `--devices N`, or torchrun.",
    )


def _has_heartbeat(path: Path) -> bool:
    """Whether the file is touched while this process watches it."""
    first, waited = _touched(path), time.monotonic()
    while time.monotonic() - waited < SILENCE_SECONDS:
        time.sleep(min(1.0, SILENCE_SECONDS / 10))
        if _touched(path) != first:
            return True
    return False


def _touched(path: Path) -> int | None:
    """Modification time of the file by the clock of its file system; None if it is missing."""
    try:
        with path.open("rb") as file:  # opening makes a network client ask the server
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _newest(folder: Path) -> Path | None:
    return max(_numbered(folder), key=lambda path: int(path.stem), default=None)


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.json") if path.stem.isdigit()]


def _read(path: Path) -> Owner | None:
    """The owner in `path`; None if the file is truncated."""
    for _ in range(_READS):
        try:
            return Owner(**parse_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            time.sleep(0.05)  # the file may be incomplete at this moment
    return None


def _text(owner: Owner) -> str:
    return json.dumps(asdict(owner), indent=2) + "\n"


def this_process() -> Owner:
    """This process, as another one can find out whether it lives."""
    pid = os.getpid()
    return Owner(
        host=socket.gethostname(),
        machine=machine_id(),
        pid=pid,
        started=start_of_process(pid) or "",
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(sys.argv),
    )


# Claims on runs in object stores.


@dataclass(frozen=True)
class _Entry:
    """Content of a claim's object.

    Args:
        owner: The process; `released` if it has finished.
        state: Whether the process asks for the run or holds it.
        beat: Number of heartbeats so far.
        after: Ids of the earlier claims, whose processes are dead or finished.
    """

    owner: Owner
    state: Literal["asks", "holds"]
    beat: int = 0
    after: tuple[str, ...] = ()

    def text(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def _read_entry(content: bytes) -> _Entry | None:
    """Parses `content`; None if it is not a claim of this program."""
    try:
        fields = parse_json(content)
        return _Entry(
            Owner(**fields["owner"]), fields["state"], int(fields["beat"]), tuple(fields["after"])
        )
    except (ValueError, TypeError, KeyError):
        return None


class StoreClaim:
    """Claim of this process on the run in `store`, kept alive by heartbeats until `release`.

    Args:
        store: The run.
        identity: Id of this claim.
        entry: Content of the claim's object.
    """

    def __init__(self, store: ObjectStore, identity: str, entry: _Entry) -> None:
        self.store, self.identity, self._entry = store, identity, entry
        self._stop, self._lost = threading.Event(), threading.Event()
        self._confirmed = time.monotonic()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="claim", daemon=True)
        self._thread.start()

    @property
    def before(self) -> tuple[str, ...]:
        """Ids of the earlier claims, whose processes are dead or finished."""
        return self._entry.after

    def check(self) -> None:
        """Raises RunError if another process has taken over the run.

        This happens if this process was suspended or disconnected for longer than
        STORE_SILENCE_SECONDS. If the last successful heartbeat is older than half of it, sends one
        first.
        """
        if (
            not self._lost.is_set()
            and time.monotonic() - self._confirmed > STORE_SILENCE_SECONDS / 2
        ):
            self._beat()
        if self._lost.is_set():
            raise RunError(
                f"Another process has taken over `{self.store.url}`.",
                f"This process sent no heartbeat for {STORE_SILENCE_SECONDS:.0f} s (it may have "
                "been suspended or disconnected).",
                "Let the other process continue; finished results are kept.",
            )

    def release(self) -> None:
        """Marks the claim as released, so that the next process can take the run immediately."""
        self._stop.set()
        self._thread.join()
        if not self._lost.is_set():
            owner = replace(self._entry.owner, released=True)
            with suppress(RobustError):  # the next process detects that this one has ended
                self.store.write(_name(self.identity), replace(self._entry, owner=owner).text())

    def withdraw(self) -> None:
        """Removes the claim; for a process that has not changed the run."""
        self._lost.set()
        self._stop.set()
        self._thread.join()
        with suppress(RobustError):
            self.store.remove(_name(self.identity))

    def _work(self) -> None:
        while not self._stop.wait(STORE_BEAT_SECONDS):
            with suppress(RobustError):  # no connection: `check` tries again
                self._beat()
            if self._lost.is_set():
                return

    def _beat(self) -> None:
        with self._guard:
            entries = _entries(self.store, self.identity)
            if any(self.identity in entry.after for entry in entries.values() if entry):
                self._lost.set()
                return
            self._entry = replace(self._entry, beat=self._entry.beat + 1)
            self.store.write(_name(self.identity), self._entry.text())
            self._confirmed = time.monotonic()


def claim(store: ObjectStore, say: Callable[[str], None]) -> StoreClaim:
    """Claims the run in `store` for this process.

    Args:
        store: The run.
        say: Receives a line for the user before a long wait for the heartbeat of another process.

    Raises:
        RunError: Another process works on the run, or the connection failed.
        UsageError: The bucket does not exist, or writing is not permitted.
    """
    for attempt in range(_TRIES):
        identity = uuid.uuid4().hex
        entry = _Entry(this_process(), "asks")
        store.write(_name(identity), entry.text())
        try:
            blocking = _held_by_another(store, identity, entry, say)
        except BaseException:
            with suppress(RobustError):
                store.remove(_name(identity))
            raise
        if isinstance(blocking, StoreClaim):
            return blocking
        store.remove(_name(identity))
        if blocking is None or blocking.state == "holds" or attempt == _TRIES - 1:
            raise in_use(store.url, blocking.owner if blocking else None)
        # With equal pauses, as after `random.seed(0)` in both processes, they would collide again.
        time.sleep(random.SystemRandom().uniform(*_APART_SECONDS))
    raise AssertionError("the last attempt returns or raises")


def _held_by_another(
    store: ObjectStore, identity: str, entry: _Entry, say: Callable[[str], None]
) -> StoreClaim | _Entry | None:
    """The claim of this process, or the live claim that blocks it (None if not readable)."""
    entries = _entries(store, identity)
    living = _living(store, entries, say)
    if living:
        return entries[min(living, key=lambda other_id: not _holds(entries[other_id]))]
    entry = replace(entry, state="holds", after=tuple(sorted(entries)))
    store.write(_name(identity), entry.text())
    now = _entries(store, identity)
    changed = [
        other_id for other_id in now
        if _holds(now[other_id]) and (other_id not in entries or now[other_id] != entries[other_id])
    ]  # fmt: skip
    if changed:
        return now[changed[0]]
    for other_id in entries:
        store.remove(_name(other_id))
    return StoreClaim(store, identity, entry)


def _holds(entry: _Entry | None) -> bool:
    return entry is None or (entry.state == "holds" and not entry.owner.released)


def _living(
    store: ObjectStore, entries: Mapping[str, _Entry | None], say: Callable[[str], None]
) -> list[str]:
    """Ids of the claims in `entries` whose process is alive."""
    unseen = list[str]()
    for identity, entry in entries.items():
        if entry is not None and entry.owner.released:
            continue
        is_alive = None if entry is None else owner_is_alive(entry.owner)
        if is_alive:
            return [identity]
        if is_alive is None:
            unseen.append(identity)
    if not unseen:
        return []
    entry = entries[unseen[0]]
    say(waiting_for(store.url, entry.owner if entry else None, STORE_SILENCE_SECONDS))
    end = time.monotonic() + STORE_SILENCE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(STORE_BEAT_SECONDS / 2, STORE_SILENCE_SECONDS / 10))
        now = _entries(store)
        unseen = [other_id for other_id in unseen if other_id in now]
        moved = [
            other_id for other_id in unseen
            if now[other_id] != entries[other_id] and not _is_released(now[other_id])
        ]  # fmt: skip
        if moved:
            return moved
        if all(_is_released(now[other_id]) for other_id in unseen):
            return []
    return []


def _is_released(entry: _Entry | None) -> bool:
    return entry is not None and entry.owner.released


def _name(identity: str) -> str:
    return f"{OWNER_FOLDER}/{identity}{_SUFFIX}"


def _entries(store: ObjectStore, but: str = "") -> dict[str, _Entry | None]:
    """All claims by id, except the claim with id `but`; None for an unreadable claim."""
    entries = {}
    for name in store.listed(OWNER_FOLDER):
        identity = name.removeprefix(f"{OWNER_FOLDER}/").removesuffix(_SUFFIX)
        if identity != but and _name(identity) == name:
            with suppress(FileNotFoundError):  # removed since the listing
                entries[identity] = _read_entry(store.read(name))
    return entries
