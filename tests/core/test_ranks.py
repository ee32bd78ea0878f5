"""A process's place in its job, as each launcher tells it, and messages between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore

from robustcli.core import ranks as subject
from robustcli.core.errors import MachineError, RunError, UsageError
from robustcli.core.ranks import Ranks, as_single_process, ranks, share_of_cores

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1", "RANK": "5",
    "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "2", "SLURM_JOB_NAME": "train",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name in _VARIABLES or name.startswith(("SLURM_", "TORCHELASTIC", "OMPI_", "PMI_")):
            monkeypatch.delenv(name)


def given(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Ranks:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return ranks()


def without(variables: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in variables.items() if key != name}


def test_without_a_launcher_a_process_is_alone_and_loads_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; from robustcli.core.ranks import Ranks, ranks; assert ranks() == Ranks();"
        "print({'torch', 'lightning'} & set(sys.modules))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert child.stdout.strip() == "set()"


def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    place = given(monkeypatch, TORCHRUN)
    assert place == Ranks(5, 8, 1, 4, "none, attempt 1")
    assert (place.first, place.nodes) == (False, 2)
    with as_single_process():
        assert ranks() == Ranks()
    assert ranks() == place


def test_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert given(monkeypatch, SRUN) == Ranks(3, 4, 1, 2, "123456.2")


@pytest.mark.parametrize(
    ("counts", "node", "local", "uneven"),
    [
        ("2(x2)", "1", 2, False),
        ("3,1", "1", 1, True),
        ("1(x2),2", "2", 2, True),
        ("4", "0", 4, False),
    ],
)
def test_plain_srun_says_how_many_tasks_each_machine_has(
    counts: str, node: str, local: int, uneven: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = without(SRUN, "SLURM_NTASKS_PER_NODE") | {
        "SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_NODEID": node, "SLURM_LOCALID": "0"
    }  # fmt: skip
    assert given(monkeypatch, variables) == Ranks(3, 4, 0, local, "123456.2", uneven)
    of_script = variables | {"SLURM_NTASKS_PER_NODE": "7"}  # `sbatch --ntasks-per-node=7`
    assert given(monkeypatch, of_script) == Ranks(3, 4, 0, local, "123456.2", uneven)


def test_the_first_machine_of_a_slurm_step_holds_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of one job may run on other machines than its first, at the same time."""
    step = SRUN | {"SLURM_NODELIST": "node[01-04]", "SLURM_STEP_NODELIST": "node[03-04]"}
    monkeypatch.setattr("socket.getaddrinfo", lambda name, port: [name])
    subject._resolvable.cache_clear()
    given(monkeypatch, step)
    first = subject._address()
    assert first[0] == "node03"
    monkeypatch.setenv("SLURM_STEP_ID", "3")
    second = subject._address()
    assert first[1] != second[1]
    assert all(15_000 <= port < 25_000 for _, port in (first, second))


def test_slurms_address_of_a_machine_is_used_where_its_name_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process with an unknown name waited ten minutes for it, without a message."""
    monkeypatch.setenv("PATH", str(tmp_path))
    given(monkeypatch, SRUN | {"SLURM_STEP_NODELIST": "no-such-machine.invalid"})
    subject._resolvable.cache_clear()
    with pytest.raises(RunError, match=r"(?s)`no-such-machine.invalid`.*Set `MASTER_ADDR`"):
        subject._address()
    (tmp_path / "scontrol").write_text(
        f"#!{sys.executable}\nprint('NodeName=n3\\n   NodeAddr=127.0.0.7 NodeHostName=n')"
    )
    (tmp_path / "scontrol").chmod(0o755)
    assert subject._address()[0] == "127.0.0.7"


@pytest.mark.parametrize("job_name", ["bash", "interactive"])
def test_srun_inside_salloc_and_of_a_shell_script_starts_several_tasks(
    job_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task once took itself for the only one, as Lightning does for jobs of these names."""
    variables = SRUN | {"SLURM_JOB_NAME": job_name}
    assert given(monkeypatch, variables) == Ranks(3, 4, 1, 2, "123456.2")


