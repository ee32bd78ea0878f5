"""Several processes on one evaluation: who they are, what each computes, and who tells of it.

Rank 0 opens the run's folder, looks once at what is missing, and deals the pieces of work to all
ranks by number. Before that every rank says what it would compute with (data, weights, transforms,
versions), and a rank that differs is refused. At the end rank 0 waits for the others and holds the
plan against the folder. Messages go through a key-value store: the one of torchrun, SLURM or MPI,
or for `--devices N` one on the loopback address. They are JSON; nothing received is executed.

Nobody waits for ever: a waiting rank watches whether those it waits for still give signs of life.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robustcli.core.errors import MachineError, RobustError, RunError, UsageError
from robustcli.core.listener import Listener, Silent
from robustcli.core.ranks import Ranks, ranks, store

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined,unused-ignore]

    from robustcli.evaluation.config import EvalConfig

RANK_BEAT_SECONDS = 1.0
RANK_SILENCE_SECONDS = 60.0  # a rank that gives no sign of life for so long is taken for dead
_POLL_SECONDS = 0.1
_END_SECONDS = 10.0  # given to started processes to end by themselves
_CHILD = "import sys; from robustcli.evaluation.evaluate import help_first; sys.exit(help_first())"
_KINDS = {kind.__name__: kind for kind in (RobustError, RunError, UsageError, MachineError)}


class FirstProcessFailed(SystemExit):
    """Ends a rank because rank 0 has failed, which says why; this rank need not say it again."""


@dataclass
class Group:
    """The ranks of one evaluation, as one of them sees them.

    Args:
        place: This process among them.
        messages: What they share; None where there is only one.
        children: The processes that this one started, by rank.
    """

    place: Ranks = field(default_factory=Ranks)
    messages: Store | None = None
    children: Mapping[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _beats: dict[int, tuple[int, float]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.place.rank == 0

    @contextmanager
    def alive(self, listener: Listener) -> Iterator[Listener]:
        """Gives signs of life, tells the others of an error, and sums up everybody's progress.

        Yields the listener to use: of rank 0, `listener` hearing of all; of the others, one that
        tells rank 0.
        """
        if self.messages is None:
            yield listener
            return
        everyone = _Everyone(self.messages, listener) if self.first else _Counter(self.messages)
        thread = threading.Thread(target=self._beat, args=(everyone,), name="ranks", daemon=True)
        thread.start()
        try:
            yield everyone
        except RobustError as error:
            kind = next(name for name in reversed(_KINDS) if isinstance(error, _KINDS[name]))
            self._fail({"kind": kind, "what": error.what, "why": error.why, "todo": error.todo})
            raise
        except FirstProcessFailed:
            raise
        except BaseException as error:
            self._fail({"kind": "RunError", "what": f"It ended by {type(error).__name__}.",
                        "why": str(error)[:500], "todo": "See what it printed."})  # fmt: skip
            raise
        finally:
            self._stop.set()
            thread.join()

    def gather(self, name: str, value: object) -> dict[int, Any]:
        """At rank 0, what every rank calls `name`; at the others an empty dictionary.

        Raises:
            RobustError: A rank failed or gives no sign of life.
        """
        if self.messages is None:
            return {0: value}
        self.messages.set(f"{name}/{self.place.rank}", json.dumps(value))
        if not self.first:
            return {}
        others = range(1, self.place.world)
        gone = self._await({rank: f"{name}/{rank}" for rank in others})
        if gone:
            raise self._dead(gone)
        keys = {rank: f"{name}/{rank}" for rank in range(self.place.world)}
        return {rank: json.loads(self.messages.get(key)) for rank, key in keys.items()}

    def tell(self, name: str, value: object) -> None:
        """Rank 0 gives the others what they `hear`."""
        if self.messages is not None:
            self.messages.set(name, json.dumps(value))

    def hear(self, name: str) -> Any:
        """What rank 0 tells.

        Raises:
            FirstProcessFailed: It failed.
            RunError: It gives no sign of life.
        """
        assert self.messages is not None
        if self._await({0: name}):
            raise self._dead([0])
        return json.loads(self.messages.get(name))

    def finish(self) -> list[int]:
        """Says that this rank's share is computed; rank 0 waits for the others.

        Returns:
            At rank 0, the ranks that ended without a word.

        Raises:
            RobustError: A rank failed; the message is its own.
        """
        if self.messages is None:
            return []
        with _first_process_lost():
            self.messages.set(f"done/{self.place.rank}", "1")
        if not self.first:
            return []
        return self._await({rank: f"done/{rank}" for rank in range(1, self.place.world)})

    def _await(self, keys: Mapping[int, str]) -> list[int]:
        """Waits until the store has every rank's key; the ranks that died before."""
        assert self.messages is not None
        waiting, gone = dict(keys), []
        while waiting:
            for rank, key in list(waiting.items()):
                with _first_process_lost():
                    there = self.messages.check([key])
                    failed = not there and self.messages.check([f"error/{rank}"])
                if there:
                    del waiting[rank]
                elif failed:
                    self._raise_error_of(rank)
                elif self._is_dead(rank) and not self.messages.check([key]):  # its last word
                    gone.append(rank)
                    del waiting[rank]
            if waiting:
                time.sleep(_POLL_SECONDS)
        return gone

    def _is_dead(self, rank: int) -> bool:
        assert self.messages is not None
        if rank in self.children:
            return self.children[rank].poll() is not None
        count = self.messages.add(f"beat/{rank}", 0)
        last, since = self._beats.get(rank, (-1, 0.0))
        if count != last:
            self._beats[rank] = (count, time.monotonic())
            return False
        return time.monotonic() - since > RANK_SILENCE_SECONDS

    def _beat(self, everyone: _Everyone | _Counter) -> None:
        assert self.messages is not None
        while not self._stop.wait(RANK_BEAT_SECONDS):
            with suppress(RuntimeError):  # rank 0 is gone: noticed where something depends on it
                self.messages.add(f"beat/{self.place.rank}", 1)
                everyone.look()
        with suppress(RuntimeError):
            everyone.look()

    def _fail(self, error: Mapping[str, str]) -> None:
        assert self.messages is not None
        with suppress(RuntimeError):
            self.messages.set(f"error/{self.place.rank}", json.dumps({**error, "host": _host()}))

    def _raise_error_of(self, rank: int) -> None:
        assert self.messages is not None
        error = json.loads(self.messages.get(f"error/{rank}"))
        kind = _KINDS[error["kind"]]
        if rank == 0:
            raise FirstProcessFailed(kind.exit_code)
        who = f"Process {rank} of {self.place.world} ({error['host']}): "
        raise kind(who + error["what"], error["why"], error["todo"])

    def _dead(self, gone: Sequence[int]) -> RunError:
        return RunError(
            f"{in_words(gone, self.place.world)} ended without a word.",
            "It was killed (out of memory?) or its machine is gone.",
            "See what it printed; the same command goes on.",
        )


