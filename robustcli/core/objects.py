"""Object stores (`s3://`, `gs://`, `hf://`) through fsspec: whole objects, listed once.

An object appears under its name when all of its bytes have arrived, and not before: that is what
S3, Google Cloud Storage and the Hugging Face hub promise of an upload. All of them list what was
written before the listing began (S3 since December 2020). Nothing else is relied on: no lock, no
rename, no appending, no clock.

File systems of fsspec run an event loop in a thread, which a forked process does not have. An
`ObjectStore` therefore opens its file system anew in each process.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
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
"""Before a transfer that broke is tried again; the libraries below try several times themselves."""
AT_ONCE = 16
"""Transfers at a time: each waits tens of milliseconds for the store, and none uses much else."""


@dataclass(frozen=True)
class StoreKind:
    """A kind of object store.

    Args:
        scheme: With which its addresses begin.
        module: The package that fsspec needs for it.
        name: For messages.
        credentials: Where its package looks for them, for messages.
        package: What pip installs.
        writable: Whether a run can be kept there.
    """

    scheme: str
    module: str
    name: str
    credentials: str
    package: str
    writable: bool = True


_AWS = (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine; "
    "AWS_ENDPOINT_URL for a store that is not Amazon's"
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
    """Whether `text` is an address such as `s3://bucket/run`, not a path of this machine.

    `s3:/bucket` is one too, because `pathlib` writes addresses so. `C:/data` is a path, and
    `hf:/folder` is a model of transformers in a folder of this machine.
    """
    match = _URL.match(str(text))
    if match is None:
        return False
    return len(match["slashes"]) > 1 or match["scheme"].lower() in STORE_KINDS.keys() - {"hf"}


def path_here(value: str | Path, name: str = "It") -> Path:
    """The path of this machine that `value` is; `name` is what it is called in the message.

    Raises:
        UsageError: It is an address.
    """
    if names_url(value):
        raise UsageError(
            f"`{value}` is not a path of this machine.",
            f"{name} must be a file or folder here: object stores are not read for it.",
            "Copy it here first (`aws s3 cp`, `gcloud storage cp`, `hf download`) and name the "
            "copy; docs/remote.md lists what can be in an object store.",
        )
    return Path(value)


def kind_of_store(url: str) -> StoreKind:
    """The kind of store that `url` names.

    Raises:
        UsageError: It names none that is known, or nothing in it.
    """
    match = _URL.match(url)
    kind = STORE_KINDS.get(match["scheme"].lower()) if match else None
    shown = ", ".join(f"`{start}`" for start in _SHOWN)
    if match is None or kind is None:
        scheme = match["scheme"].lower() if match else ""
        todo = (
            "Write the path without `file://`." if scheme in ("file", "local")
            else "Use one of these, or a path of this machine; data can be downloaded first."
        )  # fmt: skip
        raise UsageError(
            f"`{url}` is in no object store that is known.", f"Known are {shown}.", todo
        )
    if len(match["slashes"]) != 2:
        raise UsageError(
            f"`{url}` is no address of an object store.",
            "Two slashes follow the colon.",
            f"Write `{kind.scheme}://{match['rest']}`; in Python give it as text, not as a Path.",
        )
    if "::" in match["rest"] or not match["rest"].strip("/"):
        raise UsageError(
            f"`{url}` names nothing in {kind.name}.",
            "Expected a bucket and a name in it.",
            f"Write `{kind.scheme}://BUCKET/NAME`.",
        )
    return kind


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it.

    Args:
        size: Its bytes.
        version: What changes when its bytes do (ETag, hash or date); empty where nothing is shown.
    """

    size: int
    version: str


_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "mtime", "created")


