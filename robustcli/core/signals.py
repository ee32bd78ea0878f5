"""Ctrl+C and the termination signals of schedulers."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

_REPEAT_SECONDS = 0.05  # until a lost KeyboardInterrupt is raised again


@dataclass
class _State:
    """Nested contexts of `interruptible`, and the signal that was received in the outermost one.

    `deferring` and `deferred` belong to `uninterrupted`.
    """

    depth: int = 0
    received: int | None = None
    deferring: bool = False
    deferred: bool = False


_state = _State()


def was_interrupted() -> bool:
    """Whether the current or last context of `interruptible` received Ctrl+C or SIGTERM.

    An error that is raised afterwards is a consequence: a library may replace KeyboardInterrupt by
    an exception of its own (`torch.save` does), and loader processes end by the same signal.
    """
    return _state.received is not None


@contextmanager
def interruptible() -> Iterator[None]:
    """In the context, SIGTERM raises KeyboardInterrupt like Ctrl+C, and neither is lost.

    SLURM, Kubernetes and `kill` send SIGTERM before they kill a process. Python ignores exceptions
    in finalisers and in functions that are registered for `fork`: a KeyboardInterrupt that is
    raised there is raised again afterwards, without a message. A context outside of the main
    thread, which alone receives signals, has no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _state.depth == 0:
        _state.received = None
    _state.depth += 1
    handlers = {signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        handlers[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    hook = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            received = _state.received or signal.SIGINT
            threading.Timer(_REPEAT_SECONDS, _repeat, [received]).start()
        elif not (was_interrupted() and "DataLoader worker" in str(unraisable.exc_value)):
            hook(unraisable)

    sys.unraisablehook = report
    try:
        yield
    finally:
        _state.depth -= 1
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            with suppress(TypeError):  # a handler that was not set from Python
                signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """In this short context, a signal that `interruptible` handles takes effect at the end.

    A forked process also ignores it, until it sets its own handlers.
    """
    if threading.current_thread() is not threading.main_thread() or _state.deferring:
        yield
        return
    _state.deferring, _state.deferred = True, False
    try:
        yield
    finally:
        _state.deferring = False
        if _state.deferred:
            raise KeyboardInterrupt


def ignore_lost_peer() -> None:
    """Prints no traceback in a loader process whose main process ended while it sent a batch.

    A thread of multiprocessing, which hands over the tensors, reports the lost connection.
    """
    hook = sys.excepthook

    def report(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            hook(kind, error, trace)

    sys.excepthook = report


def _repeat(number: int) -> None:
    """Sends the signal to the main thread; where possible, so that it also ends a system call.

    Outside of the context, the signal would end the program without its exit code.
    """
    if _state.depth == 0:
        return
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:  # Windows
        _thread.interrupt_main(signal.Signals(number))


def _interrupt(number: int, frame: FrameType | None) -> None:
    _state.received = number
    if not _state.deferring:
        raise KeyboardInterrupt
    _state.deferred = True
