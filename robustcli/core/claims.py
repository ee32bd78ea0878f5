"""Who works on a run in an object store: one process at a time, without locks.

`RUN/.owner/ID.json` is the claim of a process. Stores have neither locks nor, all of them,
conditional writes, but a listing shows every object that was written before it began. So whoever
wants the run first writes a claim that asks for it and then lists the claims: of two processes at
least the later one sees the other. One that sees another's living claim removes its own and waits
a moment, or is refused where the other holds the run already. Then it writes that it holds the
run, and lists once more.

Whether the process of a claim lives: on this machine the process itself says so. Of another
machine only the claim can be seen: its process writes it anew every BEAT_S seconds, and one that
does not change while this process watches for SILENCE_S is dead. Nothing compares clocks.
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
from robustcli.core.rundir import OWNER_FOLDER, Owner, in_use, lives_here, this_process

BEAT_S = 20.0
SILENCE_S = 120.0  # six beats
_TRIES = 6  # where two ask at the same moment
_APART_S = (0.5, 3.0)
_SUFFIX = ".json"


@dataclass(frozen=True)
class _Entry:
    """What the object of a claim says.

    Args:
        owner: The process; `released` where it has finished.
        state: Whether it asks for the run or holds it.
        beat: How often it has been written.
        after: The claims that it found dead or released.
    """

    owner: Owner
    state: Literal["asks", "holds"]
    beat: int = 0
    after: tuple[str, ...] = ()

    def text(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def _read_entry(content: bytes) -> _Entry | None:
    """The entry in `content`; None where it is not of this program."""
    try:
        fields = parse_json(content)
        return _Entry(
            Owner(**fields["owner"]), fields["state"], int(fields["beat"]), tuple(fields["after"])
        )
    except (ValueError, TypeError, KeyError):
        return None


class StoreClaim:
    """The run in `store` is this process's until `release`.

    Args:
        store: The run.
        identity: Of this claim.
        entry: What its object says.
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
        """The claims that it follows: dead ones and those of finished processes."""
        return self._entry.after

    def check(self) -> None:
        """Raises RunError where another process has taken the run.

        That happens to a process that was suspended, or without connection, for longer than
        SILENCE_S. A claim that was not seen for half of that is looked up again.
        """
        if not self._lost.is_set() and time.monotonic() - self._confirmed > SILENCE_S / 2:
            self._beat()
        if self._lost.is_set():
            raise RunError(
                f"Another process has taken over `{self.store.url}`.",
                f"This one gave no sign of life for {SILENCE_S:.0f} s (was it suspended, or "
                "without connection?).",
                "Leave the work to the other one; everything that was finished is kept.",
            )

    def release(self) -> None:
        """Lets the next process take the run at once."""
        self._stop.set()
        self._thread.join()
        if not self._lost.is_set():
            owner = replace(self._entry.owner, released=True)
            with suppress(RobustError):  # the next process finds that this one has ended
                self.store.write(_name(self.identity), replace(self._entry, owner=owner).text())

    def withdraw(self) -> None:
        """Removes the claim, where nothing was done under it."""
        self._lost.set()
        self._stop.set()
        self._thread.join()
        with suppress(RobustError):
            self.store.remove(_name(self.identity))

    def _work(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(RobustError):  # without connection: `check` looks again
                self._beat()
            if self._lost.is_set():
                return

    def _beat(self) -> None:
        with self._guard:
            others = _entries(self.store, self.identity)
            if any(self.identity in entry.after for entry in others.values() if entry):
                self._lost.set()
                return
            self._entry = replace(self._entry, beat=self._entry.beat + 1)
            self.store.write(_name(self.identity), self._entry.text())
            self._confirmed = time.monotonic()


def claim(store: ObjectStore, say: Callable[[str], None]) -> StoreClaim:
    """Takes the run in `store` for this process.

    Args:
        store: The run.
        say: Receives a line for the user where it takes long to find out whether another lives.

    Raises:
        RunError: Another process works on it, or the connection broke.
        UsageError: There is no such bucket, or writing is not allowed.
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
        time.sleep(random.uniform(*_APART_S))  # two that wait equally long would meet again
    raise AssertionError("the last attempt returns or raises")


def _held_by_another(
    store: ObjectStore, identity: str, entry: _Entry, say: Callable[[str], None]
) -> StoreClaim | _Entry | None:
    """The claim of this process, or the living one that is in its way (None if not readable)."""
    others = _entries(store, identity)
    living = _living(store, others, say)
    if living:
        return others[min(living, key=lambda other: not _holds(others[other]))]
    entry = replace(entry, state="holds", after=tuple(sorted(others)))
    store.write(_name(identity), entry.text())
    now = _entries(store, identity)
    changed = [
        other for other in now
        if _holds(now[other]) and (other not in others or now[other] != others[other])
    ]  # fmt: skip
    if changed:
        return now[changed[0]]
    for other in others:
        store.remove(_name(other))
    return StoreClaim(store, identity, entry)


def _holds(entry: _Entry | None) -> bool:
    return entry is None or (entry.state == "holds" and not entry.owner.released)


def _living(
    store: ObjectStore, others: Mapping[str, _Entry | None], say: Callable[[str], None]
) -> list[str]:
    """Those of `others` whose process lives."""
    unseen = list[str]()
    for identity, entry in others.items():
        if entry is not None and entry.owner.released:
            continue
        here = None if entry is None else lives_here(entry.owner)
        if here:
            return [identity]
        if here is None:
            unseen.append(identity)
    if not unseen:
        return []
    entry = others[unseen[0]]
    who = f"process {entry.owner.pid} on {entry.owner.host}" if entry else "an unknown process"
    say(
        f"`{store.url}` belongs to {who}, which cannot be seen from here: watching up to "
        f"{SILENCE_S:.0f} s for a sign of life."
    )
    end = time.monotonic() + SILENCE_S
    while time.monotonic() < end:
        time.sleep(min(BEAT_S / 2, SILENCE_S / 10))
        now = _entries(store)
        unseen = [other for other in unseen if other in now]
        moved = [
            other for other in unseen
            if now[other] != others[other] and not _is_released(now[other])
        ]  # fmt: skip
        if moved:
            return moved
        if all(_is_released(now[other]) for other in unseen):
            return []
    return []


def _is_released(entry: _Entry | None) -> bool:
    return entry is not None and entry.owner.released


def _name(identity: str) -> str:
    return f"{OWNER_FOLDER}/{identity}{_SUFFIX}"


def _entries(store: ObjectStore, but: str = "") -> dict[str, _Entry | None]:
    """The claims by their identity, without that of `but`."""
    entries = {}
    for name in store.listed(OWNER_FOLDER):
        identity = name.removeprefix(f"{OWNER_FOLDER}/").removesuffix(_SUFFIX)
        if identity != but and _name(identity) == name:
            with suppress(FileNotFoundError):  # removed since the listing
                entries[identity] = _read_entry(store.read(name))
    return entries
