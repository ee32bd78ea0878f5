"""Downloads by name or address: resumed after an interruption, checked by SHA-256.

No library is used for the transfer: pooch resumes nothing, and huggingface_hub resumes without
checking whether the server still has the same version of the file.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
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
from robustcli.core.names import find
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
"""A transfer of fewer bytes a second, over so many seconds, is given up."""
_HEADERS_S = 120.0  # until the headers of an answer are complete
_OK, _PARTIAL_CONTENT = 200, 206
_RANGE_NOT_SATISFIABLE = 416
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
_ANNOUNCED_FROM = 10_000_000  # bytes
_MOST_UNANNOUNCED = 2**35  # bytes of a file whose server does not announce its length


def fetch_dataset(name: str, *, offline: bool = False) -> Path:
    """The tar of the data set called `name`, downloaded if it is missing.

    Raises:
        UsageError: No data set has that name, or it is missing and `offline` is set.
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
        # Another process may have finished it in the meantime.
        if not target.is_file():
            if not offline and not packed.is_file():
                size = f", {dataset.megabytes} MB" if dataset.megabytes else ""
                _LOG.warning("Downloading `%s` (%s%s).", dataset.name, dataset.url, size)
            fetch_file(dataset.url, packed, sha256=dataset.sha256, offline=offline)
            unpack(dataset, packed, target)
    return target


def fetch_file(url: str, target: Path, *, sha256: str | None, offline: bool) -> str:
    """The SHA-256 (hex) of the file at `target`, downloaded from `url` if it is missing.

    Without a published hash, the first download is trusted: its hash is written to
    `hash_path(target)`, and from then on the file must have it.

    An interrupted download is kept beside `target` as `.part` and resumed; `offline` forbids the
    network.

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
    """The file with the hash of a first download that was trusted."""
    return target.with_name(target.name + ".sha256")


def _locked(target: Path) -> ExitStack:
    try:
        return lock_on_this_machine(target)
    except OSError as error:
        raise RunError(
            f"Cannot write to `{target.parent}`.",
            f"The file system says: {error.strerror or error}.",
            "Set `ROBUST_HOME` to a folder that can be written to, then repeat the command.",
        ) from error


def _download(url: str, target: Path, expected: str | None, offline: bool) -> None:
    if offline:
        raise UsageError(
            f"`{target.name}` is not on this machine, and `--offline` forbids the network.",
            f"It would come from {url}.",
            f"Leave out `--offline`, or put the file at `{target}`.",
        )
    partial = PartialDownload(target.with_name(target.name + ".part"))
    try:
        continue_download(url, partial)
    except OSError as error:
        raise RunError(
            f"Cannot download `{target.name}` from {url}.",
            f"{error}.",
            f"Repeat the command: it continues where it stopped. Or put the file at `{target}`.",
        ) from error
    actual = file_sha256(partial.path)
    if expected is not None and actual != expected.lower():
        partial.discard()
        raise _wrong_hash(target, expected, actual, "Nothing was kept; repeat the command.")
    partial.path.replace(target)
    partial.discard()


def _wrong_hash(target: Path, expected: str, actual: str, todo: str) -> RunError:
    return RunError(
        f"`{target.name}` is not the file it should be.",
        f"Expected SHA-256 {expected.lower()}, got {actual}.",
        todo,
    )


class AddressError(OSError):
    """An address that is not followed."""


class EndlessTransferError(OSError):
    """The server sends more than any file that is downloaded has."""


class InterruptedTransferError(OSError):
    """The connection ended before the file was complete."""


class SlowTransferError(OSError):
    """The server sends so slowly that the transfer would not end."""


class TransferPace:
    """Gives up a transfer that is too slow, however regularly something comes."""

    def __init__(self) -> None:
        self._since, self._received = time.monotonic(), 0

    def add(self, received: int) -> None:
        """Counts `received` bytes that have come.

        Raises:
            SlowTransferError: Too few came since the last check.
        """
        self._received += received
        elapsed = time.monotonic() - self._since
        if elapsed < _SLOW_S:
            return
        if self._received < _SLOWEST * elapsed:
            raise SlowTransferError(
                f"the server sent {self._received:,} bytes in {elapsed:.0f} seconds: given up"
            )
        self._since, self._received = time.monotonic(), 0


@dataclass(frozen=True)
class PartialDownload:
    """A partial download at `path`, and the version of the file to which it belongs."""

    path: Path

    @property
    def version_path(self) -> Path:
        """The file with the server's mark of the version (ETag or date)."""
        return self.path.with_name(self.path.name + ".version")

    @property
    def version(self) -> str:
        """The server's mark of the version; empty without a reliable one."""
        path = self.version_path
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @property
    def size(self) -> int:
        """Bytes that can be resumed: 0 without a version, because two versions might be mixed."""
        return self.path.stat().st_size if self.version and self.path.is_file() else 0

    def discard(self) -> None:
        """Deletes the download."""
        self.path.unlink(missing_ok=True)
        self.version_path.unlink(missing_ok=True)


