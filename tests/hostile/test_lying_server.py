"""Downloads from a server that sends wrong data: nothing wrong is stored or used."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import multiprocessing
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

from robustcli.core.errors import RunError
from robustcli.data import download, hub_files
from robustcli.data.archives import decompress, list_tar
from robustcli.data.download import check_address, fetch_file
from tests.data.hub_server import local_server

CONTENT = bytes(range(251)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class LyingServer:
    """A server that sends `answers` in turn, and then repeats the last one."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    agreed: threading.Lock = field(default_factory=threading.Lock)


@pytest.fixture
def server() -> Iterator[LyingServer]:
    state, secret = LyingServer(), f"/{uuid.uuid4()}/"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            # Clients of other tests may come late to a port that is used again, and huggingface_hub
            # asks its server for `api/agent-harnesses` in a thread of its own.
            if self.path not in (f"{secret}file.bin", f"{secret}data.parquet"):
                self.close_connection = True
                return
            with state.agreed:
                state.ranges.append(self.headers["Range"])
                reply = state.answers[0]
                if len(state.answers) > 1:
                    state.answers.pop(0)
            self.close_connection = True
            with suppress(OSError):  # the client has closed the connection
                reply(self)

        def log_message(self, *arguments: object) -> None:
            """Suppresses the server's log."""

    with local_server(Handler) as address:
        state.url = f"{address}{secret}file.bin"
        yield state


def reply(body: bytes = CONTENT, status: int = 200, **headers: object) -> Answer:
    """Returns an answer with that body; `headers` extend or replace the default headers."""
    # Without `Connection`, clients may send the next request over the closed connection.
    all_headers = {"Content-Length": len(body), "ETag": '"v1"', "Connection": "close"}
    all_headers |= {name.replace("_", "-"): value for name, value in headers.items()}

    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in all_headers.items():
            if value is not None:
                request.send_header(name, str(value))
        request.end_headers()
        request.wfile.write(body)

    return send


def endless(request: BaseHTTPRequestHandler) -> None:
    """Sends an endless body without a length."""
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    while True:
        request.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")


def refused_message(server: LyingServer, target: Path, sha256: str | None = None) -> str:
    """Returns the message of a failed download, which must leave no file under the final name."""
    with pytest.raises(RunError) as caught:
        fetch_file(server.url, target, sha256=sha256, offline=False)
    assert not target.exists()
    assert not download.hash_path(target).exists()
    return str(caught.value)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "home" / "file.bin"


