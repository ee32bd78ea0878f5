"""Local working copies of runs in an object store.

HOME/stores/HASH/copy.json          the URL, and the last claim of this machine on the run
HOME/stores/HASH/transferred.jsonl  log of uploads and downloads, one line per file: see `_Folder`
HOME/stores/HASH/NAME/              the run, with the same files as a run on a local disk
HOME/stores-read/HASH/...           the same for commands that read a finished run

A command lists the URL once when it starts and downloads the files that this machine lacks. After
that, each file is uploaded completely as soon as it is durable on the local disk: row files
concurrently, all other files in the order in which they were written. The store is therefore always
in a state that a local disk could have after a crash, and another machine can resume the run.

Conflicts: if this machine was the last to work on the run (see `ownership`), the local folder is
authoritative, because it contains everything in the store and possibly more. Else the store is
authoritative: local files that were not uploaded are discarded and computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

from robustcli.core.errors import RobustError, RunError, UsageError
from robustcli.core.io import observing, parse_json, refused, write_text
from robustcli.core.names import counted, file_name
from robustcli.core.objects import ObjectStore, StoredObject, at_once, total_bytes
from robustcli.core.ownership import StoreClaim, claim, owned
from robustcli.core.rundir import RECORD_FILE

_Say = Callable[[str], None]
Use = Literal["work", "read", "look"]
"""`work`: start or resume the run; `read`: read it and possibly write reports into it; `look`: only
read it."""
_COPY_FILE, _LOG_FILE = "copy.json", "transferred.jsonl"
_WORKING, _READING = "stores", "stores-read"
# Decoded images of a running training; jobs of `--engine slurm`, some of whose files are pickles.
_UNSENT_FOLDERS = ("cache", "slurm")
_ROWS = re.compile(r"/block-\d+\.parquet$")  # row files, which are independent of each other
_ONLY_FOR_CONTINUING = ".ckpt"
_ANNOUNCED_FROM = 50 * 2**20  # bytes


@dataclass(frozen=True)
class StoredPlace:
    """A URL of an object store, used in place of a path."""

    url: str

    def __fspath__(self) -> str:
        return self.url

    def __str__(self) -> str:
        return self.url


class _State(NamedTuple):
    """State of a file at its transfer: bytes, modification time, version in the store."""

    size: int
    mtime_ns: int
    version: str = ""


class _Folder:
    """Local folder of a run in a store, and the log of transferred files.

    Args:
        store: The objects of the run.
        home: Cache folder of the program.
        reading: Whether the folder is for commands that only read the run.
    """

    def __init__(self, store: ObjectStore, home: Path, *, reading: bool) -> None:
        digest = hashlib.sha256(store.url.encode()).hexdigest()[:16]
        self.store = store
        self.state = home / (_READING if reading else _WORKING) / digest
        self.path = self.state / file_name(store.url.rpartition("/")[2])
        self._log_file = self.state / _LOG_FILE
        self.log = self._read_log()

    @property
    def last_claim(self) -> str:
        """Id of the last claim of this machine on the run; empty without one."""
        with suppress(OSError, ValueError, AttributeError):
            copy = parse_json((self.state / _COPY_FILE).read_text(encoding="utf-8"))
            return str(copy.get("claim", ""))
        return ""

    def describe(self, claim: str) -> None:
        """Writes the URL and the id of this process's claim to `copy.json`; creates the folder."""
        content = {"schema_version": 1, "url": self.store.url, "claim": claim}
        write_text(self.state / _COPY_FILE, json.dumps(content, indent=1) + "\n")
        self.path.mkdir(exist_ok=True)

    def files(self) -> dict[str, _State]:
        """States of the local files that belong in the store, by object name."""
        files, root = {}, os.fspath(self.path)
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if _is_sent(name, folder=True)]
            for name in filter(_is_sent, names):
                path = os.path.join(folder, name)  # noqa: PTH118  paths of 50,000 files take long
                with suppress(FileNotFoundError):
                    files[os.path.relpath(path, root).replace(os.sep, "/")] = _state(path)
        return files

    def name_of(self, path: Path) -> str | None:
        """Object name of the file `path`; None if the file does not belong in the store."""
        try:
            parts = path.relative_to(self.path).parts
        except ValueError:
            return None
        inside = all(_is_sent(part, folder=True) for part in parts[:-1])
        return "/".join(parts) if inside and parts and _is_sent(parts[-1]) else None

    def is_transferred(self, name: str, state: _State) -> bool:
        """Whether the file is unchanged since its last upload or download."""
        return name in self.log and self.log[name][:2] == state[:2]

    def send(self, name: str, content: bytes | None = None) -> None:
        """Uploads `content` as object `name`; None for the content of the file, if it exists."""
        path = self.path / name
        with suppress(FileNotFoundError):
            if content is not None:
                self.store.write(name, content)
            before = _state(path)
            if content is None:
                self.store.send(name, path)
            elif path.read_bytes() != content:
                return  # the file was written again; that version is uploaded later
            self._note(name, before)

    def fetch(self, name: str, version: str = "") -> None:
        """Downloads the object `name` if it still exists."""
        with suppress(FileNotFoundError):
            self.store.fetch(name, self.path / name)
            self._note(name, _state(self.path / name)._replace(version=version))

    def remove(self, name: str) -> None:
        """Removes the object `name` from the store and the log."""
        self.store.remove(name)
        self.log.pop(name, None)

    def fetch_all(self, objects: Mapping[str, StoredObject], say: _Say) -> None:
        """Downloads `objects` concurrently."""
        size = total_bytes(objects)
        if size >= _ANNOUNCED_FROM:
            files = counted(len(objects), "file")
            say(f"Downloading {files} ({size / 1e6:,.0f} MB) of `{self.store.url}`.")
        at_once(objects.items(), lambda item: self.fetch(item[0], item[1].version))

    def send_all(self, names: Iterable[str]) -> None:
        """Uploads the files `names` concurrently, then the run records."""
        names = sorted(names)
        at_once([name for name in names if not _is_record(name)], self.send)
        for name in filter(_is_record, names):
            self.send(name)

    def clear(self) -> None:
        """Removes all local files; the log first, so that no file counts as deleted by the user."""
        self._log_file.unlink(missing_ok=True)
        self.log = {}
        shutil.rmtree(self.path, ignore_errors=True)

    def _read_log(self) -> dict[str, _State]:
        log = {}
        with suppress(OSError):
            for line in self._log_file.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, TypeError, KeyError):  # the last line may be truncated
                    name, *state = parse_json(line)
                    log[name] = _State(*state)
        return log

    def _note(self, name: str, state: _State) -> None:
        self.log[name] = state
        line = json.dumps([name, *state]) + "\n"
        with _LOG_LOCK, self._log_file.open("a", encoding="utf-8") as file:
            file.write(line)  # not synced: after a power loss the file is uploaded again


