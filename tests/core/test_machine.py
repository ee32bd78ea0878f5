"""What this process may use, with control groups written by the test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from getpass import getuser
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from robustcli.core import machine
from robustcli.core.machine import complete_user, wait_briefly

MIB = 1 << 20
FREE = 64_000 * MIB
NO_LIMIT_V1 = "9223372036854771712"


class Fake:
    """A machine of 64 cores and 64,000 MiB, with the control groups that a test mounts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.groups, self.mounts = folder, "", ""

    def mount(
        self, name: str, *, root: str = "/", kind: str = "cgroup2", options: str = "rw"
    ) -> None:
        """Mounts the hierarchy `name`, of which the group `root` is seen."""
        point = str(self.folder / name).replace(" ", "\\040")
        self.mounts += f"35 24 0:30 {root} {point} rw,nosuid shared:9 - {kind} {kind} {options}\n"
        (self.folder / "mountinfo").write_text(self.mounts)

    def belong(self, line: str) -> None:
        """Puts this process into a group: a line of `/proc/self/cgroup`."""
        self.groups += f"{line}\n"
        (self.folder / "cgroup").write_text(self.groups)

    def group(self, path: str, files: Mapping[str, str]) -> None:
        """Makes the group in the folder `path` of the mounts."""
        for name, text in files.items():
            file = self.folder / path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    folder = tmp_path / "a b"  # mountinfo writes the space in its own way
    folder.mkdir()
    monkeypatch.setattr(machine, "_PROC", folder)
    monkeypatch.setattr(machine, "_affinity", lambda: 64)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))
    return Fake(folder)


def v2(limit: int | str, usage: int, *, inactive: int = 0, active: int = 0) -> dict[str, str]:
    stat = f"anon 5\nfile 7\ninactive_anon 3\ninactive_file {inactive}\nactive_file {active}"
    return {"memory.max": str(limit), "memory.current": str(usage), "memory.stat": stat}


def v1(limit: int | str, usage: int, *, inactive: int = 0, active: int = 0) -> dict[str, str]:
    return {
        "memory.limit_in_bytes": str(limit),
        "memory.usage_in_bytes": str(usage),
        "memory.stat": f"inactive_file 1\nactive_file 1\ntotal_inactive_file {inactive}\n"
        f"total_active_file {active}",
    }


def test_without_control_groups_the_machine_decides(fake: Fake) -> None:
    assert machine.usable_cores() == 64
    assert machine.available_bytes() == FREE


def test_this_machine_answers() -> None:
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)
    assert MIB < machine.available_bytes() <= psutil.virtual_memory().total


def test_file_cache_counts_as_free(fake: Fake) -> None:
    """A container that has read its data set once is not full: 600 of its 900 MiB are cache."""
    fake.mount("unified")
    fake.belong("0::/")
    fake.group("unified", v2(1000 * MIB, 900 * MIB, inactive=400 * MIB, active=200 * MIB))
    assert machine.available_bytes() == (1000 - 900 + 600) * MIB


def test_the_groups_own_limit_counts_and_not_only_the_roots(fake: Fake) -> None:
    fake.mount("unified")
    fake.belong("0::/user.slice/job.scope")
    fake.group("unified/user.slice/job.scope", v2(500 * MIB, 100 * MIB))
    assert machine.available_bytes() == 400 * MIB


def test_the_smallest_of_all_groups_above_holds(fake: Fake) -> None:
    """The slice is nearly full because of its other members, whatever the job itself may take."""
    fake.mount("unified")
    fake.belong("0::/user.slice/job.scope")
    fake.group("unified/user.slice/job.scope", v2(5000 * MIB, 100 * MIB))
    fake.group("unified/user.slice", v2(3000 * MIB, 2800 * MIB, inactive=50 * MIB))
    fake.group("unified", v2("max", 9000 * MIB))
    assert machine.available_bytes() == 250 * MIB


def test_a_group_without_limits_allows_all(fake: Fake) -> None:
    fake.mount("unified")
    fake.belong("0::/a")
    fake.group("unified/a", v2("max", 9000 * MIB) | {"cpu.max": "max 100000"})
    assert machine.available_bytes() == FREE
    assert machine.usable_cores() == 64


def test_the_point_from_which_the_kernel_slows_a_group_is_a_limit_too(fake: Fake) -> None:
    fake.mount("unified")
    fake.belong("0::/a")
    fake.group("unified/a", v2("max", 100 * MIB) | {"memory.high": str(300 * MIB)})
    assert machine.available_bytes() == 200 * MIB


def test_a_group_over_its_limit_leaves_nothing(fake: Fake) -> None:
    fake.mount("unified")
    fake.belong("0::/a")
    fake.group("unified/a", v2(100 * MIB, 120 * MIB))
    assert machine.available_bytes() == 0


