"""Downloads data sets and files: resumes interrupted downloads and checks their SHA-256.

No library is used for the transfer: pooch cannot resume downloads, and huggingface_hub resumes them
without checking whether the server still has the same version of the file.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import re
import shutil
import socket
import tarfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from robustcli.core.errors import RunError, UsageError
from robustcli.core.io import replacing, write_text
from robustcli.core.names import counted, find
from robustcli.data.archives import decompress, list_tar
from robustcli.data.cifar import SUFFIXES as CIFAR_SUFFIXES
from robustcli.data.cifar import by_cifar_files
from robustcli.data.named_datasets import (
    DATASETS,
    LIST_DATASETS,
    NamedDataset,
    find_named,
    lock_on_this_machine,
    tar_path,
)

if TYPE_CHECKING:
    from email.message import Message
    from http.client import HTTPMessage, HTTPResponse
    from urllib.request import OpenerDirector, Request

_LOG = logging.getLogger(__name__)
_CHUNK = 1 << 20
_TIMEOUT_S = 60
_SLOWEST, _SLOW_S = 1000, 60.0
"""A transfer with fewer than _SLOWEST bytes per second over _SLOW_S seconds is aborted."""
_HEADERS_S = 120.0  # timeout until the headers of a response are complete
_OK, _PARTIAL_CONTENT = 200, 206
_RANGE_NOT_SATISFIABLE = 416
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
_ANNOUNCED_FROM = 10_000_000  # bytes
_MOST_UNANNOUNCED = 2**35  # limit in bytes for a response without Content-Length


def fetch_dataset(name: str, *, offline: bool = False) -> Path:
    """Path of the tar of the data set `name`, which is downloaded if it is missing.

    Raises:
        UsageError: The name is unknown, or the file is missing and `offline` is set.
        RunError: The download failed or has wrong contents.
    """
    registered = find(name, (d.name for d in DATASETS), kind="data set", listing=LIST_DATASETS)
    dataset = find_named(registered)
    assert dataset is not None, "`find` returns registered names only"
    target = tar_path(dataset)
    if dataset.url is None or target.is_file():
        return target
    packed = target.with_name(target.name + ".gz")
    with _locked(target):
        # Another process may have completed the download in the meantime.
        if not target.is_file():
            if not offline and not packed.is_file():
                size = f", {dataset.megabytes} MB" if dataset.megabytes else ""
                _LOG.warning("Downloading `%s` (%s%s).", dataset.name, dataset.url, size)
            fetch_file(dataset.url, packed, sha256=dataset.sha256, offline=offline)
            unpack(dataset, packed, target)
    return target


def fetch_file(url: str, target: Path, *, sha256: str | None, offline: bool) -> str:
    """The SHA-256 (hex) of the file at `target`, downloaded from `url` if it is missing.

    Without a published `sha256`, the first download is trusted: its hash is written to
    `hash_path(target)`, and later calls check the file against it.

    An interrupted download is kept as `.part` next to `target` and resumed. With `offline`, nothing
    is downloaded.

    Raises:
        UsageError: The file is missing and `offline` is set.
        RunError: The download failed, or the file has another hash.
    """
    with _locked(target):
        trusted = hash_path(target)
        expected = sha256
        if not expected and trusted.is_file():
            expected = trusted.read_text(encoding="utf-8").strip()
        if not target.is_file():
            _download(url, target, expected, offline)
        actual = file_sha256(target)
        if expected is not None and actual != expected.lower():
            todo = f"Delete `{target}` and repeat the command."
            raise _wrong_hash(target, expected, actual, todo)
        if expected is None:
            write_text(trusted, actual + "\n")
        return actual


def file_sha256(path: Path) -> str:
    """The SHA-256 (hex) of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(target: Path) -> Path:
    """Path of the file with the hash of a trusted first download."""
    return target.with_name(target.name + ".sha256")


def _locked(target: Path) -> ExitStack:
    try:
        return lock_on_this_machine(target)
    except OSError as error:
        raise RunError(
            f"Cannot write to `{target.parent}`.",
            f"The error of the file system is: {error.strerror or error}.",
            "Set `ROBUST_HOME` to a folder that can be written to, then repeat the command.",
        ) from error


