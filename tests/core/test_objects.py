"""Object stores through fsspec, on its file system in memory and on ones that fail."""

from __future__ import annotations

import errno
import importlib.util
import os
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import asyn

from robustcli.core import objects
from robustcli.core.errors import MachineError, RunError, UsageError
from robustcli.core.objects import (
    AT_ONCE,
    ObjectStore,
    at_once,
    kind_of_store,
    names_url,
    path_here,
)


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(f"memory://{uuid.uuid4().hex}/run")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAUSES_S", (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/run", "GS://bucket/x", "https://example.org/a.tar", "s3:/bucket/run",
     Path("s3://bucket/run"), "file:///tmp/x"],
)  # fmt: skip
def test_addresses(text: object) -> None:
    assert names_url(text)
    with pytest.raises(UsageError, match="is not a local path"):
        path_here(str(text))


@pytest.mark.parametrize(
    "text",
    ["runs/eval", "C:/data", "C:\\data", "/data/s3", "hf:ORG/NAME", "hf-hub:timm/resnet18",
     "data.tar:val", "folder:/val", "smp:unet/resnet18", "."],
)  # fmt: skip
def test_paths_and_names_are_no_addresses(text: str) -> None:
    assert not names_url(text)
    assert path_here(text) == Path(text)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "not in a supported object store"),
        ("file:///tmp/x", "Write the path without `file://`"),
        ("s3:/bucket/x", r"Write `s3://bucket/x`"),
        ("s3:///x", "two slashes"),
        ("s3://", "has no bucket or no name"),
        ("s3://bucket/x::memory://y", "has no bucket or no name"),
    ],
)
def test_what_is_no_address_of_a_store(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind_of_store(url)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"pip install gcsfs") as raised:
        ObjectStore("gs://bucket/x")
    assert raised.value.exit_code == 3


def test_objects_are_written_listed_read_and_removed(store: ObjectStore, tmp_path: Path) -> None:
    store.write("a/b", b"12")
    (tmp_path / "file").write_bytes(b"345")
    store.send("c d", tmp_path / "file")
    assert {name: stored.size for name, stored in store.listed().items()} == {"a/b": 2, "c d": 3}
    assert list(store.listed("a")) == ["a/b"]
    assert store.read("c d") == b"345"
    store.fetch("a/b", tmp_path / "x" / "y")
    assert (tmp_path / "x" / "y").read_bytes() == b"12"
    store.remove("a/b")
    store.remove("a/b")
    assert list(store.listed()) == ["c d"]
    with pytest.raises(FileNotFoundError):
        store.read("a/b")
    with pytest.raises(FileNotFoundError):
        store.fetch("a/b", tmp_path / "z")
    assert not list(tmp_path.glob("*z*"))


def test_a_store_can_be_sent_to_other_processes(store: ObjectStore) -> None:
    store.write("a", b"1")
    copied = pickle.loads(pickle.dumps(store))
    assert copied.url == store.url
    assert copied.read("a") == b"1"