def test_version_1(fake: Fake) -> None:
    """Its statistics of the group alone do not count: usage includes the groups below."""
    fake.mount("memory", kind="cgroup", options="rw,memory")
    fake.mount("cpu,cpuacct", kind="cgroup", options="rw,cpu,cpuacct")
    fake.belong("4:memory:/slurm/job_7")
    fake.belong("3:cpu,cpuacct:/slurm/job_7")
    fake.group("memory/slurm/job_7", v1(NO_LIMIT_V1, 10 * MIB))
    fake.group("memory/slurm", v1(1000 * MIB, 900 * MIB, inactive=300 * MIB, active=100 * MIB))
    fake.group("memory", v1(NO_LIMIT_V1, 5000 * MIB))
    fake.group(
        "cpu,cpuacct/slurm/job_7", {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}
    )
    fake.group("cpu,cpuacct", {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"})
    assert machine.available_bytes() == 500 * MIB
    assert machine.usable_cores() == 4


def test_both_versions_at_once(fake: Fake) -> None:
    """As systemd mounts them in its hybrid mode: memory in version 1, nothing in version 2."""
    fake.mount("memory", kind="cgroup", options="rw,memory")
    fake.mount("unified")
    fake.belong("4:memory:/a")
    fake.belong("0::/a")
    fake.group("memory/a", v1(300 * MIB, 100 * MIB))
    fake.group("unified/a", {"cgroup.procs": "1"})
    assert machine.available_bytes() == 200 * MIB


@pytest.mark.parametrize("seen", ["/docker/1f", "/"])
def test_a_container_that_sees_its_group_at_the_mount(fake: Fake, seen: str) -> None:
    """Docker mounts the container's group as the root, with the host's path or without."""
    fake.mount("memory", kind="cgroup", options="rw,memory", root="/docker/1f")
    fake.belong(f"4:memory:{seen}")
    fake.group("memory", v1(300 * MIB, 100 * MIB))
    assert machine.available_bytes() == 200 * MIB


def test_a_group_outside_what_the_container_sees(fake: Fake) -> None:
    fake.mount("unified")
    fake.belong("0::/../other/job")
    fake.group("unified", v2(300 * MIB, 100 * MIB))
    fake.group("other/job", v2(30 * MIB, 10 * MIB))
    assert machine.available_bytes() == 200 * MIB


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1)]
)
def test_a_quota_of_time_limits_the_cores(fake: Fake, quota: str, cores: int) -> None:
    """A container with 2 of 64 cores: the affinity mask still has 64."""
    fake.mount("unified")
    fake.belong("0::/pod/container")
    fake.group("unified/pod/container", {"cpu.max": quota})
    fake.group("unified/pod", {"cpu.max": "800000 100000"})
    assert machine.usable_cores() == cores


def test_the_groups_above_limit_the_cores_too(fake: Fake) -> None:
    fake.mount("unified")
    fake.belong("0::/pod/container")
    fake.group("unified/pod/container", {"cpu.max": "max 100000"})
    fake.group("unified/pod", {"cpu.max": "300000 100000"})
    assert machine.usable_cores() == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity mask")
def test_the_affinity_mask_limits_the_cores() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_from_python_3_13_python_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert machine._affinity() == 3
    monkeypatch.setattr(os, "process_cpu_count", lambda: None)
    assert machine._affinity() == 1


def test_systems_without_a_mask_in_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has one that psutil reads; macOS has none, and all its cores count."""
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_affinity=lambda: [0, 2, 4]))
    assert machine._affinity() == 3
    monkeypatch.setattr(psutil, "Process", SimpleNamespace)
    assert machine._affinity() == 8


@pytest.mark.parametrize(
    ("said", "spin"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_what_a_user_said_stays(monkeypatch, said, spin):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == spin


def test_the_processor_is_named_as_the_system_names_it(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: A 9000 @ 2 GHz: fast\nmodel name\t: B\n")
    assert machine.processor(told) == "A 9000 @ 2 GHz: fast"
    told.write_text("processor\t: 0\nHardware\t: C\n")
    kind = machine.processor(told)
    assert kind
    assert kind == machine.processor(tmp_path / "none")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no password file")
def test_a_user_without_an_entry_in_the_password_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `docker run --user 12345`, which sets at most `HOME`."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "to restore it")
        monkeypatch.delenv(name)
    complete_user()
    assert "USER" not in os.environ, "it is in the password file"
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    complete_user()
    assert Path.home() == Path("/")
    assert getuser() == "unknown"
    monkeypatch.setenv("HOME", "/somewhere")
    complete_user()
    assert Path.home() == Path("/somewhere")
