"""Access to object stores (`s3://`, `gs://`, `hf://`) through fsspec.

Two guarantees of S3, Google Cloud Storage and the Hugging Face hub are used: uploads are atomic (an
object is visible only when all of its bytes have arrived), and a listing contains every object that
was written before the listing started (S3 since December 2020). Locks, renames, appends and clocks
are not used.

File systems of fsspec run an event loop in a thread, which does not exist in a forked process. An
`ObjectStore` therefore opens a new file system in each process, and a fork resets fsspec's loop.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from robustcli.core.errors import MachineError, RobustError, RunError, UsageError, first_line
from robustcli.core.io import LONGEST_NAME, refused, replacing, shortened

ResultT = TypeVar("ResultT")
_ItemT = TypeVar("_ItemT")
PAUSES_S = (1.0, 4.0, 16.0)
"""Pauses before the retries of a failed transfer; the libraries below also retry by themselves."""
AT_ONCE = 16
"""Number of concurrent transfers: each mostly waits tens of milliseconds for the store."""


def _reset_loop() -> None:
    """Lets fsspec start a new loop in a forked process; before 2025.5 it waits for the old one."""
    reset = getattr(sys.modules.get("fsspec.asyn"), "reset_lock", None)
    if reset is not None:
        reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_loop)


@dataclass(frozen=True)
class StoreKind:
    """A kind of object store.

    Args:
        scheme: URL scheme.
        module: Module that fsspec needs for this store.
        name: Name in messages.
        credentials: Where the module looks for credentials, for messages.
        package: Name of the package that contains `module`, for pip.
        writable: Whether runs can be stored there.
    """

    scheme: str
    module: str
    name: str
    credentials: str
    package: str
    writable: bool = True


_AWS = (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine; "
    "AWS_ENDPOINT_URL for other S3-compatible stores"
)
_GOOGLE = "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS"
STORE_KINDS = {
    kind.scheme: kind
    for kind in (
        StoreKind("s3", "s3fs", "S3", _AWS, "s3fs"),
        StoreKind("s3a", "s3fs", "S3", _AWS, "s3fs"),
        StoreKind("gs", "gcsfs", "Google Cloud Storage", _GOOGLE, "gcsfs"),
        StoreKind("gcs", "gcsfs", "Google Cloud Storage", _GOOGLE, "gcsfs"),
        StoreKind("hf", "huggingface_hub", "the Hugging Face hub", "HF_TOKEN", "huggingface-hub",
                  writable=False),
        StoreKind("memory", "fsspec", "the memory of this process", "none", "fsspec"),
    )
}  # fmt: skip
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<slashes>/+)(?P<rest>.*)", re.DOTALL)
_SHOWN = ("s3://", "gs://", "hf://")


def names_url(text: object) -> bool:
    """Whether `text` is a URL such as `s3://bucket/run`, not a path of this machine.

    `s3:/bucket`, which `pathlib` makes from `s3://bucket`, counts as a URL. `C:/data` is a path,
    and `hf:/folder` is a transformers model in a local folder.
    """
    match = _URL.match(str(text))
    if match is None:
        return False
    return len(match["slashes"]) > 1 or match["scheme"].lower() in STORE_KINDS.keys() - {"hf"}


def path_here(value: str | Path, name: str = "It") -> Path:
    """`value` as a path of this machine; `name` is its name in the error message.

    Raises:
        UsageError: `value` is a URL.
    """
    if names_url(value):
        raise UsageError(
            f"`{value}` is not a local path.",
            f"{name} must be a local file or folder; object stores are not supported for it.",
            "Copy it to this machine first (`aws s3 cp`, `gcloud storage cp`, `hf download`) and "
            "pass the copy; docs/remote.md lists the inputs that can be in an object store.",
        )
    return Path(value)


def kind_of_store(url: str) -> StoreKind:
    """The kind of the object store of `url`.

    Raises:
        UsageError: The scheme is unknown, or the URL lacks a bucket and name.
    """
    match = _URL.match(url)
    kind = STORE_KINDS.get(match["scheme"].lower()) if match else None
    shown = ", ".join(f"`{start}`" for start in _SHOWN)
    if match is None or kind is None:
        scheme = match["scheme"].lower() if match else ""
        todo = (
            "Write the path without `file://`." if scheme in ("file", "local")
            else "Use one of these, or a local path; data can be downloaded first."
        )  # fmt: skip
        raise UsageError(
            f"`{url}` is not in a supported object store.", f"Supported are {shown}.", todo
        )
    if len(match["slashes"]) != 2:
        raise UsageError(
            f"`{url}` is not a valid address of an object store.",
            "The colon must be followed by two slashes.",
            f"Write `{kind.scheme}://{match['rest']}`; in Python pass it as a string, not as a "
            "Path.",
        )
    if "::" in match["rest"] or not match["rest"].strip("/"):
        raise UsageError(
            f"`{url}` has no bucket or no name.",
            "An address of an object store needs a bucket and a name in it.",
            f"Write `{kind.scheme}://BUCKET/NAME`.",
        )
    return kind


@dataclass(frozen=True)
class StoredObject:
    """An entry of a listing.

    Args:
        size: Size in bytes.
        version: ETag, hash or date, which changes with the content; empty if the store has none.
    """

    size: int
    version: str


_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "mtime", "created")


class ObjectStore:
    """The objects below one URL of an object store.

    Instances can be pickled and are thread-safe.

    Args:
        url: The URL, such as `s3://bucket/run`.

    Raises:
        UsageError: The URL is not of a known store.
        MachineError: The package for this store is not installed.
    """

    def __init__(self, url: str) -> None:
        self.kind = kind_of_store(url)
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None
        if find_spec(self.kind.module) is None:
            raise MachineError(
                f"`{url}` needs the package `{self.kind.package}`, which is not installed.",
                f"This package reads and writes {self.kind.name}.",
                f"Install it: `pip install {self.kind.package}`, or all of them: "
                '`pip install "robustcli[remote]"`.',
            )

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str]]:
        return type(self), (self.url,)

    def address(self, name: str) -> str:
        """URL of the object `name`, for messages; the store's URL for an empty name."""
        return f"{self.url}/{name}" if name else self.url

    def listed(self, below: str = "") -> dict[str, StoredObject]:
        """The objects below `below` by their name relative to the store's URL, sorted by name.

        An object at exactly the store's URL has an empty name.

        Raises:
            UsageError: The bucket does not exist, or listing is not permitted.
            RunError: The connection failed.
        """
        system, root = self._system()
        place = f"{root}/{below}" if below else root
        try:
            entries = self._tried(below, lambda: system.find(place, detail=True))
        except FileNotFoundError as error:
            if self.kind.scheme == "memory":
                return {}
            raise self._no_bucket(error) from error
        objects = {}
        for path, facts in sorted(entries.items()):
            if facts.get("type") == "directory" or path.endswith("/"):
                continue  # placeholder objects that some programs write for folders
            version = next((str(facts[key]) for key in _VERSIONS if facts.get(key)), "")
            name = path[len(root) + 1 :]
            objects[name] = StoredObject(int(facts.get("size") or 0), version)
        return objects

    def read(self, name: str) -> bytes:
        """The content of the object `name`.

        Raises:
            FileNotFoundError: The object does not exist.
            RunError: The connection failed in all attempts.
        """
        system, root = self._system()
        content: bytes = self._tried(name, lambda: system.cat_file(_joined(root, name)))
        return content

    def fetch(self, name: str, target: Path, stored: StoredObject | None = None) -> None:
        """Downloads the object `name` to the file `target` atomically.

        A large object with known size and version (`stored`) is downloaded in pieces: after a
        failure, the next call resumes the download.

        Raises:
            FileNotFoundError: The object does not exist.
            RunError: The connection failed, or the disk cannot be written.
        """
        system, root = self._system()
        if stored is not None and stored.size > _PIECE and stored.version:
            self._fetch_pieces(name, target, stored)
            return

        def transfer() -> None:
            # `replacing` treats every OSError as an error of the disk; `_wrapped_errors` wraps
            # those that are not.
            with replacing(target) as temporary, _wrapped_errors():
                system.get_file(_joined(root, name), str(temporary))

        self._tried(name, transfer)

    def _fetch_pieces(self, name: str, target: Path, stored: StoredObject) -> None:
        """Downloads an object in pieces into a partial file whose name contains the version.

        Concurrent downloads are safe: they write the same bytes to the same offsets.
        """
        system, root = self._system()
        version = hashlib.sha256(stored.version.encode()).hexdigest()[:16]
        partial = target.with_name(f".{shortened(target.name, LONGEST_NAME - 24)}.{version}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
            with partial.open("r+b") as file:
                for start in range(min(partial.stat().st_size, stored.size), stored.size, _PIECE):
                    end = min(start + _PIECE, stored.size)
                    content = self._tried(
                        name,
                        lambda: system.cat_file(_joined(root, name), start=start, end=end),  # noqa: B023
                    )
                    if len(content) != end - start:
                        raise self._broken(name, EOFError("it has changed since it was listed"))
                    file.seek(start)
                    file.write(content)
            with replacing(target) as temporary:
                partial.replace(temporary)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and partial.exists():
                raise  # the object was removed
            raise refused(target, error) from error

    def write(self, name: str, content: bytes) -> None:
        """Uploads `content` as the object `name` atomically.

        Raises:
            UsageError: The bucket does not exist, or writing is not permitted.
            RunError: The connection failed.
        """
        system, root = self._system()
        self._sent(name, lambda: system.pipe_file(_joined(root, name), content))

    def send(self, name: str, source: Path) -> None:
        """Uploads the file `source` as the object `name` atomically.

        Raises:
            FileNotFoundError: The file does not exist.
            UsageError: The bucket does not exist, or writing is not permitted.
            RunError: The connection failed.
        """
        if source.stat().st_size < _ONE_PIECE:
            self.write(name, source.read_bytes())
            return
        system, root = self._system()
        self._sent(name, lambda: system.put_file(str(source), _joined(root, name)))

    def remove(self, name: str) -> None:
        """Removes the object `name` if it exists.

        Raises:
            UsageError: Removing is not permitted.
            RunError: The connection failed.
        """
        system, root = self._system()
        try:
            self._tried(name, lambda: system.rm_file(_joined(root, name)))
        except FileNotFoundError:
            return

    def _sent(self, name: str, call: Callable[[], object]) -> None:
        try:
            self._tried(name, call)
        except FileNotFoundError as error:
            raise self._no_bucket(error) from error

    def _system(self) -> tuple[Any, str]:
        """Fsspec's file system for this process, and the path of the store in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            from fsspec.core import url_to_fs  # slow import (50 ms)

            try:
                system, root = url_to_fs(self.url, use_listings_cache=False)
            except Exception as error:
                raise self._refusal("", error) or self._broken("", error) from error
            self._opened = os.getpid(), system, root.rstrip("/")
        return self._opened[1:]

    def _tried(self, name: str, call: Callable[[], ResultT]) -> ResultT:
        """The result of `call`, which is retried after failures of the connection."""
        for pause in (*PAUSES_S, None):
            try:
                return call()
            except (RobustError, FileNotFoundError):
                raise
            except Exception as error:
                cause = error.cause if isinstance(error, _TransferError) else error
                if isinstance(cause, FileNotFoundError):
                    raise cause from None
                refusal = self._refusal(name, cause)
                if refusal is not None:
                    raise refusal from cause
                if pause is None:
                    raise self._broken(name, cause) from cause
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _refusal(self, name: str, error: Exception) -> RobustError | None:
        """The error to raise if retrying is useless (credentials, permissions); else None."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & _NO_CREDENTIALS:
            return MachineError(
                f"No credentials for `{self.url}` were found.",
                f"{type(error).__name__}: {first_line(error)}",
                f"Set them: {self.kind.credentials}.",
            )
        if isinstance(error, PermissionError):
            return UsageError(
                f"`{self.address(name)}`: {self.kind.name} denied the access.",
                f"The response is: {first_line(error)}",
                f"Check the name, its permissions, and the credentials: {self.kind.credentials}.",
            )
        return None

    def _broken(self, name: str, error: Exception) -> RunError:
        return RunError(
            f"`{self.address(name)}` cannot be reached.",
            f"{len(PAUSES_S) + 1} tries failed; {type(error).__name__}: {first_line(error)}",
            "Check the connection, then repeat the command: finished results are kept.",
        )

    def _no_bucket(self, error: Exception) -> UsageError:
        if self.kind.scheme == "hf":
            repository = "/".join(self.url.split("/")[:5])
            return UsageError(
                f"`{repository}` does not exist, or cannot be seen with these credentials.",
                f"{self.kind.name} answers: {first_line(error)}",
                "Write `hf://datasets/ORG/NAME@REVISION/FOLDER` (without revision: `main`); a "
                "private repository needs HF_TOKEN.",
            )
        bucket = "/".join(self.url.split("/")[:3])
        return UsageError(
            f"`{bucket}` does not exist, or is not accessible with these credentials.",
            f"The response of {self.kind.name} is: {first_line(error)}",
            "Create it first (robust does not create buckets), or correct the name.",
        )


_PIECE = 32 * 2**20  # bytes; larger objects are downloaded in pieces
_ONE_PIECE = 32 * 2**20  # bytes; larger files are uploaded in several parts
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError",
    "DefaultCredentialsError", "RefreshError", "LocalTokenNotFoundError",
}  # fmt: skip