def in_words(gone: Sequence[int], world: int) -> str:
    """The ranks `gone` for a message."""
    numbers = ", ".join(map(str, gone))
    return f"Process{'es' if len(gone) > 1 else ''} {numbers} of {world}"


class _Everyone:
    """Rank 0's listener: what others advanced counts as well."""

    def __init__(self, messages: Store, listener: Listener) -> None:
        self._messages, self._listener = messages, listener
        self._lock, self._heard = threading.Lock(), 0
        self._started = False

    def say(self, text: str) -> None:
        """See `Listener.say`."""
        with self._lock:
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
        """Passes on what the others have done since the last look."""
        with self._lock:
            count = self._messages.add("progress", 0) if self._started else 0
            if count > self._heard:
                self._listener.advance(count - self._heard)
                self._heard = count


class _Counter(Silent):
    """The listener of the other ranks: tells rank 0 how much was done."""

    def __init__(self, messages: Store) -> None:
        self._messages, self._lock, self._count = messages, threading.Lock(), 0

    def advance(self, count: int) -> None:
        """See `Listener.advance`."""
        with self._lock:
            self._count += count

    def look(self) -> None:
        """Tells rank 0 what was done since the last look."""
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
            "The first process of the evaluation is gone.",
            "The store of messages that it holds does not answer any more.",
            "What this process computed is kept: repeat the command to compute the rest.",
        ) from error


def check_ranks_agree(facts: Mapping[int, Mapping[str, Any]]) -> None:
    """Refuses ranks that would compute with something else than rank 0.

    Args:
        facts: By rank, what it computes with: names to JSON values.

    Raises:
        UsageError: A rank differs; the message names the rank and what differs.
    """
    reference = facts[0]
    for rank in sorted(facts):
        for name in dict.fromkeys([*reference, *facts[rank]]):
            ours, theirs = reference.get(name), facts[rank].get(name)
            if ours != theirs:
                raise UsageError(
                    f"Process {rank} of {len(facts)} ({facts[rank].get('host')}) has other "
                    f"{name} than the first process.",
                    _difference(ours, theirs),
                    "Every process must compute with the same: install the same versions and give "
                    "all the same files.",
                )


