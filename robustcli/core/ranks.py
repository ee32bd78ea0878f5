"""Rank of this process in a multi-process job, and a key-value store shared by the processes.

Only this module reads the environment variables of launchers: torchrun, SLURM's `srun`, MPI's
`mpirun`, or any launcher that sets `RANK` and `WORLD_SIZE`. Cluster environments of Lightning
Fabric read part of them; Fabric and torch are not imported if no launcher started this process.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

from robustcli.core.errors import MachineError, RunError, UsageError, first_line

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from torch.distributed import Store  # type: ignore[attr-defined,unused-ignore]

Launcher = Literal["torchrun", "the environment", "mpirun", "SLURM"]
TIMEOUT = 600.0
"""Seconds that a process waits until the other processes of its job have started."""
_MPIRUN = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # set only by `mpirun`
_PMI = "PMI_SIZE"  # set by MPICH's `mpirun`, and by `srun --mpi=pmi2`
_POLL_SECONDS = 0.05
_SLURM_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


@dataclass(frozen=True)
class Ranks:
    """Rank and world size of a process.

    Args:
        rank: Number of the process in the job, from 0.
        world: Number of processes of the job.
        local_rank: Number of the process on this machine, from 0.
        local_world: Number of processes of the job on this machine.
        job: Name of the job by the launcher, for messages; not unique.
        uneven: Whether the machines have different numbers of processes.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    job: str = ""
    uneven: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Number of machines of the job; not valid if it is `uneven`."""
        return self.world // self.local_world


_as_single = False


@contextmanager
def as_single_process() -> Iterator[None]:
    """Makes `ranks()` return process 0 of 1, for work that only the first process does."""
    global _as_single
    before, _as_single = _as_single, True
    try:
        yield
    finally:
        _as_single = before


def ranks() -> Ranks:
    """Rank and world size of this process; process 0 of 1 if no launcher started it.

    Raises:
        UsageError: The launcher's variables are incomplete or contradict each other.
        MachineError: `mpirun` started several processes, and the package `mpi4py` is missing.
    """
    if _as_single:
        return Ranks()
    launcher = _launcher()
    return Ranks() if launcher is None else _READERS[launcher]()


def gpu_index(place: Ranks, visible: int) -> int:
    """Index of the GPU of a process among the `visible` ones of its environment.

    It is the local rank, or 0 if the launcher makes only its own GPU visible to each process, as
    `srun --gpus-per-task` and `--gpu-bind` do. The index may be too large: if fewer GPUs than
    processes are visible without such a setting, the processes would share them.
    """
    env, rank = os.environ, place.local_rank
    if visible >= place.local_world:
        return rank
    of_machine = env.get("SLURM_GPUS_ON_NODE", "")
    bound_by_slurm = _launcher() == "SLURM" and (
        "SLURM_GPUS_PER_TASK" in env
        or "gpu" in env.get("SLURM_TRES_PER_TASK", "")
        or (of_machine.isdecimal() and int(of_machine) >= place.local_world)
    )
    named = env.get("CUDA_VISIBLE_DEVICES", "").strip()  # by a script around each process
    bound_by_name = named == str(rank) or ("," not in named and named.startswith(("GPU-", "MIG-")))
    return 0 if visible and (bound_by_slurm or bound_by_name) else rank


def share_of_cores(usable: int, processes: int) -> int:
    """The number of the `usable` cores for one of several `processes` on this machine, at least 1.

    SLURM may bind each task to its own cores (`--cpus-per-task`). Then fewer cores than the job has
    on the machine are usable, and they are not shared.
    """
    of_job = os.environ.get("SLURM_CPUS_ON_NODE", "")
    bound = of_job.isdecimal() and usable < int(of_job) and _launcher() == "SLURM"
    return usable if bound else max(1, usable // processes)


def is_first_process() -> bool:
    """Whether this is process 0, which writes messages; also True for a misconfigured launcher."""
    try:
        return ranks().first
    except (UsageError, MachineError):
        return True


def store(
    ranks: Ranks, timeout: float = TIMEOUT, alive: Callable[[], None] = lambda: None
) -> Store:
    """A new, empty key-value store that all processes of the job share.

    A collective call: every process of the job must call this function equally often, and it
    returns when all have called. Keys have a new prefix in each call, so values of an earlier call,
    of an earlier job at the same address, or of an attempt before a restart by torchrun are never
    read.

    Args:
        ranks: Rank and world size of this process.
        timeout: Timeout in seconds, for the other processes and for reading a key.
        alive: Called regularly while the first process waits; raises if waiting is useless.

    Raises:
        RunError: Not all processes called in time; the message names the missing ones.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined,unused-ignore]

    base = _shared(ranks, timeout)
    deadline = time.monotonic() + timeout
    token = _gather(ranks, base, deadline, alive) if ranks.first else _join(ranks, base, deadline)
    return PrefixStore(f"robust/of/{token}", base)


