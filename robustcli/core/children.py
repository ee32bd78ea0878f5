"""Processes that this program starts to help it, and that end with it.

A child gets what to do as a pickle on its standard input, which only its parent can write to, and
which stays open as long as the parent lives: a child whose parent was killed ends too.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

_PACKAGES = str(Path(__file__).parents[2])


def start_child(
    entry: str, job: object, *, threads: int, stdout: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Starts a Python process that calls `entry`, and sends it `job`.

    Args:
        entry: A function without arguments that returns the exit code, as `module:function`.
        job: What `job_of_parent` gives there; anything that can be pickled.
        threads: Threads of torch in the child.
        stdout: What `subprocess` takes.
    """
    module, _, function = entry.partition(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    paths = filter(None, [_PACKAGES, os.environ.get("PYTHONPATH")])
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", code], env=environment, stdin=subprocess.PIPE, stdout=stdout
    )
    assert child.stdin is not None
    content = pickle.dumps(job)
    with suppress(BrokenPipeError):  # it has ended: noticed by whoever waits for it
        child.stdin.write(len(content).to_bytes(8, "little") + content)
        child.stdin.flush()
    return child


def job_of_parent() -> Any:
    """In a child, what it has to do; from now on it ends with its parent.

    Ctrl+C reaches all processes of a terminal: the child ignores it, and its parent ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = pickle.loads(_read(int.from_bytes(_read(8), "little")))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return job


def end_children(children: Iterable[subprocess.Popen[bytes]], grace: float | None = None) -> None:
    """Ends the children that still live, and waits for them.

    Args:
        children: Those of `start_child`.
        grace: Seconds that they get to end by themselves, before they are killed; None for as long
            as it takes.
    """
    children = list(children)
    for child in children:
        child.terminate()
    deadline = None if grace is None else time.monotonic() + grace
    for child in children:
        try:
            child.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdin is not None:
            with suppress(BrokenPipeError):
                child.stdin.close()


def how_ended(code: int) -> str:
    """How a process with this exit code ended, in a sentence."""
    if code < 0:
        with suppress(ValueError):
            return f"It was ended by {signal.Signals(-code).name}."
    return f"Its exit code was {code}."


def _read(size: int) -> bytes:
    """The next `size` bytes of standard input.

    Not through `sys.stdin`: a thread that waits in it holds a lock, which a forked loader worker
    would inherit locked and wait for without end.
    """
    content = b""
    while len(content) < size and (more := os.read(0, size - len(content))):
        content += more
    return content


def _end_with_parent() -> None:
    _read(1)
    os._exit(1)
