"""Durable writes: a file is complete or absent, also after kill -9 or on a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.core.errors import RunError
from robustcli.core.machine import machine_id, start_of_process
from robustcli.core.names import marked_cell, printable, unmarked_cell

if TYPE_CHECKING:
    import pandas as pd

LONGEST_NAME = 255
"""Longest file name in bytes on ext4, XFS, APFS and NTFS."""


def shortened(name: str, most: int) -> str:
    """`name`, or its beginning with a hash of `name` if it has more than `most` bytes of UTF-8.

    Args:
        name: A file name.
        most: Largest number of bytes, at least 17.
    """
    raw = os.fsencode(name)
    if len(raw) <= most:
        return name
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return raw[: most - len(digest) - 1].decode("utf-8", "ignore") + "-" + digest


def identity_of_names(folder: Path) -> Callable[[Path], str]:
    """A function that returns equal texts for paths that are one file in `folder`.

    Most file systems of macOS, Windows and memory sticks take `A.png` and `a.png` for one file,
    and some of them the two Unicode forms of `ä.png`. `folder` need not exist yet.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    ignores_case = ignores_form = False
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=existing, prefix="robust-ä-") as probe:
        found, name = Path(probe.name), Path(probe.name).name
        ignores_case = found.with_name(name.upper()).exists()
        ignores_form = found.with_name(unicodedata.normalize("NFD", name)).exists()

    def identity(path: Path) -> str:
        text = unicodedata.normalize("NFC", str(path)) if ignores_form else str(path)
        return text.casefold() if ignores_case else text

    return identity


_WINDOWS = os.name == "nt"
_WAITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Waits in seconds between attempts to rename, while another program has the file open."""


_MOST_BYTES = 2**32
"""Largest file in bytes that is read into memory at once."""


def check_readable(path: Path, most: float = _MOST_BYTES) -> None:
    """Checks that `path` can be read completely; a pipe would block, `/dev/zero` never ends.

    Args:
        path: The file.
        most: Largest size in bytes; infinity for a file that is read in pieces.

    Raises:
        OSError: The file is missing, not a regular file, or larger.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "not a plain file (a folder, pipe or device)")
    if state.st_size > most:
        raise OSError(errno.EFBIG, f"{state.st_size:,} bytes, which exceeds the limit")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`; at the end it is fsynced and renamed to `path`.

    Raises:
        RunError: The file system refused (disk full, no permission); `path` is unchanged.
    """
    # Not from tempfile, whose files only their owner can read: results are shared.
    ending = f".{_machine_tag()}-{os.getpid()}-{threading.get_ident()}.tmp"
    temporary = path.with_name(f".{shortened(path.name, LONGEST_NAME - len(ending) - 1)}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        _rename(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with suppress(OSError):  # fails as well if the folder is the problem
            temporary.unlink()
    for written in tuple(_OBSERVERS):
        written(path)


TEMPORARY_FILES = ".*.tmp"
"""Glob of the temporary files of `replacing`."""
_WRITER = re.compile(r"\.(?:([0-9a-f]{8})-)?(\d+)-\d+\.tmp")
_UNCHANGED_SECONDS = 600.0
"""Age of a temporary file from which its process on another machine counts as ended."""


@cache
def _machine_tag() -> str:
    return hashlib.sha256(machine_id().encode()).hexdigest()[:8]


def remove_leftovers(files: Iterable[Path]) -> None:
    """Removes those of `files` that are temporary files of processes that have ended.

    A process that started others can be killed, and its folder taken by a new command, while the
    others still write. Those of another machine or container cannot be checked; their files are
    removed if they have not changed for _UNCHANGED_SECONDS.
    """
    for path in files:
        if (writer := _WRITER.search(path.name)) is None:
            continue
        with suppress(OSError):  # another process was faster, or it cannot be changed
            if writer[1] == _machine_tag():
                ended = start_of_process(int(writer[2])) is None
            else:
                ended = time.time() - path.stat().st_mtime > _UNCHANGED_SECONDS
            if ended:
                path.unlink()


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
    """The value of the JSON `text`, like `json.loads` with `options`.

    Raises:
        ValueError: `text` is not JSON, or is nested too deeply for Python.
    """
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_csv(path: Path, names: Iterable[str] = (), **options: Any) -> pd.DataFrame:
    """`pandas.read_csv`, with exactly the numbers and names that were written.

    Before pandas 3.1, the default changes the last bit of a third of all numbers; since then, exact
    reading is the default and the option for it is deprecated.

    Args:
        path: The file.
        names: Columns of names, such as `007` and `null`, which are not numbers or missing values.
            The apostrophe in front of a name that spreadsheets would evaluate is removed.
        options: Further arguments of pandas.
    """
    import pandas as pd

    if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1):
        options["float_precision"] = "round_trip"
    table: pd.DataFrame = pd.read_csv(path, **options)
    columns = [name for name in names if name in table]
    if columns:  # pandas would also take `null` of a converter for a missing value
        texts = pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False)
        table[columns] = texts.map(unmarked_cell)
    return table


def to_csv(table: pd.DataFrame) -> str:
    """`table` as CSV that is safe to open in a spreadsheet.

    A text that a spreadsheet would evaluate as a formula gets a leading apostrophe, which marks it
    as text; numbers are unchanged. Control characters are escaped (see `printable`).
    """
    harmless = table.copy()
    for name in table.select_dtypes(exclude="number").columns:
        harmless[name] = table[name].map(
            lambda cell: printable(marked_cell(cell)) if isinstance(cell, str) else cell
        )
    return harmless.to_csv(index=False, lineterminator="\n")


_STREAMS = tuple(map(Path, ("/dev", "/dev/fd", "/proc/self/fd")))


def _is_stream(path: Path) -> bool:
    """Whether `path` is a pipe, a device, or a name of an open file, such as `/dev/stdout`."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False  # it does not exist, or cannot be written
    plain = stat.S_ISREG(mode) and path.absolute().parent not in _STREAMS
    return not plain and not stat.S_ISDIR(mode)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` durably (see `replacing`); a pipe or device is not replaced."""
    if _is_stream(path):
        try:
            with path.open("ab") as stream:
                stream.write(content)
        except OSError as error:
            raise refused(path, error) from error
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes `content` to `path` durably, as UTF-8 (see `replacing`)."""
    write_bytes(path, content.encode())


