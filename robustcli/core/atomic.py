"""Durable writes: a file is there whole or not at all, also after kill -9 or a full disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustcli.core.errors import RunError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on leaving it is fsynced and renamed to `path`.

    Raises:
        RunError: The file system refused (disk full, no permission); `path` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise _refused(path, error) from error
    beside = Path(name)
    try:
        yield beside
        _fsync(beside)
        os.replace(beside, path)
        _fsync(path.parent)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` durably (see `replacing`)."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes `content` to `path` durably, as UTF-8 (see `replacing`)."""
    write_bytes(path, content.encode())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, error: OSError) -> RunError:
    return RunError(
        f"Cannot write `{path}`.",
        f"The file system says: {error.strerror or error}.",
        "Free some space or choose another `--out`, then repeat the command: "
        "everything that was finished is kept and not computed again.",
    )
