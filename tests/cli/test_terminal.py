"""Progress: a bar on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

from robustcli.cli import terminal
from robustcli.cli.terminal import ConsoleListener

Captured = pytest.CaptureFixture[str]


class Clock:
    """A clock that tests set."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_plain_lines_every_ten_seconds_and_at_the_end(clock: Clock, capsys: Captured) -> None:
    with ConsoleListener(quiet=False) as listener:
        listener.say("Hello.")
        listener.start(4000, 1000)
        for _ in range(6):
            clock.now += 5
            listener.advance(500)
    outcome = capsys.readouterr()
    assert outcome.out == ""
    assert outcome.err.splitlines() == [
        "Hello.",
        "1,000 of 4,000 predictions already exist.",
        "2,000 of 4,000 predictions, about 20 s left.",
        "3,000 of 4,000 predictions, about 10 s left.",
        "4,000 of 4,000 predictions, done in 30 s (100 a second).",
    ]


def test_a_new_run_speaks_of_nothing_from_before(clock: Clock, capsys: Captured) -> None:
    with ConsoleListener(quiet=False) as listener:
        listener.start(10, 0)
    assert capsys.readouterr().err == ""


def test_quiet_is_silent(clock: Clock, capsys: Captured) -> None:
    with ConsoleListener(quiet=True) as listener:
        listener.say("Hello.")
        listener.start(10, 5)
        clock.now += 60
        listener.advance(5)
    outcome = capsys.readouterr()
    assert outcome.out + outcome.err == ""


def test_a_bar_on_a_terminal_is_closed_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    with ConsoleListener(quiet=False) as listener:
        listener.start(20, 5)
        listener.advance(10)
        listener.advance(5)
    outcome = capsys.readouterr()
    assert outcome.out == ""
    assert "predictions" in outcome.err
    assert "20/20" in outcome.err
    assert "of 20 predictions, " not in outcome.err


def test_an_error_closes_the_bar_and_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def fail() -> None:
        with ConsoleListener(quiet=False) as listener:
            listener.start(20, 0)
            listener.advance(3)
            raise RuntimeError("stop")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert "3/20" in capsys.readouterr().err


def test_the_next_work_has_a_bar_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ConsoleListener(quiet=False) as listener:
        for total in (7, 9):
            listener.start(total, 0)
            listener.advance(total)
    output = capsys.readouterr().err
    assert "7/7" in output
    assert "9/9" in output


def test_what_the_program_logs_is_said_once(capsys: Captured) -> None:
    log = logging.getLogger("robustcli.adapters.strict_loading")
    with ConsoleListener(quiet=False):
        log.warning("`w.pth`: a choice.")
        log.warning("`w.pth`: a choice.")
    assert capsys.readouterr().err == "`w.pth`: a choice.\n"
    with ConsoleListener(quiet=True):
        log.warning("`w.pth`: a choice.")
    assert capsys.readouterr().err == ""


def test_only_the_first_of_several_processes_says_it(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 9}
    for name, value in (*job.items(), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, str(value))
    with ConsoleListener(quiet=False):
        logging.getLogger("robustcli.adapters").warning("a choice")
    assert capsys.readouterr().err == ""
