"""Who works on a run in an object store."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from robustcli.core import claims, rundir
from robustcli.core.claims import StoreClaim, claim
from robustcli.core.errors import RunError
from robustcli.core.objects import ObjectStore
from robustcli.core.rundir import this_process


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_S", 0.02)
    monkeypatch.setattr(claims, "SILENCE_S", 0.3)
    monkeypatch.setattr(claims, "_APART_S", (0.01, 0.05))


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
    monkeypatch.setattr(rundir, "_machine", lambda: f"other-{uuid.uuid4().hex}")


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
    silent = claims._Entry(replace(this_process(), machine="gone"), "holds")
    store.write(".owner/silent.json", silent.text())
    taken.append(claim(store, nothing))
    assert taken[0].before == ("silent",)


def test_a_dead_process_of_this_machine_is_known_at_once(
    store: ObjectStore, taken: list[StoreClaim], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "SILENCE_S", 1000.0)
    dead = claims._Entry(replace(this_process(), started="0"), "holds")
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