_OF_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOTDIR,
    errno.EISDIR,
}  # fmt: skip


class _TransferError(Exception):
    """Wraps an exception of a transfer that is not an error of the local disk."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause
        super().__init__(str(cause))


@contextmanager
def _wrapped_errors() -> Iterator[None]:
    """Wraps exceptions in `_TransferError`, except errors of the local disk."""
    try:
        yield
    except Exception as error:
        number, file = getattr(error, "errno", None), getattr(error, "filename", None)
        if number in _OF_DISK or (file is not None and number in (errno.EACCES, errno.EPERM)):
            raise
        raise _TransferError(error) from error


def _joined(root: str, name: str) -> str:
    return f"{root}/{name}" if name else root


def at_once(items: Iterable[_ItemT], work: Callable[[_ItemT], object]) -> None:
    """Calls `work` for each of `items` in AT_ONCE threads.

    Raises:
        Exception: The exception of the first item for which `work` failed; no item is started
            after a failure.
    """
    failed = threading.Event()

    def unless_failed(item: _ItemT) -> None:
        if failed.is_set():
            return
        try:
            work(item)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="objects") as pool:
        futures = [pool.submit(unless_failed, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def total_bytes(objects: Mapping[str, StoredObject]) -> int:
    """Total size of `objects` in bytes."""
    return sum(stored.size for stored in objects.values())
