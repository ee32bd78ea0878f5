"""Exclusive ownership of a run in an object store, without locks.

`RUN/.owner/ID.json` is the claim of a process. Object stores have no locks, and not all of them
have conditional writes, but a listing contains every object that was written before the listing
started. A process that needs the run therefore writes a claim in state "asks" and then lists the
claims: of two competing processes, at least the later one sees the claim of the other. A process
that sees the claim of a live process removes its claim; it then retries after a pause, or fails if
the other claim is in state "holds". Without a competitor, it writes its claim in state "holds" and
lists once more.

Liveness of a claim: processes of this machine are looked up directly. A process of another machine
rewrites its claim every BEAT_S seconds (heartbeat); if the claim does not change while this process
watches it for SILENCE_S, the other process is considered dead. Clocks are never compared.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Literal

from robustcli.core.errors import RobustError, RunError
from robustcli.core.io import parse_json
from robustcli.core.objects import ObjectStore
from robustcli.core.rundir import (
    OWNER_FOLDER,
    Owner,
    in_use,
    owner_is_alive,
    this_process,
    waiting_for,
)

BEAT_S = 20.0
SILENCE_S = 120.0  # six heartbeats
_TRIES = 6  # for processes that ask at the same moment
_APART_S = (0.5, 3.0)
_SUFFIX = ".json"


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

        This happens if this process was suspended or disconnected for longer than SILENCE_S. If the
        last successful heartbeat is older than half of SILENCE_S, sends one first.
        """
        if not self._lost.is_set() and time.monotonic() - self._confirmed > SILENCE_S / 2:
            self._beat()
        if self._lost.is_set():
            raise RunError(
                f"Another process has taken over `{self.store.url}`.",
                f"This process sent no heartbeat for {SILENCE_S:.0f} s (it may have been "
                "suspended or disconnected).",
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
        while not self._stop.wait(BEAT_S):
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
        time.sleep(random.uniform(*_APART_S))  # with equal pauses two processes would collide again
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
    say(waiting_for(store.url, entry.owner if entry else None, SILENCE_S))
    end = time.monotonic() + SILENCE_S
    while time.monotonic() < end:
        time.sleep(min(BEAT_S / 2, SILENCE_S / 10))
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
