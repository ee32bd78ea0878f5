"""`--engine slurm` in real processes: submitit's local executor, and imitated SLURM commands.

Scripts replace `sbatch`, `srun`, `sacct`, `scancel` and `scontrol`: jobs are processes of this
machine, whose ids and exit codes are stored in a folder. What submitit writes for SLURM, how it
queries states and how it requeues a job is not imitated.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from robustcli.core.listener import Silent
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.forecast import forecast
from robustcli.evaluation.record import read_record
from tests.evaluation.photos import config, make_photos
from tests.evaluation.test_evaluate import contents

submitit = pytest.importorskip("submitit", reason="submitit is not installed (the extra `slurm`)")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.slow,  # test_engines.py uses a pool in memory
    pytest.mark.timeout(1800),
]

REPOSITORY = Path(__file__).parents[2]
SLEEPY_PLUGIN = '''
import os
import time

from robustcli.transforms import transform


@transform()
def sleepy(image, rng, value):
    """Takes long enough to be stopped in the middle."""
    time.sleep(float(os.environ.get("ROBUST_TEST_SLEEP", "0.02")))
    image[:2] = rng.integers(256)
    return image
'''
NAMES = ("sleepy", "fliplr", "additive_gaussian_noise", "affine")
SLURM = '''#!{python}
"""SLURM's commands, imitated; the one that is meant is the name of this file."""
import os, re, signal, subprocess, sys, time
from pathlib import Path

state, name, words = Path({state!r}), Path(sys.argv[0]).name, sys.argv[1:]


