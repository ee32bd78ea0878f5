"""Work in several processes: ranks, messages, heartbeats, and child processes.

`robust eval`, `robust predict` and `robust explain` share their work like this: Every rank first
sends its inputs (data, weights, transforms, versions) to rank 0, which raises an error if they
differ. Rank 0 then determines the missing work once, and assigns its pieces to all ranks by their
numbers. At the end rank 0 waits for the other ranks and compares the results with the plan.
Messages are sent through a key-value store: that of torchrun, SLURM or MPI, or for `--devices N` a
store on the loopback address. Messages are JSON; received data are never executed.

A waiting rank checks the heartbeats of the ranks that it waits for, so it cannot wait forever.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from robustcli.adapters.catalogue import ModelRequest
from robustcli.core.children import end_children, job_of_parent, start_child
from robustcli.core.errors import (
    MachineError,
    RobustError,
    RunError,
    UsageError,
    as_plain,
    raised_again,
)
from robustcli.core.io import write_bytes
from robustcli.core.listener import Listener, Silent
from robustcli.core.machine import versions
from robustcli.core.ranks import Ranks, ranks, store
from robustcli.core.working_copy import is_working_copy
from robustcli.evaluation.plan import share_of

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined,unused-ignore]

RANK_BEAT_SECONDS = 1.0
RANK_SILENCE_SECONDS = 60.0  # a rank without a heartbeat for this long counts as dead
SIGHT_SECONDS = 70.0  # NFS shows files of other machines after up to 60 seconds
_POLL_SECONDS = 0.1
_END_SECONDS = 10.0  # until child processes are killed at the end
_CHILD = "robustcli.evaluation.distributed:help_first"


class DevicesConfig(Protocol):
    """Settings of a command with `--devices`."""

    @property
    def models(self) -> tuple[ModelRequest, ...]:
        """The models, which every process loads."""

    @property
    def device(self) -> str:
        """The value of `--device`."""

    @property
    def devices(self) -> int | str | None:
        """The value of `--devices`."""


_T = TypeVar("_T")


class FirstProcessFailed(SystemExit):
    """Ends a rank after a failure of rank 0, which reports the error."""


@dataclass
class Group:
    """Communication of one rank with the other ranks of a command.

    `messages` is the store that all ranks share, None for a single process; `children` are the
    processes that this process started, by rank.
    """

    place: Ranks = field(default_factory=Ranks)
    messages: Store | None = None
    children: Mapping[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _has_heartbeat: dict[int, tuple[int, float]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.place.rank == 0

    def part(self, name: str) -> Group:
        """The same ranks with separate messages, for one part of their work."""
        if self.messages is None:
            return self
        from torch.distributed import PrefixStore  # type: ignore[attr-defined,unused-ignore]

        return Group(self.place, PrefixStore(name, self.messages), self.children)

    @contextmanager
    def alive(self, listener: Listener) -> Iterator[Listener]:
        """Context manager: sends heartbeats, reports an error to the other ranks, sums up progress.

        Yields the listener to use: at rank 0, `listener` with the progress of all ranks; at the
        others, one that sends progress to rank 0.
        """
        if self.messages is None:
            yield listener
            return
        everyone = _AllRanks(self.messages, listener) if self.first else _Counter(self.messages)
        thread = threading.Thread(target=self._beat, args=(everyone,), name="ranks", daemon=True)
        thread.start()
        try:
            yield everyone
        except RobustError as error:
            self._fail(as_plain(error))
            raise
        except FirstProcessFailed:
            raise
        except BaseException as error:
            what = f"It ended with {type(error).__name__}."
            self._fail(as_plain(RunError(what, str(error)[:500], "Check its output.")))
            raise
        finally:
            self._stop.set()
            thread.join()

    def gather(self, name: str, value: object) -> dict[int, Any]:
        """At rank 0, the value of every rank under `name`; at the others an empty dictionary.

        Raises:
            RobustError: A rank failed or died.
        """
        if self.messages is None:
            return {0: value}
        self.messages.set(f"{name}/{self.place.rank}", json.dumps(value))
        if not self.first:
            return {}
        keys = {rank: f"{name}/{rank}" for rank in range(self.place.world)}
        dead_ranks = self._await({rank: key for rank, key in keys.items() if rank})
        if dead_ranks:
            raise self._dead(dead_ranks)
        return {rank: json.loads(self.messages.get(key)) for rank, key in keys.items()}

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Checks at rank 0 that all ranks have the same `inputs` and package versions.

        Raises:
            UsageError: A rank differs; the message names the rank and the first difference.
            RobustError: A rank failed or died.
        """
        facts = {"host": socket.gethostname(), "package versions": versions(), **inputs}
        check_ranks_agree(self.gather("facts", facts))

    def check_shared(self, folder: Path) -> None:
        """Checks at rank 0 that all ranks see its `folder`, in which they will write their results.

        Rank 0 writes a file and removes it when the others have answered. Of a run in an object
        store, each machine has a separate working copy.

        Raises:
            MachineError: Ranks do not see the file.
            RobustError: A rank failed or died.
        """
        if self.messages is None or is_working_copy(folder):
            return
        if not self.first:
            sees = _appears(folder / self.receive("shared file"))
            self.gather("sees", [sees, socket.gethostname()])
            return
        # With the name of a temporary file: the next command removes it if this process is killed.
        file = folder / f".{uuid.uuid4().hex}.{os.getpid()}-0.tmp"
        write_bytes(file, b"")
        self.send("shared file", file.name)
        try:
            answers = self.gather("sees", [True, ""])
        finally:
            file.unlink(missing_ok=True)
        blind = {rank: host for rank, (sees, host) in answers.items() if not sees}
        if blind:
            hosts = ", ".join(dict.fromkeys(blind.values()))
            raise MachineError(
                f"`{folder}` is not the same folder in all processes.",
                f"{in_words(list(blind), self.place.world)} ({hosts}) did not find a file that the "
                "first process wrote there.",
                "Set `--out` to a folder that all processes share.",
            )

    def send(self, name: str, value: object) -> None:
        """Sends a value from rank 0 to the other ranks, which receive it with `receive`."""
        if self.messages is not None:
            self.messages.set(name, json.dumps(value))

    def receive(self, name: str) -> Any:
        """The value that rank 0 sends under `name`.

        Raises:
            FirstProcessFailed: Rank 0 failed.
            RunError: Rank 0 died.
        """
        assert self.messages is not None
        if self._await({0: name}):
            raise self._dead([0])
        return json.loads(self.messages.get(name))

    def announce(self, text: str, listener: Listener) -> None:
        """Shows `text` to the user, from any rank; once if several ranks send the same text."""
        if self.messages is None or self.first:
            listener.say(text)
            return
        number = self.messages.add("notices", 1)
        self.messages.set(f"notice/{number}", text)

    def share_out(self, pieces: Sequence[_T]) -> tuple[_T, ...]:
        """This rank's share of the `pieces` (JSON values) of rank 0, whatever the others pass.

        Raises:
            FirstProcessFailed: Rank 0 failed.
            RunError: Rank 0 died.
        """
        if self.first:
            self.send("work", pieces)
        else:
            pieces = self.receive("work")
        return share_of(pieces, self.place.rank, self.place.world)

    def collect(self, name: str, value: _T) -> tuple[dict[int, _T], list[int]]:
        """Reports that this rank's share is computed, with a JSON value as its result.

        Returns:
            At rank 0, the value of each rank and the ranks that died; else nothing.

        Raises:
            RobustError: A rank failed; the message is that of the rank.
        """
        if self.messages is None:
            return {0: value}, []
        with _first_process_lost():
            self.messages.set(f"{name}/{self.place.rank}", json.dumps(value))
        dead_ranks = self.finish()
        alive = set(range(self.place.world if self.first else 0)) - set(dead_ranks)
        return {n: json.loads(self.messages.get(f"{name}/{n}")) for n in sorted(alive)}, dead_ranks

    def finish(self) -> list[int]:
        """Reports that this rank's share is computed; rank 0 waits for the others.

        Returns:
            At rank 0, the ranks that died.

        Raises:
            RobustError: A rank failed; the message is that of the rank.
        """
        if self.messages is None:
            return []
        with _first_process_lost():
            self.messages.set(f"done/{self.place.rank}", "1")
        if not self.first:
            return []
        return self._await({rank: f"done/{rank}" for rank in range(1, self.place.world)})

    def _await(self, keys: Mapping[int, str]) -> list[int]:
        """Waits until the store has every rank's key; returns the ranks that died before."""
        assert self.messages is not None
        waiting, dead_ranks = dict(keys), []
        while waiting:
            for rank, key in list(waiting.items()):
                with _first_process_lost():
                    arrived = self.messages.check([key])
                    failed = not arrived and self.messages.check([f"error/{rank}"])
                if arrived:
                    del waiting[rank]
                elif failed:
                    self._raise_error_of(rank)
                elif self._is_dead(rank) and not self.messages.check([key]):
                    dead_ranks.append(rank)
                    del waiting[rank]
            if waiting:
                time.sleep(_POLL_SECONDS)
        return dead_ranks

    def _is_dead(self, rank: int) -> bool:
        assert self.messages is not None
        if rank in self.children:
            return self.children[rank].poll() is not None
        count = self.messages.add(f"beat/{rank}", 0)
        last_count, last_time = self._has_heartbeat.get(rank, (-1, 0.0))
        if count != last_count:
            self._has_heartbeat[rank] = (count, time.monotonic())
            return False
        return time.monotonic() - last_time > RANK_SILENCE_SECONDS

    def _beat(self, everyone: _AllRanks | _Counter) -> None:
        assert self.messages is not None
        while not self._stop.wait(RANK_BEAT_SECONDS):
            with suppress(RuntimeError):  # rank 0 has ended: detected by calls that need it
                self.messages.add(f"beat/{self.place.rank}", 1)
                everyone.look()
        with suppress(RuntimeError):
            everyone.look()

    def _fail(self, error: Mapping[str, str]) -> None:
        assert self.messages is not None
        with suppress(RuntimeError):
            self.messages.set(
                f"error/{self.place.rank}", json.dumps({**error, "host": socket.gethostname()})
            )

    def _raise_error_of(self, rank: int) -> None:
        assert self.messages is not None
        error = json.loads(self.messages.get(f"error/{rank}"))
        raised = raised_again(error, f"Process {rank} of {self.place.world} ({error['host']}): ")
        if rank == 0:
            raise FirstProcessFailed(raised.exit_code)
        raise raised

    def _dead(self, dead_ranks: Sequence[int]) -> RunError:
        return RunError(
            f"{in_words(dead_ranks, self.place.world)} ended without an error message.",
            "It was killed (possibly out of memory), or its machine is not reachable.",
            "Check its output. The same command continues the run.",
        )


