"""Downloads by name or address: resumable, checked by SHA-256, safe to start twice at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from robustcli.core.atomic import write_text
from robustcli.core.errors import RunError, UsageError
from robustcli.core.names import find
from robustcli.data.datasets import DATASETS, LISTING, named, place
from robustcli.data.home import data_home
from robustcli.data.unpack import unpack

__all__ = ["data_home", "fetch_dataset", "fetch_file", "file_sha256", "hash_path"]


def fetch_file(url: str, target: Path, *, sha256: str | None, offline: bool) -> str:
    """The SHA-256 (hex) of the file at `target`, downloaded from `url` if it was not there.

    Where no hash is published, the first download is trusted: its hash is written to
    `hash_path(target)`, and from then on the file must have that one.

    Args:
        url: Address of the file.
        target: Where it shall be. A broken-off download lies beside it as `.part` and is continued.
        sha256: Published hash; None where there is none.
        offline: Forbids the network.

    Raises:
        UsageError: The file is missing and `offline` is set.
        RunError: The download failed, or the file has another hash than it must have.
    """
    with _alone(target):
        expected = sha256 or _remembered(target)
        if not target.is_file():
            _download(url, target, expected, offline)
        found = file_sha256(target)
        if expected is not None and found != expected.lower():
            raise _wrong_hash(target, expected, found, f"Delete `{target}` and repeat the command.")
        if expected is None:
            write_text(hash_path(target), found + "\n")
        return found


def fetch_dataset(name: str, *, offline: bool = False) -> Path:
    """The tar of the data set called `name`, downloaded if it was not there.

    Raises:
        UsageError: No data set has that name, or it is missing and `offline` is set.
        RunError: The download failed or is not what it should be.
    """
    registered = find(name, (d.name for d in DATASETS), kind="data set", listing=LISTING)
    dataset = named(registered)
    assert dataset is not None, "`find` returns registered names only"
    target = place(dataset)
    if dataset.url is None or target.is_file():
        return target
    packed = target.with_name(target.name + ".gz")
    with _alone(target):
        # Another process may have finished it in the meantime.
        if not target.is_file():
            fetch_file(dataset.url, packed, sha256=dataset.sha256, offline=offline)
            unpack(dataset, packed, target)
    return target


def file_sha256(path: Path) -> str:
    """The SHA-256 (hex) of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(target: Path) -> Path:
    """Where the hash of a file is kept that was trusted on its first download."""
    return target.with_name(target.name + ".sha256")


def _download(url: str, target: Path, expected: str | None, offline: bool) -> None:
    if offline:
        raise UsageError(
            f"`{target.name}` is not on this machine, and `--offline` forbids the network.",
            f"It would come from {url}.",
            f"Leave out `--offline`, or put the file at `{target}`.",
        )
    # urllib takes 30 ms to import, which listing data sets must not pay.
    from robustcli.data.transfer import Part, transfer

    part = Part(target.with_name(target.name + ".part"))
    try:
        transfer(url, part)
    except OSError as error:
        raise RunError(
            f"Cannot download `{target.name}` from {url}.",
            f"{error}.",
            f"Repeat the command: it continues where it stopped. Or put the file at `{target}`.",
        ) from error
    found = file_sha256(part.path)
    if expected is not None and found != expected.lower():
        part.discard()
        raise _wrong_hash(target, expected, found, "Nothing was kept; repeat the command.")
    part.path.replace(target)
    part.discard()


def _remembered(target: Path) -> str | None:
    known = hash_path(target)
    return known.read_text(encoding="utf-8").strip() if known.is_file() else None


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Only one process at a time works on `target`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(target.name + ".lock"))
        lock.acquire()
    except OSError as error:
        raise RunError(
            f"Cannot write to `{target.parent}`.",
            f"The file system says: {error.strerror or error}.",
            "Set `ROBUST_HOME` to a folder that can be written to, then repeat the command.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _wrong_hash(target: Path, expected: str, found: str, todo: str) -> RunError:
    return RunError(
        f"`{target.name}` is not the file it should be.",
        f"Expected SHA-256 {expected.lower()}, got {found}.",
        todo,
    )