_LOG_LOCK = threading.Lock()


def _state(path: str | Path) -> _State:
    facts = os.stat(path)  # noqa: PTH116  of 50,000 files
    return _State(facts.st_size, facts.st_mtime_ns)


def _is_record(name: str) -> bool:
    return name.rpartition("/")[2] == RECORD_FILE


def _is_sent(name: str, *, folder: bool = False) -> bool:
    return not (name.startswith(".") or (folder and name in _UNSENT_FOLDERS))


def check_names(url: str, objects: Mapping[str, StoredObject]) -> None:
    """Checks that `objects` can be files of a folder.

    Raises:
        UsageError: A name leads out of the folder or is not a valid file name.
    """
    for name in objects:
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\\x00]", name):
            raise UsageError(
                f"`{url}` cannot be read.",
                f"It holds the object {name!r}, which cannot be a file of a folder.",
                "Pass a run that `--out` created, or remove that object.",
            )


def _listed(folder: _Folder) -> dict[str, StoredObject]:
    """Lists the objects that belong to the run."""
    objects = {}
    for name, stored in folder.store.listed().items():
        *parents, last = name.split("/")
        if all(part in (".", "..") or _is_sent(part, folder=True) for part in parents) and (
            last in (".", "..") or _is_sent(last)
        ):
            objects[name] = stored
    if "" in objects:
        raise UsageError(
            f"`{folder.store.url}` is an object.",
            "Expected the address of a folder for the files of a run.",
            "Pass another address with `--out`.",
        )
    check_names(folder.store.url, objects)
    return objects