_DAMAGE = (OSError, ValueError, TypeError, KeyError, SyntaxError, NotImplementedError)
"""Exceptions of readers of JSON, CSV, Parquet and images on invalid content."""


@contextmanager
def reading(
    path: Path, todo: str = "Restore the file, or compute the run again."
) -> Iterator[None]:
    """Converts read errors in the context to a RunError that names the file `path`.

    Args:
        path: The file of a run.
        todo: Advice for the user.

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
        return  # Windows cannot open folders; NTFS journals names
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(temporary: Path, path: Path) -> None:
    """Renames; retries where Windows refuses because another process has `path` open."""
    for wait in _WAITS if _WINDOWS else ():
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(wait)
    temporary.replace(path)


def remove_folder(path: Path) -> None:
    """Removes the folder `path` with its files; of a link to a folder only the link.

    Raises:
        RunError: Files remain, whose content would count as new results.
    """
    if path.is_symlink():
        path.unlink()
        return
    shutil.rmtree(path, ignore_errors=True)
    # NFS keeps open files under other names.
    left = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".nfs"))
    file = next(left, None)
    if file is not None:
        raise RunError(
            f"`{file}` cannot be removed.",
            "Its folder is protected, or another process writes into it.",
            "Remove the folder, or use another `--out`, then repeat the command.",
        )


def refused(path: Path, error: OSError) -> RunError:
    """The error for the user if the file system refused to write `path`."""
    return RunError(
        f"Cannot write `{path}`.",
        f"The error of the file system is: {error.strerror or error}.",
        "Correct this (free space, permissions, another folder), then repeat the command: "
        "finished results are kept and not computed again.",
    )
