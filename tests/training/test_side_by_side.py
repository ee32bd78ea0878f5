"""Seeds and modes on several devices in parallel: bit-identical to sequential runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.finetuning.mode_trainings import modes_beside, run_finetuning
from robustcli.training import side_by_side
from robustcli.training.record import read_seeds_record, read_train_record
from robustcli.training.seed_runs import seeds_beside
from robustcli.training.side_by_side import SeparateRun, devices_beside, run_beside
from tests.finetuning.tunings import tiny_tuning, write_pretrained
from tests.training.runs import Recorder, same_state, weights_of
from tests.training.test_jobs import children_of, lives
from tests.training.test_processes import environment
from tests.training.test_seed_runs import seed_config

FINISHED = [
    {"start": [10, 4, "images"]},
    {"advance": 3},
    {"say": "half"},
    {"advance": 3},
    {"end": {}},
]
FAILED = [
    {"start": [10, 0, "images"]},
    {"end": {"plain": {"kind": "RunError", "what": "No.", "why": "", "todo": ""}}},
]
REFUSED = [{"end": {"plain": {"kind": "UsageError", "what": "Never.", "why": "", "todo": ""}}}]
BROKEN = [{"end": {"what": "KeyError: 3", "traceback": "Traceback: here"}}]


def no_training(device: str, listener: object) -> None:
    """Is never called: the processes below imitate a training."""


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[SeparateRun]]:
    """Returns a function that makes runs of processes with the given events and endings."""
    processes: list[subprocess.Popen[bytes]] = []
    scripts: list[str] = []

    def fake_start(
        entry: str, job: object, *, threads: int, stdout: int
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", scripts[len(processes)]]
        child = subprocess.Popen(command, stdout=stdout, stdin=subprocess.PIPE)
        processes.append(child)
        return child

    def make(*runs: tuple[list[dict[str, Any]], str]) -> list[SeparateRun]:
        for events, ending in runs:
            lines = "\n".join(map(json.dumps, events))
            scripts.append(f"import os, time\nprint({lines!r}, flush=True)\n{ending}")
        return [SeparateRun(f"run {n}", no_training, ()) for n in range(len(runs))]

    monkeypatch.setattr(side_by_side, "start_child", fake_start)
    monkeypatch.setattr(side_by_side, "GRACE", 5.0)
    return make


def test_lines_have_names_and_the_progress_is_that_of_all(
    fake_runs: Callable[..., list[SeparateRun]],
) -> None:
    listener, failures = Recorder(), list[str]()
    runs = fake_runs((FINISHED, ""), (FINISHED, ""), (FINISHED, ""))
    run_beside(runs, 2, "cpu", listener, lambda run, error: failures.append(run.name))
    assert not failures
    assert sorted(listener.lines) == ["run 0: half", "run 1: half", "run 2: half"]
    assert listener.total == listener.done


def test_images_of_this_command_are_not_reported_as_existing(
    fake_runs: Callable[..., list[SeparateRun]],
) -> None:
    class Starts(Recorder):
        def start(self, total: int, done: int, unit: str | None = None) -> None:
            super().start(total, done)
            self.lines.append(f"{done} of {total}")

    listener = Starts()
    runs = fake_runs((FINISHED, ""), (FINISHED, ""))
    run_beside(runs, 1, "cpu", listener, lambda run, error: None)
    assert listener.lines == ["4 of 10", "run 0: half", "8 of 14", "run 1: half"]
    assert (listener.total, listener.done) == (14, 14)


@pytest.mark.parametrize(
    ("events", "ending", "message"),
    [
        (FAILED, "", "^No.$"),
        (BROKEN, "", "KeyError: 3"),
        ([], "print('{', flush=True); os.kill(os.getpid(), 9)", "in the middle.\nIt.*SIGKILL"),
        ([], "os._exit(7)", "exit code was 7"),
    ],
)  # fmt: skip
def test_a_training_that_fails_is_told_and_the_others_go_on(
    events: list[dict[str, Any]], ending: str, message: str,
    fake_runs: Callable[..., list[SeparateRun]],
) -> None:  # fmt: skip
    failures: dict[str, Exception] = {}
    listener = Recorder()
    runs = fake_runs((events, ending), (FINISHED, ""))
    run_beside(runs, 2, "cpu", listener, lambda run, error: failures.update({run.name: error}))
    assert list(failures) == ["run 0"]
    with pytest.raises(type(failures["run 0"]), match=message):
        raise failures["run 0"]
    assert listener.lines == ["run 1: half"]


def test_an_error_that_ends_all_ends_the_other_processes(
    fake_runs: Callable[..., list[SeparateRun]],
) -> None:
    runs = fake_runs((REFUSED, ""), (FINISHED[:1], "time.sleep(100)"), (FINISHED, ""))

    def on_failure(run: SeparateRun, error: Exception) -> None:
        raise error

    started_at = time.monotonic()
    with pytest.raises(UsageError, match="Never"):
        run_beside(runs, 2, "cpu", Recorder(), on_failure)
    assert time.monotonic() - started_at < 60
    assert not children_running("time.sleep(100)")


def children_running(text: str) -> list[int]:
    """Returns the child processes whose command contains `text`."""
    return [
        pid for pid in children_of(os.getpid())
        if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and lives(pid)
    ]  # fmt: skip


def test_as_many_trainings_as_devices_are_placed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [devices_beside("cpu", devices, runs) for devices, runs in
              ((1, 3), (2, 3), (3, 3), (4, 3), ("all", 3))]  # fmt: skip
    assert counts == [0, 2, 3, 0, 0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_beside("auto", "all", 3) == 2
    with pytest.raises(UsageError, match="3 processes need 3 GPUs"):
        devices_beside("cuda", 3, 3)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
                        "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert devices_beside("cuda", "all", 3) == 0


def test_seeds_that_were_begun_on_several_devices_each_go_on_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = seed_config(data, tmp_path, devices=2)
    assert seeds_beside(config, lambda run: 1) == 2
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "run.json").write_text("{}")
    assert seeds_beside(config, lambda run: 2) == 0
    assert seeds_beside(config, lambda run: 1) == 2


_SEEDS = """
import sys
from pathlib import Path
from robustcli.core.errors import RobustError
from robustcli.core.signals import interruptible
from robustcli.training.seed_runs import train_seeds
from tests.training.runs import Recorder
from tests.training.test_seed_runs import seed_config