def environment(ranks: Ranks) -> ClusterEnvironment:
    """Cluster environment that passes `ranks` to Lightning's Trainer."""
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

    class Environment(ClusterEnvironment):
        creates_processes_externally = True
        main_address = property(lambda self: _address()[0])
        main_port = property(lambda self: _address()[1])

        @staticmethod
        def detect() -> bool:
            return True

        def world_size(self) -> int:
            return ranks.world

        def global_rank(self) -> int:
            return ranks.rank

        def local_rank(self) -> int:
            return ranks.local_rank

        def node_rank(self) -> int:
            return ranks.rank // ranks.local_world

        def set_world_size(self, size: int) -> None:
            """Does nothing: `ranks` defines the world size."""

        def set_global_rank(self, rank: int) -> None:
            """Does nothing: `ranks` defines the rank."""

        def validate_settings(self, num_devices: int, num_nodes: int) -> None:
            """Does nothing: both numbers come from `ranks`."""

    return Environment()


def _launcher() -> Launcher | None:
    """The launcher that started this process as one of several; None without a launcher.

    Raises:
        UsageError: The launcher's variables are incomplete.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return "torchrun"
    if "RANK" in env and "WORLD_SIZE" in env:
        return "the environment"
    if any(_number(env, name, "mpirun") > 1 for name in _MPIRUN if name in env):
        return "mpirun"
    if _is_slurm_task():
        return "SLURM"
    if _PMI in env and _number(env, _PMI, "mpirun") > 1:
        return "mpirun"
    _check_none_alone()
    return None


def _of_variables(launcher: Launcher) -> Ranks:
    env, job = os.environ, ""
    if launcher == "torchrun":
        job = f"{env['TORCHELASTIC_RUN_ID']}, attempt {env.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    rank, world = (_number(env, name, launcher) for name in ("RANK", "WORLD_SIZE"))
    if world == 1 and rank == 0:
        return Ranks(job=job)
    local, local_world, _ = (
        _number(env, name, launcher) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    )
    _text(env, "MASTER_ADDR", launcher)
    return _checked(Ranks(rank, world, local, local_world, job), launcher)


def _is_slurm_task() -> bool:
    """Whether SLURM's `srun` started this process as one of several tasks.

    Raises:
        UsageError: A batch script reserved several tasks and started this process without `srun`.
    """
    env = os.environ
    if "SLURM_NTASKS" not in env or _number(env, "SLURM_NTASKS", "SLURM") == 1:
        return False
    if "SLURM_STEP_ID" in env:
        # Lightning goes by the name of the job, which is `interactive` for `srun` inside `salloc`
        # and `bash` for `srun bash SCRIPT`. A shell on a terminal is one process of the user.
        return "SLURM_PTY_PORT" not in env
    if env.get("ENVIRONMENT") == "BATCH":
        raise UsageError(
            f"SLURM reserved {env['SLURM_NTASKS']} tasks, but one process was started.",
            "A batch script starts each command once; only `srun` starts one process per task.",
            "Put `srun` before the command, or reserve one task with `--ntasks=1`.",
        )
    return False  # a shell of `salloc`


def _of_slurm() -> Ranks:
    env = os.environ
    rank, local, world = (
        _number(env, name, "SLURM") for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    )
    counts = _slurm_counts()
    if not counts:
        raise UsageError(
            "The number of tasks per machine is not set by SLURM.",
            f"`SLURM_NTASKS` is {world}; `SLURM_STEP_TASKS_PER_NODE` and `SLURM_NTASKS_PER_NODE` "
            "are not set.",
            "Start the command with `srun`, or reserve the tasks with `--ntasks-per-node=N`.",
        )
    node = _number(env, "SLURM_NODEID", "SLURM") if len(counts) > 1 else 0
    job = f"{env.get('SLURM_JOB_ID', '')}.{env.get('SLURM_STEP_ID', '0')}"
    uneven = len(set(counts)) > 1
    place = Ranks(rank, world, local, counts[min(node, len(counts) - 1)], job, uneven)
    return _checked(place, "SLURM")


def _slurm_counts() -> list[int]:
    """Number of tasks on each machine; one item if it is equal for all, empty if unknown.

    Raises:
        UsageError: The value of the variable has another format.
    """
    env, name = os.environ, "SLURM_STEP_TASKS_PER_NODE"
    if name not in env:
        # An option: `srun` inherits that of the batch script, and the step may have other counts.
        if "SLURM_NTASKS_PER_NODE" in env:
            return [_number(env, "SLURM_NTASKS_PER_NODE", "SLURM")]
        name = "SLURM_TASKS_PER_NODE"
    counts: list[int] = []
    for text in filter(None, env.get(name, "").split(",")):  # such as 2(x3),1
        parts = _SLURM_COUNT.fullmatch(text)
        if parts is None:
            raise UsageError(
                f"The environment variable `{name}` is `{env[name]}`.",
                "SLURM sets it to the number of tasks on each machine, such as `2(x3),1`.",
                "Start the command with `srun`, without setting such variables.",
            )
        counts += [int(parts[1])] * int(parts[2] or 1)
    return counts


def _slurm_address() -> tuple[str, int]:
    """The first machine of the job step, and a port that depends on the job and step id.

    Lightning uses the first machine of the complete job, which may have no task of this step.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    env = os.environ
    machines = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST", "127.0.0.1")
    address = env.get("MASTER_ADDR") or _resolvable(
        SLURMEnvironment.resolve_root_node_address(machines)
    )
    if "MASTER_PORT" in env:
        return address, _number(env, "MASTER_PORT", "SLURM")
    job, step = env.get("SLURM_JOB_ID", ""), env.get("SLURM_STEP_ID", "")
    number = 251 * int(step if step.isdecimal() else 0) + int(job if job.isdecimal() else 0)
    return address, 15_000 + number % 10_000


