"""Training in several processes (DDP): only the first process writes files and messages.

torchrun, `srun` and `mpirun` start all processes together. With `--devices N`, the first process
starts the others after it has opened the run folder. In both cases, the processes connect to a
key-value store (`connected_processes`), compare their settings, and learn from the first process
whether anything is left to train. They monitor each other: if a process fails, dies or stops
responding, all processes end with an error.
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
"""Seconds without a heartbeat after which a process is treated as dead."""
GRACE = 20.0
"""Seconds that a process has to end on its own after another one has failed."""
_BEAT = 1.0  # seconds between two heartbeats
_POLL = 0.05
_GROUP_TIMEOUT = timedelta(minutes=30)  # default of torch
_RUN = "ROBUST_DDP_RUN"  # set in processes started by `launched`: the run folder
_OF_LAUNCHED = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", _RUN
)  # fmt: skip
_ERRORS: dict[int, type[RobustError]] = {1: RunError, 2: UsageError, 3: MachineError}
_LOST = ("gloo", "nccl", "connection", "by peer", "socket", "broken pipe")
"""Words of errors whose cause may be the death of another process."""
T = TypeVar("T")


class EndTraining(Exception):  # noqa: N818  nothing went wrong
    """Ends a training early but without an error, in all its processes."""


@dataclass(frozen=True)
class ProcessFailure:
    """The rank of a failed process, its exit code, and the parts of its error message."""

    rank: int
    code: int
    what: str
    why: str
    todo: str


class Peers:
    """Connection of this process to the other processes of the same training.

    Args:
        process: Rank of this process.
        keys: The shared key-value store; None for a single process.
        children: Processes that this process started, in the order of their ranks, from rank 1 on.
    """

    def __init__(
        self, process: Ranks, keys: Store | None = None, children: Sequence[Any] = ()
    ) -> None:
        self.process, self.keys, self.children = process, keys, tuple(children)
        self._agreements = self._words = 0
        self._stop = threading.Event()
        self._last_beats: dict[int, tuple[bytes, float]] = {}

    @property
    def alone(self) -> bool:
        """Whether this is the only process of the training."""
        return self.keys is None

    def together(self, prepare: Callable[[], T], facts: Callable[[T], Mapping[str, str]]) -> T:
        """Calls `prepare` in all processes, and returns its result if all succeed and agree.

        Args:
            prepare: Called in this process; may raise a RobustError.
            facts: Returns the values that must be equal in all processes, by their name in
                messages.

        Raises:
            RobustError: In the first process: `prepare` failed in any process, or a value differs.
            SystemExit: In the other processes, with the exit code; the first one reports the error.
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
            self._receive(f"agreed/{number}", 0)
        assert prepared is not None
        return prepared

    def send(self, word: str) -> None:
        """Sends `word` to the other processes, which receive it with `receive`."""
        if self.keys is not None:
            self.keys.set(f"word/{self._words}", word)
            self._words += 1

    def receive(self) -> str:
        """Waits for the next word of the first process, and returns it.

        Raises:
            SystemExit: The first process has failed, or reports that another one has.
            RunError: The first process has died.
        """
        number, self._words = self._words, self._words + 1
        return self._receive(f"word/{number}", 0).decode()

    @contextmanager
    def in_group(self, device: torch.device) -> Iterator[None]:
        """Initialises the process group for the context, and destroys it afterwards.

        Lightning uses an existing group. A group that it initialises itself could read keys left
        over from an attempt before a restart.

        Raises:
            RunError: Another process failed or died; the message contains its rank.
            SystemExit: The same, in processes other than the first.
        """
        if self.keys is None:
            yield
            return
        cuda = device.type == "cuda"
        try:
            if cuda:
                torch.cuda.set_device(device)
            torch.distributed.init_process_group(
                "nccl" if cuda else "gloo",
                store=PrefixStore("group", self.keys),
                rank=self.process.rank,
                world_size=self.process.world,
                timeout=_GROUP_TIMEOUT,
                device_id=device if cuda else None,
            )
            yield
        except RuntimeError as error:
            text = str(error).lower()
            if isinstance(error, RobustError) or not any(word in text for word in _LOST):
                raise
            self._raise_lost(error)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    def stop_monitoring(self) -> None:
        """Stops monitoring: the other processes no longer depend on this one."""
        if self.keys is not None and not self._stop.is_set():
            self._stop.set()
            with suppress(RuntimeError):  # the first process, which hosts the store, may be gone
                self.keys.set(f"left/{self.process.rank}", "1")

    def wait_for_others(self) -> None:
        """Waits until the others have left, as this process may host the store that they read."""
        assert self.keys is not None
        deadline = time.monotonic() + GRACE / 2
        names = [f"left/{rank}" for rank in range(1, self.process.world)]
        with suppress(RuntimeError):
            while not self.keys.check(names) and time.monotonic() < deadline:
                if any(child.poll() is not None for child in self.children):
                    return
                time.sleep(_POLL)

    def first_has_died(self) -> bool:
        """Whether the first process has died, so that it cannot report errors."""
        assert self.keys is not None
        try:
            failure = self._failure(self.keys)
        except RuntimeError:
            return True
        return failure is not None and _is_gone(failure, 0)

    def fail(self, error: BaseException) -> None:
        """Reports to the others that this process has failed; only the first report is kept."""
        if self.keys is not None and not self._stop.is_set():
            self._post(self.keys, ProcessFailure(self.process.rank, *_parts(error)))

    def watch(self) -> None:
        """Starts a thread that sends heartbeats and monitors the other processes until `leave`."""
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
        """The failure of another process, or None."""
        for rank in range(self.process.world):
            if rank == self.process.rank or keys.check([f"left/{rank}"]):
                continue
            reason = self._dead(keys, rank)
            if reason is not None:
                self._post(keys, _gone(rank, self.process, reason))
        failure = self._failure(keys)
        return None if failure is None or failure.rank == self.process.rank else failure

    def _dead(self, keys: Store, rank: int) -> str | None:
        """How process `rank` ended, in words; None if it is alive."""
        if rank - 1 in range(len(self.children)):
            code = self.children[rank - 1].poll()
            if code is not None:  # it may have ended after it left
                return None if keys.check([f"left/{rank}"]) else how_ended(code)
        beat = keys.get(f"beat/{rank}") if keys.check([f"beat/{rank}"]) else b""
        now = time.monotonic()
        if self._last_beats.get(rank, (None, 0.0))[0] != beat:
            self._last_beats[rank] = (beat, now)
        silent = now - self._last_beats[rank][1]
        return f"It sent no heartbeat for {silent:.0f} seconds." if silent > SILENCE else None

    def _abort(self, failure: ProcessFailure) -> NoReturn:
        """Exits this process, which may be blocked in a call that waits for a dead process."""
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

    def _receive(self, key: str, rank: int) -> bytes:
        """Waits for the value of `key`, which process `rank` sets."""
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
            rank: json.loads(self._receive(f"report/{number}/{rank}", rank))
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
        """Raises the failure of another process that caused `error` in this process."""
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
                self.process.rank, 1, "The processes of this training lost their connection.",
                first_line(error), _GO_ON,
            )  # fmt: skip
        self._raise(failure, error)

    def _raise(self, failure: ProcessFailure, cause: BaseException | None = None) -> NoReturn:
        """Raises `failure` in the process that reports it; exits others without a message."""
        if self.process.first or _is_gone(failure, 0) or failure.rank == self.process.rank:
            raise _error(failure, self.process) from cause
        raise SystemExit(failure.code)


