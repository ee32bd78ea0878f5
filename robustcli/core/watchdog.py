"""Names the image that a loader process was working on when it hung or died.

Images are decoded and transformed inside `working_on`. A loader process writes its task into
memory that it shares with the process that started it (`WorkerTable`); the threads of a process
keep theirs in a dictionary. `Watchdog` looks at all tasks every second: it ends a loader process
that stays at one image for too long, and says what killed one that is gone. A thread cannot be
ended: the user is told which image it is at.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from types import TracebackType
from typing import Any, NamedTuple

from robustcli.core.errors import RobustError, RunError, UsageError

LIMIT_VARIABLE = "ROBUST_IMAGE_SECONDS"
"""The environment variable with the seconds that one image may take; 0 for no limit."""
IMAGE_SECONDS = 600.0
"""Far beyond what an image takes, so that slow network storage is no false alarm."""
_LOOK_SECONDS = 1.0
_TASK_BYTES, _BATCH_BYTES = 1000, 1000
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", re.DOTALL)
_TERMINATED_SECONDS = 2.0  # in which a signal to a whole group of processes reaches this one too
_KEPT = "What was finished is kept: the same command goes on from there."


class _Slot(ctypes.Structure):
    """What one loader process does: `count` grows whenever `task` changes."""

    _fields_ = (
        ("pid", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("task", ctypes.c_char * (_TASK_BYTES + 1)),
        ("batch", ctypes.c_char * (_BATCH_BYTES + 1)),
    )


class _Task(NamedTuple):
    """What a thread or loader process does; `number` is another one for every task."""

    number: int
    text: str


_slot: Any = None  # that of this process, where it is a loader process
_threads: dict[int, _Task] = {}
_counter = itertools.count(1)


@contextmanager
def working_on(task: str) -> Iterator[None]:
    """Inside, this thread does `task` to one image, such as "decoding `cat/1.png`"."""
    before = _begin(task)
    try:
        yield
    finally:
        _begin(before)


def switch_to(task: str) -> None:
    """Replaces the task of this thread, inside `working_on`, whose end it leaves as it is."""
    _begin(task)


@contextmanager
def decoding_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads for images; after an error or Ctrl+C none is waited for, as it may hang."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def thread_hangs(seconds: float = 5.0) -> bool:
    """Whether another thread is still at the same image after so many seconds.

    Python waits for such a thread when it ends, for ever where storage does not answer.
    """
    this, tasks = threading.get_ident(), dict(_threads)
    tasks.pop(this, None)
    end = time.monotonic() + seconds
    while tasks and time.monotonic() < end:
        time.sleep(0.05)
        tasks = {thread: task for thread, task in tasks.items() if _threads.get(thread) == task}
    return bool(tasks)


@contextmanager
def watching_threads(say: Callable[[str], None]) -> Iterator[None]:
    """Inside, `say` hears of a thread of this process that hangs at one image."""
    with Watchdog(say) as watchdog:
        watchdog.start()
        yield


def in_batch(images: Sequence[str]) -> None:
    """Notes which images this loader process makes a batch of; without effect elsewhere."""
    if _slot is not None:
        names = f"`{images[0]}`" if len(images) == 1 else f"`{images[0]}` to `{images[-1]}`"
        _slot.batch = _fitting(f"making a batch of {names}", _BATCH_BYTES)


def _begin(task: str) -> str:
    """Replaces the task of this thread; returns the one before."""
    if _slot is not None:
        before = str(_slot.task, "utf-8", "replace")
        _slot.task = _fitting(task, _TASK_BYTES)
        _slot.count += 1
        return before
    thread = threading.get_ident()
    former = _threads.pop(thread, None)
    if task:
        _threads[thread] = _Task(next(_counter), task)
    return former.text if former else ""


def _fitting(text: str, most: int) -> bytes:
    """`text` in at most `most` bytes, none of which is 0."""
    content = text.replace("\0", " ").encode("utf-8", "replace")
    return content if len(content) <= most else content[: most - 4] + b" ..."


class WorkerTable:
    """The tasks of the `workers` loader processes of one loader, in memory that they share.

    Args:
        workers: Their number.
        start_method: How they are started: `fork` or `spawn`.
    """

    def __init__(self, workers: int, start_method: str) -> None:
        self.slots = get_context(start_method).RawArray(_Slot, workers)

    def enter(self, worker: int) -> None:
        """Makes this process number `worker` of the loader processes."""
        global _slot
        _threads.clear()  # a copied process has those of the process that started it
        _slot = self.slots[worker]
        _slot.task = _slot.batch = b""
        _slot.pid = os.getpid()


@dataclass
class _Seen:
    """How long a task has been seen without a change."""

    number: int
    seconds: float = 0.0
    reported: bool = False


class Watchdog:
    """Notices, between enter and exit, loader processes and threads that hang at one image.

    On leaving, torch's error about a loader process that is gone becomes a `RunError` that names
    the image.

    Args:
        say: Receives a line for the user.
        seconds: Limit for one image; None for that of the environment, or the usual one.
    """

    def __init__(
        self, say: Callable[[str], None] | None = None, seconds: float | None = None
    ) -> None:
        self.say = say
        self.seconds = seconds_limit() if seconds is None else seconds
        self._tables: list[WorkerTable] = []
        self._seen: dict[tuple[str, int], _Seen] = {}
        self._ended: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def table(self, workers: int, start_method: str) -> WorkerTable:
        """A table for the loader processes of one loader."""
        table = WorkerTable(workers, start_method)
        self._tables.append(table)
        return table

    def start(self) -> None:
        """Begins to look; after loader processes were copied from this one, where that can be."""
        if self._thread is None and self.seconds < math.inf:
            self._seen = {
                ("thread", thread): _Seen(task.number, reported=True)
                for thread, task in list(_threads.items())
            }
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def __enter__(self) -> Watchdog:
        self._stop.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            dead = self._dead_worker(error)
        finally:
            if error is not None:
                self._end_others()
            self._tables.clear()
        if dead is not None:
            raise dead from error

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(_LOOK_SECONDS):
            now = time.monotonic()
            # A process that was stopped (Ctrl+Z, a closed lid) has not worked meanwhile.
            self._look(min(now - last, 2 * _LOOK_SECONDS))
            last = now

    def _look(self, seconds: float) -> None:
        """Counts `seconds` for every task that is the same as before."""
        tasks = self._tasks()
        for key in self._seen.keys() - tasks.keys():
            del self._seen[key]
        for key, task in tasks.items():
            seen = self._seen.get(key)
            if seen is None or seen.number != task.number:
                self._seen[key] = _Seen(task.number)
                continue
            seen.seconds += seconds
            if seen.seconds > self.seconds and not seen.reported:
                seen.reported = True
                self._report(key, task.text)

    def _tasks(self) -> dict[tuple[str, int], _Task]:
        tasks = {("thread", thread): task for thread, task in list(_threads.items())}
        for slot in self._slots():
            text = str(slot.task, "utf-8", "replace")
            if text:
                tasks["process", slot.pid] = _Task(slot.count, text)
        return tasks

    def _slots(self) -> Iterator[Any]:
        return (slot for table in self._tables for slot in table.slots if slot.pid)

    def _report(self, key: tuple[str, int], task: str) -> None:
        import psutil  # only commands that compute need it

        kind, number = key
        if kind == "process":
            self._ended[number] = task
            with suppress(psutil.Error):
                psutil.Process(number).kill()
        elif self.say is not None:
            self.say(
                f"Still {task}, for {self.seconds:g} seconds: does its storage answer? Ctrl+C ends "
                "the command, and what was finished is kept."
            )

    def _end_others(self) -> None:
        """Ends loader processes, which an error that somebody keeps would hold alive."""
        import psutil

        pids = {slot.pid for slot in self._slots()}
        for child in psutil.Process().children():
            if child.pid in pids:
                with suppress(psutil.Error):
                    child.terminate()

    def _dead_worker(self, error: BaseException | None) -> RunError | None:
        """What `error` means, if it is torch's error about a loader process that is gone."""
        if isinstance(error, RobustError | KeyboardInterrupt):  # it says what happened
            return None
        current, pids, end = error, list[int](), ""
        while current is not None:
            match = _DEAD_WORKER.search(str(current)) if isinstance(current, RuntimeError) else None
            if match:  # the innermost knows the signal
                pids, end = [int(pid) for pid in match[1].split(",")] + pids, match[2]
            current = current.__cause__ or current.__context__
        if not pids:
            return None
        return self._explained(pids, end, {slot.pid: _current(slot) for slot in self._slots()})

    def _explained(
        self, pids: Sequence[int], end: str, tasks: Mapping[int, str]
    ) -> RunError | None:
        for pid in pids:
            if pid in self._ended:
                return RunError(
                    f"A loader process was ended: it was {self._ended[pid]} for more than "
                    f"{self.seconds:g} seconds.",
                    "The storage does not answer, or the decoder or transform does not come to an "
                    "end.",
                    f"Look at that image. Where storage is slow, allow it more seconds "
                    f"(`{LIMIT_VARIABLE}={6 * self.seconds:g}`). {_KEPT}",
                )
        if "Terminated" in end:
            time.sleep(_TERMINATED_SECONDS)  # raises KeyboardInterrupt if all were to end
        doing = next((tasks[pid] for pid in pids if tasks.get(pid)), "")
        while_ = f" while it was {doing}" if doing else ""
        for sign, (why, todo) in _ENDS.items():
            if sign in end:
                return RunError(f"A loader process ended{while_}.", why, f"{todo} {_KEPT}")
        return RunError(
            f"A loader process ended{while_}.", " ".join(end.split()), f"{_OTHER_IMAGE} {_KEPT}"
        )


