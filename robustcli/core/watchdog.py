"""Detects hanging and dead loader processes, and names the image that they were working on.

Images are decoded and transformed inside `working_on`. A loader process writes its task into memory
that it shares with the main process (`WorkerTable`); the threads of a process store their tasks in
a dictionary. `Watchdog` checks all tasks every second: it kills a loader process that works on one
image for too long, and explains the death of a loader process. Threads cannot be killed, so for a
hanging thread it only reports the image.
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
from typing import Any, NamedTuple

from robustcli.core.errors import RobustError, RunError, UsageError
from robustcli.core.signals import ignore_lost_peer

LIMIT_VARIABLE = "ROBUST_IMAGE_SECONDS"
"""Environment variable with the time limit for one image in seconds; 0 for no limit."""
IMAGE_SECONDS = 600.0
"""Default limit: far above the usual time, so that slow network storage is no false alarm."""
_LOOK_SECONDS = 1.0
_TASK_BYTES, _BATCH_BYTES = 1000, 1000
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", re.DOTALL)
_TERMINATED_SECONDS = 2.0  # until a signal to the process group has reached this process
_KEPT = "Finished results are kept: the same command continues from there."


class _Slot(ctypes.Structure):
    """Shared state of one loader process; `count` increases with every change of `task`."""

    _fields_ = (
        ("pid", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("task", ctypes.c_char * (_TASK_BYTES + 1)),
        ("batch", ctypes.c_char * (_BATCH_BYTES + 1)),
    )


class _Task(NamedTuple):
    """Task of a thread or loader process; `number` differs between tasks."""

    number: int
    text: str


_slot: Any = None  # slot of this process if it is a loader process
_threads: dict[int, _Task] = {}
_counter = itertools.count(1)


@contextmanager
def working_on(task: str) -> Iterator[None]:
    """Sets the task of this thread for one image, such as "decoding `cat/1.png`"."""
    before = _begin(task)
    try:
        yield
    finally:
        _begin(before)


def switch_to(task: str) -> None:
    """Replaces the task of this thread until the end of the enclosing `working_on`."""
    _begin(task)


@contextmanager
def decoding_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `threads` threads; after an error it is not joined, because a thread may hang."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def thread_hangs(seconds: float = 5.0) -> bool:
    """Whether another thread still works on the same image after `seconds`.

    At exit, Python joins such a thread, which never returns if the storage does not respond.
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
    """Reports threads of this process that hang at one image to `say`."""
    with Watchdog(say) as watchdog:
        watchdog.start()
        yield


def in_batch(images: Sequence[str]) -> None:
    """Sets the images of the batch that this loader process makes; no effect in other processes."""
    if _slot is not None:
        names = f"`{images[0]}`" if len(images) == 1 else f"`{images[0]}` to `{images[-1]}`"
        _slot.batch = _fitting(f"making a batch of {names}", _BATCH_BYTES)


def _begin(task: str) -> str:
    """Replaces the task of this thread; returns the previous task."""
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
    """`text` as UTF-8 without null bytes, truncated to `most` bytes."""
    content = text.replace("\0", " ").encode("utf-8", "replace")
    return content if len(content) <= most else content[: most - 4] + b" ..."


class WorkerTable:
    """Tasks of the loader processes of one loader, in shared memory.

    Args:
        workers: Number of loader processes.
        start_method: Start method of the loader processes: `fork` or `spawn`.
    """

    def __init__(self, workers: int, start_method: str) -> None:
        self.slots = get_context(start_method).RawArray(_Slot, workers)

    def enter(self, worker: int) -> None:
        """Registers this process as loader process number `worker`."""
        global _slot
        _threads.clear()  # a forked process inherits the tasks of its parent
        _slot = self.slots[worker]
        _slot.task = _slot.batch = b""
        _slot.pid = os.getpid()
        ignore_lost_peer()


@dataclass
class _TaskAge:
    """Time since a task changed, as observed by the watchdog."""

    number: int
    seconds: float = 0.0
    reported: bool = False