_GO_ON = "Repeat the command: it continues from the last finished epoch."
_ENDED = "ended while the others were working."


@contextmanager
def connected_processes(process: Ranks, children: Sequence[Any] = ()) -> Iterator[Peers]:
    """Connects the processes of this job; errors inside the context are reported to all of them.

    Raises:
        RunError: Not all processes connected.
        SystemExit: In a failed process other than the first; the first one reports the error.
    """
    if process.world == 1:
        yield Peers(process)
        return
    peers = Peers(process, _connected(process, children), children)
    peers.watch()
    try:
        yield peers
    except (EndTraining, SystemExit):  # not an error of this process
        raise
    except RobustError as error:
        peers.fail(error)
        if process.first or peers.first_has_died():
            raise
        raise SystemExit(error.exit_code) from error
    except BaseException as error:
        peers.fail(error)
        raise
    finally:
        peers.stop_monitoring()
        if process.first:
            peers.wait_for_others()


def _connected(process: Ranks, children: Sequence[Any]) -> Store:
    """The shared store; while the first process waits for its children, it checks them."""
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
    """Starts this command in `count` - 1 further processes, which share the training of `run`.

    Raises:
        UsageError: The program was not started from a file, so it cannot be started again.
        RunError: A process ended before it connected.
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
        with connected_processes(ranks(), children) as peers:
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
    """The run folder, in a process started by `launched`; else None."""
    return Path(os.environ[_RUN]) if _RUN in os.environ else None


def end_of_others() -> NoReturn:
    """Exits a process other than the first after the training."""
    raise SystemExit(0)


def _own_command() -> list[str]:
    """The command line that started this program.

    Raises:
        UsageError: The program came from a prompt, a notebook or standard input.
    """
    import __main__

    spec = getattr(__main__, "__spec__", None)
    if spec is not None:
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    if not Path(sys.argv[0]).is_file():
        raise UsageError(
            "`--devices` above 1 needs a program that is stored in a file.",
            "It starts the same program once per device, and this program is not in a file.",
            "Put the call into a script and run the script, or use one device.",
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


def _gone(rank: int, process: Ranks, reason: str) -> ProcessFailure:
    return ProcessFailure(rank, 1, f"Process {rank} of {process.world} {_ENDED}", reason, _GO_ON)


def _is_gone(failure: ProcessFailure, rank: int) -> bool:
    return failure.rank == rank and failure.what.endswith(_ENDED)


def _error(failure: ProcessFailure, process: Ranks) -> RobustError:
    """The error with which `process` reports `failure`."""
    error_class = _ERRORS.get(failure.code, RunError)
    if failure.rank == process.rank or _is_gone(failure, failure.rank):
        return error_class(failure.what, failure.why, failure.todo)
    process_name = f"Process {failure.rank} of {process.world}"
    return error_class(f"{process_name} failed: {failure.what}", failure.why, failure.todo)


def _check_same(
    rank: int, process: Ranks, first: Mapping[str, str], settings: Mapping[str, str]
) -> None:
    """Compares the settings of process `rank` with those of the first process.

    Raises:
        UsageError: A setting differs; the message contains both values.
    """
    for name in dict.fromkeys((*first, *settings)):
        mine, other_value = first.get(name, "missing"), settings.get(name, "missing")
        if mine != other_value:
            raise UsageError(
                f"Process {rank} of {process.world} differs from the first process in: {name}.",
                f"The first process has {mine}, this process has {other_value}.",
                "Use the same on all machines, then repeat the command.",
            )
