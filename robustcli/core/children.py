"""Child processes that compute a job for this program and end with it.

A child receives its job as a pickle on standard input. Only the parent can write to this pipe, and
it stays open as long as the parent lives, so a child whose parent was killed ends too.
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
        job: Any object that can be pickled; `job_of_parent` returns it in the child.
        threads: Number of torch's threads in the child.
        stdout: Passed to `subprocess.Popen`.
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
    with suppress(BrokenPipeError):  # the child has ended: detected by the code that waits for it
        child.stdin.write(len(content).to_bytes(8, "little") + content)
        child.stdin.flush()
    return child


def job_of_parent() -> Any:
    """The job of this child process; from this call on the child ends with its parent.

    Ctrl+C sends SIGINT to all processes of a terminal. The child ignores it; the parent ends the
    child.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = pickle.loads(_read(int.from_bytes(_read(8), "little")))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return job


def end_children(children: Iterable[subprocess.Popen[bytes]], grace: float | None = None) -> None:
    """Terminates the running children and waits until they have ended.

    Args:
        children: Processes from `start_child`.
        grace: Seconds between SIGTERM and SIGKILL for all children together; None to wait without
            limit.
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
    """A sentence for messages on how a process with exit code `code` ended."""
    if code < 0:
        with suppress(ValueError):
            return f"It was terminated by {signal.Signals(-code).name}."
    return f"Its exit code was {code}."


def _read(size: int) -> bytes:
    """The next `size` bytes of standard input.

    Does not use `sys.stdin`: a thread that waits in it holds a lock, and a forked loader worker
    would inherit the locked lock and deadlock.
    """
    content = b""
    while len(content) < size and (chunk := os.read(0, size - len(content))):
        content += chunk
    return content


def _end_with_parent() -> None:
    _read(1)
    os._exit(1)