def _appears(path: Path) -> bool:
    """Whether `path` exists within SIGHT_SECONDS.

    Its folder is listed, because this updates the caches of a network file system.
    """
    started = time.monotonic()
    while True:
        with suppress(OSError):  # the folder may not be there either
            if path in path.parent.iterdir():
                return True
        if time.monotonic() - started > SIGHT_SECONDS:
            return False
        time.sleep(_POLL_SECONDS)


def incomplete(dead_ranks: Sequence[int], world: int, lost: str, todo: str) -> RunError:
    """The error for results that are missing at the end.

    Args:
        dead_ranks: The ranks that died.
        world: Number of ranks.
        lost: A sentence that says what is missing.
        todo: What to do.
    """
    if not dead_ranks:
        shared = " `--out` must be a folder that all processes share." if world > 1 else ""
        return RunError(
            lost, f"The files were written, but are not there at the end of the command.{shared}",
            todo,
        )  # fmt: skip
    return RunError(
        f"{in_words(dead_ranks, world)} ended without an error message.",
        f"{lost} It was killed (possibly out of memory), or its machine is not reachable.",
        todo,
    )


def in_words(ranks: Sequence[int], world: int) -> str:
    """Description such as `Process 1 of 4` or `Processes 1, 3 of 4`."""
    return f"Process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {world}"