def _download(url: str, target: Path, expected: str | None, offline: bool) -> None:
    if offline:
        raise UsageError(
            f"`{target.name}` is not on this machine, and `--offline` forbids downloads.",
            f"It would be downloaded from {url}.",
            f"Omit `--offline`, or put the file at `{target}`.",
        )
    partial = PartialDownload(target.with_name(target.name + ".part"))
    try:
        if expected is None or partial.size or not partial.has_sha256(expected):
            continue_download(url, partial, expected)
    except OSError as error:
        if target.is_file():  # where locks exclude nobody, another process was faster
            return
        raise RunError(
            f"Cannot download `{target.name}` from {url}.",
            f"{error}.",
            f"Repeat the command, which continues the download, or put the file at `{target}`.",
        ) from error
    try:
        actual = file_sha256(partial.path)
        if expected is not None and actual != expected.lower():
            partial.discard()
            raise _wrong_hash(
                target, expected, actual, "The partial download was deleted. Repeat the command."
            )
        if not target.is_file():  # a file that is there may have been checked by its process
            partial.path.replace(target)
    except FileNotFoundError as error:  # where locks exclude nobody, another process was faster
        if not target.is_file():
            raise RunError(
                f"Cannot download `{target.name}` from {url}.",
                "Another process is downloading the same file and has removed the partial file.",
                "Repeat the command when the other process has ended.",
            ) from error
    partial.discard()


def _wrong_hash(target: Path, expected: str, actual: str, todo: str) -> RunError:
    return RunError(
        f"`{target.name}` does not have the expected contents.",
        f"Expected SHA-256 {expected.lower()}, got {actual}.",
        todo,
    )


class AddressError(OSError):
    """A URL is refused because it is not https."""


class EndlessTransferError(OSError):
    """A response without Content-Length exceeds the size limit."""


class _OtherVersionError(OSError):
    """The server sent a range of another version of the file."""


class InterruptedTransferError(OSError):
    """The connection ended before the file was complete."""


class SlowTransferError(OSError):
    """The transfer is too slow."""


class TransferPace:
    """Aborts a transfer whose rate is below _SLOWEST, even if data arrive regularly."""

    def __init__(self) -> None:
        self._since, self._received = time.monotonic(), 0

    def add(self, received: int) -> None:
        """Adds `received` bytes to the count.

        Raises:
            SlowTransferError: Too few bytes were received since the last check.
        """
        self._received += received
        elapsed = time.monotonic() - self._since
        if elapsed < _SLOW_S:
            return
        if self._received < _SLOWEST * elapsed:
            raise SlowTransferError(
                f"the server sent {self._received:,} bytes in {elapsed:.0f} seconds, which is too "
                "slow: the transfer was aborted"
            )
        self._since, self._received = time.monotonic(), 0


@dataclass(frozen=True)
class PartialDownload:
    """A partial download at `path`, and the version of the remote file that it is part of."""

    path: Path

    @property
    def version_path(self) -> Path:
        """Path of the file with the version reported by the server (ETag or date)."""
        return self.path.with_name(self.path.name + ".version")

    @property
    def version(self) -> str:
        """The version reported by the server; empty without a reliable one."""
        path = self.version_path
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @property
    def size(self) -> int:
        """Bytes already downloaded; 0 without a version, as two versions could be mixed."""
        return self.path.stat().st_size if self.version and self.path.is_file() else 0

    def has_sha256(self, expected: str) -> bool:
        """Whether the file exists and has the SHA-256 `expected`, so that it is complete."""
        return self.path.is_file() and file_sha256(self.path) == expected.lower()

    def discard(self) -> None:
        """Deletes the partial download and its version."""
        self.path.unlink(missing_ok=True)
        self.version_path.unlink(missing_ok=True)


