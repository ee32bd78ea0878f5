"""Several processes on one training (DDP): the first writes and tells, the others only compute.

torchrun, `srun` and `mpirun` start all processes at once; with `--devices N` the first starts the
others when the run's folder is open. Whoever started them, they meet in a store of keys
(`meeting`), compare what they would train with, hear from the first whether there is anything to
do, and watch each other: a process that fails, dies or falls silent ends all with an error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch.distributed
from torch.distributed import (  # type: ignore[attr-defined,unused-ignore]
    PrefixStore,
    Store,
    TCPStore,
)

from robustcli.core.children import how_ended
from robustcli.core.errors import MachineError, RobustError, RunError, UsageError, first_line
from robustcli.core.ranks import Ranks, ranks, store

SILENCE = 120.0
"""Seconds without a sign of life after which a process counts as dead."""
GRACE = 20.0
"""Seconds that a process has to end by itself when another one has failed."""
_BEAT = 1.0  # seconds between two signs of life
_POLL = 0.05
_GROUP_TIMEOUT = timedelta(minutes=30)  # torch's own
_RUN = "ROBUST_DDP_RUN"  # in a process that another one started: the run that it helps to train
_OF_LAUNCHED = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", _RUN
)  # fmt: skip
_ERRORS: dict[int, type[RobustError]] = {1: RunError, 2: UsageError, 3: MachineError}
_LOST = ("gloo", "nccl", "connection", "by peer", "socket", "broken pipe")
T = TypeVar("T")


class Enough(Exception):  # noqa: N818  nothing went wrong
    """Ends a training that has given all that was asked of it, in all its processes at once."""


@dataclass(frozen=True)
class ProcessFailure:
    """Why the processes cannot go on: the failed one, its exit code, and its message's parts."""

    rank: int
    code: int
    what: str
    why: str
    todo: str