class Watchdog:
    """Context manager that detects loader processes and threads that hang at one image.

    At exit, torch's error about a dead loader process is replaced by a `RunError` that names the
    image.

    Args:
        say: Receives messages for the user.
        seconds: Time limit for one image; None for `seconds_limit()`.
    """

    def __init__(
        self, say: Callable[[str], None] | None = None, seconds: float | None = None
    ) -> None:
        self.say = say
        self.seconds = seconds_limit() if seconds is None else seconds
        self._tables: list[WorkerTable] = []
        self._ages: dict[tuple[str, int], _TaskAge] = {}
        self._ended: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def table(self, workers: int, start_method: str) -> WorkerTable:
        """Creates and observes the table of the loader processes of one loader."""
        table = WorkerTable(workers, start_method)
        self._tables.append(table)
        return table

    def start(self) -> None:
        """Starts the thread of the watchdog; call it after loader processes were forked."""
        if self._thread is None and self.seconds < math.inf:
            self._ages = {
                ("thread", thread): _TaskAge(task.number, reported=True)
                for thread, task in list(_threads.items())
            }
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def __enter__(self) -> Watchdog:
        self._stop.clear()
        return self

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
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
            # Limited: the process may have been suspended since then (Ctrl+Z, a closed lid).
            self._look(min(now - last, 2 * _LOOK_SECONDS))
            last = now

    def _look(self, seconds: float) -> None:
        """Adds `seconds` to the time of every task that has not changed."""
        tasks = self._tasks()
        for key in self._ages.keys() - tasks.keys():
            del self._ages[key]
        for key, task in tasks.items():
            age = self._ages.get(key)
            if age is None or age.number != task.number:
                self._ages[key] = _TaskAge(task.number)
                continue
            age.seconds += seconds
            if age.seconds > self.seconds and not age.reported:
                age.reported = True
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
        import psutil  # imported late: only commands that compute need it

        kind, number = key
        if kind == "process":
            self._ended[number] = task
            with suppress(psutil.Error):
                psutil.Process(number).kill()
        elif self.say is not None:
            self.say(
                f"Still {task}, for {self.seconds:g} seconds: check whether its storage responds. "
                "Ctrl+C ends the command; finished results are kept."
            )

    def _end_others(self) -> None:
        """Terminates the loader processes, which a stored exception could keep alive."""
        import psutil

        pids = {slot.pid for slot in self._slots()}
        for child in psutil.Process().children():
            if child.pid in pids:
                with suppress(psutil.Error):
                    child.terminate()

    def _dead_worker(self, error: BaseException | None) -> RunError | None:
        """The error to raise if `error` is torch's error about a dead loader process, else None."""
        if isinstance(error, RobustError | KeyboardInterrupt):  # it already describes the cause
            return None
        current, pids, end = error, list[int](), ""
        while current is not None:
            match = _DEAD_WORKER.search(str(current)) if isinstance(current, RuntimeError) else None
            if match:  # the innermost exception contains the signal
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
                    f"A loader process was terminated: it was {self._ended[pid]} for more than "
                    f"{self.seconds:g} seconds.",
                    "The storage does not respond, or the decoder or transform does not terminate.",
                    "Check this image. If the storage is slow, increase the time limit "
                    f"(`{LIMIT_VARIABLE}={6 * self.seconds:g}`). {_KEPT}",
                )
        if "Terminated" in end:
            time.sleep(_TERMINATED_SECONDS)  # KeyboardInterrupt if all received SIGTERM
        doing = next((tasks[pid] for pid in pids if tasks.get(pid)), "")
        while_ = f" while {doing}" if doing else ""
        for sign, (why, todo) in _ENDS.items():
            if sign in end:
                return RunError(f"A loader process ended{while_}.", why, f"{todo} {_KEPT}")
        return RunError(
            f"A loader process ended{while_}.", " ".join(end.split()), f"{_OTHER_IMAGE} {_KEPT}"
        )


_OTHER_IMAGE = "Check this image: repair it, or remove it."
_FEWER = (
    "Use fewer `--workers` (`--workers 0` needs no loader processes) or a smaller `--batch-size`"
)
_ENDS = {
    "Killed": (
        "It was killed (SIGKILL). The operating system does this when the memory of the machine "
        "or of the container runs out.",
        f"{_FEWER}; if it is always the same image, check that image.",
    ),
    "Terminated": (
        "It was terminated by another process (SIGTERM), for example by a monitor of memory.",
        f"{_FEWER}.",
    ),
    "Bus error": (
        "It could not access its memory (SIGBUS): containers often have little shared memory "
        "(/dev/shm); a file that is truncated while it is read has the same effect.",
        f"{_FEWER}, or give the container more shared memory (`docker run --shm-size 8g`).",
    ),
    "Segmentation fault": (
        "A library that decodes or transforms images failed (SIGSEGV).",
        _OTHER_IMAGE,
    ),
}
"""Reason and advice for a dead loader process, by a word in torch's message."""


def _current(slot: Any) -> str:
    """Task of a loader process: its current image, or else its current batch."""
    return str(slot.task or slot.batch, "utf-8", "replace")


def seconds_limit() -> float:
    """The time limit for one image in seconds; infinity for no limit.

    Raises:
        UsageError: The environment variable is not a number of seconds.
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
            "It is the time limit per image in seconds: a number, or 0 for no limit.",
            f"Unset it for the default of {IMAGE_SECONDS:g} seconds.",
        )
    return seconds or math.inf