# Working on a run.


class _Uploads:
    """Uploads files that are written into the folder, in a thread, until `finish`.

    Args:
        folder: Local folder of the run.
        claim: Claim of this process; None for a helper of the process that has the claim.
        known: Names of the objects in the store.
    """

    def __init__(self, folder: _Folder, claim: StoreClaim | None, known: set[str]) -> None:
        self.folder, self._claim, self._known = folder, claim, known
        self._pid = os.getpid()
        self._waiting = list[tuple[str, bytes | None]]()
        self._recent = set[str]()
        self._changed, self._ended = threading.Condition(), False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    def written(self, path: Path) -> None:
        """Queues the complete file `path` for upload.

        Raises:
            RobustError: An earlier upload failed, so the command should stop.
        """
        name = self.folder.name_of(path)
        if name is None or os.getpid() != self._pid:  # forked: without the thread
            return
        with self._changed:
            if _is_record(name):
                # With its content: a newer record must not be sent before the files that it lists.
                self._waiting.append((name, path.read_bytes()))
                self._recent.clear()
            elif name not in self._recent:
                self._waiting.append((name, None))
                self._recent.add(name)
            self._changed.notify()
        if self._error is not None:
            raise self._failure()

    def knows(self, objects: Mapping[str, StoredObject]) -> None:
        """Adds `objects`, which other processes uploaded, to the known objects."""
        with self._changed:
            self._known.update(objects)

    def finish(self) -> None:
        """Waits for all uploads; the owner of the claim also uploads all other files of the folder.

        Raises:
            RunError: An upload failed; the files stay in the local folder.
        """
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        try:
            if self._claim is not None:
                self._send_rest(self._claim)
            elif self._error is not None:
                raise self._error
        except Exception as error:
            self._error = error
            raise self._failure() from error

    def _failure(self) -> RunError:
        error = self._error
        files = self.folder.files()
        unsent = [n for n, state in files.items() if not self.folder.is_transferred(n, state)]
        what = error.what if isinstance(error, RobustError) else f"{type(error).__name__}: {error}"
        why = f"{what}\n{error.why}" if isinstance(error, RobustError) else what
        return RunError(
            f"{len(unsent):,} files of the run were not uploaded to `{self.folder.store.url}`.",
            why,
            f"They are kept in `{self.folder.path}`: the same command on this machine uploads "
            "them and continues; finished results are not computed again.",
        )

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                waiting, self._waiting = self._waiting, []
                self._recent.clear()
            if not waiting:
                return
            try:
                self._send(waiting)
            except BaseException as error:
                self._error = error
                return

    def _send(self, waiting: Sequence[tuple[str, bytes | None]]) -> None:
        """Uploads the `waiting` files in order; consecutive row files are uploaded concurrently."""
        if self._claim is not None:
            self._claim.check()
        for are_rows, group in groupby(waiting, lambda item: _ROWS.search(item[0]) is not None):
            if are_rows:
                names = [name for name, _ in group]
                at_once(names, self.folder.send)
                self._add_known(*names)
                continue
            for name, content in group:
                if content is not None:
                    self._remove_deleted()
                self.folder.send(name, content)
                self._add_known(name)

    def _add_known(self, *names: str) -> None:
        with self._changed:
            self._known.update(names)

    def _remove_deleted(self) -> None:
        """Removes objects whose local files were deleted; called before a record is uploaded.

        Records are removed first, so that the rest of a discarded run does not look like a run.
        """
        if self._claim is None:
            return
        with self._changed:
            known = tuple(self._known)
        gone = [name for name in known if not (self.folder.path / name).exists()]
        if not gone:
            return
        for name in filter(_is_record, gone):
            self.folder.remove(name)
        at_once([name for name in gone if not _is_record(name)], self.folder.remove)
        with self._changed:
            self._known.difference_update(gone)

    def _send_rest(self, claim: StoreClaim) -> None:
        claim.check()
        files = self.folder.files()
        unsent_names = [name for name in files if not self.folder.is_transferred(name, files[name])]
        self._remove_deleted()
        self.folder.send_all(unsent_names)
        self._error = None


