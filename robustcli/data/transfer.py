"""One HTTP download into a `.part` file that a later call can continue."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from robustcli.core.atomic import write_text

if TYPE_CHECKING:
    from email.message import Message

_CHUNK = 1 << 20
_TIMEOUT_S = 60
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416


class InterruptedTransferError(OSError):
    """The connection ended before the whole file was there."""


@dataclass(frozen=True)
class Part:
    """What was downloaded so far, and the mark of the version it belongs to.

    Args:
        path: The file that grows.
    """

    path: Path

    @property
    def mark_path(self) -> Path:
        """Where the server's mark (ETag or date) of the version is kept."""
        return self.path.with_name(self.path.name + ".version")

    @property
    def mark(self) -> str:
        """The server's mark of the version; empty when it gave none that can be relied on."""
        return self.mark_path.read_text(encoding="utf-8") if self.mark_path.is_file() else ""

    @property
    def size(self) -> int:
        """Bytes that a later call can build on: 0 without a mark, for two versions might mix."""
        return self.path.stat().st_size if self.mark and self.path.is_file() else 0

    def discard(self) -> None:
        """Forgets what was downloaded."""
        self.path.unlink(missing_ok=True)
        self.mark_path.unlink(missing_ok=True)


def transfer(url: str, part: Part) -> None:
    """Downloads `url` to `part.path`, continuing what is there if the server still has the same.

    Raises:
        OSError: The server cannot be reached or refuses, the disk is full, or the connection
            ended early (`InterruptedTransferError`); what came so far is kept.
    """
    start = part.size
    headers = {"User-Agent": "robust"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": part.mark}
    try:
        with urlopen(Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
            continues = response.status == _PARTIAL_CONTENT
            _keep_mark(part, response.headers)
            with part.path.open("ab" if continues else "wb") as out:
                _copy(response, out)
    except HTTPError as error:
        error.close()
        if error.code != _RANGE_NOT_SATISFIABLE:
            raise
        part.discard()
        transfer(url, part)
    except http.client.HTTPException as error:
        raise InterruptedTransferError(f"the connection broke: {error!r}") from error


def _copy(response: http.client.HTTPResponse, out: IO[bytes]) -> None:
    expected = int(response.headers.get("Content-Length") or -1)
    received = 0
    while chunk := response.read(_CHUNK):
        out.write(chunk)
        received += len(chunk)
    # `read(n)` does not complain when the connection ends early.
    if expected >= 0 and received < expected:
        raise InterruptedTransferError(f"the connection ended after {received} of {expected} bytes")


def _keep_mark(part: Part, headers: Message) -> None:
    etag = headers.get("ETag", "")
    # RFC 9110, 13.1.5: a weak tag must not be used to continue a download.
    mark = headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
    write_text(part.mark_path, mark)
