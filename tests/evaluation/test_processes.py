"""Kill -9 in the middle, and several processes on one run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.metrics import table
from robustcli.evaluation.record import read_record
from tests.evaluation.photos import config, make_photos
from tests.evaluation.test_evaluate import contents

REPOSITORY = Path(__file__).parents[2]


def command(photos: Path, out: Path, workers: int = 0) -> list[str]:
    return [
        sys.executable, "-m", "robustcli", "eval", "--model", "vmamba-pico", "--untrained",
        "--data", str(photos), "--transform", "paper21", "--out", str(out), "--device", "cpu",
        "--batch-size", "4", "--workers", str(workers),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos") / "many", per_class=40)


@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory):
    return run_evaluation(config(photos, tmp_path_factory.mktemp("runs") / "unbroken", "paper21"))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_and_started_again(photos, unbroken, tmp_path, signal_number):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(photos, run, workers=1), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(contents(run)) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal_number)
    _, message = process.communicate(timeout=60)
    there = contents(run)
    assert 20 <= len(there) < len(contents(unbroken)), "it was not stopped in the middle"
    if signal_number == signal.SIGINT:
        assert process.returncode == 130
        assert "What was finished is kept" in message
        assert read_record(run).status == "partial"
    assert there.items() <= contents(unbroken).items()
    again = subprocess.run(
        command(photos, run), cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "predictions are there from before" in again.stderr
    assert contents(run) == contents(unbroken)
    assert table(run).equals(table(unbroken))
    assert not list(run.rglob("*.tmp")), "left-overs of the killed process are removed"


def test_two_processes_share_one_run(photos, unbroken, tmp_path):
    run = tmp_path / "run"
    both = [
        subprocess.Popen(command(photos, run), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert contents(run) == contents(unbroken)
    assert read_record(run).status == "complete"
