"""Small photos and data sets made on the spot."""

from __future__ import annotations

import io
import itertools
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from PIL import Image

from tests.data.hub_server import local_server

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
MakePhotos = Callable[..., Path]
_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    # `mktemp` would list all folders of earlier tests.
    home = tmp_path_factory.getbasetemp() / f"data-home{next(_NUMBERS)}"
    monkeypatch.setenv("ROBUST_HOME", str(home))
    monkeypatch.delenv("ROBUST_DATA_IMAGENET_1K", raising=False)
    monkeypatch.delenv("ROBUST_DATA_CIFAR10", raising=False)
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared")
    return SHARED


@pytest.fixture
def photos(tmp_path: Path) -> MakePhotos:
    """Writes a small JPEG at each of the given paths below a folder, which is returned."""

    def make(*names: str, root: str = "data") -> Path:
        for name in names:
            file = tmp_path / root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg(name))
        return tmp_path / root

    return make


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tar of small JPEGs with the given member names; compressed if so named."""

    def make(names: Iterable[str], file: str = "photos.tar") -> Path:
        mode = "w:gz" if file.endswith("gz") else "w"
        with tarfile.open(tmp_path / file, mode) as archive:
            for name in names:
                content = jpeg(name)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return tmp_path / file

    return make


def jpeg(name: str) -> bytes:
    """A JPEG whose colour depends on `name`."""
    buffer = io.BytesIO()
    shade = sum(name.encode()) % 256
    Image.new("RGB", (5, 4), (shade, 255 - shade, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass
class Served:
    """A file on a local web server, and how the server misbehaves.

    `cut` ends the next answer after so many bytes of the body; `ranges` and `etag` switch what a
    server may lack; `requests` holds the `Range` header of every request.
    """

    url: str = ""
    content: bytes = b""
    cut: int | None = None
    ranges: bool = True
    etag: str | None = '"v1"'
    requests: list[str | None] = field(default_factory=list)


def _handler(served: Served, folder: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(folder):  # a late client of another test at this port
                return
            expected = self.headers["Range"]
            served.requests.append(expected)
            same = self.headers["If-Range"] == served.etag
            start = int(expected[6:-1]) if expected and served.ranges and same else 0
            if self.path.endswith("missing"):
                self.send_error(404)
                return
            if start and start >= len(served.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(served.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = served.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                size = len(served.content)
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            if served.etag:
                self.send_header("ETag", served.etag)
            self.end_headers()
            cut, served.cut = served.cut, None
            with suppress(OSError):  # the client has closed the connection
                self.wfile.write(body[:cut])

        def log_message(self, *arguments: object) -> None:
            """Keeps the terminal clean."""

    return Handler


@pytest.fixture
def served() -> Iterator[Served]:
    file = Served(content=bytes(range(256)) * 5000)
    folder = f"/{uuid.uuid4()}/"
    with local_server(_handler(file, folder)) as address:
        file.url = f"{address}{folder}file.bin"
        yield file
