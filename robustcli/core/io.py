"""Durable writes: a file is there whole or not at all, also after kill -9 or a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from robustcli.core.errors import RunError

LONGEST_NAME = 255
"""Bytes of a file's name, at most: of ext4, XFS, APFS and NTFS."""


def shortened(name: str, most: int) -> str:
    """`name` in at most `most` bytes of UTF-8: as it is, or its beginning with a hash of all of it.

    Args:
        name: Of a file.
        most: At least 17.
    """
    raw = os.fsencode(name)
    if len(raw) <= most:
        return name
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return raw[: most - len(digest) - 1].decode("utf-8", "ignore") + "-" + digest


_WINDOWS = os.name == "nt"
_WAITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between tries to rename: readers, indexers and virus scanners are soon done."""


_MOST_BYTES = 2**32
"""Of a file that is read into memory at once."""


def check_readable(path: Path, most: float = _MOST_BYTES) -> None:
    """Checks that reading all of `path` comes to an end: a pipe waits, `/dev/zero` never ends.

    Args:
        path: The file.
        most: Bytes that it may have; infinity for one that is read in pieces.

    Raises:
        OSError: It is missing, no plain file, or longer.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "not a plain file (a folder, pipe or device)")
    if state.st_size > most:
        raise OSError(errno.EFBIG, f"{state.st_size:,} bytes, more than are read at once")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on leaving it is fsynced and renamed to `path`.

    Raises:
        RunError: The file system refused (disk full, no permission); `path` is as it was.
    """
    # Not from tempfile: its files are readable by their owner alone, results are to be shared.
    ending = f".{os.getpid()}-{threading.get_ident()}.tmp"
    beside = path.with_name(f".{shortened(path.name, LONGEST_NAME - len(ending) - 1)}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        _fsync(beside)
        _rename(beside, path)
        _fsync(path.parent)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with suppress(OSError):  # where the folder is what is wrong, this fails as well
            beside.unlink()
    for written in tuple(_OBSERVERS):
        written(path)


_OBSERVERS: list[Callable[[Path], None]] = []


@contextmanager
def observing(written: Callable[[Path], None]) -> Iterator[None]:
    """Inside, `written` is called with each file that `replacing` has written, once it is there."""
    _OBSERVERS.append(written)
    try:
        yield
    finally:
        _OBSERVERS.remove(written)


def parse_json(text: str | bytes, **options: Any) -> Any:
    """What the JSON `text` holds, as `json.loads` with `options`.

    Raises:
        ValueError: It is no JSON, or is nested so deeply that Python cannot hold it.
    """
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` durably (see `replacing`)."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes `content` to `path` durably, as UTF-8 (see `replacing`)."""
    write_bytes(path, content.encode())


_DAMAGE = (OSError, ValueError, TypeError, KeyError, SyntaxError, NotImplementedError)
"""What readers of JSON, CSV, Parquet and pictures raise of content that is not theirs."""


@contextmanager
def reading(
    path: Path, todo: str = "Restore the file, or compute the run again."
) -> Iterator[None]:
    """Names the file `path` of a run where what reads it inside finds it damaged.

    Args:
        path: The file.
        todo: What the user can do.

    Raises:
        RunError: The file cannot be read.
    """
    try:
        yield
    except _DAMAGE as error:
        why = str(error).strip().splitlines()
        raise RunError(
            f"`{path}` is damaged.",
            f"It cannot be read: {'; '.join(line.strip() for line in why[:2])}.",
            todo,
        ) from error


def _fsync(path: Path) -> None:
    if _WINDOWS and path.is_dir():
        return  # Windows opens no folders; NTFS journals names by itself
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(beside: Path, path: Path) -> None:
    """Renames, waiting a moment where Windows refuses since another process has `path` open."""
    for wait in _WAITS if _WINDOWS else ():
        try:
            beside.replace(path)
            return
        except PermissionError:
            time.sleep(wait)
    beside.replace(path)


def refused(path: Path, error: OSError) -> RunError:
    """The error for the user where the file system refused to write `path`."""
    return RunError(
        f"Cannot write `{path}`.",
        f"The file system says: {error.strerror or error}.",
        "Mend that (free space, permissions, another folder), then repeat the command: "
        "everything that was finished is kept and not computed again.",
    )