def cut_short(request: BaseHTTPRequestHandler) -> None:
    """Sends headers that end before the length."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nETag: x\r\n")


HALF = len(CONTENT) // 2
SECOND_HALF = CONTENT[HALF:]
FAULTS: dict[str, tuple[Answer, str]] = {
    "longer than it says": (reply(Content_Length=HALF), "does not have the expected contents"),
    "shorter than it says": (reply(Content_Length=10**6), "ended after"),
    "other content": (reply(CONTENT[::-1]), "does not have the expected contents"),
    "no number": (reply(Content_Length="many"), "reports a length"),
    "negative length": (reply(Content_Length=-5), "reports a length"),
    "more than the disk holds": (reply(Content_Length=10**18), "are free"),
    "packed": (reply(gzip.compress(CONTENT), Content_Encoding="gzip"), "encoding"),
    "a bomb": (reply(gzip.compress(bytes(10**7)), Content_Encoding="gzip"), "encoding"),
    "unasked range": (reply(SECOND_HALF, 206, Content_Range=f"bytes {HALF}-{len(CONTENT) - 1}/*"),
                      "does not send the requested bytes"),
    "no content": (reply(b"", 204), "status 204"),
    "range not satisfiable for ever": (reply(b"", 416), "416"),
    "broken off among the headers": (cut_short, "sent nothing"),
    "server error": (reply(b"", 500), "500"),
    "redirect to http": (reply(b"", 302, Location="http://example.org/x"), "not an https"),
    "redirect to a file": (reply(b"", 302, Location="file:///etc/passwd"), "not allowed"),
    "redirect to ftp": (reply(b"", 302, Location="ftp://127.0.0.1/file.bin"), "not an https"),
    "redirect to data": (reply(b"", 302, Location="data:,x"), "not allowed"),
    "redirect to itself": (reply(b"", 302, Location="file.bin"), "redirect"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_wrong_is_kept(server: LyingServer, target: Path, fault: str) -> None:
    send, reason = FAULTS[fault]
    server.answers = [send]
    assert reason in refused_message(server, target, SHA256)
    server.answers = [reply()]
    assert fetch_file(server.url, target, sha256=SHA256, offline=False) == SHA256
    assert target.read_bytes() == CONTENT


def broken_off(server: LyingServer, target: Path, next_answer: Answer) -> None:
    """Downloads the first half; the server answers the next request with `next_answer`."""
    server.answers = [reply(CONTENT[:HALF], Content_Length=len(CONTENT)), next_answer]
    assert "ended after" in refused_message(server, target)


@pytest.mark.parametrize(
    "content_range",
    [f"bytes 0-{HALF - 1}/{len(CONTENT)}", f"bytes {HALF + 1}-{len(CONTENT)}/*", "", "bytes */9",
     "lines 1-2/3", f"bytes {HALF}"],
)  # fmt: skip
def test_a_wrong_range_is_never_appended(
    server: LyingServer, target: Path, content_range: str
) -> None:
    """Without a published hash, nothing else would detect the mixture."""
    broken_off(server, target, reply(SECOND_HALF, 206, Content_Range=content_range))
    assert "does not send the requested bytes" in refused_message(server, target)
    server.answers = [reply()]
    assert fetch_file(server.url, target, sha256=None, offline=False) == SHA256
    assert server.ranges == [None, f"bytes={HALF}-", None]


@pytest.mark.parametrize("version", [{"ETag": '"v2"'}, {"ETag": None, "Last_Modified": "today"}])
def test_a_range_of_another_version_is_never_appended(
    server: LyingServer, target: Path, version: dict[str, str]
) -> None:
    half, other = len(CONTENT) // 2, bytes(len(CONTENT))
    content_range = f"bytes {half}-{len(CONTENT) - 1}/{len(CONTENT)}"
    server.answers = [
        reply(CONTENT[:half], Content_Length=len(CONTENT)),
        reply(other[half:], 206, Content_Range=content_range, **version),
        reply(other, **version),
    ]
    refused_message(server, target)
    fetch_file(server.url, target, sha256=None, offline=False)
    assert target.read_bytes() == other
    assert server.ranges == [None, f"bytes={half}-", None]


def test_a_continued_download_keeps_its_version(server: LyingServer, target: Path) -> None:
    third, size = len(CONTENT) // 3, len(CONTENT)
    rest = {"Content_Length": size - third, "ETag": None}
    server.answers = [
        reply(CONTENT[:third], Content_Length=size),
        reply(CONTENT[third : 2 * third], 206, Content_Range=f"bytes {third}-{size - 1}/{size}",
              **rest),
        reply(CONTENT[2 * third :], 206, Content_Range=f"bytes {2 * third}-{size - 1}/{size}"),
    ]  # fmt: skip
    refused_message(server, target)
    refused_message(server, target)
    fetch_file(server.url, target, sha256=None, offline=False)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={third}-", f"bytes={2 * third}-"]


def test_a_body_without_end_is_given_up(
    server: LyingServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_MOST_UNANNOUNCED", 3_000_000)
    server.answers = [endless]
    assert "keeps sending" in refused_message(server, target)
    assert sum(path.stat().st_size for path in target.parent.iterdir()) < 1000


def dripping(request: BaseHTTPRequestHandler, headers: bool) -> None:
    """Returns an answer that sends headers or body byte by byte."""
    content = b"HTTP/1.1 200 OK\r\nETag: x\r\n" if headers else CONTENT
    if not headers:
        request.send_response(200)
        request.send_header("Content-Length", str(len(CONTENT)))
        request.send_header("ETag", '"v1"')
        request.end_headers()
    else:
        content += b"X: y\r\n" * 1000
    for byte in content:
        request.wfile.write(bytes([byte]))
        time.sleep(0.01)


def test_a_body_that_drips_is_given_up_and_continued(
    server: LyingServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_SLOW_S", 0.3)
    server.answers = [lambda request: dripping(request, headers=False)]
    started_at = time.monotonic()
    assert "bytes in 0 seconds, which is too slow" in refused_message(server, target, SHA256)
    assert time.monotonic() - started_at < 5  # the complete body would take 1,000
    received = sum(path.stat().st_size for path in target.parent.glob("*.part"))
    assert 0 < received < 1000
    remaining, last = CONTENT[received:], len(CONTENT) - 1
    server.answers = [reply(remaining, 206, Content_Range=f"bytes {received}-{last}/{last + 1}")]
    assert fetch_file(server.url, target, sha256=SHA256, offline=False) == SHA256
    assert server.ranges == [None, f"bytes={received}-"]


def test_headers_that_drip_are_given_up(
    server: LyingServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_HEADERS_S", 0.3)
    server.answers = [lambda request: dripping(request, headers=True)]
    started_at = time.monotonic()
    assert "no complete response was received within" in refused_message(server, target)
    assert time.monotonic() - started_at < 5
    server.answers = [reply()]
    assert fetch_file(server.url, target, sha256=None, offline=False) == SHA256


def test_a_slow_line_that_gets_on_is_waited_for(
    server: LyingServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_SLOW_S", 0.05)

    def send_slowly(request: BaseHTTPRequestHandler) -> None:
        reply(b"", Content_Length=len(CONTENT))(request)
        for first in range(0, len(CONTENT), 10_000):
            request.wfile.write(CONTENT[first : first + 10_000])
            time.sleep(0.02)

    server.answers = [send_slowly]
    assert fetch_file(server.url, target, sha256=SHA256, offline=False) == SHA256


def test_a_connection_that_is_reset_is_continued(server: LyingServer, target: Path) -> None:
    def reset_connection(request: BaseHTTPRequestHandler) -> None:
        reply(CONTENT[:HALF], Content_Length=len(CONTENT))(request)
        request.wfile.flush()
        request.connection.shutdown(2)

    server.answers = [reset_connection]
    refused_message(server, target, SHA256)
    server.answers = [reply()]
    assert fetch_file(server.url, target, sha256=SHA256, offline=False) == SHA256


@pytest.mark.parametrize(
    ("url", "is_followed"),
    [("https://example.org/x", True), ("http://127.0.0.1:9/x", True), ("http://[::1]/x", True),
     ("http://localhost/x", True), ("http://example.org/x", False), ("http://127.0.0.1.org", False),
     ("http://10.0.0.1/x", False), ("file:///etc/passwd", False), ("ftp://127.0.0.1/x", False),
     ("HTTP://example.org", False), ("//example.org", False), ("", False)],
)  # fmt: skip
def test_addresses_that_are_followed(url: str, is_followed: bool) -> None:
    if is_followed:
        check_address(url)
        return
    with pytest.raises(download.AddressError, match="not an https address"):
        check_address(url)


def test_https_never_leads_to_this_machine() -> None:
    """A public server must not cause a request inside the user's network."""
    handler = next(h for h in download._opener().handlers if type(h).__name__ == "OnlySecure")
    request = SimpleNamespace(full_url="https://example.org/x")
    with pytest.raises(download.AddressError, match="not https"):
        handler.redirect_request(request, io.BytesIO(), 302, "", {}, "http://127.0.0.1:80/x")