def continue_download(url: str, partial: PartialDownload) -> None:
    """Downloads `url` to `partial.path`, resuming it if the server still has the same version.

    Raises:
        OSError: The server cannot be reached or refuses, the disk is full, or the connection
            ended early (`InterruptedTransferError`); the received part is kept.
    """
    from http.client import HTTPException  # takes 30 ms, which listing data sets must not pay
    from urllib.error import HTTPError
    from urllib.request import Request

    start = partial.size
    # Without an encoding: what is received is what is stored, and cannot unpack to more.
    headers = {"User-Agent": "robust", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": partial.version}
    if not url.startswith("file:"):  # only a redirect to one could be a server's
        check_address(url)
    try:
        with _opener().open(Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
            if response.status != _PARTIAL_CONTENT:
                start = 0
                partial.discard()
            try:
                _check_answer(response, start, partial.path)
            except OSError:
                partial.discard()
                raise
            _keep_version(partial, response.headers)
            # Not by appending: where locks do not exclude, two processes that download one file
            # write the same bytes to the same places.
            partial.path.touch()
            with partial.path.open("r+b") as out:
                out.seek(start)
                _copy(response, out)
            _check_size(partial.path, start, response.headers)
    except EndlessTransferError:
        partial.discard()
        raise
    except HTTPError as error:
        error.close()
        if error.code != _RANGE_NOT_SATISFIABLE or not start:
            raise
        partial.discard()
        continue_download(url, partial)
    except HTTPException as error:
        raise InterruptedTransferError(f"the connection broke: {error!r}") from error


def check_address(url: str) -> None:
    """Checks that `url` is one of https, or of this machine: others could be changed on the way.

    Raises:
        AddressError: It is not.
    """
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_here(parts.hostname)):
        raise AddressError(f"{url} is not an address of https, which alone is followed")


def _is_here(host: str | None) -> bool:
    """Whether `host` is a loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


@cache
def _opener() -> OpenerDirector:
    """Opens addresses as `urllib.request.urlopen`, but follows redirects to https alone.

    From an address of this machine those to this machine are followed too. A server that has not
    sent all headers in time is hung up on.
    """
    from http.client import HTTPConnection, HTTPSConnection
    from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, build_opener

    class Impatient(HTTPConnection):
        def getresponse(self) -> HTTPResponse:
            late = threading.Event()
            # The socket's own timeout begins anew with each byte that comes.
            timer = threading.Timer(_HEADERS_S, hang_up, (self.sock, late))
            timer.start()
            try:
                return super().getresponse()
            finally:
                timer.cancel()
                if late.is_set():  # http.client may take the end of the connection for that of the
                    self.close()  # headers
                    raise SlowTransferError(f"no answer was complete after {_HEADERS_S:.0f} s")

    class ImpatientSecure(Impatient, HTTPSConnection):
        pass

    class Plain(HTTPHandler):
        def http_open(self, req: Request) -> HTTPResponse:
            return self.do_open(Impatient, req)

    class Secure(HTTPSHandler):
        def https_open(self, req: Request) -> HTTPResponse:
            return self.do_open(ImpatientSecure, req)

    def hang_up(sock: socket.socket, late: threading.Event) -> None:
        late.set()
        with suppress(OSError):  # closed in the meantime
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
    """Raises OSError where the answer is not the bytes from `start` on, or has no room."""
    headers, length = response.headers, _announced_size(response.headers)
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise OSError(f"the server encodes the file ({encoding}), which was not asked for")
    if response.status == _PARTIAL_CONTENT:
        content_range = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        first = -1 if content_range is None else int(content_range[1])
        if not start or first != start:
            raise OSError(
                f"the server sends other bytes than asked for (from {start} on): Content-Range "
                f"is `{headers.get('Content-Range', '')}`"
            )
    elif response.status not in (_OK, None):  # None for a file
        raise OSError(f"the server answers with status {response.status}")
    free = shutil.disk_usage(path.parent).free
    if length is not None and length > free:
        raise OSError(f"it needs {length:,} bytes, and {free:,} are free in {path.parent}")
    if length is not None and length >= _ANNOUNCED_FROM:
        _LOG.warning("`%s`: %.0f MB to download.", path.name.removesuffix(".part"), length / 1e6)


def _announced_size(headers: Message) -> int | None:
    """The bytes that the server says to send; None where it says nothing.

    Raises:
        OSError: The header is no number.
    """
    length = headers.get("Content-Length")
    if length is None:
        return None
    if not (length.isascii() and length.isdecimal()):
        raise OSError(f"the server announces `{length}` bytes")
    return int(length)


def _keep_version(partial: PartialDownload, headers: Message) -> None:
    etag = headers.get("ETag", "")
    # RFC 9110, 13.1.5: a weak tag must not be used to resume a download.
    version = headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
    write_text(partial.version_path, version)


def _copy(response: HTTPResponse, out: IO[bytes]) -> None:
    received, length, pace = 0, _announced_size(response.headers), TransferPace()
    while chunk := response.read1(_CHUNK):  # `read` would wait until all of it has come
        out.write(chunk)
        received += len(chunk)
        pace.add(len(chunk))
        if length is None and received > _MOST_UNANNOUNCED:
            raise EndlessTransferError(
                f"the server announces no length and does not end: {received:,} bytes so far"
            )
    if length is None and not received:  # as where the connection ended among the headers
        raise InterruptedTransferError("the server sent nothing")
    # `read1` raises nothing if the connection ends early.
    if length is not None and received < length:
        raise InterruptedTransferError(f"the connection ended after {received} of {length} bytes")


def _check_size(path: Path, start: int, headers: Message) -> None:
    """Detects that two machines wrote to one file, which locks on network folders may allow."""
    length, size = _announced_size(headers), path.stat().st_size
    if length is not None and size != start + length:
        raise InterruptedTransferError(
            f"another process writes to {path}: {size} bytes instead of {start + length}"
        )


def unpack(dataset: NamedDataset, packed: Path, target: Path) -> None:
    """Makes the tar `target` from the download `packed`, which is then removed.

    Raises:
        RunError: The download is damaged or not `dataset`; it is removed, so the next fetch
            downloads again.
    """
    with replacing(target) as beside:
        try:
            decompress(packed, beside)
            images = _count_images(beside)
        except (UsageError, tarfile.TarError) as error:
            raise _not_the_set(dataset, packed, f"it is damaged: {error}") from error
        if images != dataset.images:
            raise _not_the_set(dataset, packed, f"it holds {images} images")
    packed.unlink()


def _count_images(tar: Path) -> int:
    """The image files in `tar`, or the images in CIFAR's files."""
    image_files = list_tar(tar).files
    if image_files:
        return len(image_files)
    published = by_cifar_files(tar, list_tar(tar, CIFAR_SUFFIXES).files)
    return 0 if published is None else len(published.labelled)


def _not_the_set(dataset: NamedDataset, packed: Path, actual: str) -> RunError:
    packed.unlink(missing_ok=True)
    hash_path(packed).unlink(missing_ok=True)
    return RunError(
        f"What came from {dataset.url} is not `{dataset.name}`.",
        f"Expected an archive of {dataset.images} images, but {actual}.",
        "Nothing was kept. Repeat the command, or fetch the data from its source by hand.",
    )
