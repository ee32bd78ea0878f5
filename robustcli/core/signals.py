"""Termination signals of schedulers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """In the context, SIGTERM raises KeyboardInterrupt like Ctrl+C.

    SLURM, Kubernetes and `kill` send SIGTERM before they kill a process.
    """
    if threading.current_thread() is not threading.main_thread():  # signals go to the main one
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        with suppress(TypeError):  # a handler that was not set from Python
            signal.signal(signal.SIGTERM, before)