class _AllRanks:
    """The listener of rank 0, which adds the progress of the other ranks."""

    def __init__(self, messages: Store, listener: Listener) -> None:
        self._messages, self._listener = messages, listener
        self._lock, self._reported = threading.Lock(), 0
        self._started = False
        self._notices, self._lines = 0, set[str]()

    def say(self, text: str) -> None:
        """See `Listener.say`."""
        with self._lock:
            self._lines.add(text)
            self._listener.say(text)

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """See `Listener.start`."""
        with self._lock:
            self._started = True
            self._listener.start(total, done, unit)

    def advance(self, count: int) -> None:
        """See `Listener.advance`."""
        with self._lock:
            self._listener.advance(count)

    def look(self) -> None:
        """Forwards progress and messages that other ranks sent since the last call."""
        with self._lock:
            notices = self._messages.add("notices", 0)
            while self._notices < notices:
                if not self._messages.check([f"notice/{self._notices + 1}"]):
                    break  # numbered but not sent yet
                self._notices += 1
                text = self._messages.get(f"notice/{self._notices}").decode()
                if text not in self._lines:
                    self._lines.add(text)
                    self._listener.say(text)
            count = self._messages.add("progress", 0) if self._started else 0
            if count > self._reported:
                self._listener.advance(count - self._reported)
                self._reported = count