def continue_download(url: str, partial: PartialDownload, expected: str | None = None) -> None:
    """Downloads `url` to `partial.path`, resuming it if the server still has the same version.

    A complete file, whose download was ended before it got its final name, is kept: one with the
    SHA-256 `expected`, or with the size and version that the server reports.

    Raises:
        OSError: The server is unreachable or reports an error, the disk is full, or the connection
            ended early (`InterruptedTransferError`; the received part is kept).
    """
    from http.client import HTTPException  # lazy: takes 30 ms
    from urllib.error import HTTPError
    from urllib.request import Request

    start = partial.size
    # No content encoding: the received bytes are stored unchanged and cannot unpack to more.
    headers = {"User-Agent": "robust", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": partial.version}
    if not url.startswith("file:"):  # chosen by the user; redirects to file: are refused
        check_address(url)
    try:
        with _opener().open(Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
            if not (start and _is_complete(start, partial, response.status, response.headers)):
                _receive(response, start, partial)
    except EndlessTransferError:
        partial.discard()
        raise
    except HTTPError as error:
        error.close()
        if error.code != _RANGE_NOT_SATISFIABLE or not start:
            raise
        complete = _is_complete(start, partial, error.code, error.headers)
        if not complete and (expected is None or not partial.has_sha256(expected)):
            partial.discard()
            continue_download(url, partial)
    except _OtherVersionError:
        partial.discard()
        continue_download(url, partial)
    except HTTPException as error:
        raise InterruptedTransferError(f"the connection broke: {error!r}") from error


def _is_complete(start: int, partial: PartialDownload, status: int, headers: Message) -> bool:
    """Whether the server's file is the `start` bytes of `partial`.

    Servers answer the request for the bytes after the last with 416, or ignore the range.
    """
    if not _is_version(partial.version, headers):
        return False
    if status == _RANGE_NOT_SATISFIABLE:
        return headers.get("Content-Range", "").strip() == f"bytes */{start}"
    return status == _OK and headers.get("Content-Length") == str(start)


def _is_version(version: str, headers: Message) -> bool:
    """Whether a response is of this version of the file, as far as its headers tell."""
    reported = [headers.get("ETag", "").removeprefix("W/"), headers.get("Last-Modified", "")]
    return not any(reported) or version in reported


def _receive(response: HTTPResponse, start: int, partial: PartialDownload) -> None:
    """Writes the response to `partial` if it is the file from `start` on, else from its beginning.

    Raises:
        OSError: See `continue_download`.
    """
    if response.status != _PARTIAL_CONTENT:
        start = 0
        partial.discard()
    elif start and not _is_version(partial.version, response.headers):
        raise _OtherVersionError  # the server ignores `If-Range`
    try:
        _check_answer(response, start, partial.path)
    except OSError:
        partial.discard()
        raise
    if not start:
        _keep_version(partial, response.headers)
        partial.path.touch()
    with partial.path.open("r+b") as out:
        _write_from(start, response, out, partial.path)


def check_address(url: str) -> None:
    """Checks that `url` is https, or http on this machine: other http could be tampered with.

    Raises:
        AddressError: The URL is neither.
    """
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_here(parts.hostname)):
        raise AddressError(f"{url} is not an https address; only https is allowed")


def _is_here(host: str | None) -> bool:
    """Whether `host` is a loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


@cache
def _opener() -> OpenerDirector:
    """Opens URLs like `urllib.request.urlopen`, but follows only redirects to https.

    Redirects from this machine to this machine are followed too. The connection is closed if the
    headers are not complete after _HEADERS_S seconds.
    """
    from http.client import HTTPConnection, HTTPSConnection
    from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, build_opener

    class TimedConnection(HTTPConnection):
        def getresponse(self) -> HTTPResponse:
            late = threading.Event()
            # The timeout of the socket restarts with each received byte.
            timer = threading.Timer(_HEADERS_S, close_connection, (self.sock, late))
            timer.start()
            try:
                return super().getresponse()
            finally:
                timer.cancel()
                if late.is_set():  # http.client may treat the closed connection as the end of
                    self.close()  # the headers
                    raise SlowTransferError(
                        f"no complete response was received within {_HEADERS_S:.0f} s"
                    )

    class TimedSecureConnection(TimedConnection, HTTPSConnection):
        pass

    class Plain(HTTPHandler):
        def http_open(self, req: Request) -> HTTPResponse:
            return self.do_open(TimedConnection, req)

    class Secure(HTTPSHandler):
        def https_open(self, req: Request) -> HTTPResponse:
            return self.do_open(TimedSecureConnection, req)

    def close_connection(sock: socket.socket, late: threading.Event) -> None:
        late.set()
        with suppress(OSError):  # already closed
            sock.shutdown(socket.SHUT_RDWR)

    class OnlySecure(HTTPRedirectHandler):
        def redirect_request(
            self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage,
            newurl: str,
        ) -> Request | None:  # fmt: skip
            from urllib.parse import urlsplit

            try:
                if urlsplit(newurl).scheme != "https" and not _is_here(
                    urlsplit(req.full_url).hostname
                ):
                    raise AddressError(f"the server redirects to {newurl}, which is not https")
                check_address(newurl)
            except AddressError:
                fp.close()
                raise
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return build_opener(OnlySecure, Plain, Secure)


def _check_answer(response: HTTPResponse, start: int, path: Path) -> None:
    """Raises OSError if the response is not the bytes from `start` on, or exceeds the disk."""
    headers, length = response.headers, _announced_size(response.headers)
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise OSError(
            f"the server sends the file with the encoding {encoding}, which was not requested"
        )
    if response.status == _PARTIAL_CONTENT:
        content_range = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        first = -1 if content_range is None else int(content_range[1])
        if not start or first != start:
            raise OSError(
                f"the server does not send the requested bytes (from {start} on): Content-Range "
                f"is `{headers.get('Content-Range', '')}`"
            )
    elif response.status not in (_OK, None):  # None for a file: URL
        raise OSError(f"the server returned status {response.status}")
    free = shutil.disk_usage(path.parent).free
    if length is not None and length > free:
        raise OSError(f"it needs {length:,} bytes, but only {free:,} are free in {path.parent}")
    if length is not None and length >= _ANNOUNCED_FROM:
        _LOG.warning("`%s`: %.0f MB to download.", path.name.removesuffix(".part"), length / 1e6)


def _announced_size(headers: Message) -> int | None:
    """The value of Content-Length; None without this header.

    Raises:
        OSError: The header is not a number.
    """
    length = headers.get("Content-Length")
    if length is None:
        return None
    if not (length.isascii() and length.isdecimal()):
        raise OSError(f"the server reports a length of `{length}` bytes")
    return int(length)


def _keep_version(partial: PartialDownload, headers: Message) -> None:
    etag = headers.get("ETag", "")
    # RFC 9110, 13.1.5: a weak tag must not be used to resume a download.
    version = headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
    write_text(partial.version_path, version)


def _copy(response: HTTPResponse, out: IO[bytes]) -> None:
    received, length, pace = 0, _announced_size(response.headers), TransferPace()
    while chunk := response.read1(_CHUNK):  # `read` would wait for the complete chunk
        out.write(chunk)
        received += len(chunk)
        pace.add(len(chunk))
        if length is None and received > _MOST_UNANNOUNCED:
            raise EndlessTransferError(
                f"the server reports no length and keeps sending: {received:,} bytes so far"
            )
    if length is None and not received:  # e.g. the connection ended within the headers
        raise InterruptedTransferError("the server sent nothing")
    # `read1` does not raise an error if the connection ends early.
    if length is not None and received < length:
        raise InterruptedTransferError(f"the connection ended after {received} of {length} bytes")


def _write_from(start: int, response: HTTPResponse, out: IO[bytes], path: Path) -> None:
    """Writes the response at its offset instead of appending it.

    If locks do not work, two processes that download one file write the same bytes to the same
    offsets.
    """
    if out.seek(0, os.SEEK_END) < start:  # the file would get a hole
        raise InterruptedTransferError(f"another process restarted the download of {path}")
    out.seek(start)
    _copy(response, out)
    out.flush()
    _check_size(path, out, start, response.headers)


def _check_size(path: Path, out: IO[bytes], start: int, headers: Message) -> None:
    """Detects that another machine wrote to the file, as locks can fail on network folders.

    Raises:
        FileNotFoundError: `path` was removed, or moved to its final name.
        InterruptedTransferError: `path` is another file than `out`, or has another size.
    """
    length, size = _announced_size(headers), path.stat().st_size
    if not os.path.samestat(path.stat(), os.fstat(out.fileno())):
        raise InterruptedTransferError(f"another process restarted the download of {path}")
    if length is not None and size != start + length:
        raise InterruptedTransferError(
            f"another process is writing to {path}: {size} bytes instead of {start + length}"
        )


def unpack(dataset: NamedDataset, packed: Path, target: Path) -> None:
    """Decompresses the download `packed` to the tar `target`, and deletes `packed`.

    Raises:
        RunError: The download is damaged or is not `dataset`. It is deleted, so the next call
            downloads it again.
    """
    with replacing(target) as temporary:
        try:
            decompress(packed, temporary)
            images = _count_images(temporary)
        except (UsageError, tarfile.TarError) as error:
            raise _not_the_set(dataset, packed, f"it is damaged: {error}") from error
        if images != dataset.images:
            raise _not_the_set(dataset, packed, f"it contains {counted(images, 'image')}")
    packed.unlink()


def _count_images(tar: Path) -> int:
    """The number of image files in `tar`, or of the images in CIFAR's files."""
    image_files = list_tar(tar).files
    if image_files:
        return len(image_files)
    published = by_cifar_files(tar, list_tar(tar, CIFAR_SUFFIXES).files)
    return 0 if published is None else len(published.labelled)


def _not_the_set(dataset: NamedDataset, packed: Path, actual: str) -> RunError:
    packed.unlink(missing_ok=True)
    hash_path(packed).unlink(missing_ok=True)
    return RunError(
        f"The file downloaded from {dataset.url} is not `{dataset.name}`.",
        f"Expected an archive of {dataset.images} images; {actual}.",
        "The download was deleted. Repeat the command, or download the data from its source by "
        "hand.",
    )