@cache
def _resolvable(machine: str) -> str:
    """The name `machine` of SLURM, or its address by SLURM if the system does not know the name.

    Raises:
        RunError: Neither of them has an address of the machine.
    """
    try:
        socket.getaddrinfo(machine, None)
    except OSError as error:
        with suppress(OSError, subprocess.SubprocessError):
            node = subprocess.run(
                ["scontrol", "show", "node", machine],
                capture_output=True, text=True, timeout=30, check=True,
            )  # fmt: skip
            if address := re.search(r"\bNodeAddr=(\S+)", node.stdout):
                return address[1]
        raise RunError(
            "The processes cannot find each other.",
            f"SLURM calls the machine of the first one `{machine}`, a name without an address: "
            f"{first_line(error)}.",
            "Set `MASTER_ADDR` to its address for all processes.",
        ) from error
    return machine


def _mpi_world() -> int:
    """The number of processes that `mpirun` started, as it tells each of them; 1 if unknown."""
    names = (name for name in (*_MPIRUN, _PMI) if name in os.environ)
    return max((_number(os.environ, name, "mpirun") for name in names), default=1)


@cache
def _mpi() -> Any:
    """Lightning's environment for MPI, cached: it is created by communication of all processes.

    Raises:
        MachineError: The package `mpi4py` cannot be imported.
    """
    from lightning.fabric.plugins.environments.mpi import MPIEnvironment

    try:
        return MPIEnvironment()
    except (ModuleNotFoundError, ImportError) as error:
        raise MachineError(
            "`mpirun` started several processes, which cannot find each other.",
            f"The package `mpi4py` cannot be used: {first_line(error)}",
            "Install it (`pip install mpi4py`), or start the command with `torchrun`.",
        ) from error


def _of_mpi() -> Ranks:
    cluster, world = _mpi(), _mpi_world()
    if cluster.world_size() != world:
        raise MachineError(
            f"`mpirun` started {world} processes, which cannot find each other.",
            f"The package `mpi4py` finds {cluster.world_size()}: it uses another MPI than this "
            "`mpirun` (Open MPI and MPICH are different programs).",
            "Build it for this MPI (`pip install --force-reinstall --no-binary mpi4py mpi4py`), or "
            "start the command with `torchrun`.",
        )
    local = int(cluster.local_rank())
    local_world = int(cluster._comm_local.Get_size())
    job = os.environ.get("PMIX_NAMESPACE", "")
    ranks = Ranks(int(cluster.global_rank()), int(cluster.world_size()), local, local_world, job)
    return _checked(ranks, "mpirun")


_READERS: dict[Launcher, Callable[[], Ranks]] = {
    "torchrun": partial(_of_variables, "torchrun"),
    "the environment": partial(_of_variables, "the environment"),
    "mpirun": _of_mpi,
    "SLURM": _of_slurm,
}


def _check_none_alone() -> None:
    """Raises UsageError if only one of `RANK` and `WORLD_SIZE` is set, to several processes."""
    env = os.environ
    for name, counterpart in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if name in env and _number(env, name, "the environment") > (name == "WORLD_SIZE"):
            raise UsageError(
                f"`{name}` is {env[name]}, but `{counterpart}` is not set.",
                "A launcher of several processes sets both.",
                f"Start the command with `torchrun`, or unset `{name}`.",
            )


def _checked(ranks: Ranks, launcher: Launcher) -> Ranks:
    """Returns `ranks` after a check.

    Raises:
        UsageError: A number is out of range.
    """
    fits = 0 <= ranks.rank < ranks.world and 0 <= ranks.local_rank < ranks.local_world
    if not fits or ranks.local_world > ranks.world:
        raise UsageError(
            f"The process numbers set by {launcher} are inconsistent.",
            f"According to them this is process {ranks.rank} of {ranks.world}, and on its machine "
            f"{ranks.local_rank} of {ranks.local_world}.",
            "Start the command again with `torchrun` or `srun`, without setting such variables.",
        )
    return ranks


