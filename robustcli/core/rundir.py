"""Run folders: opening, continuing, refusing, discarding and closing them, for every command.

RUN/run.json            the record: settings and status of the run
RUN/.owner/000001.json  the process that works in the folder, see `owned`
RUN/error-*.txt         tracebacks of errors that ended the run

A command describes its runs by a `RunKind`: the model of the record, the files of a run, the
settings that must be equal to continue a run, and the fields that a continued record keeps.
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
from robustcli.core.io import parse_json, refused, write_text

RECORD_FILE = "run.json"
STUDY_FILE = "study.json"
"""The settings of a command that was called with a study file, see `cli.study`."""
SEEDS_KIND = "seeds"
"""`kind` in the record of a folder with one run per seed."""
ERROR_FILES = f"error-{'[0-9]' * 8}-{'[0-9]' * 6}-[0-9]*.txt"
"""Glob of the tracebacks in a run's folder: date, time and process, see `cli.failures`."""
_LONGEST_VALUE = 80  # characters of a setting in a message


class Record(BaseModel):
    """Base class of file formats; unknown keys are errors: newer files must not be misread."""

    model_config = ConfigDict(extra="forbid")


class BaseRunRecord(Record):
    """Fields of `run.json` for every command.

    `command` has one line per command that worked on the run. Subclasses define the values of
    `status`; all have `running`, `complete` and `failed`.
    """

    schema_version: int = 1
    command: str
    status: str
    created: datetime
    updated: datetime


RecordT = TypeVar("RecordT", bound=BaseRunRecord)


@dataclass
class Ending:
    """The final status of a run without an error; the command can change it."""

    status: str = "complete"