@pytest.mark.parametrize(
    "alone",
    [
        SRUN | {"SLURM_PTY_PORT": "40297", "SLURM_PROCID": "0"},  # srun --ntasks 4 --pty bash
        {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "interactive"},  # salloc
        SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    ],
    ids=["a shell of srun", "a shell of salloc", "one task"],
)
def test_shells_of_slurm_and_single_tasks_are_alone(
    alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert given(monkeypatch, alone) == Ranks()


def test_a_batch_script_without_srun_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = without(SRUN, "SLURM_STEP_ID") | {"ENVIRONMENT": "BATCH", "SLURM_PROCID": "0"}
    with pytest.raises(UsageError, match="reserved 4 tasks, but one process was started"):
        given(monkeypatch, batch)


def test_a_torchrun_inside_slurm_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert given(monkeypatch, SRUN | TORCHRUN).world == 8


def test_mpi4py_of_another_mpi_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With MPICH's `mpirun` and the mpi4py of Open MPI, each process finds only itself."""
    alone = SimpleNamespace(world_size=lambda: 1, global_rank=lambda: 0, local_rank=lambda: 0)
    monkeypatch.setattr(subject, "_mpi", lambda: alone)
    with pytest.raises(MachineError, match=r"started 2 processes.*\n.*finds 1: it uses another"):
        given(monkeypatch, {"PMI_SIZE": "2", "PMI_RANK": "1"})


def test_mpirun_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    subject._mpi.cache_clear()
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr("lightning.fabric.plugins.environments.mpi._MPI4PY_AVAILABLE", False)
    with pytest.raises(MachineError, match="mpi4py"):
        given(monkeypatch, {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (without(TORCHRUN, "RANK"), "`RANK` is not set"),
        (without(TORCHRUN, "LOCAL_WORLD_SIZE"), "`LOCAL_WORLD_SIZE` is not set"),
        (without(TORCHRUN, "MASTER_PORT"), "`MASTER_PORT` is not set"),
        (TORCHRUN | {"RANK": "first"}, "`RANK` is `first`"),
        (TORCHRUN | {"RANK": "8"}, "process 8 of 8"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "on its machine 4 of 4"),
        ({"WORLD_SIZE": "2"}, "`WORLD_SIZE` is 2, but `RANK` is not set"),
        ({"RANK": "1"}, "`RANK` is 1, but `WORLD_SIZE` is not set"),
        (without(SRUN, "SLURM_PROCID"), "`SLURM_PROCID` is not set"),
        (without(SRUN, "SLURM_NTASKS_PER_NODE"), "number of tasks per machine"),
        (SRUN | {"SLURM_NTASKS": "many"}, "`SLURM_NTASKS` is `many`"),
        (
            without(SRUN, "SLURM_NTASKS_PER_NODE") | {"SLURM_TASKS_PER_NODE": "2(y3)"},
            r"`SLURM_TASKS_PER_NODE` is `2\(y3\)`",
        ),
    ],
)
def test_wrong_or_missing_variables_are_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=message):
        given(monkeypatch, variables)


@pytest.mark.parametrize("harmless", [{"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_one_process_is_alone_whoever_says_so(
    harmless: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert given(monkeypatch, harmless).world == 1


def _met(places: list[Ranks], base: TCPStore, timeout: float = 20) -> list[object]:
    """What `store` gives each of `places`, called at the same time."""
    results: list[object] = [None] * len(places)

    def call(number: int) -> None:
        try:
            results[number] = subject.store(places[number], timeout)
        except RunError as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=(n,)) for n in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    store = TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20)
    )
    monkeypatch.setattr(subject, "_shared", lambda ranks, timeout: store)
    return store


def test_a_store_never_shows_what_was_there_before(base: TCPStore) -> None:
    places = [Ranks(rank, 3, rank, 3) for rank in range(3)]
    for attempt in ("one", "two"):
        first, second, third = _met(places, base)
        assert not first.check(["key"])  # type: ignore[attr-defined]
        first.set("key", attempt)  # type: ignore[attr-defined]
        assert second.get("key") == third.get("key") == attempt.encode()  # type: ignore[attr-defined]


def test_nobody_waits_for_ever_for_a_process_of_an_attempt_before(base: TCPStore) -> None:
    places = [Ranks(rank, 3, rank, 3) for rank in range(3)]
    _met(places, base)
    first, second = _met(places[:2], base, timeout=1)
    assert isinstance(first, RunError)
    assert "missing 2" in str(first)
    assert isinstance(second, RunError)
    assert "process 1 of 3 waited" in str(second).lower()


@pytest.mark.parametrize(
    ("variables", "usable", "expected"),
    [
        ({}, 16, 4),
        (SRUN | {"SLURM_CPUS_ON_NODE": "16"}, 16, 4),  # all tasks may use all cores of the job
        (SRUN | {"SLURM_CPUS_ON_NODE": "32"}, 8, 8),  # the task is bound to its cores
        ({"SLURM_CPUS_ON_NODE": "32"}, 8, 2),  # torchrun or --devices inside a job
        ({}, 2, 1),
    ],
)
def test_cores_that_slurm_binds_to_a_task_are_not_divided(
    variables: dict[str, str], usable: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert share_of_cores(usable, 4) == expected