def _text(env: Mapping[str, str], name: str, launcher: Launcher) -> str:
    if not env.get(name):
        raise UsageError(
            f"The environment variable `{name}` is not set.",
            f"{launcher} sets it to the number of each process.",
            "Start the command with `torchrun` or `srun`, or unset `RANK` and `WORLD_SIZE`.",
        )
    return env[name]


def _number(env: Mapping[str, str], name: str, launcher: Launcher) -> int:
    text = _text(env, name, launcher)
    if not text.isdecimal():
        raise UsageError(
            f"The environment variable `{name}` is `{text}`.",
            f"{launcher} sets it to the number of each process, an integer of at least 0.",
            "Start the command with `torchrun` or `srun`, without setting such variables.",
        )
    return int(text)


def _address() -> tuple[str, int]:
    """Host and port at which the first process or its launcher serves the store."""
    launcher = _launcher()
    if launcher == "mpirun":
        cluster = _mpi()
    elif launcher == "SLURM":
        return _slurm_address()
    else:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return cluster.main_address, int(cluster.main_port)


_stores: dict[tuple[str, int], Store] = {}  # cached: the server ends with its last reference


def _shared(ranks: Ranks, timeout: float) -> Store:
    """The store at the job's address, which may contain old values.

    Raises:
        RunError: No server can be reached at the address.
    """
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined,unused-ignore]

    address, port = _address()
    if (address, port) not in _stores:
        # Fabric reads the address from these variables, whatever the launcher.
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
        served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun
        try:
            store: Store = TCPStore(
                address, port, is_master=ranks.first and not served, multi_tenant=True,
                wait_for_workers=False, timeout=timedelta(seconds=timeout),
            )  # fmt: skip
        except (RuntimeError, ValueError, TimeoutError) as error:
            raise RunError(
                f"Process {ranks.rank} of {ranks.world} cannot connect to the others.",
                f"{address}:{port}: {first_line(error)}",
                "Check that all processes were started and that the machines can connect to each "
                "other.",
            ) from error
        _stores[address, port] = store
    return _stores[address, port]


def _gather(ranks: Ranks, base: Store, deadline: float, alive: Callable[[], None]) -> str:
    """Waits at rank 0 for all other processes; returns the token of this rendezvous.

    Each process identifies itself by a random name, so keys of a dead process are not mistaken for
    those of a live one.

    Raises:
        RunError: A process did not come in time.
    """
    token = uuid.uuid4().hex
    welcomed: dict[int, bytes] = {}
    missing = set(range(1, ranks.world))
    while missing:
        for rank in sorted(missing):
            if base.check([f"robust/hello/{rank}"]):
                name = base.get(f"robust/hello/{rank}")
                if welcomed.get(rank) != name:
                    base.set(f"robust/welcome/{name.decode()}", token)
                    welcomed[rank] = name
            if base.check([f"robust/came/{token}/{rank}"]):
                missing.discard(rank)
        if missing and time.monotonic() > deadline:
            raise _not_all(ranks, missing)
        if missing:
            alive()
            time.sleep(_POLL_SECONDS)
    base.set(f"robust/all/{token}", "1")
    return token


def _join(ranks: Ranks, base: Store, deadline: float) -> str:
    """Registers this process at rank 0; returns the token of this rendezvous.

    Raises:
        RunError: Rank 0 or another process did not come in time.
    """
    name = uuid.uuid4().hex
    try:
        base.set(f"robust/hello/{ranks.rank}", name)
        _await(base, f"robust/welcome/{name}", deadline)
        token = base.get(f"robust/welcome/{name}").decode()
        base.set(f"robust/came/{token}/{ranks.rank}", "1")
        _await(base, f"robust/all/{token}", deadline)
    except (RuntimeError, TimeoutError) as error:
        raise RunError(
            f"Process {ranks.rank} of {ranks.world} waited for the others without success.",
            first_line(error),
            "Check the output of the other processes, then repeat the command.",
        ) from error
    return token


def _await(base: Store, key: str, deadline: float) -> None:
    while not base.check([key]):
        if time.monotonic() > deadline:
            raise TimeoutError("They did not connect in time.")
        time.sleep(_POLL_SECONDS)


def _not_all(ranks: Ranks, missing: set[int]) -> RunError:
    listed = ", ".join(map(str, sorted(missing)))
    return RunError(
        f"Not all of the {ranks.world} processes connected: missing {listed}.",
        "All processes must run the same command; the missing ones have ended or were not started.",
        "Check their output, then repeat the command.",
    )