class Failing:
    """Replaces an operation of the file system in memory by one that fails some times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.system = fsspec.filesystem("memory")
        self.monkeypatch, self.name = monkeypatch, name
        self.calls = 0

    def by(self, error: Exception, times: int, during: Callable[..., None] | None = None) -> None:
        real = getattr(self.system, self.name)

        def fail(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls <= times:
                if during is not None:
                    during(*arguments)
                raise error
            return real(*arguments, **options)

        self.monkeypatch.setattr(type(self.system), self.name, staticmethod(fail))


@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError()])
def test_a_broken_transfer_is_tried_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing = Failing(monkeypatch, "cat_file")
    store.write("a", b"1")
    failing.by(error, times=3)
    assert store.read("a") == b"1"
    assert failing.calls == 4


def test_tries_are_bounded(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(monkeypatch, "pipe_file")
    failing.by(ConnectionResetError("the line is dead"), times=100)
    with pytest.raises(RunError, match=r"(?s)cannot be reached.*the line is dead.*repeat"):
        store.write("a", b"1")
    assert failing.calls == 4


def test_half_a_transfer_leaves_no_file(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.write("a", b"12345678")
    failing = Failing(monkeypatch, "get_file")
    failing.by(
        ConnectionResetError("reset"), times=100,
        during=lambda source, target: Path(target).write_bytes(b"1234"),
    )  # fmt: skip
    with pytest.raises(RunError, match="cannot be reached"):
        store.fetch("a", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_not_taken_for_a_broken_connection(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.write("a", b"1")
    failing = Failing(monkeypatch, "get_file")
    failing.by(OSError(errno.ENOSPC, "No space left on device"), times=100)
    with pytest.raises(RunError, match=r"(?s)Cannot write.*No space left"):
        store.fetch("a", tmp_path / "a")
    assert failing.calls == 1


class NoCredentialsError(Exception):
    """As botocore's."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (NoCredentialsError("Unable to locate credentials"), MachineError, "No credentials"),
        (PermissionError("Forbidden"), UsageError, "denied the access"),
        (FileNotFoundError("The specified bucket does not exist"), UsageError, "does not exist"),
    ],
)
def test_what_the_store_refuses_is_not_tried_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception],
    message: str,
) -> None:  # fmt: skip
    failing = Failing(monkeypatch, "pipe_file")
    failing.by(error, times=100)
    with pytest.raises(kind, match=message):
        store.write("a", b"1")
    assert failing.calls == 1


def test_a_large_object_goes_on_where_it_broke_off(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(objects, "_PIECE", 100)
    content = bytes(range(256)) * 2
    store.write("a", content)
    stored = store.listed()["a"]
    starts = list[int]()
    system = fsspec.filesystem("memory")
    real, broken = system.cat_file, True

    def cat_file(path: str, start: int, end: int) -> bytes:
        starts.append(start)
        if start == 300 and broken:
            raise ConnectionResetError("reset")
        return bytes(real(path, start=start, end=end))

    monkeypatch.setattr(type(system), "cat_file", staticmethod(cat_file))
    with pytest.raises(RunError, match="cannot be reached"):
        store.fetch("a", tmp_path / "a", stored)
    assert not (tmp_path / "a").exists()
    broken = False
    starts.clear()
    store.fetch("a", tmp_path / "a", stored)
    assert starts == [300, 400, 500]
    assert (tmp_path / "a").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_first_error_of_several_ends_them() -> None:
    """Items that have not started when another one fails are not started, whoever is faster."""
    done, failing = list[int](), threading.Event()

    def work(number: int) -> None:
        if number == 3:
            failing.set()
            raise ZeroDivisionError
        assert failing.wait(60)
        time.sleep(0.05)  # the failure is noted meanwhile
        done.append(number)

    with pytest.raises(ZeroDivisionError):
        at_once(range(1000), work)
    assert len(done) < 2 * AT_ONCE
    at_once([], work)


def test_the_packages_of_all_kinds_are_those_of_the_extra() -> None:
    import tomllib

    repository = Path(__file__).parents[2]
    project = tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))["project"]
    extra = {line.partition(">")[0] for line in project["optional-dependencies"]["remote"]}
    needed = {kind.package for kind in objects.STORE_KINDS.values()}
    assert needed - extra <= {"huggingface-hub", "fsspec"}
    assert importlib.util.find_spec("fsspec") is not None


async def _one() -> int:
    return 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_starts_a_loop_of_its_own() -> None:
    """fsspec before 2025.5 waits for the loop of the parent, later ones for a lock that it held."""
    loop = asyn.get_loop()
    with asyn.get_lock():
        child = os.fork()
        if not child:
            signal.alarm(5)
            answer = asyn.sync(asyn.get_loop(), _one)
            os._exit(0 if answer == 1 and asyn.get_loop() is not loop else 1)
    assert os.waitpid(child, 0)[1] == 0
