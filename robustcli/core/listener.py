"""How a long computation tells what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Receives what happens; the command line prints it, a notebook may ignore it."""

    def say(self, text: str) -> None:
        """A line for the user: a default that was taken, something skipped."""

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """Work begins: `total` model inputs, of which `done` were there before.

        `unit` is what is counted, where it is something else than usual, in the plural.
        """

    def advance(self, count: int) -> None:
        """`count` more model inputs are computed."""


class Silent:
    """A listener that listens to nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """Nothing."""

    def advance(self, count: int) -> None:
        """Nothing."""


class NamedListener:
    """Passes on the lines of several runs, each with the name of its run before it."""

    def __init__(self, listener: Listener) -> None:
        self.listener, self.name = listener, ""

    def begin(self, name: str) -> None:
        """Sets the name of the run that later lines belong to; empty for none."""
        self.name = name

    def say(self, text: str) -> None:
        """Passes on `text` after the name."""
        self.listener.say(f"{self.name}: {text}" if self.name else text)

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """See `Listener`."""
        self.listener.start(total, done, unit)

    def advance(self, count: int) -> None:
        """See `Listener`."""
        self.listener.advance(count)