_leading: _Uploads | None = None
"""Uploads of this process while it has the claim on a run in a store."""


@contextmanager
def opened(
    url: str, home: Path, say: _Say, use: Use, *, of_run: bool = True
) -> Iterator[Path]:  # fmt: skip
    """Context manager: yields the local folder of the run at `url`; uploads changes at exit.

    Args:
        url: URL in an object store.
        home: Cache folder of the program.
        say: Receives messages for the user.
        use: How the run is used.
        of_run: Whether objects at the URL must belong to a run.

    Raises:
        UsageError: The bucket does not exist, access is not permitted, or the objects there are
            not a run.
        MachineError: A package or credentials are missing.
        RunError: Another process works on the run, or an upload failed (the local files are kept).
    """
    store = ObjectStore(url)
    if use == "work" and not store.kind.writable:
        raise UsageError(
            f"`--out {url}` is not possible: runs cannot be stored in {store.kind.name}.",
            "Each object would be a commit there, and the number of commits is limited to a few "
            "hundred per hour.",
            "Use a folder, `s3://` or `gs://`; `robust publish RUN hub-card` writes a model card.",
        )
    folder = _Folder(store, home, reading=use != "work")
    try:
        folder.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder.state, error) from error
    with owned(folder.state, say, store.url):
        working = _working(folder, say, of_run=of_run)
        with working if use == "work" else _reading(folder, say, use, of_run=of_run):
            yield folder.path


@contextmanager
def _working(folder: _Folder, say: _Say, *, of_run: bool) -> Iterator[None]:
    global _leading
    mine = claim(folder.store, say)
    try:
        ours = mine.before == (folder.last_claim,)
        try:
            objects = _listed(folder)
            if of_run and not ours:
                _check_run(folder, objects)
        except UsageError:
            mine.withdraw()
            raise
        _settle(folder, objects, mine, say, ours=ours)
        uploads = _Uploads(folder, mine, set(objects))
        say(
            f"`{folder.store.url}` has its working copy in `{folder.path}`; finished files are "
            "uploaded."
        )
        _leading = uploads
        try:
            with observing(uploads.written):
                yield
        except BaseException:
            _leading = None
            try:
                uploads.finish()
            except RunError as error:
                say(f"{error.what} {error.todo}")
            raise
        _leading = None
        uploads.finish()
        say(f"All files are in `{folder.store.url}`: {counted(len(folder.files()), 'file')}.")
    finally:
        mine.release()


def _check_run(folder: _Folder, objects: Mapping[str, StoredObject]) -> None:
    if objects and RECORD_FILE not in objects:
        raise UsageError(
            f"`{folder.store.url}` is not empty and contains no run.",
            f"It contains {len(objects):,} objects, such as `{next(iter(objects))}`.",
            "Choose another address with `--out`.",
        )


def _settle(
    folder: _Folder, objects: Mapping[str, StoredObject], mine: StoreClaim, say: _Say, *, ours: bool
) -> None:
    """Synchronises folder and store; `ours`: this machine was the last to work on the run."""
    files = folder.files()
    if not ours:
        unsent = [name for name in files if not folder.is_transferred(name, files[name])]
        if unsent:
            say(
                f"{len(unsent):,} files in `{folder.path}` were not uploaded to "
                f"`{folder.store.url}`, which another process has changed since: they are deleted "
                "and computed again."
            )
        folder.clear()
        files = {}
    folder.describe(mine.identity)
    known = set(folder.log)
    for name in [name for name in objects if name not in files and name in known]:
        folder.remove(name)  # deleted locally
    missing = {n: s for n, s in objects.items() if n not in files and n not in known}
    folder.fetch_all(missing, say)
    unsent = [
        name for name, state in files.items()
        if not folder.is_transferred(name, state)
        or name not in objects or objects[name].size != state.size
    ]  # fmt: skip
    if unsent:
        say(f"Uploading {counted(len(unsent), 'missing file')} to `{folder.store.url}`.")
    folder.send_all(unsent)