class _Counter(Silent):
    """The listener of the other ranks, which sends their progress to rank 0."""

    def __init__(self, messages: Store) -> None:
        self._messages, self._lock, self._count = messages, threading.Lock(), 0

    def advance(self, count: int) -> None:
        """See `Listener.advance`."""
        with self._lock:
            self._count += count

    def look(self) -> None:
        """Sends the progress since the last call."""
        with self._lock:
            if self._count:
                self._messages.add("progress", self._count)
                self._count = 0


@contextmanager
def _first_process_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "The first process has ended.",
            "Its message store no longer responds.",
            "Results of this process are kept: repeat the command to compute the rest.",
        ) from error


def check_ranks_agree(facts: Mapping[int, Mapping[str, Any]]) -> None:
    """Checks that all ranks have the same inputs as rank 0.

    `facts` contains the inputs of each rank: a mapping of names to JSON values.

    Raises:
        UsageError: A rank differs; the message names the rank and the first difference.
    """
    for rank in sorted(facts):
        process_name = f"Process {rank} of {len(facts)} ({facts[rank].get('host')})"
        check_same_inputs(facts[0], facts[rank], process_name)


def check_same_inputs(
    first: Mapping[str, Any], inputs: Mapping[str, Any], process_name: str
) -> None:
    """Checks that `inputs`, those of the process `process_name`, equal `first`.

    Raises:
        UsageError: The inputs differ; the message names the first difference.
    """
    for name in dict.fromkeys([*first, *inputs]):
        ours, theirs = first.get(name), inputs.get(name)
        if ours != theirs and name != "host":
            raise UsageError(
                f"{process_name} differs from the first process in: {name}.",
                _difference(ours, theirs),
                "All processes must use the same: install the same versions, and pass the same "
                "files to all.",
            )


def _difference(ours: Any, theirs: Any) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*ours, *theirs]):
            if ours.get(key) != theirs.get(key):
                return f"`{key}`: {_difference(ours.get(key), theirs.get(key))}"
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for our_value, their_value in zip(ours, theirs, strict=True):
            if our_value != their_value:
                return _difference(our_value, their_value)
    both_texts = ("nothing" if value is None else str(value) for value in (theirs, ours))
    return " instead of ".join(t if len(t) <= 80 else f"{t[:77]}..." for t in both_texts) + "."


