"""Several processes on one run: each takes a number, and the first one there tidies up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def taken_slot(run: Path) -> Iterator[int]:
    """The lowest number that no other living process holds on this run.

    The system frees the number of a process that was killed. Half-written files that such a process
    left are removed when no other process works on the run.
    """
    folder = run / ".slots"
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    number, lock = _lowest_free(folder)
    try:
        if _nobody_else(folder, number):
            _remove_leftovers(run, now)
        yield number
    finally:
        lock.release()


def _lowest_free(folder: Path) -> tuple[int, FileLock]:
    for number in count():
        lock = FileLock(folder / str(number))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return number, lock
    raise AssertionError("unreachable: there is always a free number")


def _nobody_else(folder: Path, number: int) -> bool:
    others = [FileLock(path) for path in folder.iterdir() if path.name != str(number)]
    with ExitStack() as stack:
        try:
            for lock in others:
                stack.enter_context(lock.acquire(timeout=0))
        except Timeout:
            return False
    return True


def _remove_leftovers(run: Path, before: float) -> None:
    """Temporary files from before this process looked: a process that came later may own others."""
    for path in run.rglob(".*.tmp"):
        if path.stat().st_mtime < before:
            path.unlink(missing_ok=True)
