"""Images that hang or kill: which one it was, in loader processes and in threads."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from functools import partial
from typing import Any

import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from robustcli.core import watchdog as module
from robustcli.core.errors import RunError, UsageError
from robustcli.core.watchdog import (
    Watchdog,
    WorkerTable,
    decoding_pool,
    in_batch,
    seconds_limit,
    thread_hangs,
    working_on,
)


class Numbers(Dataset[int]):
    """Numbers of which the one called `bad` is dealt with by `harm`."""

    def __init__(self, bad: int, harm: str) -> None:
        self.bad, self.harm = bad, harm

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> int:
        in_batch([f"{number}.png"])
        with working_on(f"decoding `{number}.png`"):
            if number == self.bad and self.harm == "hang":
                time.sleep(600)
            if number == self.bad and self.harm != "hang":
                os.kill(os.getpid(), getattr(signal, self.harm))
        return number


def _enter(table: WorkerTable, worker: int) -> None:
    table.enter(worker)


def read(numbers: Numbers, workers: int, watchdog: Watchdog, method: str = "fork") -> list[int]:
    with watchdog:
        table = watchdog.table(workers, method)
        loader: DataLoader[Any] = DataLoader(
            numbers, batch_size=None, num_workers=workers, worker_init_fn=partial(_enter, table),
            multiprocessing_context=method,
        )  # fmt: skip
        stream = iter(loader)
        watchdog.start()
        return list(stream)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "_TERMINATED_SECONDS", 0.0)


pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def command_line(process: psutil.Process) -> str:
    """The command line of `process`; empty if the process has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize(
    ("harm", "workers", "why"),
    [
        ("SIGKILL", 1, "memory of the machine"),
        pytest.param("SIGSEGV", 2, "SIGSEGV", marks=pytest.mark.slow),  # 5 seconds each
        pytest.param("SIGTERM", 4, "SIGTERM", marks=pytest.mark.slow),
        pytest.param("SIGBUS", 2, "shared memory", marks=pytest.mark.slow),
    ],
)
def test_a_loader_process_that_dies_names_its_image(harm: str, workers: int, why: str) -> None:
    before = set(psutil.Process().children())  # torch 2.6 compiles in a process that it keeps
    with pytest.raises(RunError, match=r"ended while decoding `5\.png`") as caught:
        read(Numbers(5, harm), workers, Watchdog())
    assert why in caught.value.why
    assert "the same command continues" in caught.value.todo
    children = set(psutil.Process().children()) - before
    loaders = [child for child in children if "resource_tracker" not in command_line(child)]
    _, left = psutil.wait_procs(loaders, timeout=10)
    assert not left, "the other loader processes are ended too"


def test_a_loader_process_that_hangs_is_ended_and_names_its_image() -> None:
    with pytest.raises(RunError, match=r"decoding `3.png` for more than 0.3 seconds") as caught:
        read(Numbers(3, "hang"), 2, Watchdog(seconds=0.3))
    assert "`ROBUST_IMAGE_SECONDS=" in caught.value.todo


@pytest.mark.slow  # starting processes anew imports torch in each; fork is the same table
def test_processes_that_are_started_anew_share_the_table() -> None:
    with pytest.raises(RunError, match=r"ended while decoding `5\.png`"):
        read(Numbers(5, "SIGKILL"), 2, Watchdog(), "spawn")


def test_what_takes_long_in_all_but_not_for_one_image_is_no_hang() -> None:
    assert sorted(read(Numbers(-1, "hang"), 2, Watchdog(seconds=0.3))) == list(range(8))


def test_between_images_the_batch_is_named() -> None:
    table = WorkerTable(1, "fork")
    table.slots[0].pid, table.slots[0].batch = 4321, b"making a batch of `a` to `b`"
    watchdog = Watchdog()
    error = RuntimeError("DataLoader worker (pid(s) 99, 4321) exited unexpectedly")
    with pytest.raises(RunError, match="while making a batch of `a` to `b`"), watchdog:  # noqa: PT012
        watchdog._tables.append(table)
        raise ValueError from error


def test_an_interruption_stays_one_whatever_it_came_from() -> None:
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")
    with pytest.raises(KeyboardInterrupt), Watchdog():
        raise KeyboardInterrupt from error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), Watchdog():
        raise RuntimeError("shapes differ")


def test_a_thread_that_hangs_is_named_once() -> None:
    lines: list[str] = []
    go_on = threading.Event()

    def decode() -> None:
        with working_on("decoding `slow.png`"):
            go_on.wait(60)

    with Watchdog(lines.append, seconds=0.2) as watchdog:
        watchdog.start()
        thread = threading.Thread(target=decode)
        thread.start()
        while not lines:
            time.sleep(0.02)
        time.sleep(0.3)
        assert thread_hangs(0.1)
        go_on.set()
        thread.join()
    assert len(lines) == 1
    assert "decoding `slow.png`" in lines[0]
    assert not thread_hangs(0)


def test_an_inner_task_ends_with_the_outer_one_still_named() -> None:
    with working_on("outer"), working_on("inner"):
        pass
    with working_on("outer"):
        with working_on("inner"):
            pass
        assert module._threads[threading.get_ident()].text == "outer"
    assert threading.get_ident() not in module._threads


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    """After Ctrl+Z and `fg` a clock has gone on for hours, and no image has been touched."""
    watchdog = Watchdog(seconds=1.0)
    with working_on("decoding `x`"):
        watchdog._look(0)
        watchdog._look(min(3600.0, 2 * module._LOOK_SECONDS))
        key = ("thread", threading.get_ident())
        assert 0 < watchdog._ages[key].seconds <= 2 * module._LOOK_SECONDS


def test_an_interrupted_pool_does_not_wait_for_a_thread_that_hangs() -> None:
    go_on, begun = threading.Event(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), decoding_pool(1) as pool:  # noqa: PT012
        pool.submit(go_on.wait, 60)
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 30
    go_on.set()


def test_long_names_are_cut() -> None:
    table = WorkerTable(1, "fork")
    before = module._slot
    try:
        table.enter(0)
        with working_on("decoding `" + "é" * 2000):
            assert len(table.slots[0].task) == 1000
        assert table.slots[0].task == b""
        assert table.slots[0].count == 2
    finally:
        module._slot = before


def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBUST_IMAGE_SECONDS", raising=False)
    assert seconds_limit() == 600
    monkeypatch.setenv("ROBUST_IMAGE_SECONDS", "5.5")
    assert seconds_limit() == 5.5
    monkeypatch.setenv("ROBUST_IMAGE_SECONDS", "0")
    assert seconds_limit() == math.inf
    for text in ("soon", "-1", "nan"):
        monkeypatch.setenv("ROBUST_IMAGE_SECONDS", text)
        with pytest.raises(UsageError, match="ROBUST_IMAGE_SECONDS"):
            seconds_limit()


def test_a_lost_main_process_prints_no_traceback_in_a_loader_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As multiprocessing's thread reports it that hands over tensors."""
    reported = list[object]()
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: reported.append(kind))
    monkeypatch.setattr(module, "_slot", None)
    WorkerTable(1, "spawn").enter(0)
    for error in (ConnectionResetError(104, "reset"), EOFError(), BrokenPipeError(), ValueError()):
        sys.excepthook(type(error), error, None)
    assert reported == [ValueError]
