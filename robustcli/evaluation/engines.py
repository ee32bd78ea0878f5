"""Engines: pieces of a plan are given to workers that somebody else starts.

With `--engine` the command itself plans, waits and closes the run, and computes nothing: it deals
the missing pieces into tasks, and an engine's pool has workers compute them, on machines that share
the run's folder. A worker writes whole block files and says at the end of a task that it is done,
or what went wrong. One loop (`_await_tasks`) serves all pools: it gives a task whose worker died to
another one, passes on the first error that no other worker would escape, and adds up the progress.
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

from robustcli.core.errors import MachineError, RobustError, UsageError, first_line
from robustcli.core.listener import Listener
from robustcli.core.ranks import ranks
from robustcli.evaluation.config import EngineName, EvalConfig
from robustcli.evaluation.distributed import as_plain, raised_again
from robustcli.evaluation.plan import EvaluationPlan, Piece, share_of, shared
from robustcli.evaluation.store import Store

ATTEMPTS = 3
"""Workers that may die over a task before it is given up."""
TASKS_PER_WORKER = 8
"""Tasks for each worker of a pool that is handed task after task: the last one to finish is then
late by an eighth of its work at most, and a dead one has lost as little."""
_VARIABLES = "ROBUST_"  # environment variables that the workers get too


@dataclass(frozen=True)
class PieceTask:
    """Pieces that one worker computes, one after the other.

    `attempt` counts the workers that died over it.
    """

    number: int
    pieces: tuple[Piece, ...]
    attempt: int = 0

    def as_plain(self) -> list[Any]:
        """The pieces as JSON, as workers get them."""
        return [piece.as_plain() for piece in self.pieces]


@dataclass(frozen=True)
class TaskOutcome:
    """How a task ended: computed, or with an error that all workers would meet, or by a death.

    Args:
        host: Where it ran.
        error: Kind, what, why and todo of a RobustError; None where there was none.
        death: What ended the worker or the task otherwise, in words; None where nothing did.
    """

    host: str = ""
    error: Mapping[str, str] | None = None
    death: str | None = None


class Worker(Protocol):
    """Computes pieces of one evaluation; made where it works."""

    def compute(self, pieces: Sequence[Any]) -> None:
        """Writes the missing rows of `pieces`, which are as `Piece.as_plain` writes them."""


MakeWorker = Callable[[], Worker]
"""Makes a worker; it travels to where the worker works."""


@dataclass(frozen=True)
class WorkerAssignment:
    """What a worker elsewhere needs to compute pieces of a run.

    Args:
        config: The settings, with the run's folder in `out`.
        record: `run.json`.
        facts: The inputs that all workers must have in common with the first process.
        folder: The working directory of the command, in which relative paths are meant.
        variables: Environment variables of this program.
        processes: Workers of the pool on one machine, which share its cores.
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
        """Takes the environment of the command over into this process.

        Raises:
            MachineError: The run's folder is not on this machine.
        """
        run = self.config.out
        if run is None or not run.is_dir():
            raise MachineError(
                f"`{run}` is not on the machine {socket.gethostname()}.",
                "Workers write the rows into the run's folder.",
                "Name a folder with `--out` that all machines share.",
            )
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        os.environ.update(self.variables)


class TaskRunner:
    """Computes tasks in a worker's process, and tells how each ended; pools send it to workers."""

    def __init__(self, make_worker: MakeWorker) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def ready(self) -> str:
        """The name of this machine, when the process has started."""
        return socket.gethostname()

    def run(self, pieces: Sequence[Any]) -> TaskOutcome:
        """Computes the pieces of a task; only what ends the process is raised."""
        try:
            if self._worker is None:
                self._worker = self._make_worker()
            self._worker.compute(pieces)
        except RobustError as error:
            return TaskOutcome(socket.gethostname(), as_plain(error))
        except Exception as error:  # of a library or a device: another worker may be better off
            death = f"{type(error).__name__}: {first_line(error)}"
            return TaskOutcome(socket.gethostname(), death=death)
        return TaskOutcome(socket.gethostname())


class WorkerPool(Protocol):
    """The workers of an engine while a command uses them."""

    tasks: int
    """Tasks into which work is dealt."""
    processes: int
    """Workers on one machine."""

    def start(self, make_worker: MakeWorker, tasks: Sequence[PieceTask]) -> None:
        """Has `tasks` computed, in this order as far as there are workers; does not wait."""

    def ended(self) -> list[tuple[PieceTask, TaskOutcome]]:
        """The tasks that ended since the last call; waits a moment where there are none.

        Raises:
            RunError: There are no workers, and none will come.
        """