@contextmanager
def group_of(config: DevicesConfig, run: str) -> Iterator[Group]:
    """Context manager: yields the ranks of a launcher or of `--devices`, or a single process.

    Args:
        config: The settings.
        run: The function that the processes started here call with `config`, a listener and their
            group, as `module:function`.

    Raises:
        UsageError: `--devices` requests more devices than exist, or contradicts a launcher.
    """
    process = ranks()
    if process.world > 1:
        if config.devices is not None:
            raise UsageError(
                f"`--devices {config.devices}` contradicts the launcher.",
                f"The launcher has already started {process.world} processes.",
                "Omit `--devices`, or start the command without the launcher.",
            )
        yield Group(process, store(process))
        return
    count = count_devices(config.devices, config.device)
    if count == 1:
        yield Group(process)
        return
    for request in config.models:
        if request.module is not None:
            raise UsageError(
                f"`devices={config.devices}` cannot be used with `{request.name}`, a network in "
                "memory.",
                "The other processes cannot access it.",
                'Pass the name of a function that builds it (model="my_package.my_module:build"), '
                "or start one process per device with torchrun.",
            )
    with _started(config, run, count) as group:
        yield group


def count_devices(devices: int | str | None, device: str) -> int:
    """Number of processes that `--devices` requests.

    `devices` is a number, `all`, or None for one; `device` is the value of `--device`.

    Raises:
        UsageError: There are fewer GPUs, or `device` names a single GPU.
    """
    if devices is None:
        return 1
    name = device.partition(":")[0]
    cuda = torch.cuda.is_available() and name in ("auto", "cuda")
    if ":" in device and devices not in (1, "1"):
        raise UsageError(
            f"`--devices {devices}` and `--device {device}` contradict each other.",
            f"`{device}` is one device.",
            f"Use `--device {name}` with `--devices {devices}`.",
        )
    available = torch.cuda.device_count() if cuda else 1
    if devices == "all":
        return available
    count = int(devices)
    if (name in ("cuda", "mps") or cuda) and count > available:
        raise UsageError(
            f"`--devices {count}` is more than the devices of this machine.",
            f"torch finds {available} device{'s' if available > 1 else ''} of type "
            f"{'cuda' if cuda else name}.",
            f"Use `--devices {available}`, or `--device cpu` for processes on the CPU.",
        )
    return count


@contextmanager
def _started(config: DevicesConfig, run: str, count: int) -> Iterator[Group]:
    """Starts ranks 1 to `count` - 1 on this machine; this process is rank 0."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined,unused-ignore]

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        # Without a socket, torch would listen on all addresses of the machine.
        messages = TCPStore(
            "127.0.0.1", port, count, is_master=True, wait_for_workers=False,
            timeout=timedelta(seconds=RANK_SILENCE_SECONDS), master_listen_fd=listening.detach(),
            use_libuv=False,  # in torch 2.6, libuv's store does not accept an open socket
        )  # fmt: skip
    threads = torch.get_num_threads()
    threads_per_rank = max(1, threads // count)
    children: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for rank in range(1, count):
            job = (run, config, port, rank, count)
            children[rank] = start_child(_CHILD, job, threads=threads_per_rank)
        torch.set_num_threads(threads_per_rank)
        yield Group(Ranks(0, count, 0, count), messages, children)
        for child in children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(_END_SECONDS)
    finally:
        torch.set_num_threads(threads)
        end_children(children.values())


def help_first() -> int:
    """Entry point of the processes that `group_of` starts; returns the exit code."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined,unused-ignore]

    run, config, port, rank, count = job_of_parent()
    module, _, function = run.partition(":")
    timeout = timedelta(seconds=RANK_SILENCE_SECONDS)
    messages = TCPStore("127.0.0.1", port, count, is_master=False, timeout=timeout)
    try:
        getattr(import_module(module), function)(
            config, Silent(), Group(Ranks(rank, count, rank, count), messages)
        )
    except RobustError as error:
        return error.exit_code  # rank 0 reports it
    return 0
