"""Run folders: every command opens, continues, refuses, discards and closes them in one way.

RUN/run.json            the record: what the run was made of, and how it ended
RUN/.owner/000001.json  the process that works in the folder, see `owned`
RUN/error-*.txt         tracebacks of errors that ended the run

A command describes its runs by one `RunKind`: the model of the record, the files that belong to a
run, which settings must not differ between two commands that work in one folder, and what a
continued record keeps of the old one.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from robustcli.core.errors import RunError, UsageError, errors_of
from robustcli.core.io import parse_json, refused, replacing, write_text

RECORD_FILE = "run.json"
STUDY_FILE = "study.json"
"""The settings of a command that was called with a study file, see `cli.study`."""
SEEDS_KIND = "seeds"
"""`kind` in the record of a folder that holds several runs, one for each seed."""
ERROR_FILES = f"error-{'[0-9]' * 8}-{'[0-9]' * 6}-[0-9]*.txt"
"""Glob of the tracebacks in a run's folder: date, time and process, see `cli.failures`."""
_LONGEST_VALUE = 80  # characters of a setting in a message


class Record(BaseModel):
    """A part of a run's files; unknown keys are an error, so that a newer file is not misread."""

    model_config = ConfigDict(extra="forbid")


class BaseRunRecord(Record):
    """What `run.json` of every command holds.

    `command` has each command that worked on the run, a line each. Subclasses list the values of
    `status`; all know `running`, `complete` and `failed`.
    """

    schema_version: int = 1
    command: str
    status: str
    created: datetime
    updated: datetime


RecordT = TypeVar("RecordT", bound=BaseRunRecord)


@dataclass
class Ending:
    """How a run ends where no error ends it; the command may change it."""

    status: str = "complete"


