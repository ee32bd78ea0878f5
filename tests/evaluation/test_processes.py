"""Kill -9 in the middle, and several processes on one run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustcli.evaluation.cell_table import table
from robustcli.evaluation.record import read_record
from tests.evaluation.photos import make_photos
from tests.evaluation.test_evaluate import contents

REPOSITORY = Path(__file__).parents[2]


TRANSFORMS = ("fliplr", "invert", "multiply", "affine", "cutout", "piecewise_affine")
# One thread: the number of threads decides the rounding, and so the bytes.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(photos: Path, out: Path, workers: int = 0) -> list[str]:
    return [
        sys.executable, "-m", "robustcli", "eval", "--model", "vmamba-pico", "--untrained",
        "--data", str(photos), "--out", str(out), "--device", "cpu", "--batch-size", "4",
        "--workers", str(workers), *(word for t in TRANSFORMS for word in ("--transform", t)),
    ]  # fmt: skip


def started(photos: Path, out: Path, workers: int = 0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(photos, out, workers), env=ENVIRONMENT, cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: "subprocess.Popen[str]") -> str:
    """What a process that must succeed said on standard error."""
    _, message = process.communicate(timeout=500)
    assert process.returncode == 0, message
    return message


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two blocks of images, so that one is left when the other is written."""
    return make_photos(tmp_path_factory.mktemp("photos") / "many", per_class=48)


@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    finished(started(photos, run))
    return run


@pytest.mark.slow  # every run has test_evaluate.py's crash, and real kills of trainings
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_and_started_again(photos, unbroken, tmp_path, signal_number):
    run = tmp_path / "run"
    process = started(photos, run, workers=1)
    deadline = time.monotonic() + 400
    while len(contents(run)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    ended = process.poll()
    os.kill(process.pid, signal_number)
    _, message = process.communicate(timeout=60)
    assert ended is None, f"it ended by itself with {ended}: {message}"
    there = contents(run)
    assert 5 <= len(there) < len(contents(unbroken)), "it was not stopped in the middle"
    if signal_number == signal.SIGINT:
        assert process.returncode == 130
        assert "Finished results are kept" in message
        assert read_record(run).status == "partial"
    assert there.items() <= contents(unbroken).items()
    assert "predictions already exist" in finished(started(photos, run))
    assert contents(run) == contents(unbroken)
    assert table(run).equals(table(unbroken))
    assert not list(run.rglob("*.tmp")), "left-overs of the killed process are removed"


@pytest.mark.slow  # four starts; every run has the ranks of test_distributed.py
def test_a_second_process_started_by_hand_is_refused(photos, tmp_path):
    run = tmp_path / "run"
    first = started(photos, run)
    while not (run / "run.json").exists() and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # it could be done before the second has started
    second = started(photos, run)
    _, message = second.communicate(timeout=500)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"Process {first.pid} on this machine" in message
    finished(first)
    assert read_record(run).status == "complete"