@dataclass(frozen=True)
class RunKind(Generic[RecordT]):
    """The run folders of one command.

    Args:
        record: Model of `run.json`.
        name: Name of such a run in messages, with its article: `a training run`.
        command: The command that makes such runs.
        folders: Folders of a run, relative to the run folder.
        files: Globs of files of a run besides its record and tracebacks.
        differences: Yields one sentence, with the option, per setting of a new record that
            contradicts the old one.
        kept_fields: Returns the fields of a continued record, from the old and the new one, besides
            `command` and `created`. Status `complete` means that there is nothing left to do.
        temporary: Folders that are useless after their process has ended.
        interrupted: The status after Ctrl+C.
        results: Globs of the first result files. A failed run without any of them can restart with
            other settings; without globs, no run can.
    """

    record: type[RecordT]
    name: str
    command: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    differences: Callable[[RecordT, RecordT], Iterator[str]]
    kept_fields: Callable[[RecordT, RecordT], dict[str, Any]] = lambda old, new: {}
    temporary: tuple[str, ...] = field(default=(), kw_only=True)
    interrupted: str = field(default="running", kw_only=True)
    results: tuple[str, ...] = field(default=(), kw_only=True)

    def read(self, run: Path) -> RecordT:
        """The record of the run in the folder `run`.

        Raises:
            UsageError: There is no run, or its record is damaged or of another kind of run.
        """
        path = run / RECORD_FILE
        if not path.is_file():
            raise UsageError(
                f"`{run}` is not a run.",
                f"It contains no `{RECORD_FILE}`."
                if run.exists()
                else "The folder does not exist.",
                "Pass a run folder, as created by `--out`.",
            )
        newest = self.record.model_fields["schema_version"].default
        try:
            record = self.record.model_validate_json(path.read_text(encoding="utf-8"))
            if record.schema_version > newest:
                raise _newer(
                    path,
                    f"Its format version is {record.schema_version}; the newest supported version "
                    f"is {newest}.",
                )
            return record
        except ValidationError as error:
            first = error.errors()[0]
            seed = _first_seed(path)
            kind = self.record.model_fields.get("kind")
            if seed is not None and (kind is None or kind.default != SEEDS_KIND):
                raise UsageError(
                    f"`{run}` contains several seeds, not {self.name}.",
                    "",
                    f"Pass the folder of one seed, such as `{run / seed}`; `--seeds` continues "
                    "all of them.",
                ) from error
            if first["type"] == "extra_forbidden" and _is_one_of(self.record, path):
                name = ".".join(map(str, first["loc"]))
                raise _newer(path, f"This version has no setting `{name}`.") from error
            raise UsageError(
                f"`{path}` is not the record of {self.name}.",
                f"{first['msg']} at {'.'.join(map(str, first['loc'])) or 'the top'}.",
                f"Pass a run folder of `{self.command}`, or use the version of `robust` that "
                "wrote this file.",
            ) from error

    def write(self, run: Path, record: RecordT) -> None:
        """Writes `RUN/run.json` durably."""
        write_text(run / RECORD_FILE, record.model_dump_json(indent=2) + "\n")

    def update(self, run: Path, **changes: Any) -> None:
        """Rewrites the record of `run` with `changes`."""
        changes = {**changes, "updated": datetime.now(UTC)}
        self.write(run, self.read(run).model_copy(update=changes))

    @contextmanager
    def held(self, run: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[Ownership]:
        """Creates and owns the folder `run`, and removes temporary files of a killed process.

        Attaches the folder to errors in the context (`errors.run_of`).

        Args:
            run: The folder.
            say: Receives a message if the test for another live process takes long.

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
        further_differences: Callable[[RecordT], Iterator[str]] = lambda _: iter(()),
    ) -> RecordT:  # fmt: skip
        """Writes and returns the record of a new run, or of one that continues the run in `run`.

        A run with status `complete` after `kept_fields` is not changed. A failed run without
        results restarts if its settings differ, for example after an unreadable image was removed.

        Args:
            run: The folder, owned by this process.
            new: The record of a new run.
            fresh: Whether to discard an earlier run.
            further_differences: Further differences from the old run that are not in the records.

        Raises:
            UsageError: The folder holds a run of another kind, or one with other settings; the
                message names the first.
        """
        if fresh:
            self.discard(run)
        if has_record(run):
            new = self._continued(run, self.read(run), new, further_differences)
        if new.status != "complete":
            self.write(run, new)
        return new

    def _continued(
        self,
        run: Path,
        old: RecordT,
        new: RecordT,
        further_differences: Callable[[RecordT], Iterator[str]],
    ) -> RecordT:
        differences = [*self.differences(old, new), *further_differences(old)]
        if differences and self.results and not any(any(run.glob(g)) for g in self.results):
            self.discard(run)
            return new
        for difference in differences:
            raise UsageError(
                f"`{run}` contains {self.name} with other settings.",
                difference,
                "Use another `--out` (or omit it to get a separate folder), or discard the run "
                "with `--fresh`.",
            )
        commands = "\n".join(dict.fromkeys([*old.command.splitlines(), new.command]))
        kept_fields = {"command": commands, "created": old.created, **self.kept_fields(old, new)}
        return new.model_copy(update=kept_fields)

    def discard(self, run: Path) -> None:
        """Removes the files of a run, and no other files."""
        for name in (*self.folders, *self.temporary):
            shutil.rmtree(run / name, ignore_errors=True)
        for pattern in (RECORD_FILE, STUDY_FILE, ERROR_FILES, *self.files):
            for path in run.glob(pattern):
                path.unlink(missing_ok=True)

    @contextmanager
    def closing(self, run: Path) -> Iterator[Ending]:
        """Sets the status of `run` at the end: that of `Ending`, or `failed` after an error."""
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
    """Whether the file `path` has all required fields of `record`."""
    keys = parse_json(path.read_text(encoding="utf-8")).keys()
    return all(name in keys for name, field in record.model_fields.items() if field.is_required())


def _first_seed(path: Path) -> str | None:
    """The folder of the first seed if `path` is the record of several seeds; else None."""
    with suppress(ValueError):  # damaged; the caller reports it
        head = parse_json(path.read_text(encoding="utf-8"))
        if isinstance(head, dict) and head.get("kind") == SEEDS_KIND:
            return f"seed-{head.get('seed')}"
    return None


def _newer(path: Path, why: str) -> UsageError:
    return UsageError(
        f"`{path}` was written by a newer version of `robust`.",
        why,
        "Update this installation: `pip install --upgrade robustcli`.",
    )


def has_record(run: Path) -> bool:
    """Whether the folder `run` contains a run of any kind."""
    return (run / RECORD_FILE).is_file()


def check_folder(run: Path) -> None:
    """Raises UsageError if the folder contains files but no run."""
    if run.is_file():
        raise UsageError(f"`{run}` is a file.", "", "Pass a folder with `--out`.")
    if not has_record(run) and run.is_dir() and any(p.name[0] != "." for p in run.iterdir()):
        raise UsageError(
            f"`{run}` is not empty and contains no run.", "", "Choose another folder with `--out`."
        )


def changed_fields(old: Record, new: Record, flags: Mapping[str, str]) -> Iterator[str]:
    """One sentence per different field, such as "`--lr` was 0.1, now it is 0.2".

    Args:
        old: The old record.
        new: The new record.
        flags: Maps fields to the beginning of the sentence, such as the option.
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
# File locks are unreliable on network folders: 2,653 violations in 2,829 attempts were counted on
# NFS. Every file system guarantees that exactly one of several processes succeeds in creating a
# file exclusively. `RUN/.owner/000001.json`, `000002.json`, ... are the owners so far; the last one
# is the current owner. A process takes the folder by creating the next number, so that two
# processes cannot take over from the same dead owner.
#
# An owner on this machine is alive if its process exists (process id and start time, because ids
# are reused). From another machine or container only its heartbeat is visible: the owner touches
# its file every BEAT_SECONDS, and is dead if the file was not touched while this process watched
# for SILENCE_SECONDS. No clocks are compared, so clock changes do no harm.


OWNER_FOLDER = ".owner"
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0  # six heartbeats: a busy machine can miss some
_READS = 5
_KEPT = 8  # files of earlier owners; see `_claim`


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
    if owner.machine != _machine():
        return None
    return _start_of(owner.pid) == owner.started


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
    is_local = owner.machine == _machine()
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
        machine=_machine(),
        pid=pid,
        started=_start_of(pid) or "",
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(sys.argv),
    )


def _machine() -> str:
    """Identifies the machine or container.

    On Linux a container can share name and kernel with the host, but has separate process ids.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{platform.system()}/{uuid.getnode():x}"


def _start_of(pid: int) -> str | None:
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