def test_the_size_is_announced(
    server: LyingServer,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(download, "_ANNOUNCED_FROM", 1000)
    server.answers = [reply()]
    with caplog.at_level(logging.WARNING):
        fetch_file(server.url, target, sha256=None, offline=False)
    assert caplog.messages == ["`file.bin`: 0 MB to download."]


def test_two_processes_share_one_download(server: LyingServer, target: Path) -> None:
    server.answers = [reply()]
    context = multiprocessing.get_context("spawn")
    keywords = {"sha256": SHA256, "offline": False}
    processes = [
        context.Process(target=fetch_file, args=(server.url, target), kwargs=keywords)
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert server.ranges == [None]
    assert target.read_bytes() == CONTENT


def test_a_compressed_tar_that_would_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustcli.core.errors import UsageError
    from robustcli.data import archives

    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(archives, "_MOST_UNPACKED", 1_000_000)
    bomb = tmp_path / "set.tar.gz"
    bomb.write_bytes(gzip.compress(bytes(20_000_000)))
    with pytest.raises(UsageError, match="unpacks to more than"):
        list_tar(bomb)
    assert not [path for path in (tmp_path / "home").rglob("*") if path.stat().st_size > 10_000]
    bomb.write_bytes(gzip.compress(bytes(900_000)))
    decompress(bomb, tmp_path / "small.tar")
    assert (tmp_path / "small.tar").stat().st_size == 900_000


@pytest.fixture
def remote(server: LyingServer, monkeypatch: pytest.MonkeyPatch) -> hub_files.RemoteFile:
    """Returns a file of 1,000 bytes on a hub, which is `lying_server`."""
    from huggingface_hub import constants

    hub = server.url.removesuffix("/file.bin")
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    template = hub + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_files, "_PAUSES_S", (0.0,))
    remote = hub_files.RemoteFile("somebody/set", "0" * 40, "data.parquet", 1000)
    monkeypatch.setattr(remote, "_url", f"{hub}/data.parquet")
    return remote


RANGE = "bytes 0-99/1000"
HUB_FAULTS: dict[str, tuple[Answer, str]] = {
    "more than was asked for": (reply(CONTENT, 206, Content_Range=RANGE), "requested 100"),
    "without end": (endless, "status 200"),
    "packed": (reply(gzip.compress(bytes(10**6)), 206, Content_Encoding="gzip",
                      Content_Range=RANGE), "requested 100"),
    "less": (reply(CONTENT[:50], 206, Content_Range=RANGE), "50 of 100 bytes"),
    "another range": (reply(CONTENT[:100], 206, Content_Range="bytes 900-999/1000"),
                      "the requested range"),
    "everything": (reply(), "status 200"),
    "server error": (reply(b"", 503), "status 503"),
    "refusal": (reply(bytes(10**6), 403, X_Error_Message="Gated"), "status 403: Gated"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HUB_FAULTS)
def test_of_the_hub_no_more_is_held_than_was_asked_for(
    server: LyingServer, remote: hub_files.RemoteFile, fault: str
) -> None:
    send, reason = HUB_FAULTS[fault]
    server.answers = [send]
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match=reason):
            remote.read(100)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The endless answer is sent by a thread of this process, whose buffers count too.
    assert most < 4_000_000
    assert len(server.ranges) == (1 if fault == "refusal" else 2)
    server.answers = [reply(CONTENT[:100], 206, Content_Range=RANGE)]
    assert remote.read(100) == CONTENT[:100]
    assert remote.tell() == 100


def test_endless_ranges_of_the_hub_are_cut(
    server: LyingServer, remote: hub_files.RemoteFile
) -> None:
    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(206)
        request.send_header("Content-Range", RANGE)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        while True:
            request.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")

    server.answers = [send]
    with pytest.raises(OSError, match="more than the requested 100 bytes"):
        remote.read(100)


def test_a_hub_that_drips_is_given_up(
    server: LyingServer, remote: hub_files.RemoteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_SLOW_S", 0.2)

    def send(request: BaseHTTPRequestHandler) -> None:
        reply(b"", 206, Content_Range="bytes 0-999/1000", Content_Length=1000)(request)
        for byte in CONTENT[:1000]:
            request.wfile.write(bytes([byte]))
            time.sleep(0.01)

    server.answers = [send]
    started_at = time.monotonic()
    with pytest.raises(download.SlowTransferError, match="too slow"):
        remote.read()
    assert time.monotonic() - started_at < 5


@pytest.mark.parametrize("size", ["*", "many", "-5", "1e9"])
def test_a_hub_that_announces_no_number(
    server: LyingServer, remote: hub_files.RemoteFile, size: str
) -> None:
    server.answers = [reply(b"x", 206, Content_Range=f"bytes 0-0/{size}")]
    with pytest.raises(OSError, match="reports a length"):
        remote._ask_size()


def test_a_range_that_is_larger_than_memory_is_not_asked_for(
    server: LyingServer, remote: hub_files.RemoteFile
) -> None:
    remote.size = 2**60
    with pytest.raises(OSError, match="exceed the limit"):
        remote.read()
    assert server.ranges == []
