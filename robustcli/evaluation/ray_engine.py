"""`--engine ray`: tasks of an evaluation on a Ray cluster, with one actor per device.

The command creates one actor per free GPU (or per free processor core, if the workers compute on
the CPU) and sends it one task after the other. New actors are created when machines join the
cluster or an actor died. Ray's retries are off: a task whose actor died is sent to an idle actor
that still answers, because a machine takes all of its actors with it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from robustcli.core.errors import MachineError, RunError, first_line
from robustcli.core.machine import usable_cores
from robustcli.core.names import counted
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.engines import (
    ATTEMPTS,
    TASKS_PER_WORKER,
    MakeWorker,
    PieceTask,
    PoolForecast,
    TaskOutcome,
    TaskRunner,
)

PATIENCE_SECONDS = 120.0
"""The command gives up after this time without a usable machine; it waits for busy machines."""
_CONNECT_SECONDS = 20.0
LOST_SECONDS = 300.0
"""Timeout of a call into Ray: the head of the cluster is lost. Ray itself has no timeout."""
_OBJECT_BYTES = 100 * 2**20  # Ray needs 78 MB or more; rows are not sent through Ray
_POLL_SECONDS = 1.0


class RayEngine:
    """Engine for Ray; uses `address`, `device` and `devices` of `config`."""

    name = "ray"

    def __init__(self, config: EvalConfig) -> None:
        self._config, self.device = config, config.device

    def forecast(self) -> PoolForecast:
        """See `engines.Engine`; asks a running cluster for its machines, but starts none."""
        connection = _connect(self._config.address)
        if connection is None:
            gpus = _gpus_here(self.device)
            workers = _limited(gpus or usable_cores(), self._config.devices)
            connection = "started on this machine, which belongs to no cluster"
            words = _in_words(1, workers, gpus=gpus > 0)
        else:
            try:
                gpu_workers = _asks_for_gpus(self.device)
                nodes = _nodes()
                workers = _limited(
                    sum(_devices_of(node, gpus=gpu_workers) for node in nodes), self._config.devices
                )
                words = _in_words(len(nodes), workers, gpus=gpu_workers)
            finally:
                ray.shutdown()
        return PoolForecast(f"Ray {ray.__version__} {connection}: {words}", _tasks(workers))

    @contextmanager
    def pool(self, run: Path, say: Callable[[str], None]) -> Iterator[RayPool]:
        """See `engines.Engine`: connects to the cluster, or starts Ray on this machine.

        Actors of an earlier command have ended with that command.
        """
        connection = _connect(self._config.address) or _start_here()
        try:
            pool = RayPool(self._config, say)
            try:
                say(f"Ray {ray.__version__} {connection}: {pool.in_words()}.")
                yield pool
            finally:
                pool.close()
        finally:
            ray.shutdown()


_INIT: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


def _connect(address: str | None) -> str | None:
    """Connects to the cluster at `address`; None for the one of this machine.

    Returns:
        Description of the cluster, for messages; None if this machine belongs to no cluster.

    Raises:
        MachineError: No cluster responds at `address`.
    """
    with _signals_kept():
        try:
            _check_listens(address)
            ray.init(address=address or "auto", **_INIT)
            return f"at {ray.get_runtime_context().gcs_address}"
        except Exception as error:  # ConnectionError, RuntimeError, ValueError, ...
            if address is not None:
                raise MachineError(
                    f"`--address {address}`: no Ray cluster responds at this address.",
                    first_line(error),
                    "Start one (`ray start --head` prints its address), or omit `--address` to "
                    "use the cluster of this machine. If the cluster requires a token, set "
                    "`RAY_AUTH_MODE=token` and `RAY_AUTH_TOKEN` on this machine.",
                ) from error
            return None


def _start_here() -> str:
    """Starts Ray on this machine; returns a description for messages."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _signals_kept():
        ray.init(
            address="local", num_cpus=usable_cores(), include_dashboard=False,
            object_store_memory=_OBJECT_BYTES, **_INIT,
        )  # fmt: skip
    return "started on this machine, which does not belong to a cluster"


