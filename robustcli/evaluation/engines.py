"""Distribution of an evaluation to workers that a cluster (Ray or SLURM) starts.

With `--engine` the command plans the work, waits, and closes the run, but computes no rows. It
groups the missing pieces of the plan into tasks, and the pool of the engine runs the tasks on
workers, on machines that share the run's folder. A worker writes complete block files and reports
success or an error at the end of a task. `_await_tasks` is the event loop for all pools: it repeats
a task on another worker if its worker died, raises the first error that would occur on every
worker, and reports progress.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from robustcli.core.errors import (
    MachineError,
    RobustError,
    UsageError,
    as_plain,
    first_line,
    raised_again,
)
from robustcli.core.listener import Listener
from robustcli.core.ranks import ranks
from robustcli.core.working_copy import send_written
from robustcli.evaluation.config import EngineName, EvalConfig
from robustcli.evaluation.plan import EvaluationPlan, Piece, share_of, shared
from robustcli.evaluation.store import Store
from robustcli.transforms.base import Cell

ATTEMPTS = 3
"""Attempts for a task whose worker dies, before the task is given up."""
TASKS_PER_WORKER = 8
"""Number of tasks per worker, for pools that assign tasks one by one. The last worker to finish is
late by at most an eighth of its work, and the death of a worker loses at most as much work."""
_VARIABLES = "ROBUST_"  # prefix of the environment variables that are copied to workers


@dataclass(frozen=True)
class PieceTask:
    """Pieces that one worker computes in order.

    `attempt` is the number of workers that died while they computed this task.
    """

    number: int
    pieces: tuple[Piece, ...]
    attempt: int = 0

    def as_plain(self) -> list[Any]:
        """The pieces as JSON-serialisable lists, which are sent to workers."""
        return [piece.as_plain() for piece in self.pieces]


@dataclass(frozen=True)
class TaskOutcome:
    """Result of a task: success, an error that would occur on every worker, or a dead worker.

    Args:
        host: Name of the worker's machine.
        error: Kind, what, why and todo of a RobustError; None without one.
        death: Reason of any other failure, for messages; None without one.
    """

    host: str = ""
    error: Mapping[str, str] | None = None
    death: str | None = None


class Worker(Protocol):
    """Computes pieces of one evaluation; created in the process in which it computes."""

    def compute(self, pieces: Sequence[Any]) -> None:
        """Writes the missing rows of `pieces`, given in the format of `Piece.as_plain`."""


MakeWorker = Callable[[], Worker]
"""Creates a worker; pickled and sent to the worker's process."""


@dataclass(frozen=True)
class WorkerAssignment:
    """Everything that a worker on another machine needs to compute pieces of a run.

    Args:
        config: The settings; `out` is the run's folder.
        record: Content of `run.json`.
        facts: Inputs that must be equal in all workers and in the planning process.
        folder: Working directory of the command, for relative paths.
        variables: Environment variables of this program.
        processes: Number of workers per machine, which share its cores.
    """

    config: EvalConfig
    record: str
    facts: Mapping[str, Any]
    folder: str = field(default_factory=os.getcwd)
    variables: Mapping[str, str] = field(
        default_factory=lambda: {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES)}
    )
    processes: int = 1

    def enter(self) -> None:
        """Sets the working directory and environment variables of the command in this process.

        Raises:
            MachineError: The run's folder does not exist on this machine.
        """
        run = self.config.out
        if run is None or not run.is_dir():
            raise MachineError(
                f"`{run}` does not exist on the machine {socket.gethostname()}.",
                "Workers write the rows into the run's folder.",
                "Set `--out` to a folder that all machines share. For a run in an object store, "
                "set ROBUST_HOME to such a folder: it contains the copy in which they work.",
            )
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        os.environ.update(self.variables)


class TaskRunner:
    """Computes tasks in a worker's process and returns outcomes; sent to workers by pools."""

    def __init__(self, make_worker: MakeWorker) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def ready(self) -> str:
        """Returns the name of this machine; called to check that the process has started."""
        return socket.gethostname()

    def run(self, pieces: Sequence[Any]) -> TaskOutcome:
        """Computes the pieces of a task; exceptions are caught and returned as the outcome."""
        try:
            if self._worker is None:
                self._worker = self._make_worker()
            self._worker.compute(pieces)
        except RobustError as error:
            return TaskOutcome(socket.gethostname(), as_plain(error))
        except Exception as error:  # of a library or device: another worker may succeed
            death = f"{type(error).__name__}: {first_line(error)}"
            return TaskOutcome(socket.gethostname(), death=death)
        return TaskOutcome(socket.gethostname())