class ObjectStore:
    """What lies below one address of an object store.

    It can be sent to other processes and used by several threads.

    Args:
        url: The address, such as `s3://bucket/run`.

    Raises:
        UsageError: The address names no known store.
        MachineError: The package for it is not installed.
    """

    def __init__(self, url: str) -> None:
        self.kind = kind_of_store(url)
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None
        if find_spec(self.kind.module) is None:
            raise MachineError(
                f"`{url}` needs the package `{self.kind.package}`, which is not installed.",
                f"By it {self.kind.name} is reached.",
                f"Install it: `pip install {self.kind.package}`, or all of them: "
                '`pip install "robustcli[remote]"`.',
            )

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str]]:
        return type(self), (self.url,)

    def address(self, name: str) -> str:
        """The address of the object `name`, for messages; of all below for an empty name."""
        return f"{self.url}/{name}" if name else self.url

    def listed(self, below: str = "") -> dict[str, StoredObject]:
        """The objects below `below`, by their name relative to the store's address, sorted.

        An object at the address itself has an empty name.

        Raises:
            UsageError: There is no such bucket, or it may not be listed.
            RunError: The connection broke.
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
                continue  # what some programs put where a folder would be
            version = next((str(facts[key]) for key in _VERSIONS if facts.get(key)), "")
            name = path[len(root) + 1 :]
            objects[name] = StoredObject(int(facts.get("size") or 0), version)
        return objects

    def read(self, name: str) -> bytes:
        """The bytes of the object `name`.

        Raises:
            FileNotFoundError: There is none.
            RunError: The connection broke, and did so again.
        """
        system, root = self._system()
        content: bytes = self._tried(name, lambda: system.cat_file(_joined(root, name)))
        return content

    def fetch(self, name: str, target: Path, stored: StoredObject | None = None) -> None:
        """Writes the object `name` to the file `target`, whole or not at all.

        A large one of which `stored` tells size and version comes in pieces: after a broken
        connection the next call goes on where this one ended.

        Raises:
            FileNotFoundError: There is no such object.
            RunError: The connection broke, or the disk refused.
        """
        system, root = self._system()
        if stored is not None and stored.size > _PIECE and stored.version:
            self._fetch_pieces(name, target, stored)
            return

        def transfer() -> None:
            # `replacing` takes an OSError for one of the disk; those of the connection stay apart.
            with replacing(target) as beside, _apart():
                system.get_file(_joined(root, name), str(beside))

        self._tried(name, transfer)

    def _fetch_pieces(self, name: str, target: Path, stored: StoredObject) -> None:
        """Fetches an object piece by piece into a file that belongs to this version of it.

        Two processes that do so at once write the same bytes to the same places.
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
            with replacing(target) as beside:
                partial.replace(beside)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and partial.exists():
                raise  # the object is gone
            raise refused(target, error) from error

    def write(self, name: str, content: bytes) -> None:
        """Writes the object `name`; it is there whole, or as it was before.

        Raises:
            UsageError: There is no such bucket, or writing is not allowed.
            RunError: The connection broke.
        """
        system, root = self._system()
        self._sent(name, lambda: system.pipe_file(_joined(root, name), content))

    def send(self, name: str, source: Path) -> None:
        """Writes the file `source` as the object `name`; it is there whole, or as it was before.

        Raises:
            FileNotFoundError: The file is gone.
            UsageError: There is no such bucket, or writing is not allowed.
            RunError: The connection broke.
        """
        if source.stat().st_size < _ONE_PIECE:
            self.write(name, source.read_bytes())
            return
        system, root = self._system()
        self._sent(name, lambda: system.put_file(str(source), _joined(root, name)))

    def remove(self, name: str) -> None:
        """Removes the object `name`, if there is one.

        Raises:
            UsageError: It is not allowed.
            RunError: The connection broke.
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
        """The file system of this process, and the store's address in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            from fsspec.core import url_to_fs  # takes 50 ms that others need not pay

            try:
                system, root = url_to_fs(self.url, use_listings_cache=False)
            except Exception as error:
                raise self._refusal("", error) or self._broken("", error) from error
            self._opened = os.getpid(), system, root.rstrip("/")
        return self._opened[1:]

    def _tried(self, name: str, call: Callable[[], ResultT]) -> ResultT:
        """What `call` returns; a transfer that breaks is tried again."""
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
        """The error where the store, asked again, would answer the same; else None."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & _NO_CREDENTIALS:
            return MachineError(
                f"No credentials for `{self.url}` are found.",
                f"{type(error).__name__}: {first_line(error)}",
                f"Give them: {self.kind.credentials}.",
            )
        if isinstance(error, PermissionError):
            return UsageError(
                f"`{self.address(name)}`: {self.kind.name} does not permit it.",
                f"It answers: {first_line(error)}",
                f"Check the name, its permissions, and the credentials: {self.kind.credentials}.",
            )
        return None

    def _broken(self, name: str, error: Exception) -> RunError:
        return RunError(
            f"`{self.address(name)}` cannot be reached.",
            f"{len(PAUSES_S) + 1} tries failed; {type(error).__name__}: {first_line(error)}",
            "Check the connection, then repeat the command: what was finished is kept.",
        )

    def _no_bucket(self, error: Exception) -> UsageError:
        bucket = "/".join(self.url.split("/")[:3])
        return UsageError(
            f"`{bucket}` does not exist, or cannot be seen with these credentials.",
            f"{self.kind.name} answers: {first_line(error)}",
            "Make it first (robust makes no buckets), or correct the name.",
        )


_PIECE = 32 * 2**20  # bytes; larger objects are fetched in pieces
_ONE_PIECE = 32 * 2**20  # bytes; larger files go in parts, which become an object at the end
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
    """An exception of a transfer, which is none of the disk."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause
        super().__init__(str(cause))


@contextmanager
def _apart() -> Iterator[None]:
    """Inside, an error that is none of the disk becomes a `_TransferError`."""
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
    """Does `work` for each of `items`, AT_ONCE of them at a time.

    Raises:
        Exception: The first that `work` raised; what has not begun by then is left undone.
    """
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="objects") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def total_bytes(objects: Mapping[str, StoredObject]) -> int:
    """The bytes of all `objects` together."""
    return sum(stored.size for stored in objects.values())
