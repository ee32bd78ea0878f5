"""Output on the terminal: text with escaped control characters, messages and progress."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

import click

from robustcli.core.names import printable
from robustcli.core.ranks import is_first_process

SECONDS_BETWEEN_LINES = 10.0


def say_safely(text: str, *, err: bool = False) -> None:
    """Prints `text`, which may contain names from files, and a line break (see `printable`)."""
    click.echo(printable(text), err=err)


_documents: list[TextIO] = []
"""Standard output of the commands inside `only_documents`, innermost last."""


@contextmanager
def only_documents() -> Iterator[None]:
    """Inside, only `print_json` writes to standard output; everything else to standard error.

    Code of users (`--model FILE.py:build`, plugins) and libraries may print lines.
    """
    _documents.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _documents.pop()


def print_json(text: str) -> None:
    """Prints the JSON document `text` on standard output, also inside `only_documents`."""
    click.echo(text, file=_documents[-1] if _documents else None)


class ConsoleListener:
    """Shows messages and progress of a computation; a context manager that closes the bar at exit.

    Progress goes to standard error: a bar on a terminal, plain lines elsewhere, nothing if quiet.
    Inside the context it also shows log messages of the program, such as how files of weights were
    read. Each log message is shown once, by rank 0.

    Args:
        quiet: Whether to show nothing.
        unit: Plural noun for the counted items.
    """

    def __init__(self, *, quiet: bool, unit: str = "predictions") -> None:
        self.quiet, self.unit = quiet, unit
        self._unit = unit
        self._bar: object | None = None
        self._total = self._done = self._before = 0
        self._started = self._last = 0.0
        self._log, self._handler = logging.getLogger("robustcli"), _LogToListener(self)

    def __enter__(self) -> ConsoleListener:
        self._log.addHandler(self._handler)
        self._log.propagate = False
        return self

    def __exit__(self, *error: object) -> None:
        self._log.removeHandler(self._handler)
        self._log.propagate = True
        self.stop()

    def stop(self) -> None:
        """Closes the bar, so that lines can be printed below it."""
        from rich.progress import Progress

        if isinstance(self._bar, Progress):
            self._bar.stop()
        self._bar = None

    def say(self, text: str) -> None:
        """Prints a line on standard error."""
        if not self.quiet:
            say_safely(text, err=True)

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """Shows a new bar on a terminal; closes the previous bar."""
        self.stop()
        self._unit = unit or self.unit
        self._total, self._done, self._before = total, done, done
        self._started = self._last = time.monotonic()
        if self.quiet:
            return
        if done:
            self.say(f"{done:,} of {total:,} {self._unit} already exist.")
        if sys.stderr.isatty() and done < total:
            self._bar = _bar(self._unit, total, done)

    def advance(self, count: int) -> None:
        """Updates the bar, or prints a line every ten seconds and at the end."""
        from rich.progress import Progress, TaskID

        self._done += count
        if isinstance(self._bar, Progress):
            self._bar.update(TaskID(0), completed=self._done)
        elif not self.quiet and self._line_is_due():
            self._last = time.monotonic()
            self.say(f"{self._done:,} of {self._total:,} {self._unit}, {self._remaining_time()}")

    def _line_is_due(self) -> bool:
        late = time.monotonic() - self._last >= SECONDS_BETWEEN_LINES
        return late or self._done == self._total

    def _remaining_time(self) -> str:
        spent = time.monotonic() - self._started
        rate = (self._done - self._before) / max(spent, 1e-9)
        if self._done == self._total:
            return f"done in {spent:.0f} s ({rate:,.{0 if rate >= 10 else 1}f} a second)."
        return f"about {(self._total - self._done) / rate:.0f} s left."


class _LogToListener(logging.Handler):
    """Passes log messages to a listener."""

    def __init__(self, listener: ConsoleListener) -> None:
        super().__init__()
        self.listener, self.before = listener, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Shows the message if it is new and this is rank 0."""
        text = record.getMessage()
        if text not in self.before and is_first_process():
            self.before.add(text)
            self.listener.say(text)


def _bar(unit: str, total: int, completed: int) -> object:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    bar = Progress(*columns, console=Console(stderr=True))
    bar.start()
    bar.add_task(unit, total=total, completed=completed)
    return bar