class WorkerPool(Protocol):
    """The workers of an engine for one command."""

    tasks: int
    """Number of tasks to create."""
    processes: int
    """Number of workers per machine."""

    def start(self, make_worker: MakeWorker, tasks: Sequence[PieceTask]) -> None:
        """Queues `tasks` for the workers in this order; does not wait."""

    def ended(self) -> list[tuple[PieceTask, TaskOutcome]]:
        """The tasks that ended since the last call; waits a short time if there are none.

        Raises:
            RunError: No workers exist, and none can be started.
        """


@dataclass(frozen=True)
class PoolForecast:
    """The workers that an engine would start, for `--dry-run`.

    `workers` describes them; `tasks` is the number of tasks to create, as in `WorkerPool`.
    """

    workers: str
    tasks: int


class Engine(Protocol):
    """A source of workers; see `ray_engine` and `slurm_engine`."""

    name: str
    device: str
    """Value of `--device` for the workers; the planning process may lack this device."""

    def forecast(self) -> PoolForecast:
        """The workers that `pool` would use now; starts nothing.

        Raises:
            MachineError: The cluster cannot be reached.
        """

    def pool(self, run: Path, say: Callable[[str], None]) -> AbstractContextManager[WorkerPool]:
        """Context manager: yields the workers for `run`; stops running tasks at exit.

        First waits until tasks that an earlier command started for `run` have ended.

        Raises:
            MachineError: The cluster cannot be reached.
        """


StartWork = Callable[[EvaluationPlan, Sequence[Piece]], Callable[[], str]]
"""Starts the computation of pieces of a plan; returns a function that waits for the end. That
function returns why pieces may be missing, one sentence per cause; empty without known failures."""


@contextmanager
def engine_workers(
    engine: Engine, assignment: WorkerAssignment, worker: Callable[[WorkerAssignment], Worker],
    listener: Listener,
) -> Iterator[StartWork]:  # fmt: skip
    """Context manager: yields a function that starts work on the workers of `engine`.

    Args:
        engine: Source of the workers.
        assignment: Data for the workers.
        worker: Creates a worker from the assignment.
        listener: Receives messages and progress.

    Raises:
        MachineError: The cluster cannot be reached.
    """
    run = assignment.config.out
    assert run is not None
    with engine.pool(run, listener.say) as pool:
        config = replace(assignment.config, device=engine.device)
        for_workers = replace(assignment, config=config, processes=pool.processes)
        make_worker = partial(worker, for_workers)

        def start(plan: EvaluationPlan, missing: Sequence[Piece]) -> Callable[[], str]:
            tasks = deal(missing, pool.tasks)
            if tasks:
                pool.start(make_worker, tasks)
            return lambda: _await_tasks(pool, make_worker, tasks, plan.store, listener)

        yield start


def _await_tasks(
    pool: WorkerPool,
    make_worker: MakeWorker,
    tasks: Sequence[PieceTask],
    store: Store,
    listener: Listener,
) -> str:
    """Waits for the started `tasks`; returns why some were given up.

    Raises:
        RobustError: A worker reported an error that would occur on every worker.
    """
    progress = _Progress(store, tasks, listener)
    lost: list[str] = []
    working = len(tasks)
    while working:
        for task, outcome in pool.ended():
            name = f"task {task.number + 1} of {len(tasks)}"
            if outcome.error is not None:
                raise raised_again(outcome.error, f"Worker on {outcome.host}: ")
            if outcome.death is not None and task.attempt + 1 < ATTEMPTS:
                listener.say(f"{name} is assigned to another worker: {outcome.death}")
                pool.start(make_worker, [replace(task, attempt=task.attempt + 1)])
                continue
            if outcome.death is not None:
                lost.append(
                    f"{ATTEMPTS} workers ended while computing {name}. The last error: "
                    f"{outcome.death}"
                )
            else:
                progress.finished(task)
            working -= 1
        progress.look()
    return " ".join(lost)


