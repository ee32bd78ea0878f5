"""Files of data sets of the Hugging Face hub: range requests, and a cache of row groups.

The first read of an image fetches one column of its complete row group, the smallest separately
readable part of a Parquet file. It is cached in the data home, for further transforms, commands and
worker processes.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustcli.core.errors import RobustError, RunError, UsageError, first_line
from robustcli.core.io import LONGEST_NAME, refused, replacing, shortened
from robustcli.data.advice import not_cached
from robustcli.data.dataset import FileRef
from robustcli.data.download import TransferPace
from robustcli.data.named_datasets import data_home, lock_on_this_machine

HUB_PREFIX = "hf:"
"""Begins the name of a data set of the hub."""
TIMEOUT_S = 60
"""Longest wait in seconds for a response of the hub."""
_CHUNK = 1 << 16
_MOST_BYTES = 2**32
"""Limit in bytes of one range request (a column of a row group, or a footer)."""
_PAUSES_S = (1.0, 4.0)
"""Delays in seconds before a failed transfer is repeated."""


@dataclass(frozen=True)
class HubCommit:
    """A data set of the hub at a commit.

    Args:
        repo: `ORG/NAME`.
        commit: Commit of the repository.
        offline: Whether to use only cached files.
    """

    repo: str
    commit: str
    offline: bool

    @property
    def home(self) -> Path:
        """Folder of the cache."""
        return repo_home(self.repo) / self.commit

    def check_online(self, reason: str) -> None:
        """Raises UsageError for a file that is not cached while the network must not be used."""
        if self.offline:
            raise not_here(self.repo, reason)


@dataclass(frozen=True)
class RowGroup:
    """One column of one row group of a file, fetched on the first read and then cached.

    Args:
        source: The data set.
        path: Path of the Parquet file in the repository.
        size: Size of the file in bytes.
        group: Index of the row group.
        leaf: Parquet path of the column of encoded images.
    """

    source: HubCommit
    path: str
    size: int
    group: int
    leaf: str

    @property
    def cache_path(self) -> Path:
        """Path of the cached row group."""
        plain = local_file_name(
            f"{self.path.removesuffix('.parquet')}-{self.group:05d}-{self.leaf}"
        )
        return self.source.home / "images" / f"{plain}.arrow"

    def ref(self, image_id: str, row: int) -> FileRef:
        """The image or mask in row `row` of the row group."""
        return FileRef(image_id, self.cache_path, f"row {row}", row, rows=self)

    def pin(self, row: int) -> str:
        """A permanent identifier of the bytes of a row: the contents of a commit never change."""
        repo, commit = self.source.repo, self.source.commit
        return f"{repo}@{commit}/{self.path}/{self.leaf}/{self.group}/{row}"

    def shown(self, row: int) -> str:
        """Cache path and index of a row, for messages."""
        return f"{self.cache_path}:row {row}"

    def read(self, row: int) -> bytes:
        """The encoded image in a row.

        Raises:
            RunError: The row group is not cached, and the transfer failed.
            UsageError: The row group is not cached, and `offline` is set.
            OSError: The row is empty.
        """
        content = self._kept_row(row)
        if content is None:
            self._fetch()
            content = self._kept_row(row)
        if not content:
            raise OSError("its row contains no image")
        return content

    def _kept_row(self, row: int) -> bytes | None:
        """The cached bytes of a row, empty for an empty row; None if the row is not cached."""
        import pyarrow as pa

        try:
            with pa.memory_map(str(self.cache_path)) as mapped:
                column = pa.ipc.open_file(mapped).get_batch(0).column(0)
                return column[row].as_py() or b""
        except (OSError, pa.ArrowException):
            return None

    def _fetch(self) -> None:
        self.source.check_online(f"row group {self.group} of `{self.path}` is not on this machine")
        try:
            lock = lock_on_this_machine(self.cache_path)
        except OSError as error:
            raise refused(self.cache_path, error) from error
        with lock:
            if self._kept_row(0) is None:  # another process may have fetched it in the meantime
                self._keep(self._column())

    def _column(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        repo, commit = self.source.repo, self.source.commit
        with fetching(repo, self.path):
            remote = RemoteFile(repo, commit, self.path, self.size)
            metadata = _metadata(repo, commit, self.path, self.size)
            file = pq.ParquetFile(remote, metadata=metadata, pre_buffer=True)
            column = file.read_row_group(self.group, columns=[self.leaf]).column(0)
        values = column.combine_chunks()
        if pa.types.is_struct(values.type):
            values = values.flatten()[0]
        return values.cast(pa.large_binary())

    def _keep(self, values: Any) -> None:
        import pyarrow as pa

        batch = pa.record_batch([values], ["bytes"])
        with (
            replacing(self.cache_path) as temporary,
            pa.OSFile(str(temporary), "wb") as out,
            pa.ipc.new_file(out, batch.schema) as writer,
        ):
            writer.write_batch(batch)


@lru_cache(maxsize=64)
def _metadata(repo: str, commit: str, path: str, size: int) -> Any:
    """The footer of a file, cached in each process."""
    import pyarrow.parquet as pq

    return pq.read_metadata(RemoteFile(repo, commit, path, size))


class RefusedByHubError(OSError):
    """The hub responded with a permanent error, such as not found or forbidden."""


class RemoteFile(io.RawIOBase):
    """A file of a repository of the hub, read with range requests.

    Args:
        repo: `ORG/NAME`.
        commit: Commit of the repository.
        path: Path of the file in the repository.
        size: Size in bytes; None to request it from the hub.
    """

    def __init__(self, repo: str, commit: str, path: str, size: int | None = None) -> None:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self._url = hf_hub_url(
            repo, path, repo_type="dataset", revision=commit, endpoint=constants.ENDPOINT
        )
        self._headers = build_hf_headers()
        self._at = 0
        self.size = self._ask_size() if size is None else size

    def _ask_size(self) -> int:
        _, content_range = self._get(0, 1)
        size = content_range.rpartition("/")[2]
        if not (size.isascii() and size.isdecimal()):
            raise OSError(f"the hub reports a length of `{shortened(size, 40)}` bytes")
        return int(size)

    def _get(self, start: int, end: int) -> tuple[bytes, str]:
        """The bytes of [start, end), and the header `Content-Range` of the response.

        Failed transfers are repeated, except for permanent errors.
        """
        if end - start > _MOST_BYTES:
            raise OSError(f"{end - start:,} bytes in one request exceed the limit")
        for pause in (*_PAUSES_S, None):
            try:
                return self._get_once(start, end)
            except Exception as error:
                if pause is None or isinstance(error, RefusedByHubError):
                    raise
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _get_once(self, start: int, end: int) -> tuple[bytes, str]:
        headers = {
            **self._headers,
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        content, pace = bytearray(), TransferPace()
        with _opened(self._url, headers) as (response, chunks):
            status = response.status_code
            if 400 <= status < 500 and status not in (408, 429):
                reason = response.headers.get("X-Error-Message") or response.reason_phrase
                raise RefusedByHubError(f"the hub returned status {status}: {first_line(reason)}")
            content_range = str(response.headers.get("Content-Range", ""))
            if status != 206 or not content_range.startswith(f"bytes {start}-"):
                raise OSError(f"the hub returned status {status} instead of the requested range")
            for chunk in chunks:  # bounds the memory, whatever the server sends
                content += chunk
                pace.add(len(chunk))
                if len(content) > end - start:
                    raise OSError(f"more than the requested {end - start:,} bytes were received")
        if len(content) < end - start:
            raise OSError(f"{len(content):,} of {end - start:,} bytes were received")
        return bytes(content), content_range

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.IOBase`."""
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence] + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase`; returns `size` bytes unless the file ends before."""
        end = self.size if size < 0 else min(self.size, self._at + size)
        if end <= self._at:
            return b""
        content, _ = self._get(self._at, end)
        self._at = end
        return content


@contextmanager
def _opened(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Iterable[bytes]]]:
    """The response of the hub, and an iterator of its undecoded body in chunks.

    Uses the session of the hub's client: httpx from huggingface-hub 1 on, requests before.
    """
    from huggingface_hub import utils

    client: Any = utils  # the functions typed as public depend on the version
    session = client.get_session()
    if callable(getattr(session, "stream", None)):  # httpx; in requests, `stream` is a flag
        with session.stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
            yield response, response.iter_raw()
        return
    with session.get(url, headers=headers, timeout=TIMEOUT_S, stream=True) as response:
        response.reason_phrase = response.reason
        read = getattr(response.raw, "read1", response.raw.read)  # urllib3 before 2 has no `read1`
        yield response, iter(lambda: read(_CHUNK, decode_content=False), b"")


# Cache paths and errors.


def local_file_name(text: str) -> str:
    """`text` with characters that are valid in a file name, shortened."""
    return shortened(re.sub(r"[^\w.-]", "--", text), LONGEST_NAME // 2)


def repo_home(repo: str) -> Path:
    """The cache folder of the repository `repo`."""
    return data_home() / "hub" / repo.replace("/", "--")


@contextmanager
def fetching(repo: str, path: str) -> Iterator[None]:
    """Context that converts exceptions of the transfer and of Parquet to RunError."""
    try:
        yield
    except RobustError:
        raise
    except Exception as error:  # HTTP libraries and pyarrow raise various exceptions
        raise broken_transfer(repo, f"`{path}` could not be read from the hub", error) from error


def broken_transfer(repo: str, what: str, error: Exception) -> RunError:
    """The error for an unreachable hub or an unexpected response."""
    return RunError(
        f"`{HUB_PREFIX}{repo}`: {what[0].lower() + what[1:] if what[0] != '`' else what}.",
        f"{type(error).__name__}: {first_line(error)}.",
        "Check the connection (and HF_TOKEN, if the data set needs it), then repeat the command: "
        "downloaded data and finished results are kept.",
    )


def not_here(repo: str, reason: str) -> UsageError:
    """The error for a data set of the hub that is not cached, see `not_cached`."""
    return not_cached(f"{HUB_PREFIX}{repo}", f"{reason} (searched in `{repo_home(repo)}`)")
