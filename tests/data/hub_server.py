"""A Hugging Face hub on this machine: data sets of Parquet files, as the real one answers for them.

Only what reading a data set asks for: its commits, its list of files, and the files by ranges.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

REPO = "somebody/animals"


def commit_of(files: Mapping[str, bytes]) -> str:
    """A name for this content, like a commit of Git."""
    digest = hashlib.sha1()
    for path, content in sorted(files.items()):
        digest.update(path.encode() + b"\0" + hashlib.sha1(content).digest())
    return digest.hexdigest()


@dataclass
class Hub:
    """The hub, and what was asked of it.

    Args:
        branches: By repository and branch, its files.
        torn: Of the next answers with file contents so many break off in the middle.
        served: Bytes of file contents that were sent, by path.
        asked: The paths of all requests.
    """

    branches: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    torn: int = 0
    served: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def push(self, files: Mapping[str, bytes], repo: str = REPO, branch: str = "main") -> str:
        """Replaces what is on a branch; the commit."""
        self.branches.setdefault(repo, {})[branch] = dict(files)
        commit = commit_of(files)
        self.branches[repo][commit] = dict(files)
        return commit

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        return self.branches.get(repo, {}).get(revision)


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits 40 ms for its headers to be confirmed
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length).decode()
        is_json = "json" in self.headers.get("Content-Type", "")
        posted = json.loads(body) if is_json else parse_qs(body)
        self._answer(posted)

    def _answer(self, posted: Any = None) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/")
        self.hub.asked.append(path)
        words = path.split("/")
        if words[:2] == ["api", "datasets"]:
            self._api("/".join(words[2:4]), words[4:], posted)
        elif words[0] == "datasets" and words[3] == "resolve":
            self._file("/".join(words[1:3]), words[4], "/".join(words[5:]))
        else:
            self._send(404, {"error": "no such page"})

    def _api(self, repo: str, rest: Sequence[str], posted: Any) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        files = self.hub.files(repo, revision)
        if repo not in self.hub.branches:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif files is None:
            self._send(404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"})
        elif not rest or rest[0] == "revision":
            siblings = [{"rfilename": name} for name in sorted(files)]
            self._send(200, {
                "_id": "1", "id": repo, "sha": commit_of(files), "siblings": siblings,
                "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0,
                "tags": [],
            })  # fmt: skip
        elif rest[0] == "tree":
            below = "/".join(rest[2:])
            self._send(200, self._tree(files, below))
        elif rest[0] == "paths-info":
            expected = [p.rstrip("/") for p in posted["paths"]]
            entries = [e for e in self._tree(files, "") if e["path"] in expected]
            self._send(200, entries)
        else:
            self._send(404, {"error": "no such page"})

    def _tree(self, files: Mapping[str, bytes], below: str) -> list[dict[str, Any]]:
        inside = {p: c for p, c in files.items() if not below or p.startswith(f"{below}/")}
        parents = (str(folder) for p in inside for folder in PurePosixPath(p).parents)
        folders = {folder for folder in parents if folder.startswith(below) and folder != "."}
        entries = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": f}
            for f in sorted(folders - {below})
        ]
        return [*entries, *({"type": "file", "oid": hashlib.sha1(c).hexdigest(), "size": len(c),
                             "path": p} for p, c in inside.items())]  # fmt: skip

    def _file(self, repo: str, revision: str, path: str) -> None:
        files = self.hub.files(repo, revision)
        if files is None or path not in files:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        content, asked = files[path], self.headers.get("Range")
        head = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes",
                "X-Repo-Commit": commit_of(files)}  # fmt: skip
        status, body = 200, content
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content)), len(content) - 1) + 1
            status, body = 206, content[start:end]
            head["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._send(status, body, head)

    def _send(self, status: int, body: Any, head: Mapping[str, str] | None = None) -> None:
        is_file = isinstance(body, bytes)
        content = body if is_file else json.dumps(body).encode()
        self.send_response(status)
        for key, value in (head or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if is_file and self.hub.torn and status == 206:
            self.hub.torn -= 1
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        if is_file:  # counted first: the client goes on as soon as it has the last byte
            path = unquote(urlsplit(self.path).path)
            self.hub.served[path] = self.hub.served.get(path, 0) + len(content)
        self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers on the loopback interface while the context lasts."""
    hub = Hub()
    with local_server(type("Answers", (_Answers,), {"hub": hub})) as hub.url:
        yield hub


@contextmanager
def local_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serves `handler` on the loopback interface while the context lasts; yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def parquet(columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any] | None = None,
            group: int = 4) -> bytes:  # fmt: skip
    """A Parquet file as `datasets` writes them.

    Args:
        columns: Values by column; images as `{"bytes": ..., "path": ...}`.
        features: What `datasets` notes of the columns; None for a file that it did not write.
        group: Rows of a row group.
    """
    table = pa.table({name: list(values) for name, values in columns.items()})
    if features is not None:
        note = json.dumps({"info": {"features": dict(features)}})
        table = table.replace_schema_metadata({"huggingface": note})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=group)
    return out.getvalue()


@contextmanager
def hub_here(home: Path) -> Iterator[Hub]:
    """A hub on this machine that the hub's client and `datasets` take for the real one.

    Args:
        home: Where the client may keep what it fetches.
    """
    import datasets
    from huggingface_hub import constants, file_download

    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)  # for processes that start anew
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # Before huggingface_hub 1 the module that downloads had a copy of it.
        patch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        patch.setattr(constants, "HF_HUB_CACHE", str(home))
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        patch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        patch.setattr("robustcli.data.hub_files._PAUSES_S", (0.0, 0.0))
        yield hub


ANIMALS = ("cat", "dog", "owl")
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": list(ANIMALS), "_type": "ClassLabel"},
}


def png(number: int, side: int = 12) -> bytes:
    """A picture that only this number has."""
    out = io.BytesIO()
    pixels = np.full((side, side, 3), (number % 256, number // 256, 7), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def animals(first: int, rows: int, path: str = "{}.png") -> bytes:
    """A file of pictures number `first` and so on, of three classes in turn."""
    numbers = range(first, first + rows)
    images = [{"bytes": png(n), "path": path.format(n) if path else None} for n in numbers]
    return parquet({"image": images, "label": [n % 3 for n in numbers]}, FEATURES)