def _difference(ours: Any, theirs: Any) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*ours, *theirs]):
            if ours.get(key) != theirs.get(key):
                return f"`{key}`: {_difference(ours.get(key), theirs.get(key))}"
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for mine, other in zip(ours, theirs, strict=True):
            if mine != other:
                return _difference(mine, other)
    return f"{_short(theirs)} instead of {_short(ours)}."


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def group_of(config: EvalConfig) -> Iterator[Group]:
    """The ranks of the evaluation that `config` asks for: started elsewhere, here, or only one.

    Raises:
        UsageError: `--devices` names more devices than there are, or contradicts a launcher.
    """
    place = ranks()
    if place.world > 1:
        if config.devices is not None:
            raise UsageError(
                f"`--devices {config.devices}` contradicts the launcher.",
                f"It has started {place.world} processes already.",
                "Leave `--devices` out, or start the command without the launcher.",
            )
        yield Group(place, store(place))
        return
    count = count_devices(config.devices, config.device)
    if count == 1:
        yield Group(place)
        return
    for request in config.models:
        if request.module is not None:
            raise UsageError(
                f"`devices={config.devices}` does not go with `{request.name}`, a network in "
                "memory.",
                "The other processes cannot take it from here.",
                'Name a function that builds it (model="my_package.my_module:build"), or start one '
                "process per device with torchrun.",
            )
    with _started(config, count) as group:
        yield group


def count_devices(devices: int | str | None, device: str) -> int:
    """How many processes `--devices` asks for.

    Args:
        devices: The option: a number, `all`, or None for one.
        device: `--device`: which kind of device.

    Raises:
        UsageError: There are not so many GPUs, or one of them is named as well.
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
    there = torch.cuda.device_count() if cuda else 1
    if devices == "all":
        return there
    count = int(devices)
    if (name in ("cuda", "mps") or cuda) and count > there:
        raise UsageError(
            f"`--devices {count}` is more than this machine has.",
            f"torch sees {there} device{'s' if there > 1 else ''} of the kind "
            f"{'cuda' if cuda else name}.",
            f"Use `--devices {there}`, or `--device cpu` for processes on the CPU.",
        )
    return count


@contextmanager
def _started(config: EvalConfig, count: int) -> Iterator[Group]:
    """Starts ranks 1 to `count` - 1 on this machine; this process is rank 0."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined,unused-ignore]

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        # Torch itself would listen on every address of the machine.
        messages = TCPStore(
            "127.0.0.1", port, count, is_master=True, wait_for_workers=False,
            timeout=timedelta(seconds=RANK_SILENCE_SECONDS), master_listen_fd=listening.detach(),
            use_libuv=False,  # whose store takes no open socket in torch 2.6
        )  # fmt: skip
    threads = torch.get_num_threads()
    each = max(1, threads // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(each), "PYTHONPATH": _import_path()}
    children: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for rank in range(1, count):
            children[rank] = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD], env=environment, stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            _send(children[rank], (config, port, rank, count))
        torch.set_num_threads(each)
        yield Group(Ranks(0, count, 0, count), messages, children)
        for child in children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(_END_SECONDS)
    finally:
        torch.set_num_threads(threads)
        for child in children.values():
            child.terminate()
        for child in children.values():
            child.wait()
            if child.stdin is not None:
                child.stdin.close()


def _send(child: subprocess.Popen[bytes], job: object) -> None:
    """Hands `job` to a child. Its end of the pipe stays open as long as this process lives."""
    assert child.stdin is not None
    content = pickle.dumps(job)
    with suppress(BrokenPipeError):  # it has ended: noticed by whoever waits for it
        child.stdin.write(len(content).to_bytes(8, "little") + content)
        child.stdin.flush()


def _import_path() -> str:
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))


def group_of_child() -> tuple[EvalConfig, Group]:
    """The evaluation that a process was started for, and its place among those that share it.

    Both come through standard input, from the process that started this one.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined,unused-ignore]

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends them
    config, port, rank, count = pickle.loads(_read(int.from_bytes(_read(8), "little")))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    timeout = timedelta(seconds=RANK_SILENCE_SECONDS)
    messages = TCPStore("127.0.0.1", port, count, is_master=False, timeout=timeout)
    return config, Group(Ranks(rank, count, rank, count), messages)


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


def _host() -> str:
    return socket.gethostname()