def _nothing_kept(old: Any, new: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class RunKind(Generic[RecordT]):
    """The run folders of one command.

    Args:
        record: Model of `run.json`.
        name: What messages call such a run, with its article: `a training run`.
        command: Which command makes such runs.
        folders: Folders that belong to a run, relative to it.
        files: Globs of files that belong to a run beside its record and tracebacks.
        differences: Which settings of a new record contradict an old one, each in a sentence that
            names the flag.
        kept: Fields that a continued record takes from the old one and the new one, beside
            `command` and `created`. `status` `complete` says that nothing is left to do.
        temporary: Folders that are of no use once the process that made them has ended.
        interrupted: The status that Ctrl+C leaves.
    """

    record: type[RecordT]
    name: str
    command: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    differences: Callable[[RecordT, RecordT], Iterator[str]]
    kept: Callable[[RecordT, RecordT], dict[str, Any]] = _nothing_kept
    temporary: tuple[str, ...] = field(default=(), kw_only=True)
    interrupted: str = field(default="running", kw_only=True)

    def read(self, run: Path) -> RecordT:
        """The record of the run in the folder `run`.

        Raises:
            UsageError: There is no run, or its record is damaged or of another kind of run.
        """
        path = run / RECORD_FILE
        if not path.is_file():
            raise UsageError(
                f"`{run}` is not a run.",
                f"It holds no `{RECORD_FILE}`.",
                "Name a folder that `--out` made.",
            )
        newest = self.record.model_fields["schema_version"].default
        try:
            record = self.record.model_validate_json(path.read_text(encoding="utf-8"))
            if record.schema_version > newest:
                raise _newer(path, f"Its format is {record.schema_version}, known is {newest}.")
            return record
        except ValidationError as error:
            first = error.errors()[0]
            seed = _first_seed(path)
            kind = self.record.model_fields.get("kind")
            if seed is not None and (kind is None or kind.default != SEEDS_KIND):
                raise UsageError(
                    f"`{run}` holds several seeds, not {self.name}.",
                    "",
                    f"Name the folder of one of them, such as `{run / seed}`; `--seeds` goes on "
                    "with all of them.",
                ) from error
            if first["type"] == "extra_forbidden" and _is_one_of(self.record, path):
                name = ".".join(map(str, first["loc"]))
                raise _newer(path, f"This version does not know `{name}`.") from error
            raise UsageError(
                f"`{path}` is not the record of {self.name}.",
                f"{first['msg']} at {'.'.join(map(str, first['loc'])) or 'the top'}.",
                f"Name a folder that `{self.command}` made, or use the version of `robust` that "
                "wrote this file.",
            ) from error

    def write(self, run: Path, record: RecordT) -> None:
        """Writes `RUN/run.json` durably."""
        write_text(run / RECORD_FILE, record.model_dump_json(indent=2) + "\n")

    def update(self, run: Path, **changes: Any) -> None:
        """Writes the record of `run` anew with `changes`."""
        changes = {**changes, "updated": datetime.now(UTC)}
        self.write(run, self.read(run).model_copy(update=changes))

    @contextmanager
    def held(self, run: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[Ownership]:
        """Makes the folder `run`, holds it, and removes what a killed process left half-written.

        Errors inside are marked as those of this run (`errors.run_of`).

        Args:
            run: The folder.
            say: Hears where it takes long to find out whether another process is alive.

        Raises:
            RunError: Another process works there, or the folder cannot be made.
        """
        with owned(run, say) as ownership, errors_of(run):
            for name in self.temporary:
                shutil.rmtree(run / name, ignore_errors=True)
            for path in run.rglob(".*.tmp"):
                path.unlink(missing_ok=True)
            yield ownership

    def open(
        self, run: Path, new: RecordT, *, fresh: bool,
        more: Callable[[RecordT], Iterator[str]] = lambda _: iter(()),
    ) -> RecordT:  # fmt: skip
        """The record of a run that begins now, or continues one that `run` holds; it is written.

        A run that `kept` calls complete is left as it is.

        Args:
            run: The folder; this process holds it.
            new: The record of a run that begins now.
            fresh: Whether to discard an earlier run.
            more: Further differences from the old record, which the records do not show.

        Raises:
            UsageError: The folder holds a run of another kind, or one with other settings; the
                message names the first.
        """
        if fresh:
            self.discard(run)
        if has_record(run):
            new = self._continued(run, self.read(run), new, more)
        if new.status != "complete":
            self.write(run, new)
        return new

    def _continued(
        self, run: Path, old: RecordT, new: RecordT, more: Callable[[RecordT], Iterator[str]]
    ) -> RecordT:
        for difference in (*self.differences(old, new), *more(old)):
            raise UsageError(
                f"`{run}` holds {self.name} with other settings.",
                difference,
                "Use another `--out` (or none, for a folder of its own), or discard it with "
                "`--fresh`.",
            )
        commands = "\n".join(dict.fromkeys([*old.command.splitlines(), new.command]))
        kept = {"command": commands, "created": old.created, **self.kept(old, new)}
        return new.model_copy(update=kept)

    def discard(self, run: Path) -> None:
        """Removes what a run consists of, and nothing that somebody else put there."""
        for name in (*self.folders, *self.temporary):
            shutil.rmtree(run / name, ignore_errors=True)
        for pattern in (RECORD_FILE, STUDY_FILE, ERROR_FILES, *self.files):
            for path in run.glob(pattern):
                path.unlink(missing_ok=True)

    @contextmanager
    def closing(self, run: Path) -> Iterator[Ending]:
        """Sets the status of `run` on leaving: that of `Ending`, or `failed` after an error."""
        ending = Ending()
        try:
            yield ending
        except Exception:
            self.update(run, status="failed")
            raise
        except BaseException:
            self.update(run, status=self.interrupted)
            raise
        self.update(run, status=ending.status)


def _is_one_of(record: type[BaseRunRecord], path: Path) -> bool:
    """Whether all fields that `record` must have are in the file `path`."""
    keys = parse_json(path.read_text(encoding="utf-8")).keys()
    return all(name in keys for name, field in record.model_fields.items() if field.is_required())


def _first_seed(path: Path) -> str | None:
    """The folder of the first seed where `path` is the record of several seeds; else None."""
    with suppress(ValueError):  # damaged, which the caller tells
        head = parse_json(path.read_text(encoding="utf-8"))
        if isinstance(head, dict) and head.get("kind") == SEEDS_KIND:
            return f"seed-{head.get('seed')}"
    return None


def _newer(path: Path, why: str) -> UsageError:
    return UsageError(
        f"`{path}` was written by a newer version of `robust`.",
        why,
        "Update this one: `pip install --upgrade robustcli`.",
    )


def has_record(run: Path) -> bool:
    """Whether the folder `run` holds a run of any kind."""
    return (run / RECORD_FILE).is_file()


def check_folder(run: Path) -> None:
    """Raises UsageError where a run would be written among somebody's own files."""
    if run.is_file():
        raise UsageError(f"`{run}` is a file.", "", "Name a folder with `--out`.")
    if not has_record(run) and run.is_dir() and any(p.name[0] != "." for p in run.iterdir()):
        raise UsageError(
            f"`{run}` is not empty and holds no run.", "", "Choose another folder with `--out`."
        )


def changed_fields(old: Record, new: Record, flags: Mapping[str, str]) -> Iterator[str]:
    """Sentences on the fields that differ, such as "`--lr` was 0.1, now it is 0.2".

    Args:
        old: Before.
        new: Now.
        flags: Field to what sets it, as it begins a sentence.
    """
    for name, flag in flags.items():
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            yield f"{flag} was {_shown(before)}, now it is {_shown(now)}."


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


# Ownership: one process, or one group of ranks, works in a folder at a time. No file locks.
#
# File locks do not exclude on network folders: 2,653 violations in 2,829 tries were counted on NFS.
# What every file system does guarantee is that of several processes that create one file
# exclusively exactly one succeeds. `RUN/.owner/000001.json`, `000002.json`, ... are the owners so
# far, the last one the present owner. Whoever takes the folder creates the next number, so that two
# cannot take over from the same dead owner.
#
# Whether an owner lives: on this machine its process says so (process id and start of the process,
# so that a recycled id is no owner). From another machine, or another container, only its heartbeat
# can be seen: the owner touches its file every BEAT_SECONDS, and a file that was not touched while
# this process watched for SILENCE_SECONDS has a dead owner. Nothing compares clocks, so a clock
# that jumps does no harm.


OWNER_FOLDER = ".owner"
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
def owned(
    run: Path, say: Callable[[str], None] = lambda _: None, shown: str | None = None
) -> Iterator[Ownership]:
    """Makes the folder `run` and holds it.

    Args:
        run: The folder.
        say: Receives a line for the user where it takes long to find out whether an owner lives.
        shown: What messages call it, where the user knows it by another name than its path.

    Raises:
        RunError: Another process works there, or the file system refuses.
    """
    try:
        (run / OWNER_FOLDER).mkdir(parents=True, exist_ok=True)
        ownership = _claim(run, say, shown or str(run))
    except OSError as error:
        raise refused(run, error) from error
    try:
        yield ownership
    finally:
        ownership.release()


def _claim(run: Path, say: Callable[[str], None], shown: str) -> Ownership:
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


def _refuse_if_alive(run: str, path: Path, say: Callable[[str], None]) -> None:
    owner = _read(path)
    if owner is not None and owner.released:
        return
    alive = lives_here(owner) if owner is not None else None
    if alive is None:
        who = f"process {owner.pid} on {owner.host}" if owner else "an unknown process"
        say(
            f"`{run}` belongs to {who}, which cannot be seen from here: watching up to "
            f"{SILENCE_SECONDS:.0f} s for a sign of life."
        )
        alive = _beats(path)
        owner = _read(path) or owner
        alive = alive and not (owner is not None and owner.released)
    if alive:
        raise in_use(run, owner)


def lives_here(owner: Owner) -> bool | None:
    """Whether `owner` lives; None where it belongs to another machine, or container."""
    if owner.machine != _machine():
        return None
    return _start_of(owner.pid) == owner.started


def in_use(run: str, owner: Owner | None) -> RunError:
    """The error where another process works in the folder `run`; `owner` is None if unknown."""
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
            return Owner(**parse_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            time.sleep(0.05)  # perhaps it is just being written
    return None


def _write(path: Path, owner: Owner) -> None:
    with replacing(path) as beside:
        beside.write_text(_text(owner), encoding="utf-8")


def _text(owner: Owner) -> str:
    return json.dumps(asdict(owner), indent=2) + "\n"


def this_process() -> Owner:
    """This process, as another one can find out whether it lives."""
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
