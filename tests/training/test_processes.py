"""How the processes of a training agree; jobs of real processes are in `test_jobs`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
from torch.distributed import HashStore, Store

from robustcli.core.errors import RobustError, UsageError
from robustcli.core.ranks import Ranks
from robustcli.training.processes import Peers, end_of_others
from robustcli.training.trainer import machine

Outcome = object


@pytest.fixture
def peers() -> list[Peers]:
    keys: Store = HashStore()
    keys.set_timeout(timedelta(seconds=20))
    return [Peers(Ranks(rank, 2, rank, 2), keys) for rank in range(2)]


def outcomes(*calls: Callable[[], object]) -> list[Outcome]:
    """What each of `calls` gives or raises, all at the same time."""
    results: list[Outcome] = [None] * len(calls)

    def call(number: int) -> None:
        try:
            results[number] = calls[number]()
        except (RobustError, SystemExit) as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


def test_one_process_has_nobody_to_talk_to() -> None:
    alone = Peers(Ranks())
    assert alone.together(lambda: 3, lambda made: {"x": "y"}) == 3
    alone.tell("word")
    alone.leave()


def test_processes_that_agree_go_on(peers: list[Peers]) -> None:
    first, other = outcomes(
        *(
            lambda one=one: one.together(lambda: one.process.rank, lambda _: {"a": "1"})
            for one in peers
        )
    )
    assert (first, other) == (0, 1)
    peers[0].tell("one")
    peers[0].tell("two")
    assert [peers[1].hear(), peers[1].hear()] == ["one", "two"]


def test_the_first_process_tells_what_differs(peers: list[Peers]) -> None:
    def agree(one: Peers) -> object:
        try:
            return one.together(
                lambda: 0, lambda _: {"version of `torch`": f"2.{one.process.rank}"}
            )
        except UsageError as error:
            one.fail(error)
            raise

    first, other = outcomes(*(lambda one=one: agree(one) for one in peers))
    assert isinstance(first, UsageError)
    assert "Process 1 of 2 differs from the first process in: version of `torch`" in str(first)
    assert "The first process has 2.0, this process has 2.1." in str(first)
    assert isinstance(other, SystemExit)
    assert other.code == 2


def test_what_stops_another_process_is_told_by_the_first(peers: list[Peers]) -> None:
    def refuse() -> int:
        raise UsageError("The file `x` is missing.", "why", "todo")

    def agree(one: Peers) -> object:
        try:
            return one.together(refuse if one.process.rank else lambda: 0, lambda _: {})
        except UsageError as error:
            one.fail(error)
            raise

    first, other = outcomes(*(lambda one=one: agree(one) for one in peers))
    assert isinstance(first, UsageError)
    assert "Process 1 of 2 failed: The file `x` is missing." in str(first)
    assert isinstance(other, SystemExit)
    assert other.code == 2


def test_the_others_end_well() -> None:
    with pytest.raises(SystemExit) as ended:
        end_of_others()
    assert ended.value.code == 0


def test_the_machine_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine("cpu", 3).world == 3
    assert machine("cpu", "all").world == 1
    said = {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    on = machine("cpu", 1)
    assert (on.devices, on.nodes, on.world) == (4, 2, 8)
    with pytest.raises(UsageError, match="contradicts the launcher"):
        machine("cpu", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert machine("cuda", 1).device == torch.device("cuda", 1)


@pytest.mark.parametrize(("name", "named"), [("cuda", "shows 1"), ("cuda:0", "is one device")])
def test_each_process_needs_a_gpu(name: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=named):
        machine(name, 3)
    assert machine("cuda", "all").world == 1