class Peers:
    """The processes of one training, as one of them sees them; a single process has no peers.

    Args:
        keys: The store that they share; None where there is one process.
        children: Processes that this one started, from rank 1 on.
    """

    def __init__(
        self, process: Ranks, keys: Store | None = None, children: Sequence[Any] = ()
    ) -> None:
        self.process, self.keys, self.children = process, keys, tuple(children)
        self._agreements = self._words = 0
        self._stop = threading.Event()
        self._seen: dict[int, tuple[bytes, float]] = {}

    @property
    def alone(self) -> bool:
        """Whether there is one process."""
        return self.keys is None

    def together(self, prepare: Callable[[], T], facts: Callable[[T], Mapping[str, str]]) -> T:
        """What `prepare` gives in this process, once it has succeeded in all and agrees.

        Args:
            prepare: Makes something ready, or raises a RobustError.
            facts: What must be the same in all processes, by what a user calls it.

        Raises:
            RobustError: In the first process: it failed here or elsewhere, or something differs.
            SystemExit: In the others, with the exit code; the first one has told why.
        """
        if self.keys is None:
            return prepare()
        number, self._agreements = self._agreements, self._agreements + 1
        prepared: T | None = None
        error: RobustError | None = None
        try:
            prepared = prepare()
            report: dict[str, Any] = {"facts": dict(facts(prepared))}
        except RobustError as raised:
            error, report = raised, {"error": _parts(raised)}
        self.keys.set(f"report/{number}/{self.process.rank}", json.dumps(report))
        if self.process.first:
            self._check_reports(number, report, error)
        else:
            self._hear(f"agreed/{number}", 0)
        assert prepared is not None
        return prepared

    def tell(self, word: str) -> None:
        """Tells the other processes `word`; they hear it by `hear`."""
        if self.keys is not None:
            self.keys.set(f"word/{self._words}", word)
            self._words += 1

    def hear(self) -> str:
        """The next word of the first process.

        Raises:
            SystemExit: The first process has failed, or reports that another one has.
            RunError: The first process is gone.
        """
        number, self._words = self._words, self._words + 1
        return self._hear(f"word/{number}", 0).decode()

    def open_group(self, device: torch.device) -> None:
        """Opens the group in which Lightning trains, over this meeting's keys.

        Lightning takes a group that is there. Its own would be opened over keys that an attempt
        before a restart has left.
        """
        if self.keys is None:
            return
        backend = {"cuda": "nccl"}.get(device.type, "gloo")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group(
            backend,
            store=PrefixStore("group", self.keys),
            rank=self.process.rank,
            world_size=self.process.world,
            timeout=_GROUP_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )

    @contextmanager
    def in_group(self, device: torch.device) -> Iterator[None]:
        """Inside, Lightning trains in the group of all processes.

        Raises:
            RunError: Another process failed or is gone; the message says which.
            SystemExit: The same in a process that is not the first.
        """
        try:
            self.open_group(device)
            yield
        except RuntimeError as error:
            if self.keys is None or isinstance(error, RobustError) or not _is_lost(error):
                raise
            self._raise_lost(error)
        finally:
            if not self.alone and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    def leave(self) -> None:
        """Ends the watch: from here on this process works alone."""
        if self.keys is not None and not self._stop.is_set():
            self._stop.set()
            with suppress(RuntimeError):  # the first process, which hosts the store, may be gone
                self.keys.set(f"left/{self.process.rank}", "1")

    def let_others_leave(self) -> None:
        """Waits a little: the first process may host the store that the others still read."""
        assert self.keys is not None
        deadline = time.monotonic() + GRACE / 2
        names = [f"left/{rank}" for rank in range(1, self.process.world)]
        with suppress(RuntimeError):
            while not self.keys.check(names) and time.monotonic() < deadline:
                if any(child.poll() is not None for child in self.children):
                    return
                time.sleep(_POLL)

    def first_is_gone(self) -> bool:
        """Whether nobody else can tell the user what went wrong."""
        assert self.keys is not None
        try:
            failure = self._failure(self.keys)
        except RuntimeError:
            return True
        return failure is not None and _is_gone(failure, 0)

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process has failed; the first to say so is believed."""
        if self.keys is not None and not self._stop.is_set():
            self._post(self.keys, ProcessFailure(self.process.rank, *_parts(error)))

    def watch(self) -> None:
        """Shows that this process lives and looks after the others, in a thread, until `leave`."""
        assert self.keys is not None
        keys: Store = self.keys.clone() if hasattr(self.keys, "clone") else self.keys
        threading.Thread(target=self._watch, args=(keys,), daemon=True, name="peers").start()

    def _watch(self, keys: Store) -> None:
        since: float | None = None
        failure: ProcessFailure | None = None
        beats = 0
        while not self._stop.wait(_BEAT):
            try:
                if failure is None:
                    keys.set(f"beat/{self.process.rank}", str(beats))
                    beats += 1
                    failure = self._look(keys)
            except RuntimeError as error:
                failure = _gone(0, self.process, first_line(error))
            if failure is not None:
                since = since or time.monotonic()
                if time.monotonic() - since > GRACE:
                    self._abort(failure)

    def _look(self, keys: Store) -> ProcessFailure | None:
        """The failure of another process, if there is one."""
        for rank in range(self.process.world):
            if rank == self.process.rank or keys.check([f"left/{rank}"]):
                continue
            how = self._dead(keys, rank)
            if how is not None:
                self._post(keys, _gone(rank, self.process, how))
        failure = self._failure(keys)
        return None if failure is None or failure.rank == self.process.rank else failure

    def _dead(self, keys: Store, rank: int) -> str | None:
        """How process `rank` ended, in words; None where it lives."""
        if rank - 1 in range(len(self.children)):
            code = self.children[rank - 1].poll()
            if code is not None:  # perhaps just now, and after it had left
                return None if keys.check([f"left/{rank}"]) else how_ended(code)
        beat = keys.get(f"beat/{rank}") if keys.check([f"beat/{rank}"]) else b""
        now = time.monotonic()
        if self._seen.get(rank, (None, 0.0))[0] != beat:
            self._seen[rank] = (beat, now)
        silent = now - self._seen[rank][1]
        return f"It gave no sign of life for {silent:.0f} seconds." if silent > SILENCE else None

    def _abort(self, failure: ProcessFailure) -> NoReturn:
        """Ends this process, which hangs in a call that waits for one that is gone."""
        if self.process.first or failure.rank == 0:
            print(f"Error: {_error(failure, self.process)}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(failure.code)

    def _post(self, keys: Store, failure: ProcessFailure) -> None:
        with suppress(RuntimeError):
            keys.compare_set("failure", "", json.dumps(vars(failure)))

    def _failure(self, keys: Store) -> ProcessFailure | None:
        return (
            ProcessFailure(**json.loads(keys.get("failure"))) if keys.check(["failure"]) else None
        )

    def _hear(self, key: str, rank: int) -> bytes:
        """The value of `key`, which process `rank` will set."""
        assert self.keys is not None
        try:
            while not self.keys.check([key]):
                failure = self._failure(self.keys)
                if failure is not None:
                    self._raise(failure)
                time.sleep(_POLL)
            value: bytes = self.keys.get(key)
        except RuntimeError as error:
            if isinstance(error, RobustError):
                raise
            self._raise(_gone(rank, self.process, first_line(error)))
        return value

    def _check_reports(
        self, number: int, first: Mapping[str, Any], error: RobustError | None
    ) -> None:
        assert self.keys is not None
        keys = self.keys
        reports = {
            rank: json.loads(self._hear(f"report/{number}/{rank}", rank))
            for rank in range(1, self.process.world)
        }
        if error is not None:
            raise error
        for rank, report in reports.items():
            if "error" in report:
                raise _error(ProcessFailure(rank, *report["error"]), self.process)
        for rank, report in reports.items():
            _check_same(rank, self.process, first["facts"], report["facts"])
        keys.set(f"agreed/{number}", "1")

    def _raise_lost(self, error: RuntimeError) -> NoReturn:
        """Raises the failure of another process that caused `error` here."""
        assert self.keys is not None
        deadline = time.monotonic() + GRACE / 2
        failure: ProcessFailure | None = None
        try:
            while failure is None and time.monotonic() < deadline:
                failure = self._failure(self.keys)
                time.sleep(_POLL)
        except RuntimeError:
            failure = _gone(0, self.process, first_line(error))
        if failure is None:
            failure = ProcessFailure(
                self.process.rank, 1, "The processes of this training have lost each other.",
                first_line(error), _GO_ON,
            )  # fmt: skip
        self._raise(failure, error)

    def _raise(self, failure: ProcessFailure, cause: BaseException | None = None) -> NoReturn:
        """Raises `failure` in the process that tells of it, and ends the others silently."""
        if self.process.first or _is_gone(failure, 0) or failure.rank == self.process.rank:
            raise _error(failure, self.process) from cause
        raise SystemExit(failure.code)


_GO_ON = "Repeat the command: it goes on from the last finished epoch."
_ENDED = "ended while the others were working."


@contextmanager
def meeting(process: Ranks, children: Sequence[Any] = ()) -> Iterator[Peers]:
    """Connects the processes of this job; one that fails inside tells the others why.

    Raises:
        RunError: Not all processes came.
        SystemExit: In a process that is not the first and has failed: the first one tells why.
    """
    if process.world == 1:
        yield Peers(process)
        return
    peers = Peers(process, _met(process, children), children)
    peers.watch()
    try:
        yield peers
    except (Enough, SystemExit):  # nothing went wrong here
        raise
    except RobustError as error:
        peers.fail(error)
        if process.first or peers.first_is_gone():
            raise
        raise SystemExit(error.exit_code) from error
    except BaseException as error:
        peers.fail(error)
        raise
    finally:
        peers.leave()
        if process.first:
            peers.let_others_leave()


def _met(process: Ranks, children: Sequence[Any]) -> Store:
    """The shared store; while the first process waits for its own children, it watches them."""
    if not children:
        return store(process)
    return store(process, alive=lambda: _check_children(process, children))


def _check_children(process: Ranks, children: Sequence[Any]) -> None:
    for number, child in enumerate(children):
        code = child.poll()
        if code is not None:
            raise _error(_gone(number + 1, process, how_ended(code)), process)


@contextmanager
def launched(count: int, run: Path) -> Iterator[Peers]:
    """Starts this command again in `count` - 1 processes, which help to train `run`.

    Raises:
        UsageError: This program has no file that could be started again.
        RunError: One of them ended before it came.
    """
    command = _own_command()
    server = TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True,
        timeout=timedelta(seconds=600),
    )  # fmt: skip
    before = {name: os.environ.get(name) for name in _OF_LAUNCHED}
    variables = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(server.port), _RUN: str(run.absolute()), "RANK": "0", "LOCAL_RANK": "0",
    }  # fmt: skip
    children: list[subprocess.Popen[bytes]] = []
    os.environ.update(variables)
    try:
        for rank in map(str, range(1, count)):
            variables = {"RANK": rank, "LOCAL_RANK": rank}
            children.append(subprocess.Popen(command, env=os.environ | variables))
        with meeting(ranks(), children) as peers:
            yield peers
        _await_end(children, GRACE)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _await_end(children, GRACE if sys.exc_info()[0] is None else GRACE / 4)
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()


def helped_run() -> Path | None:
    """The run that this process helps to train, where `launched` has started it."""
    return Path(os.environ[_RUN]) if _RUN in os.environ else None


def end_of_others() -> NoReturn:
    """Ends a process that is not the first, when the training is done."""
    raise SystemExit(0)


def _own_command() -> list[str]:
    """How this program was started.

    Raises:
        UsageError: Its text came from a prompt, a notebook or standard input.
    """
    import __main__

    spec = getattr(__main__, "__spec__", None)
    if spec is not None:
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    if not Path(sys.argv[0]).is_file():
        raise UsageError(
            "`--devices` above 1 needs a program in a file.",
            "It starts the same program once per device, and this one has no file.",
            "Write the call into a script and run that, or use one device.",
        )
    return [sys.executable, str(Path(sys.argv[0]).absolute()), *sys.argv[1:]]


def _await_end(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))


def _parts(error: BaseException) -> tuple[int, str, str, str]:
    if isinstance(error, RobustError):
        return error.exit_code, error.what, error.why, error.todo
    if isinstance(error, KeyboardInterrupt):
        return 130, "The training was interrupted.", "", _GO_ON
    return 1, f"{type(error).__name__}: {first_line(error)}", "", _GO_ON


def _gone(rank: int, process: Ranks, how: str) -> ProcessFailure:
    return ProcessFailure(rank, 1, f"Process {rank} of {process.world} {_ENDED}", how, _GO_ON)


def _is_gone(failure: ProcessFailure, rank: int) -> bool:
    return failure.rank == rank and failure.what.endswith(_ENDED)


def _error(failure: ProcessFailure, process: Ranks) -> RobustError:
    """The error by which the process at `place` tells of `failure`."""
    error_class = _ERRORS.get(failure.code, RunError)
    if failure.rank == process.rank or _is_gone(failure, failure.rank):
        return error_class(failure.what, failure.why, failure.todo)
    who = f"Process {failure.rank} of {process.world}"
    return error_class(f"{who} cannot go on: {failure.what}", failure.why, failure.todo)


def _check_same(
    rank: int, process: Ranks, first: Mapping[str, str], settings: Mapping[str, str]
) -> None:
    """Compares what process `rank` and the first one train with.

    Raises:
        UsageError: Something differs; the message names it.
    """
    for name in dict.fromkeys((*first, *settings)):
        mine, other_value = first.get(name, "missing"), settings.get(name, "missing")
        if mine != other_value:
            raise UsageError(
                f"Process {rank} of {process.world} does not train with the same {name}.",
                f"The first process has {mine}, that one has {other_value}.",
                "Make them the same on every machine, then repeat the command.",
            )


def _is_lost(error: RuntimeError) -> bool:
    """Whether `error` may come from another process being gone."""
    text = str(error).lower()
    return any(word in text for word in _LOST)
