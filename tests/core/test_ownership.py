"""Who works on a run, in a folder and in an object store: one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest

from robustcli.core import ownership
from robustcli.core.errors import RunError
from robustcli.core.objects import ObjectStore
from robustcli.core.ownership import OWNER_FOLDER, StoreClaim, claim, owned, this_process


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(ownership, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(ownership, "STORE_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(ownership, "STORE_SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(ownership, "_APART_SECONDS", (0.01, 0.05))


def leave_owner(run, **changes):
    """Leaves the owner's file of another process."""
    (run / OWNER_FOLDER).mkdir(parents=True, exist_ok=True)
    path = run / OWNER_FOLDER / "000001.json"
    path.write_text(json.dumps(asdict(replace(this_process(), **changes))))
    return path


def test_a_second_process_is_refused_with_who_works_there_and_what_to_do(tmp_path):
    with (
        owned(tmp_path),
        pytest.raises(
            RunError, match=rf"(?s)Process {os.getpid()} on this machine.*kill {os.getpid()}"
        ),
        owned(tmp_path),
    ):
        pass


def test_the_next_one_takes_a_released_folder_at_once(tmp_path):
    for _ in range(12):
        with owned(tmp_path):
            pass
    numbers = sorted(int(path.stem) for path in (tmp_path / OWNER_FOLDER).glob("*.json"))
    assert numbers[-1] == 12
    assert len(numbers) <= 8, "files of earlier owners are removed"


def test_a_killed_process_on_this_machine_has_left_the_folder(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from robustcli.core.ownership import owned\n"
        "with owned(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"Process {child.pid}"), owned(tmp_path):
        pass
    child.kill()
    child.communicate()
    heard = []
    with owned(tmp_path, heard.append):
        assert heard == [], "nobody waits for signs of life"


def test_another_process_with_a_recycled_id_is_no_owner(tmp_path):
    leave_owner(tmp_path, started="long ago")
    with owned(tmp_path):
        pass


def test_an_owner_on_another_machine_lives_as_long_as_it_touches_its_file(tmp_path):
    path, stop, heard = leave_owner(tmp_path, machine="other", host="other"), threading.Event(), []

    def beat():
        while not stop.wait(0.05):
            os.utime(path, (0, time.monotonic()))  # whatever its clock says

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(RunError, match="on other"), owned(tmp_path, heard.append):
        pass
    stop.set()
    thread.join()
    assert "cannot be checked from this machine" in heard[0]
    with owned(tmp_path):
        assert (tmp_path / OWNER_FOLDER / "000002.json").exists()


def test_a_file_that_was_cut_off_belongs_to_nobody_who_lives(tmp_path):
    leave_owner(tmp_path).write_text('{"host": ')
    with owned(tmp_path):
        pass


def test_of_many_that_start_at_once_exactly_one_gets_the_folder(tmp_path):
    leave_owner(tmp_path, pid=2**22 + 1, started="dead")
    taken, refused_, barrier = [], [], threading.Barrier(8)

    def take():
        barrier.wait()
        try:
            with owned(tmp_path):
                taken.append(1)
                done.wait(20)
        except RunError:
            refused_.append(1)
            if len(refused_) == 7:
                done.set()

    done = threading.Event()
    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(taken), len(refused_)) == (1, 7)


def test_a_process_that_was_taken_over_notices_before_it_writes(tmp_path):
    with owned(tmp_path) as mine:
        mine.check()
        (tmp_path / OWNER_FOLDER / "000002.json").write_text("{}")
        deadline = time.monotonic() + 10
        while not mine._lost.is_set() and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(RunError, match="has taken over"):
            mine.check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_a_read_only_folder_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"), owned(tmp_path / "run"):
        pass
    tmp_path.chmod(0o700)


# In an object store.


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(f"memory://{uuid.uuid4().hex}/run")


@pytest.fixture
def taken() -> Iterator[list[StoreClaim]]:
    """Claims to release at the end."""
    claimed = list[StoreClaim]()
    yield claimed
    for one in claimed:
        one.release()


def nothing(text: str) -> None:
    """Hears nothing."""


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this is another machine."""
    monkeypatch.setattr(ownership, "machine_id", lambda: f"other-{uuid.uuid4().hex}")


def test_a_living_process_of_this_machine_refuses_the_next(
    store: ObjectStore, taken: list[StoreClaim]
) -> None:
    taken.append(claim(store, nothing))
    with pytest.raises(RunError, match=rf"(?s)Another process is working in .*{os.getpid()}"):
        claim(store, nothing)
    assert len(store.listed(".owner")) == 1


def test_a_released_run_is_taken_at_once_and_its_claim_removed(
    store: ObjectStore, taken: list[StoreClaim]
) -> None:
    first = claim(store, nothing)
    first.release()
    second = claim(store, nothing)
    taken.append(second)
    assert second.before == (first.identity,)
    assert list(store.listed(".owner")) == [f".owner/{second.identity}.json"]


def test_the_beats_of_another_machine_are_seen(
    store: ObjectStore, taken: list[StoreClaim], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken.append(claim(store, nothing))
    elsewhere(monkeypatch)
    said = list[str]()
    with pytest.raises(RunError, match="Another process is working in"):
        claim(store, said.append)
    assert "waiting up to" in said[0]


def test_a_silent_claim_of_another_machine_is_dead(
    store: ObjectStore, taken: list[StoreClaim], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = ownership._Entry(replace(this_process(), machine="gone"), "holds")
    store.write(".owner/silent.json", silent.text())
    taken.append(claim(store, nothing))
    assert taken[0].before == ("silent",)


def test_a_dead_process_of_this_machine_is_known_at_once(
    store: ObjectStore, taken: list[StoreClaim], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "STORE_SILENCE_SECONDS", 1000.0)
    dead = ownership._Entry(replace(this_process(), started="0"), "holds")
    store.write(".owner/dead.json", dead.text())
    taken.append(claim(store, nothing))
    assert taken[0].before == ("dead",)


def test_a_damaged_claim_is_watched_and_then_dead(
    store: ObjectStore, taken: list[StoreClaim]
) -> None:
    store.write(".owner/damaged.json", b"{")
    taken.append(claim(store, nothing))
    assert list(store.listed(".owner")) == [f".owner/{taken[0].identity}.json"]


def test_of_many_that_start_at_once_at_most_one_holds_the_run(
    store: ObjectStore, taken: list[StoreClaim]
) -> None:
    refused = list[RunError]()
    start = threading.Barrier(6)

    def begin() -> None:
        start.wait()
        try:
            taken.append(claim(store, nothing))
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) <= 1
    assert len(taken) + len(refused) == 6
    assert all("Another process is working in" in str(error) for error in refused)


def test_one_that_was_suspended_notices_that_it_was_replaced(
    store: ObjectStore, taken: list[StoreClaim], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = claim(store, nothing)
    first._stop.set()  # suspended: no beats
    first._thread.join()
    elsewhere(monkeypatch)
    taken.append(claim(store, nothing))
    first._confirmed -= 1000.0
    with pytest.raises(RunError, match="Another process has taken over"):
        first.check()
    first.release()
    assert list(store.listed(".owner")) == [f".owner/{taken[0].identity}.json"]
    taken[0].check()
