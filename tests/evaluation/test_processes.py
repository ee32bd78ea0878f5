"""Evaluations in real processes: SIGKILL, and several commands on one run."""

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
# One thread, because the number of threads changes the rounding.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(photos: Path, out: Path, workers: int = 0) -> list[str]:
    return [
        sys.executable, "-m", "robustcli", "eval", "--model", "vmamba-pico", "--untrained",
        "--data", str(photos), "--out", str(out), "--device", "cpu", "--batch-size", "4",
        "--workers", str(workers), *(word for t in TRANSFORMS for word in ("--transform", t)),
    ]  # fmt: skip


def start_command(photos: Path, out: Path, workers: int = 0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(photos, out, workers), env=ENVIRONMENT, cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish_command(process: "subprocess.Popen[str]") -> str:
    """Returns the standard error of a process that must succeed."""
    _, message = process.communicate(timeout=500)
    assert process.returncode == 0, message
    return message


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Returns two blocks of images, so that one is missing when the other is written."""
    return make_photos(tmp_path_factory.mktemp("photos") / "many", per_class=48)


@pytest.fixture(scope="module")
def uninterrupted(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    finish_command(start_command(photos, run))
    return run


@pytest.mark.slow  # the crash in test_evaluate.py and real kills of trainings run always
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_and_started_again(photos, uninterrupted, tmp_path, signal_number):
    run = tmp_path / "run"
    process = start_command(photos, run, workers=1)
    deadline = time.monotonic() + 400
    while len(contents(run)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    exit_code = process.poll()
    os.kill(process.pid, signal_number)
    _, message = process.communicate(timeout=60)
    assert exit_code is None, f"the process ended before the signal, with {exit_code}: {message}"
    kept_rows = contents(run)
    assert 5 <= len(kept_rows) < len(contents(uninterrupted)), (
        "the signal came before or after the computation"
    )
    if signal_number == signal.SIGINT:
        assert process.returncode == 130
        assert "Finished results are kept" in message
        assert read_record(run).status == "partial"
    assert kept_rows.items() <= contents(uninterrupted).items()
    assert "predictions already exist" in finish_command(start_command(photos, run))
    assert contents(run) == contents(uninterrupted)
    assert table(run).equals(table(uninterrupted))
    assert not list(run.rglob("*.tmp")), "temporary files of the killed process must be removed"


@pytest.mark.slow  # four interpreters; the ranks of test_distributed.py run always
def test_a_second_process_started_by_hand_is_refused(photos, tmp_path):
    run = tmp_path / "run"
    first = start_command(photos, run)
    while not (run / "run.json").exists() and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # else it could end before the second has started
    second = start_command(photos, run)
    _, message = second.communicate(timeout=500)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"Process {first.pid} on this machine" in message
    finish_command(first)
    assert read_record(run).status == "complete"
