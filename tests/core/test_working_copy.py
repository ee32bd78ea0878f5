"""Runs in an object store, worked on in folders of several machines."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest

from robustcli.core import objects, ownership, working_copy
from robustcli.core.errors import RunError, UsageError
from robustcli.core.io import write_bytes, write_text
from robustcli.core.objects import ObjectStore
from robustcli.core.rundir import RECORD_FILE
from robustcli.core.working_copy import Use, helping, opened, take_in

ROWS = "predictions/model=m/block-000000.parquet"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAUSES_S", (0.0,))
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(ownership, "STORE_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(ownership, "STORE_SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(ownership, "_APART_SECONDS", (0.01, 0.05))
    # All "machines" are this process: whether one lives is only seen by its beats.
    monkeypatch.setattr(ownership, "owner_is_alive", lambda owner: None)


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(f"memory://{uuid.uuid4().hex}/run")


Machine = Callable[..., Any]


@pytest.fixture
def machine(store: ObjectStore, tmp_path: Path) -> Machine:
    """`machine("a", said, use)` opens the run on the machine a."""

    @contextmanager
    def open_on(
        name: str, said: list[str] | None = None, use: Use = "work", **options: Any
    ) -> Iterator[Path]:
        say = [].append if said is None else said.append
        with opened(store.url, tmp_path / name, say, use, **options) as run:
            yield run

    return open_on


def contents(store: ObjectStore) -> dict[str, bytes]:
    """What the store holds, without claims."""
    return {name: store.read(name) for name in store.listed() if not name.startswith(".owner/")}


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "nothing was sent"
        time.sleep(0.005)


class Stopped(BaseException):
    """As kill -9 for what follows: nothing is sent any more."""


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, a run ends by `Stopped`, without a chance to send or release anything."""
    with monkeypatch.context() as patch, suppress(Stopped):
        patch.setattr(working_copy._Uploads, "finish", lambda self: self.discard())
        patch.setattr(working_copy._Uploads, "discard", _discard, raising=False)
        patch.setattr(ownership.StoreClaim, "release", lambda self: self._stop.set())
        yield


def _discard(self: Any) -> None:
    with self._changed:
        self._ended = True
        self._changed.notify()
    self._thread.join()


def test_everything_that_is_written_arrives_whole(store: ObjectStore, machine: Machine) -> None:
    with machine("a") as run:
        assert run.name == "run"
        write_text(run / RECORD_FILE, "{}")
        write_bytes(run / ROWS, b"rows")
        (run / "report").mkdir()
        (run / "report" / "by-other-means.txt").write_text("x")
        (run / ".owner").mkdir()
        (run / ".owner" / "000001.json").write_text("{}")
        (run / "cache").mkdir()
        (run / "cache" / "images").write_text("decoded")
    assert contents(store) == {
        RECORD_FILE: b"{}", ROWS: b"rows", "report/by-other-means.txt": b"x"
    }  # fmt: skip


def test_rows_are_in_the_store_before_the_run_ends(store: ObjectStore, machine: Machine) -> None:
    with machine("a") as run:
        write_text(run / RECORD_FILE, "{}")
        for block in range(40):
            write_bytes(run / f"predictions/block-{block:06d}.parquet", bytes([block]))
        write_text(run / "metrics.csv", "1")
        write_text(run / RECORD_FILE, "{ }")
        wait_until(lambda: RECORD_FILE in store.listed() and store.read(RECORD_FILE) == b"{ }")
        assert len(contents(store)) == 42