def deal(pieces: Sequence[Piece], tasks: int) -> tuple[PieceTask, ...]:
    """Divides `pieces` into at most `tasks` tasks; each piece belongs to exactly one task."""
    few_cells = shared(pieces, tasks)
    count = min(tasks, len(few_cells))
    return tuple(PieceTask(number, share_of(few_cells, number, count)) for number in range(count))


class _Progress:
    """Reports computed pieces to the listener, detected by their files in the run's folder."""

    def __init__(self, store: Store, tasks: Sequence[PieceTask], listener: Listener) -> None:
        self._store, self._listener = store, listener
        self._left = {task.number: list(task.pieces) for task in tasks}

    def look(self) -> None:
        """Checks for the files of the next pieces of each task."""
        for left in self._left.values():
            while left and self._is_there(left[0]):
                self._computed(left.pop(0))

    def finished(self, task: PieceTask) -> None:
        """Counts all remaining pieces of `task` as computed."""
        left = self._left[task.number]
        while left:
            self._computed(left.pop(0))

    def _computed(self, piece: Piece) -> None:
        """Counts a piece; its files are sent if the run is in an object store."""
        self._listener.advance(piece.forwards)
        paths = [path for cell in piece.cells for path in self._paths(piece, cell)]
        skipped = self._store.skipped_path(piece.block)
        send_written(path for path in (skipped, *paths) if path.is_file())

    def _is_there(self, piece: Piece) -> bool:
        return all(path.is_file() for path in self._paths(piece, piece.cells[-1]))

    def _paths(self, piece: Piece, cell: Cell) -> list[Path]:
        """The row files of one cell of `piece`."""
        paths = [
            self._store.prediction_path(name, cell, piece.block) for name in piece.models[cell]
        ]
        return paths + [
            self._store.input_path(view, cell, piece.block) for view in piece.inputs[cell]
        ]


_ENGINES: dict[EngineName, tuple[str, str, str]] = {
    "ray": ("robustcli.evaluation.ray_engine", "RayEngine", "ray"),
    "slurm": ("robustcli.evaluation.slurm_engine", "SlurmEngine", "submitit"),
}
"""Module and class of each engine, and the package that it needs."""


def engine_of(config: EvalConfig) -> Engine | None:
    """The engine of `config`; None if this process or its ranks compute the rows.

    Raises:
        UsageError: Options contradict each other.
        MachineError: The package that the engine needs is not installed.
    """
    for option, its_engine in (("slurm", "slurm"), ("address", "ray")):
        if getattr(config, option) and config.engine != its_engine:
            raise UsageError(
                f"`--{option}` can only be used with `--engine {its_engine}`.",
                f"The engine is {config.engine or 'none'}.",
                f"Add `--engine {its_engine}`, or omit `--{option}`.",
            )
    if config.engine is None:
        return None
    _check_goes_with(config)
    module, name, package = _ENGINES[config.engine]
    try:
        import_module(package)
    except ImportError as error:
        raise MachineError(
            f"`--engine {config.engine}` needs the package `{package}`.",
            f"It cannot be imported: {first_line(error)}.",
            f"Install it: `pip install 'robustcli[{config.engine}]'` on every machine of the job.",
        ) from error
    engine: Engine = getattr(import_module(module), name)(config)
    return engine


def _check_goes_with(config: EvalConfig) -> None:
    process = ranks()
    if process.world > 1:
        raise UsageError(
            f"`--engine {config.engine}` contradicts the launcher.",
            f"The launcher has already started {process.world} processes, and an engine starts "
            "its own workers.",
            "Omit `--engine`, or start the command without the launcher.",
        )
    for request in config.models:
        if request.module is not None:
            raise UsageError(
                f"`engine={config.engine}` cannot be used with `{request.name}`, a network in "
                "memory.",
                "The workers cannot access it.",
                'Pass the name of a function that builds it (model="my_package.my_module:build").',
            )


def leading(config: EvalConfig, say: Callable[[str], None]) -> EvalConfig:
    """`config` for the planning process: with device `cpu` if it lacks the workers' device."""
    import torch

    if config.device.partition(":")[0] != "cuda" or torch.cuda.is_available():
        return config
    say(
        f"This machine has no `{config.device}`: planning runs on the CPU, and the workers compute."
    )
    return replace(config, device="cpu")