_OTHER_IMAGE = "Look at that image: repair it, or leave it out."
_FEWER = "Use fewer `--workers` (`--workers 0` needs none) or a smaller `--batch-size`"
_ENDS = {
    "Killed": (
        "It was killed (SIGKILL). The system does so when the memory of the machine, or of the "
        "container, runs out.",
        f"{_FEWER}; if it is always the same image, look at that.",
    ),
    "Terminated": (
        "It was told to end (SIGTERM) from outside, as a guard does when memory runs short.",
        f"{_FEWER}.",
    ),
    "Bus error": (
        "It could not reach its memory (SIGBUS): containers often have little shared memory "
        "(/dev/shm), and a file that shrinks while it is read does the same.",
        f"{_FEWER}, or give the container more (`docker run --shm-size 8g`).",
    ),
    "Segmentation fault": (
        "A library that decodes or transforms images failed (SIGSEGV).",
        _OTHER_IMAGE,
    ),
}
"""By a word of torch's message: why a loader process ended, and what to do."""


def _current(slot: Any) -> str:
    """What a loader process was doing: to one image, or else for a batch."""
    return str(slot.task or slot.batch, "utf-8", "replace")


def seconds_limit() -> float:
    """The seconds that one image may take; infinity for no limit.

    Raises:
        UsageError: The environment variable is no number of seconds.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return IMAGE_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UsageError(
            f"The environment variable `{LIMIT_VARIABLE}` is `{text}`.",
            "It is how many seconds one image may take: a number, 0 for no limit.",
            f"Unset it for the usual {IMAGE_SECONDS:g} seconds.",
        )
    return seconds or math.inf