class Engine(Protocol):
    """Where workers come from; see `ray_engine` and `slurm_engine`."""

    name: str
    device: str
    """The value of `--device` for the workers; the first process may lack what they have."""

    def pool(self, run: Path, say: Callable[[str], None]) -> AbstractContextManager[WorkerPool]:
        """The workers for `run`; on leaving, all that still works is ended.

        Returns once nobody works on what an earlier command has started in `run`.

        Raises:
            MachineError: The cluster cannot be reached.
        """


StartWork = Callable[[EvaluationPlan, Sequence[Piece]], Callable[[], str]]
"""Has pieces of a plan computed; what it returns waits for the end, and says why pieces may be
missing, a sentence for each cause: empty if nothing is known to have gone wrong."""


@contextmanager
def engine_workers(
    engine: Engine, assignment: WorkerAssignment, worker: Callable[[WorkerAssignment], Worker],
    listener: Listener,
) -> Iterator[StartWork]:  # fmt: skip
    """The workers of `engine`, to each of which `worker` gives its `assignment`.

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
    """Waits for `tasks`, which have started; returns why some were given up.

    Raises:
        RobustError: A worker met an error that the others would meet too.
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
                listener.say(f"Another worker takes {name}: {outcome.death}")
                pool.start(make_worker, [replace(task, attempt=task.attempt + 1)])
                continue
            if outcome.death is not None:
                lost.append(f"{ATTEMPTS} workers ended over {name}, the last: {outcome.death}")
            else:
                progress.finished(task)
            working -= 1
        progress.look()
    return " ".join(lost)


def deal(pieces: Sequence[Piece], tasks: int) -> tuple[PieceTask, ...]:
    """`pieces` in at most `tasks` tasks; each piece belongs to exactly one."""
    few_cells = shared(pieces, tasks)
    count = min(tasks, len(few_cells))
    return tuple(PieceTask(number, share_of(few_cells, number, count)) for number in range(count))


class _Progress:
    """Tells the listener of computed pieces, by their files: a task makes one after the other."""

    def __init__(self, store: Store, tasks: Sequence[PieceTask], listener: Listener) -> None:
        self._store, self._listener = store, listener
        self._left = {task.number: list(task.pieces) for task in tasks}

    def look(self) -> None:
        """Looks for the files of the next piece of each task."""
        for number, left in self._left.items():
            while left and self._is_there(left[0]):
                self._listener.advance(left.pop(0).forwards)
            self._left[number] = left

    def finished(self, task: PieceTask) -> None:
        """The task is computed, whatever files were seen."""
        left = self._left[task.number]
        self._listener.advance(sum(piece.forwards for piece in left))
        left.clear()

    def _is_there(self, piece: Piece) -> bool:
        cell, store = piece.cells[-1], self._store
        paths = [store.prediction_path(name, cell, piece.block) for name in piece.models[cell]]
        paths += [store.input_path(view, cell, piece.block) for view in piece.inputs[cell]]
        return all(path.is_file() for path in paths)


_ENGINES: dict[EngineName, tuple[str, str, str]] = {
    "ray": ("robustcli.evaluation.ray_engine", "RayEngine", "ray"),
    "slurm": ("robustcli.evaluation.slurm_engine", "SlurmEngine", "submitit"),
}
"""By name: module and class of an engine, and the package that it needs."""


def engine_of(config: EvalConfig) -> Engine | None:
    """The engine that `config` names; None where this process, or its ranks, compute.

    Raises:
        UsageError: Options contradict each other.
        MachineError: The package that the engine needs is not installed.
    """
    for option, its_engine in (("slurm", "slurm"), ("address", "ray")):
        if getattr(config, option) and config.engine != its_engine:
            raise UsageError(
                f"`--{option}` goes with `--engine {its_engine}`.",
                f"The engine is {config.engine or 'none'}.",
                f"Add `--engine {its_engine}`, or leave out `--{option}`.",
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
            f"Install it: `pip install 'robustcli[{config.engine}]'`, on every machine that works.",
        ) from error
    engine: Engine = getattr(import_module(module), name)(config)
    return engine


def _check_goes_with(config: EvalConfig) -> None:
    process = ranks()
    if process.world > 1:
        raise UsageError(
            f"`--engine {config.engine}` contradicts the launcher.",
            f"It has started {process.world} processes already, and an engine starts its own.",
            "Leave `--engine` out, or start the command without the launcher.",
        )
    for request in config.models:
        if request.module is not None:
            raise UsageError(
                f"`engine={config.engine}` does not go with `{request.name}`, a network in memory.",
                "The workers cannot take it from here.",
                'Name a function that builds it (model="my_package.my_module:build").',
            )


def leading(config: EvalConfig, say: Callable[[str], None]) -> EvalConfig:
    """`config` for the process that only plans: on the CPU where it lacks the workers' device."""
    import torch

    if config.device.partition(":")[0] != "cuda" or torch.cuda.is_available():
        return config
    say(f"This machine has no `{config.device}`: it plans on the CPU, and the workers compute.")
    return replace(config, device="cpu")