class Printed(Recorder):
    def say(self, text):
        print(text, flush=True)

data, out = map(Path, sys.argv[1:3])
try:
    with interruptible():
        train_seeds(seed_config(data, out, seeds=3, devices=int(sys.argv[3]), epochs=4), Printed())
except RobustError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


def seeds(data: Path, run: Path, devices: int = 2) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _SEEDS, str(data), str(run), str(devices)],
        env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def serial_seeds(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the run of three seeds that were trained in one process."""
    run = tmp_path_factory.mktemp("in turn") / "run"
    process = seeds(data, run, devices=1)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return run


def assert_same(run: Path, serial_seeds: Path) -> None:
    assert read_seeds_record(run).status == "complete"
    for seed in ("seed-0", "seed-1", "seed-2"):
        assert same_state(weights_of(run / seed), weights_of(serial_seeds / seed))
        assert read_train_record(run / seed).devices == 1


def wait_for_epoch(run: Path, process: subprocess.Popen[str]) -> list[int]:
    """Waits until a seed has finished an epoch; returns the processes of the seeds."""
    deadline = time.monotonic() + 600
    while not list(run.glob("seed-*/checkpoints/last.ckpt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return children_of(process.pid)


@pytest.mark.timeout(2400)
@pytest.mark.slow  # ten interpreters; the imitated processes above and sequential seeds run always
def test_a_killed_seed_is_named_the_others_are_kept_and_the_command_goes_on(
    data: Path, serial_seeds: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = seeds(data, run)
    victims = wait_for_epoch(run, process)
    os.kill(victims[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 1, output
    assert "3 trainings (seed 0, seed 1, seed 2) on 2 devices" in output
    assert "It was terminated by SIGKILL" in output
    assert "1 of its 3 seeds failed" in output
    complete = [
        folder for folder in run.glob("seed-*") if (folder / "weights.safetensors").exists()
    ]
    assert len(complete) == 2
    second_process = seeds(data, run)
    output, _ = second_process.communicate(timeout=900)
    assert second_process.returncode == 0, output
    assert_same(run, serial_seeds)


@pytest.mark.timeout(2400)
@pytest.mark.slow  # ten interpreters; SIGTERM in test_seed_runs.py runs always
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_first_process_ends_all_and_the_command_goes_on(
    data: Path, serial_seeds: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = seeds(data, run)
    seed_pids = wait_for_epoch(run, process)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGTERM else -9)
    deadline = time.monotonic() + 60
    while any(map(lives, seed_pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert read_seeds_record(run).status == "running"
    second_process = seeds(data, run)
    output, _ = second_process.communicate(timeout=900)
    assert second_process.returncode == 0, output
    assert_same(run, serial_seeds)


@pytest.mark.slow  # a dozen trainings; sequential modes run always
def test_modes_beside_each_other_come_to_the_weights_of_one_after_the_other(
    data: Path, tmp_path: Path
) -> None:
    pretrained = write_pretrained(tmp_path / "weights.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # one for each of two processes
    listener = Recorder()
    try:
        parallel_run = run_finetuning(
            tiny_tuning(data, tmp_path / "beside", pretrained, devices=2), listener
        )
        torch.set_num_threads(1)
        serial_run = run_finetuning(tiny_tuning(data, tmp_path / "turn", pretrained))
    finally:
        torch.set_num_threads(threads)
    assert any(
        "3 trainings (mode freeze, mode scratch, mode full) on 2 devices" in line
        for line in listener.lines
    )
    for mode in ("freeze", "scratch", "full"):
        assert same_state(weights_of(parallel_run / mode), weights_of(serial_run / mode))
    decisions = [(run / "frozen.csv").read_bytes() for run in (parallel_run, serial_run)]
    assert decisions[0] == decisions[1]
    assert {path.name for path in parallel_run.iterdir()} == {
        path.name for path in serial_run.iterdir()
    }


def test_modes_as_many_as_devices_are_placed_whole(data: Path, tmp_path: Path) -> None:
    placements = modes_beside(tiny_tuning(data, tmp_path / "run", None, devices=3))
    assert (placements.count, placements.config.training.devices) == (3, 1)
    seed = placements.for_seed(5, tmp_path / "seed-5")
    assert (seed.config.training.seed, seed.config.training.split_seed) == (5, 0)
    assert modes_beside(tiny_tuning(data, tmp_path / "run", None, devices=4)) is None
    assert modes_beside(tiny_tuning(data, tmp_path / "run", None, mode="full", devices=2)) is None