def test_a_record_never_arrives_before_what_it_tells_of(
    store: ObjectStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the connection is slower than the computation."""
    arrived, go_on = list[tuple[str, bytes]](), threading.Event()
    real = ObjectStore.write

    def write(self: ObjectStore, name: str, content: bytes) -> None:
        if not name.startswith(".owner"):
            go_on.wait()
            arrived.append((name, content))
        real(self, name, content)

    monkeypatch.setattr(ObjectStore, "write", write)
    with machine("a") as run:
        write_text(run / RECORD_FILE, "running")
        write_text(run / "weights", "1")
        write_bytes(run / ROWS, b"rows")
        write_text(run / "weights", "2")
        write_text(run / RECORD_FILE, "complete")
        go_on.set()
    assert arrived[0] == (RECORD_FILE, b"running")
    complete = arrived.index((RECORD_FILE, b"complete"))
    assert {name for name, _ in arrived[:complete]} == {RECORD_FILE, "weights", ROWS}
    assert contents(store)[RECORD_FILE] == b"complete"


def test_another_machine_goes_on_from_what_was_sent(
    store: ObjectStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed(monkeypatch), machine("a") as run:
        write_text(run / RECORD_FILE, "{}")
        write_bytes(run / ROWS, b"rows")
        raise Stopped
    with machine("b") as run:
        assert (run / ROWS).read_bytes() == b"rows"
        write_bytes(run / "predictions/block-000001.parquet", b"more")
    said = list[str]()
    with machine("a", said) as run:
        assert (run / "predictions/block-000001.parquet").read_bytes() == b"more"
    assert not any("dropped" in line for line in said)
    assert len(contents(store)) == 3


def test_what_one_machine_could_not_send_is_dropped_if_another_has_worked_since(
    store: ObjectStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one may have begun anew with other settings."""
    with killed(monkeypatch), machine("a") as run:
        write_text(run / RECORD_FILE, "old")
        raise Stopped
    (run / ROWS).parent.mkdir(parents=True)
    (run / ROWS).write_bytes(b"never sent")
    with machine("b") as run:
        write_text(run / RECORD_FILE, "new")
    said = list[str]()
    with machine("a", said) as run:
        assert (run / RECORD_FILE).read_text() == "new"
        assert not (run / ROWS).exists()
    assert any("1 files" in line and "are deleted" in line for line in said)
    assert contents(store) == {RECORD_FILE: b"new"}


def test_what_could_not_be_sent_is_sent_first_if_nobody_worked_since(
    store: ObjectStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed(monkeypatch), machine("a") as run:
        write_text(run / RECORD_FILE, "{}")
        raise Stopped
    (run / ROWS).parent.mkdir(parents=True)
    (run / ROWS).write_bytes(b"rows")
    with machine("a") as run:
        assert contents(store)[ROWS] == b"rows"
        assert (run / ROWS).read_bytes() == b"rows"


def test_files_that_vanish_here_vanish_there_before_the_record_changes(
    store: ObjectStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `--fresh` does; a kill right after it must not leave rows of other settings behind."""
    with machine("a") as run:
        write_text(run / RECORD_FILE, "old")
        write_bytes(run / ROWS, b"old rows")
    with killed(monkeypatch), machine("a") as run:
        (run / ROWS).unlink()
        write_text(run / RECORD_FILE, "new")
        raise Stopped
    assert contents(store) == {RECORD_FILE: b"new"}


def test_a_file_that_was_removed_by_hand_is_not_fetched_again(
    store: ObjectStore, machine: Machine
) -> None:
    with machine("a") as run:
        write_text(run / RECORD_FILE, "{}")
        write_bytes(run / ROWS, b"rows")
    (run / ROWS).unlink()
    with machine("a") as run:
        assert not (run / ROWS).exists()
    assert contents(store) == {RECORD_FILE: b"{}"}


def test_an_object_that_was_lost_is_sent_again(store: ObjectStore, machine: Machine) -> None:
    with machine("a") as run:
        write_text(run / RECORD_FILE, "{}")
        write_bytes(run / ROWS, b"rows")
    store.remove(ROWS)
    with machine("a"):
        pass
    assert contents(store)[ROWS] == b"rows"


def test_two_processes_do_not_work_on_one_run(store: ObjectStore, machine: Machine) -> None:
    with machine("a"):
        for name in ("a", "b"):  # the same folder for caches, and another one
            refused = pytest.raises(RunError, match="Another process is working in `memory://")
            with refused, machine(name):
                pass


def test_a_store_that_stops_answering_ends_the_run_and_keeps_what_is_finished(
    store: ObjectStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = type(fsspec.filesystem("memory"))
    real = system.pipe_file

    def refuse(self: Any, path: str, value: bytes, **options: Any) -> None:
        if ".owner" not in path:
            raise ConnectionResetError("the line is dead")
        real(self, path, value, **options)

    blocks = [f"predictions/block-{number:06d}.parquet" for number in range(2000)]
    run = Path()

    def compute() -> None:
        nonlocal run
        with machine("a") as run:
            for name in blocks:
                write_bytes(run / name, name.encode())

    with monkeypatch.context() as patch:
        patch.setattr(system, "pipe_file", refuse)
        with pytest.raises(
            RunError, match=r"(?s)were not uploaded to `memory://.*the line is"
        ) as raised:
            compute()
    assert str(run) in raised.value.todo
    finished = [name for name in blocks if (run / name).exists()]
    assert 0 < len(finished) < len(blocks), "an error of the store ends the computation"
    with machine("a", of_run=False):
        pass
    assert contents(store) == {name: name.encode() for name in finished}


def test_the_error_of_the_run_is_not_hidden_by_one_of_the_store(
    store: ObjectStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()

    def fail() -> None:
        with machine("a", said) as run:
            (run / "x").write_text("1")
            monkeypatch.setattr(ObjectStore, "write", _refuse)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert any("1 files of the run were not uploaded to" in line for line in said)


def _refuse(self: ObjectStore, name: str, content: bytes) -> None:
    raise RunError("gone", "", "")


def test_an_address_with_something_else_is_refused_before_anything_is_fetched(
    store: ObjectStore, machine: Machine, tmp_path: Path
) -> None:
    store.write("photo.jpg", b"x")
    for use in ("work", "look", "read"):
        with (
            pytest.raises(UsageError, match=r"contains no (run|`run.json`)"),
            machine("a", use=use),
        ):
            pass
    assert not list(tmp_path.rglob("photo.jpg"))
    assert list(store.listed()) == ["photo.jpg"], "no claim is left among somebody's files"
    with machine("a", of_run=False) as folder:
        assert (folder / "photo.jpg").is_file()


@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "a//b", "a\\..\\b"])
def test_names_that_lead_out_of_the_folder_are_refused(
    store: ObjectStore, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    listed = {RECORD_FILE: objects.StoredObject(1, "1"), name: objects.StoredObject(1, "1")}
    monkeypatch.setattr(ObjectStore, "listed", lambda self, below="": {} if below else listed)
    for use in ("work", "read"):
        refused = pytest.raises(UsageError, match="cannot be a file of a folder")
        with refused, machine("a", use=use):
            pass
    assert not list(tmp_path.rglob("escaped"))


def test_hugging_face_keeps_no_runs(tmp_path: Path) -> None:
    refused = pytest.raises(UsageError, match=r"(?s)runs cannot be stored.*commit")
    with refused, opened("hf://datasets/a/b/run", tmp_path, [].append, "work"):
        pass


def test_helpers_on_the_same_and_on_another_machine_send_what_they_write(
    store: ObjectStore, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine("a") as run:
        write_text(run / RECORD_FILE, "{}")
        leading, working_copy._leading = working_copy._leading, None  # as in another process
        with helping(run / "test"):
            write_bytes(run / "test" / ROWS, b"same machine")
        other = working_copy.helper_folder(store.url, tmp_path / "b")
        with helping(other):
            write_bytes(other / ROWS, b"other machine")
        working_copy._leading = leading
        assert contents(store)[f"test/{ROWS}"] == b"same machine"
        assert not (run / ROWS).exists()
        take_in(run)
        assert (run / ROWS).read_bytes() == b"other machine"
    assert contents(store)[ROWS] == b"other machine"


def test_a_plain_folder_has_nothing_to_do_with_stores(tmp_path: Path) -> None:
    with helping(tmp_path / "runs" / "x"):
        write_text(tmp_path / "runs" / "x" / "a", "1")
    take_in(tmp_path / "runs" / "x")


def test_forked_processes_leave_sending_to_the_first(store: ObjectStore, machine: Machine) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    with machine("a") as run:
        assert working_copy._leading is not None
        working_copy._leading._pid += 1
        write_bytes(run / ROWS, b"rows")
        working_copy._leading._pid -= 1
    assert contents(store)[ROWS] == b"rows"


def test_reading_fetches_what_is_new_and_sends_only_what_is_written(
    store: ObjectStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(RECORD_FILE, b"{}")
    store.write("checkpoints/last.ckpt", b"large")
    fetched = list[str]()
    real = ObjectStore.fetch
    monkeypatch.setattr(
        ObjectStore, "fetch",
        lambda self, name, target, stored=None: (fetched.append(name), real(self, name, target)),
    )  # fmt: skip
    with machine("a", use="read") as run:
        assert [path.name for path in run.iterdir() if path.is_file()] == [RECORD_FILE]
        (run / "report.md").write_text("report")
    assert contents(store)["report.md"] == b"report"
    assert contents(store)["checkpoints/last.ckpt"] == b"large"
    assert fetched == [RECORD_FILE]
    store.remove("report.md")
    with machine("a", use="look") as run:
        assert not (run / "report.md").exists()
        (run / "other").write_text("not sent")
    assert set(contents(store)) == {RECORD_FILE, "checkpoints/last.ckpt"}


def test_readers_may_look_at_a_run_at_work(store: ObjectStore, machine: Machine) -> None:
    with machine("a") as run:
        write_text(run / RECORD_FILE, "{}")
        wait_until(lambda: RECORD_FILE in store.listed())
        with machine("b", use="read") as reading:
            assert reading != run
            assert (reading / RECORD_FILE).is_file()