def start(called):
    """One job, or `JOB_TASK` of an array, in a process group of its own, as often as asked."""
    job, _, task = called.partition("_")
    array = dict(SLURM_ARRAY_JOB_ID=job, SLURM_ARRAY_TASK_ID=task) if task else dict()
    env = dict(os.environ, SLURM_JOB_ID=job, SLURM_NTASKS="1", SLURM_PROCID="0",
               SLURM_LOCALID="0", SLURM_NODEID="0", **array)
    code = f"bash {{state}}/{{job}}.sh; echo $? > {{state}}/$$.code"
    child = subprocess.Popen(["bash", "-c", code], env=env, start_new_session=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    (state / f"{{called}}.pid").write_text(str(child.pid))


if name == "sbatch":
    text = Path(words[-1]).read_text()
    array = re.search("#SBATCH --array=0-([0-9]+)", text)
    job = str(1000 + len(list(state.glob("*.sh"))))
    (state / f"{{job}}.sh").write_text(text)
    for called in [f"{{job}}_{{n}}" for n in range(int(array[1]) + 1)] if array else [job]:
        start(called)
    print("Submitted batch job", job)
elif name == "srun":
    rest = [word for word in words if not word.startswith("--")]
    while rest and not rest[0].endswith("python"):
        rest.pop(0)
    os.execv(rest[0], rest)
elif name == "sacct":
    print("JobID|State|NodeList")
    for file in state.glob("*.pid"):
        pid = file.read_text()
        alive = Path("/proc", pid).exists() and not (state / f"{{pid}}.code").exists()
        print(f"{{file.stem}}|{{'RUNNING' if alive else 'FAILED'}}|here")
elif name == "scontrol":
    start(words[-1])
    (state / "requeued").touch()
elif name == "scancel":
    for file in state.glob(f"{{words[-1]}}*.pid"):
        try:
            os.killpg(int(file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
'''


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns two blocks of images."""
    return make_photos(tmp_path_factory.mktemp("photos") / "many", per_class=48)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugin") / "sleepy.py"
    file.write_text(SLEEPY_PLUGIN)
    return file


@pytest.fixture(scope="module")
def expected_rows(
    photos: Path, plugin: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("plain") / "run"
    return contents(run_evaluation(config(photos, run, *NAMES, plugins=(plugin,))))


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Returns an environment with the imitated SLURM commands; `STATE` is their folder."""
    folder, state = tmp_path / "bin", tmp_path / "state"
    folder.mkdir()
    state.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        (folder / name).write_text(SLURM.format(python=sys.executable, state=str(state)))
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "STATE": str(state)}


def robust_eval(
    photos: Path, out: Path, plugin: Path, settings: str, environment: dict[str, str],
    loaders: int = 0,
) -> subprocess.Popen[str]:  # fmt: skip
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    names = (argument for name in NAMES for argument in ("--transform", name))
    return subprocess.Popen(
        [sys.executable, "-m", "robustcli", "eval", "--model", "vmamba-pico", "--untrained",
         "--data", str(photos), "--out", str(out), "--device", "cpu", "--batch-size", "4",
         "--workers", str(loaders), "--plugin", str(plugin), *names, "--engine", "slurm", "--slurm",
         settings],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def workers(out: Path) -> list[psutil.Process]:
    """Returns the processes that compute tasks of the run in `out`."""
    command_words = ["submitit.core._submit", str(out / "slurm")]
    return [
        process for process in psutil.process_iter(["cmdline"])
        if all(word in (process.info["cmdline"] or []) for word in command_words)
    ]  # fmt: skip


def wait_for_rows(run: Path, process: subprocess.Popen[str], count: int = 1) -> None:
    deadline = time.monotonic() + 600
    while len(contents(run)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]


def finish_command(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def test_a_task_that_is_killed_is_given_to_another_job_and_one_that_is_preempted_goes_on(
    photos: Path, plugin: Path, expected_rows: dict[str, bytes], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = robust_eval(photos, run, plugin, "cluster=local,array=2,time=20", {})
    wait_for_rows(run, process)
    killed, preempted = workers(run)
    preempted.send_signal(signal.SIGUSR2)  # SLURM sends it before it ends a job
    killed.kill()
    output = finish_command(process)
    assert contents(run) == expected_rows
    assert read_record(run).status == "complete"
    assert "is assigned to another worker" in output
    logs = "".join(file.read_text() for file in (run / "slurm").glob("*.err"))
    assert "preempted" in logs
    assert "Submitted job" in output
    assert str(run / "slurm") in output


def test_slurms_commands_compute_the_rows_of_one_process(
    photos: Path,
    plugin: Path,
    expected_rows: dict[str, bytes],
    tmp_path: Path,
    slurm: dict[str, str],
) -> None:
    run, state = tmp_path / "run", Path(slurm["STATE"])
    settings = "partition=gpu,time=1:00:00,array=3,gpus=0,mem=4,cpus=2"
    process = robust_eval(photos, run, plugin, settings, slurm)
    wait_for_rows(run, process)
    preempted = workers(run)[0]
    preempted.send_signal(signal.SIGUSR2)
    output = finish_command(process)
    assert contents(run) == expected_rows
    assert (state / "requeued").exists()
    assert "Submitted job 1000, an array of 3 tasks" in output
    script = (state / "1000.sh").read_text()
    for line in ("--partition=gpu", "--time=60", "--array=0-2", "--mem=4GB"):
        assert line in script, script
    # Since SLURM 22.05, srun does not inherit the number of cores from sbatch.
    assert re.search("^srun .*--cpus-per-task=2 ", script, re.MULTILINE), script


def test_a_task_that_slurm_terminates_with_its_loaders_and_requeues_goes_on(
    photos: Path,
    plugin: Path,
    expected_rows: dict[str, bytes],
    tmp_path: Path,
    slurm: dict[str, str],
) -> None:
    """SLURM 22.05 with PreemptMode=REQUEUE. The error of a loader process once ended the run."""
    run, state = tmp_path / "run", Path(slurm["STATE"])
    slow_env = slurm | {"ROBUST_TEST_SLEEP": "0.3"}
    process = robust_eval(photos, run, plugin, "array=2,gpus=0", slow_env, loaders=1)
    wait_for_rows(run, process)
    preempted = int((state / "1000_0.pid").read_text())
    os.killpg(preempted, signal.SIGTERM)
    while any(os.getpgid(worker.pid) == preempted for worker in workers(run)):
        time.sleep(0.1)
    subprocess.run(
        [Path(slurm["PATH"].split(os.pathsep)[0]) / "scontrol", "requeue", "1000_0"],
        env={**os.environ, **slow_env, "SUBMITIT_FOLDER": str(run / "slurm")}, check=True,
    )  # fmt: skip
    output = finish_command(process)
    assert not (state / "1001.sh").exists(), "the requeued task must not be submitted again"
    assert "Cancelling" not in output
    assert contents(run) == expected_rows


def test_the_same_command_waits_for_the_jobs_of_a_killed_one(
    photos: Path,
    plugin: Path,
    expected_rows: dict[str, bytes],
    tmp_path: Path,
    slurm: dict[str, str],
) -> None:
    run, state = tmp_path / "run", Path(slurm["STATE"])
    slow_env = slurm | {"ROBUST_TEST_SLEEP": "0.3"}  # the second command starts before the jobs end
    process = robust_eval(photos, run, plugin, "array=2,gpus=0", slow_env)
    wait_for_rows(run, process)
    process.kill()
    process.communicate()
    assert workers(run), "the jobs must survive the command"
    output = finish_command(robust_eval(photos, run, plugin, "array=2,gpus=0", slow_env))
    assert "Job 1000 of an earlier command is still running" in output
    assert not (state / "1001.sh").exists(), "no second job may be submitted"
    assert contents(run) == expected_rows


def test_sigterm_cancels_the_jobs_and_the_same_command_goes_on(
    photos: Path,
    plugin: Path,
    expected_rows: dict[str, bytes],
    tmp_path: Path,
    slurm: dict[str, str],
) -> None:
    run = tmp_path / "run"
    process = robust_eval(photos, run, plugin, "array=2,gpus=0", slurm)
    wait_for_rows(run, process)
    process.send_signal(signal.SIGTERM)
    output = finish_command(process, 130)
    assert "Cancelling 2 tasks" in output
    deadline = time.monotonic() + 60
    while workers(run):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert json.loads((run / "slurm" / "jobs.json").read_text()) == []
    assert read_record(run).status == "partial"
    finish_command(robust_eval(photos, run, plugin, "array=2,gpus=0", slurm))
    assert contents(run) == expected_rows


def test_a_dry_run_needs_no_slurm(photos: Path, tmp_path: Path) -> None:
    settings = config(photos, tmp_path / "run", engine="slurm", slurm={"array": "2"})
    plan = forecast(settings, Silent())
    assert plan.engine is not None
    assert plan.engine.where.startswith("a SLURM job array of 2 tasks")
    assert plan.engine.tasks == 2
    assert not (tmp_path / "run").exists()


def test_without_slurm_it_says_so(photos: Path, plugin: Path, tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path)}
    output = finish_command(robust_eval(photos, tmp_path / "run", plugin, "array=2", env), 3)
    assert "cannot submit jobs to SLURM" in output
    assert "cluster=local" in output
