"""Runs several independent trainings in parallel, each in a separate process on one device.

Several seeds, or several modes of a fine-tuning, are independent of each other. If there are at
least as many trainings as devices, each device runs one training at a time. This is faster than
sharing the steps of each training, which exchanges gradients, and each result is that of a
single-process training. The first process owns the common folder, and forwards the messages of the
others.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TextIO

import torch

from robustcli.core.children import end_children, how_ended, job_of_parent, start_child
from robustcli.core.errors import RobustError, RunError, as_plain, first_line, raised_again
from robustcli.core.listener import Listener
from robustcli.core.ranks import ranks
from robustcli.core.signals import interruptible, was_interrupted
from robustcli.training.processes import GRACE, helped_run
from robustcli.training.trainer import machine

_CHILD = "robustcli.training.side_by_side:train_for_parent"


@dataclass(frozen=True)
class SeparateRun:
    """One training to run in a separate process.

    Args:
        name: Name in messages, e.g. `seed 3`.
        function: Runs the training; called with `arguments`, the device (a value of `--device`) and
            a listener. Must be a module-level function, because another process imports it.
        arguments: Arguments, which must be picklable.
    """

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]


def devices_beside(device: str, devices: int | Literal["all"], runs: int) -> int:
    """Number of devices that each run one of `runs` trainings; 0 if all devices share the steps.

    Raises:
        UsageError: The machine has fewer devices than `devices`.
    """
    if devices == 1 or ranks().world > 1 or helped_run() is not None:
        return 0
    count = machine(device, devices).devices
    return count if 1 < count <= runs else 0


def announce_beside(count: int, runs: Sequence[str], say: Callable[[str], None]) -> None:
    """Reports that `runs` are distributed over `count` devices, one training per device."""
    say(
        f"{len(runs)} trainings ({', '.join(runs)}) on {count} devices: each is trained by one "
        f"process on one device, {count} at the same time. Steps are not shared, so that "
        "`--batch-size` is the batch size per device."
    )


def run_beside(
    runs: Sequence[SeparateRun], count: int, device: str, listener: Listener,
    on_failure: Callable[[SeparateRun, Exception], None],
) -> None:  # fmt: skip
    """Runs all `runs`, `count` at a time, each on one device.

    Ctrl+C ends all trainings; they can be resumed.

    Args:
        runs: The trainings.
        count: Number of devices.
        device: Value of `--device`.
        listener: Receives the messages of all trainings, and the sum of their progress.
        on_failure: Called for each failed training, while the others continue. If it raises, the
            others are ended.
    """
    waiting, free = deque(runs), list(reversed(range(count)))
    kind = machine(device, 1).device.type
    threads = max(1, torch.get_num_threads() // count) if kind == "cpu" else torch.get_num_threads()
    events: queue.Queue[tuple[_Child, dict[str, Any]]] = queue.Queue()
    working: list[_Child] = []
    progress = _Sum(listener)
    try:
        while waiting or working:
            while waiting and free:
                slot, run = free.pop(), waiting.popleft()
                place = f"cuda:{slot}" if kind == "cuda" else kind
                working.append(_Child(run, slot, place, threads, events))
            child, event = events.get()
            if "end" not in event:
                progress.pass_on(child.run.name, event)
                continue
            child.close()
            working.remove(child)
            free.append(child.slot)
            error = child.failure(event["end"])
            if error is not None:
                on_failure(child.run, error)
    finally:
        end_children([child.process for child in working], GRACE)


class _Child:
    """One training in its process; a thread puts its messages into `events`."""

    def __init__(
        self, run: SeparateRun, slot: int, device: str, threads: int,
        events: queue.Queue[tuple[_Child, dict[str, Any]]],
    ) -> None:  # fmt: skip
        self.run, self.slot = run, slot
        job = (run.function, run.arguments, device)
        self.process = start_child(_CHILD, job, threads=threads, stdout=subprocess.PIPE)
        threading.Thread(target=self._read, args=(events,), daemon=True, name=run.name).start()

    def close(self) -> None:
        """Waits for the process, which has ended or is ending."""
        end_children([self.process], GRACE)

    def failure(self, end: dict[str, Any] | None) -> Exception | None:
        """The error that ended the training; None if it finished."""
        if end is None:
            return RunError(
                f"The process of {self.run.name} ended in the middle.",
                how_ended(self.process.returncode),
                "The same command continues from its last finished epoch.",
            )
        if end.get("plain") is not None:
            return raised_again(end["plain"])
        if end.get("what") is not None:
            error = RuntimeError(end["what"])
            error.add_note(end["traceback"])
            return error
        return None

    def _read(self, events: queue.Queue[tuple[_Child, dict[str, Any]]]) -> None:
        """Puts the events of the process into `events`; the last is `end`, None if it died."""
        assert self.process.stdout is not None
        end: dict[str, Any] | None = None
        with self.process.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # the last line of a killed process may be cut off
                    event = json.loads(line)
                    if "end" in event:
                        end = event["end"]
                    else:
                        events.put((self, event))
        self.process.wait()
        events.put((self, {"end": end}))


class _Sum:
    """Forwards messages of several trainings with their names, and sums up their progress.

    Whenever a training starts, counting starts again without the images that this command has
    trained on: as finished images of an earlier command, they would be reported as existing.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._counts: dict[str, tuple[int, int, int]] = {}  # total, finished before, trained now

    def pass_on(self, name: str, event: dict[str, Any]) -> None:
        """Forwards one event of the training `name`."""
        if "say" in event:
            self._listener.say(f"{name}: {event['say']}")
        elif "start" in event:
            total, before, unit = event["start"]
            self._counts[name] = total, before, 0
            totals, existing, trained = map(sum, zip(*self._counts.values(), strict=True))
            self._listener.start(totals - trained, existing, unit)
        else:
            total, before, trained = self._counts.get(name, (0, 0, 0))
            self._counts[name] = total, before, trained + event["advance"]
            self._listener.advance(event["advance"])


class _EventWriter:
    """Listener of a training in a separate process: writes each event as a line of JSON."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def say(self, text: str) -> None:
        """See `Listener.say`."""
        self.write({"say": text})

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """See `Listener.start`."""
        self.write({"start": [total, done, unit]})

    def advance(self, count: int) -> None:
        """See `Listener.advance`."""
        self.write({"advance": count})

    def write(self, event: dict[str, Any]) -> None:
        """Sends one event."""
        with self._lock:
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()


def train_for_parent() -> int:
    """Runs the training that the parent process sent (see `run_beside`); returns the exit code."""
    # Redirects the output of libraries to stderr, so that stdout contains only events.
    teller = _EventWriter(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    function, arguments, device = job_of_parent()
    try:
        with interruptible():
            function(*arguments, device, teller)
    except KeyboardInterrupt:
        return 130
    except RobustError as error:
        if was_interrupted():
            return 130
        teller.write({"end": {"plain": as_plain(error)}})
        return error.exit_code
    except Exception as error:
        if was_interrupted():
            return 130
        what = f"{type(error).__name__}: {first_line(error)}"
        teller.write({"end": {"what": what, "traceback": traceback.format_exc()}})
        return 1
    teller.write({"end": {}})
    return 0