def _check_listens(address: str | None) -> None:
    """Raises OSError if nothing listens at `address` (HOST:PORT); Ray would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restores this program's handler of SIGTERM, which Ray replaces by one that exits with 1."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with suppress(TypeError):  # a handler that was not set from Python
            signal.signal(signal.SIGTERM, before)


class RayPool:
    """The actors of one command; see `engines.WorkerPool`."""

    def __init__(self, config: EvalConfig, say: Callable[[str], None]) -> None:
        self._say, self._said_waiting = say, False
        self._gpus = _asks_for_gpus(config.device)
        self._limit = config.devices
        self._queue: deque[PieceTask] = deque()
        self._make_worker: MakeWorker | None = None
        self._starting: dict[Any, Any] = {}
        self._asked: dict[Any, Any] = {}  # idle actors that may have died
        self._busy: dict[Any, tuple[Any, PieceTask]] = {}
        self._idle: list[Any] = []
        self._failed_starts, self._alone_since = 0, time.monotonic()
        self._request_start: float | None = None  # start time of the calls in `_turn`
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="ray-head").start()
        self.tasks = _tasks(self._room())
        self.processes = max([1, *(_devices_of(node, gpus=self._gpus) for node in _nodes())])

    def in_words(self) -> str:
        """Number of machines and workers of the cluster, for messages."""
        return _in_words(len(_nodes()), self._room(), gpus=self._gpus)

    def start(self, make_worker: MakeWorker, tasks: Sequence[PieceTask]) -> None:
        """See `engines.WorkerPool`."""
        self._make_worker = make_worker
        self._queue.extend(tasks)

    def ended(self) -> list[tuple[PieceTask, TaskOutcome]]:
        """See `engines.WorkerPool`."""
        self._request_start = time.monotonic()
        try:
            return self._turn()
        finally:
            self._request_start = None

    def _turn(self) -> list[tuple[PieceTask, TaskOutcome]]:
        self._fill()
        while self._idle and self._queue:
            actor, task = self._idle.pop(), self._queue.popleft()
            self._busy[actor.run.remote(task.as_plain())] = actor, task
        if not (self._starting or self._asked or self._busy):
            self._check_patience()
            time.sleep(_POLL_SECONDS)
            return []
        refs = [*self._starting, *self._asked, *self._busy]
        ready, _ = ray.wait(refs, num_returns=1, timeout=_POLL_SECONDS)
        if not (self._busy or ready or self._said_waiting) and self._alone() > PATIENCE_SECONDS:
            self._said_waiting = True
            self._say("Waiting for Ray: its devices are in use, or its workers are still starting.")
        return [ended for ref in ready if (ended := self._take(ref)) is not None]

    def close(self) -> None:
        """Ends all actors."""
        self._closed.set()
        actors = [
            *self._starting.values(),
            *self._asked.values(),
            *self._idle,
            *(actor for actor, _ in self._busy.values()),
        ]
        for actor in actors:
            with suppress(RayError):
                ray.kill(actor)

    def _watch(self) -> None:
        """Ends this process if it hangs in a call to a lost cluster."""
        while not self._closed.wait(_POLL_SECONDS):
            start = self._request_start
            if start is not None and time.monotonic() - start > LOST_SECONDS:
                error = RunError(
                    f"The head of the Ray cluster has not answered for {LOST_SECONDS:.0f} seconds.",
                    "It was stopped or is no longer reachable.",
                    "Finished results are kept: start the cluster again, and repeat the command.",
                )
                print(f"Error: {error}", file=sys.stderr, flush=True)  # noqa: T201
                os._exit(error.exit_code)

    def _take(self, ref: Any) -> tuple[PieceTask, TaskOutcome] | None:
        """Handles a finished call of an actor; returns the outcome if it was a task, else None."""
        self._alone_since = time.monotonic()
        actor, task = self._busy.pop(ref, (None, None))
        is_asked = ref in self._asked
        if task is None:
            actor = (self._asked if is_asked else self._starting).pop(ref)
        try:
            outcome = ray.get(ref)
        except RayError as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            if task is not None:
                self._ask_idle()
                return task, TaskOutcome(death=why)
            if is_asked:
                return None
            self._failed_starts += 1
            if self._failed_starts >= ATTEMPTS and not (self._busy or self._idle):
                raise RunError(
                    f"{self._failed_starts} Ray workers ended during start.",
                    why,
                    "Install `robustcli` of the same version on every machine of the cluster.",
                ) from error
            return None
        self._idle.append(actor)
        self._failed_starts = 0
        return None if task is None else (task, outcome)

    def _ask_idle(self) -> None:
        """Keeps idle actors from tasks until they answer; a task is given up after a few deaths."""
        self._asked |= {actor.ready.remote(): actor for actor in self._idle}
        self._idle.clear()

    def _fill(self) -> None:
        """Creates actors while there are devices and tasks for them."""
        count = sum(map(len, (self._starting, self._asked, self._idle, self._busy)))
        needed = len(self._queue) + len(self._busy)
        for _ in range(min(self._room(), needed) - count):
            resources = {"num_gpus": 1} if self._gpus else {"num_cpus": 1}
            actor = ray.remote(max_restarts=0, **resources)(TaskRunner).remote(self._make_worker)
            self._starting[actor.ready.remote()] = actor

    def _room(self) -> int:
        """Number of workers for which the live machines have devices."""
        room = sum(_devices_of(node, gpus=self._gpus) for node in _nodes())
        return _limited(room, self._limit)

    def _alone(self) -> float:
        """Seconds since the last message of a worker."""
        return time.monotonic() - self._alone_since

    def _check_patience(self) -> None:
        if self._alone() > PATIENCE_SECONDS:
            raise RunError(
                f"Ray had no machine with a suitable device for {PATIENCE_SECONDS:.0f} seconds.",
                f"The requested devices are {'GPUs' if self._gpus else 'processor cores'}.",
                "Check `ray status`. Finished results are kept: the same command continues the "
                "run.",
            )


def _nodes() -> list[dict[str, Any]]:
    """The live machines of the cluster."""
    return [node for node in ray.nodes() if node["Alive"]]


def _devices_of(node: dict[str, Any], *, gpus: bool) -> int:
    """Number of GPUs, or of processor cores, that a machine of the cluster offers."""
    return int(node.get("Resources", {}).get("GPU" if gpus else "CPU", 0))


def _gpus_here(device: str) -> int:
    """Number of GPUs that a cluster started on this machine would use; 0 for the CPU."""
    import torch

    return torch.cuda.device_count() if device.partition(":")[0] in ("auto", "cuda") else 0


def _limited(workers: int, devices: int | str | None) -> int:
    """The smaller number of `workers` and `--devices`."""
    return workers if devices in (None, "all") else min(workers, int(devices))


def _tasks(workers: int) -> int:
    return max(1, workers) * TASKS_PER_WORKER


def _in_words(machines: int, workers: int, *, gpus: bool) -> str:
    return (
        f"{counted(machines, 'machine')}, {counted(workers, 'worker')}, "
        f"one for each {'GPU' if gpus else 'processor core'}"
    )


def _asks_for_gpus(device: str) -> bool:
    """Whether a worker needs a GPU; for `auto`, whether the cluster has GPUs."""
    kind = device.partition(":")[0]
    return kind == "cuda" or (kind == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