@contextmanager
def helping(run: Path) -> Iterator[None]:
    """Uploads the files that this process writes into `run`, whose claim another process has.

    Raises:
        RunError: An upload failed.
    """
    folder = _folder_around(run) if _leading is None else None
    if folder is None:
        yield
        return
    uploads = _Uploads(folder, None, set())
    try:
        with observing(uploads.written):
            yield
    finally:
        uploads.finish()


def take_in(run: Path) -> None:
    """Downloads files of `run` that other machines uploaded, if this process has its claim.

    Raises:
        RunError: The connection failed.
    """
    if _leading is None or _leading.folder.name_of(run / RECORD_FILE) is None:
        return
    folder = _leading.folder
    objects = _listed(folder)
    folder.fetch_all({n: s for n, s in objects.items() if n not in folder.files()}, lambda _: None)
    _leading.knows(objects)


def send_written(paths: Iterable[Path]) -> None:
    """Queues files for upload that other processes wrote into the run whose claim this process has.

    Nothing happens if the run is not in an object store.

    Raises:
        RobustError: An earlier upload failed, so the command should stop.
    """
    if _leading is not None:
        for path in paths:
            _leading.written(path)


def _folder_around(run: Path) -> _Folder | None:
    """The working copy that is or contains `run`; None if `run` is in no working copy."""
    for path in (run, *run.parents):
        copy_file, home = path.parent / _COPY_FILE, path.parent.parent
        if home.name == _WORKING and copy_file.is_file():
            url = str(parse_json(copy_file.read_text(encoding="utf-8"))["url"])
            return _Folder(ObjectStore(url), home.parent, reading=False)
    return None


def is_working_copy(run: Path) -> bool:
    """Whether `run` is the local copy of a run in an object store, or a folder of one."""
    return _folder_around(run) is not None


def helper_folder(url: str, home: Path) -> Path:
    """The local folder for `url` in a helper of the process that has opened the run.

    On the same machine, both processes use the same folder.
    """
    folder = _Folder(ObjectStore(url), home, reading=False)
    if not (folder.state / _COPY_FILE).is_file():
        folder.state.mkdir(parents=True, exist_ok=True)
        folder.describe("")
    return folder.path


# Reading a run.


@contextmanager
def _reading(folder: _Folder, say: _Say, use: Use, *, of_run: bool) -> Iterator[None]:
    objects = _listed(folder)
    if of_run and RECORD_FILE not in objects and use == "read":
        raise UsageError(
            f"`{folder.store.url}` is not a run.",
            f"It contains no `{RECORD_FILE}`." if objects else "It contains no objects.",
            "Pass the address of a run, as created by `--out`.",
        )
    if of_run:
        _check_run(folder, objects)
    objects = {n: s for n, s in objects.items() if not n.endswith(_ONLY_FOR_CONTINUING)}
    folder.describe("")
    files = folder.files()
    for name in files:
        if name not in objects:
            (folder.path / name).unlink(missing_ok=True)
    missing = {
        name: stored for name, stored in objects.items()
        if name not in files or not folder.is_transferred(name, files[name])
        or not stored.version or folder.log[name].version != stored.version
    }  # fmt: skip
    folder.fetch_all(missing, say)
    try:
        yield
    except RobustError:
        _send_changed(folder, use, say)  # such as a failed gate: the report is already written
        raise
    _send_changed(folder, use, say)


def _send_changed(folder: _Folder, use: Use, say: _Say) -> None:
    files = folder.files()
    changed = [name for name in files if not folder.is_transferred(name, files[name])]
    if use == "read" and changed:
        folder.send_all(changed)
        say(f"Uploaded to `{folder.store.url}`: {counted(len(changed), 'file')}.")
