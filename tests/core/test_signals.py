"""Interruptions: by both signals, in places where Python ignores exceptions, and in libraries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from robustcli.core.signals import interruptible, uninterrupted, was_interrupted
from robustcli.training.trainer import DurableCheckpoints

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def ctrl_c_is_not_ignored() -> Iterator[None]:
    """Shells start background commands, such as those of a CI server, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


def finalise(number: signal.Signals) -> None:
    value = Finalised(number)
    del value
    time.sleep(5)


class Finalised:
    """Receives a signal in its finaliser, whose exceptions Python ignores."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        interrupt(self.number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_interruption_and_the_handlers_are_restored(number: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt), interruptible():
        interrupt(number)
    assert was_interrupted()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with interruptible():
        assert not was_interrupted()


@pytest.mark.parametrize("number", SIGNALS)
def test_an_uninterrupted_step_is_completed_first(number: signal.Signals) -> None:
    steps = []

    def step() -> None:
        with uninterrupted():
            os.kill(os.getpid(), number)
            steps.append("all loader processes are started")
        steps.append("not reached")

    with pytest.raises(KeyboardInterrupt), interruptible():
        step()
    assert steps == ["all loader processes are started"]
    assert was_interrupted()
    with interruptible(), uninterrupted():
        pass


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interruption_in_a_finaliser_is_raised_again(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), interruptible():
        finalise(number)
    assert sys.unraisablehook is hook
    assert capsys.readouterr().err == ""


def test_a_finaliser_of_a_loader_that_the_signal_ended_prints_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(str(args.exc_value)))

    class Loader:
        def __del__(self) -> None:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    def interrupted() -> None:
        try:
            interrupt(signal.SIGTERM)
        finally:
            Loader()

    with interruptible():
        Loader()
    assert len(reported) == 1, "without an interruption it is an error"
    with pytest.raises(KeyboardInterrupt), interruptible():
        interrupted()
    assert len(reported) == 1


def test_nested_contexts_and_other_threads_keep_the_handlers() -> None:
    with interruptible():
        handler = signal.getsignal(signal.SIGTERM)
        thread = threading.Thread(target=lambda: interruptible().__enter__())
        thread.start()
        thread.join()
        with interruptible():
            pass
        assert signal.getsignal(signal.SIGTERM) is handler


def test_sigint_stays_ignored_where_it_is() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interruption_that_is_lost_at_the_end_does_not_arrive_after_it() -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))
    try:
        with interruptible():
            Finalised(signal.SIGTERM)
        time.sleep(0.2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert was_interrupted()
    assert handled == []


def test_torch_replaces_an_interruption_while_it_saves(tmp_path: Path) -> None:
    """If this fails, torch raises KeyboardInterrupt, and callers need not ask what came first."""

    class Interrupting(dict[str, object]):
        def __reduce__(self) -> tuple[object, ...]:
            interrupt(signal.SIGINT)
            return dict, ()

    with pytest.raises((RuntimeError, KeyboardInterrupt)), interruptible():
        DurableCheckpoints().save_checkpoint(
            {"a": torch.zeros(3), "b": Interrupting()}, tmp_path / "last.ckpt"
        )
    assert was_interrupted()
    assert list(tmp_path.iterdir()) == []


FORKED = """
import os, signal, time
from robustcli.core.signals import interruptible
parent = os.getpid()

def interrupted():
    if os.getpid() == parent:
        os.kill(parent, signal.SIGTERM)
        time.sleep(2)

os.register_at_fork(after_in_parent=interrupted)
try:
    with interruptible():
        child = os.fork()
        if not child:
            os._exit(0)
        time.sleep(5)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_an_interruption_while_loader_processes_are_forked_is_raised_again() -> None:
    done = subprocess.run(
        # Python 3.12 and later warn that torch has started threads before the fork.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
