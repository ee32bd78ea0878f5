"""A listener for several trainings one after the other, which say much the same."""

from __future__ import annotations

from robustcli.evaluation.listener import Listener


class ModeListener:
    """Passes on what a mode's training says, with the mode's name before it.

    What every mode announces before it begins, such as the recipe, is passed on once.

    Args:
        listener: Who hears it.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener, self.mode = listener, ""
        self._announced: set[str] = set()
        self._training = False

    def begin(self, mode: str) -> None:
        """The training of `mode` follows."""
        self.mode, self._training = mode, False

    def say(self, text: str) -> None:
        """A line, unless it was announced before."""
        if not self._training and text in self._announced:
            return
        self._announced.add(text)
        self.listener.say(f"{self.mode}: {text}" if self.mode else text)

    def start(self, total: int, done: int) -> None:
        """The training itself begins."""
        self._training = True
        self.listener.start(total, done)

    def advance(self, count: int) -> None:
        """See `Listener`."""
        self.listener.advance(count)
