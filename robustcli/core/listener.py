"""Messages and progress of long computations, independent of how they are shown."""

from __future__ import annotations

import logging
from typing import Protocol


class Listener(Protocol):
    """Receives messages and progress; the command line prints them, a notebook can ignore them."""

    def say(self, text: str) -> None:
        """Receives a line for the user, such as a default or a skipped item."""

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """Work starts on `total` model inputs, of which `done` are finished already.

        `unit` names the counted items in the plural; None for model inputs.
        """

    def advance(self, count: int) -> None:
        """Reports `count` further model inputs."""


class Silent:
    """A listener that ignores everything."""

    def say(self, text: str) -> None:
        """Ignored."""

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """Ignored."""

    def advance(self, count: int) -> None:
        """Ignored."""


class Logged:
    """Sends lines to the logger `robustcli`, at level INFO: the listener of calls from Python.

    If the program has not configured logging, the lines are printed on standard error, because a
    default that is only logged would be silent.
    """

    def say(self, text: str) -> None:
        """Logs the line."""
        _logger().info("%s", text)

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """Ignored."""

    def advance(self, count: int) -> None:
        """Ignored."""


def _logger() -> logging.Logger:
    logger = logging.getLogger("robustcli")
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
    return logger


class NamedListener:
    """Forwards lines of several runs, each prefixed with the name of its run."""

    def __init__(self, listener: Listener) -> None:
        self.listener, self.name = listener, ""

    def begin(self, name: str) -> None:
        """Sets the run name of later lines; empty for none."""
        self.name = name

    def say(self, text: str) -> None:
        """Forwards `text` with the name of the run."""
        self.listener.say(f"{self.name}: {text}" if self.name else text)

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """See `Listener`."""
        self.listener.start(total, done, unit)

    def advance(self, count: int) -> None:
        """See `Listener`."""
        self.listener.advance(count)
