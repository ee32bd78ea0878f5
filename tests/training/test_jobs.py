"""Trainings in several real processes, started by torchrun, SLURM and `--devices`.

Slow: each process of a job imports torch and Lightning, so one job serves several assertions.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from robustcli.training.engine import run_training
from robustcli.training.record import read_train_record
from tests.training.images import write_pairs, write_photos
from tests.training.runs import tiny_classifier, tiny_unet
from tests.training.test_processes import environment

pytestmark = pytest.mark.slow

ULVM = {"model": "ulvm", "model_args": {}, "window": 32, "loss": "bce"}
_TRAIN = """
import os, signal, sys
from pathlib import Path
from robustcli.core.errors import RobustError
from robustcli.training import engine, trainer
from tests.training.runs import tiny_unet

data, out, devices, what = sys.argv[1:]
dies = os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
if dies and what == "other version":
    engine.__version__ = "0.0.0"
if dies and what == "other pixels":
    engine._digest = lambda decoded: "others"
if dies and what == "dies at once":
    os._exit(3)

def die(self, lightning, *rest):
    if dies and lightning.current_epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)

if what == "dies in training":
    trainer.SeededSteps.on_train_batch_start = die
settings = {"model": "ulvm", "model_args": {}, "window": 32, "loss": "bce"}
try:
    engine.run_training(tiny_unet(Path(data), Path(out), **settings, devices=int(devices)))
except RobustError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
print("finished")
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def torchrun(count: int, *options: str) -> list[str]:
    port = str(free_port())
    rendezvous = ["--nnodes", "1", "--rdzv-backend", "static", "--master-addr", "127.0.0.1"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return [*launcher, *rendezvous, "--master-port", port, *options]


def job(command: list[str], **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment() | extra, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("script") / "train.py"
    file.write_text(_TRAIN)
    return file


def test_torchruns_processes_find_a_finished_run_and_a_refused_one(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    # Older versions waited for this file; static jobs all have the id `none`.
    (run / ".open-none-0").touch()
    train = [
        "-m", "robustcli", "train", "seg", "--model", "ulvm", "--data", str(data), "--out",
        str(run), "--window", "32", "--batch-size", "4", "--epochs", "1", "--device", "cpu",
    ]  # fmt: skip
    first = job([*torchrun(2), *train])
    assert first.returncode == 0, first.stderr
    assert (first.stderr + first.stdout).count("Epoch 1 of 1") == 1
    assert first.stdout.count("Report:") == 1
    written_at = (run / "metrics.csv").stat().st_mtime_ns
    second_job = job([*torchrun(2), *train])
    assert second_job.returncode == 0, second_job.stderr
    assert second_job.stderr.count("is already finished") == 1
    refused_job = job([*torchrun(2), *train, "--lr", "0.5"])
    assert refused_job.returncode != 0
    assert refused_job.stderr.count("contains a training with other settings") == 1
    assert "exitcode  : 2" in refused_job.stderr
    assert (run / "metrics.csv").stat().st_mtime_ns == written_at
    fresh_job = job([*torchrun(2), *train, "--lr", "0.5", "--fresh"])
    assert fresh_job.returncode == 0, fresh_job.stderr
    assert (run / "metrics.csv").stat().st_mtime_ns > written_at


def test_torchrun_restarts_a_killed_process_and_the_training_goes_on(
    data: Path, tmp_path: Path, script: Path
) -> None:
    run = tmp_path / "run"
    launcher = torchrun(2, "--max-restarts", "1")
    result = job([*launcher, str(script), str(data), str(run), "1", "dies in training"])
    assert result.returncode == 0, result.stderr
    assert "SIGKILL" in result.stderr or "exitcode: -9" in result.stderr
    assert pd.read_csv(run / "metrics.csv")["step"].tolist() == [3, 6, 9]
    assert read_train_record(run).status == "complete"


def test_a_process_that_dies_ends_the_others_and_the_command_goes_on(
    data: Path, tmp_path: Path, script: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(script), str(data), str(run), "2"]
    first_result = job([*command, "dies at once"])
    assert first_result.returncode == 1, first_result.stderr
    assert "Process 1 of 2 ended" in first_result.stdout
    assert "exit code was 3" in first_result.stdout
    killed = job([*command, "dies in training"])
    assert killed.returncode == 1, killed.stderr
    assert killed.stdout.count("Process 1 of 2 ended") == 1
    assert "SIGKILL" in killed.stdout
    assert read_train_record(run).status == "failed"
    assert len(pd.read_csv(run / "metrics.csv")) == 1
    second_result = job([*command, "nothing"])
    assert (second_result.returncode, second_result.stdout.split()) == (0, ["finished"]), (
        second_result.stderr
    )
    assert pd.read_csv(run / "metrics.csv")["step"].tolist() == [3, 6, 9]


def run_together(command: list[str], count: int) -> list[tuple[int, str]]:
    """Returns exit codes and output of processes that get torch's `env://` variables only."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    children = [
        subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment() | shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in map(str, range(count))
    ]  # fmt: skip
    outputs = [child.communicate(timeout=240)[0] for child in children]
    return [(child.returncode, text) for child, text in zip(children, outputs, strict=True)]


@pytest.mark.parametrize(
    ("difference", "message"),
    [("other version", "version of `robustcli`"), ("other pixels", "in: pixels")],
)
def test_processes_that_would_not_train_the_same_are_refused(
    difference: str, message: str, data: Path, tmp_path: Path, script: Path
) -> None:
    run = tmp_path / "run"
    (first_code, first_output), (second_code, second_output) = run_together(
        [sys.executable, str(script), str(data), str(run), "1", difference], 2
    )
    assert (first_code, second_code) == (2, 2), first_output + second_output
    assert "Process 1 of 2 differs from the first process in" in first_output
    assert message in first_output
    assert second_output == ""
    assert not (run / "metrics.csv").exists()


_SILENT = """
import sys, time
from robustcli.core.ranks import ranks
from robustcli.training import processes
processes.SILENCE, processes.GRACE, hangs = 3.0, 2.0, sys.argv[1]

place = ranks()
with processes.connected_processes(place) as peers:
    peers.send("go") if place.first else peers.receive()
    if str(place.rank) == hangs:
        peers._stop.set()  # no sign of life any more, as of a machine that lost its network
    time.sleep(600)  # as in a call that never returns
"""


@pytest.mark.parametrize("hanging_rank", ["0", "1"])
def test_a_silent_process_ends_those_that_wait_for_it(tmp_path: Path, hanging_rank: str) -> None:
    script = tmp_path / "silent.py"
    script.write_text(_SILENT)
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    children = [
        subprocess.Popen(
            [sys.executable, str(script), hanging_rank], text=True, stderr=subprocess.PIPE,
            env=environment() | shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    waiting, hanging = children[1 - int(hanging_rank)], children[int(hanging_rank)]
    try:
        _, output = waiting.communicate(timeout=60)
    finally:
        hanging.kill()
        hanging.communicate()
    assert waiting.returncode == 1
    assert f"Process {hanging_rank} of 2 ended" in output
    assert "no heartbeat" in output


def test_the_others_end_when_the_first_process_is_killed(
    data: Path, tmp_path: Path, script: Path
) -> None:
    command = [sys.executable, str(script), str(data), str(tmp_path / "run"), "2", "nothing"]
    first = subprocess.Popen(command, env=environment(), start_new_session=True)
    other_pids: list[int] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "run" / "metrics.csv").exists():
        time.sleep(0.1)
    other_pids = children_of(first.pid)
    first.kill()
    first.wait()
    assert other_pids
    while time.monotonic() < deadline and any(map(lives, other_pids)):
        time.sleep(0.2)
    assert not any(map(lives, other_pids))


def children_of(pid: int) -> list[int]:
    """Returns the processes that `pid` started (Linux)."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(pid_text) for pid_text in text.split()]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] != "Z"


# No step changes a float32 weight, so only validation can differ.
NO_CHANGE = {"epochs": 1, "lr": 1e-30, "batch_size": 6}
_VALIDATE = """
import sys
from pathlib import Path
from robustcli.training.engine import run_training
from tests.training.runs import tiny_unet, tiny_classifier
from tests.training.test_jobs import NO_CHANGE, ULVM

pairs, photos, out = map(Path, sys.argv[1:])
for config in (
    tiny_unet(pairs, out / "own", **ULVM, **NO_CHANGE),
    tiny_unet(pairs, out / "paper", **ULVM, **NO_CHANGE, protocol="paper"),
    tiny_classifier(photos, out / "classes", **NO_CHANGE),
):
    try:
        run_training(config)
    except SystemExit as ended:  # a process that is not the first has done its part
        assert ended.code == 0
"""


@pytest.fixture(scope="module")
def single_process_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Writes odd numbers of images, and trains on them in one process."""
    folder = tmp_path_factory.mktemp("alone")
    pairs, photos = write_pairs(folder / "pairs", 33), write_photos(folder / "paints", 11)
    run_training(tiny_unet(pairs, folder / "own", **ULVM, **NO_CHANGE))
    run_training(tiny_unet(pairs, folder / "paper", **ULVM, **NO_CHANGE, protocol="paper"))
    run_training(tiny_classifier(photos, folder / "classes", **NO_CHANGE))
    return pairs, photos, folder


@pytest.mark.parametrize("count", [2, 3])
def test_validation_is_that_of_one_process(
    single_process_runs: tuple[Path, Path, Path], tmp_path: Path, count: int
) -> None:
    pairs, photos, folder = single_process_runs
    script = tmp_path / "validate.py"
    script.write_text(_VALIDATE)
    result = job([*torchrun(count), str(script), str(pairs), str(photos), str(tmp_path)])
    assert result.returncode == 0, result.stderr
    for protocol, score in (("own", "val_dice"), ("paper", "val_dice"), ("classes", "val_top1")):
        assert read_train_record(tmp_path / protocol).devices == count
        single, shared = (pd.read_csv(f / protocol / "metrics.csv") for f in (folder, tmp_path))
        # Batches are equal; only the order of sums of a few float32 numbers may differ.
        for column in ("val_loss", score):
            assert shared[column].tolist() == pytest.approx(single[column].tolist(), rel=1e-6)
        rows = pd.read_csv(tmp_path / protocol / "splits.csv")
        held_out_ids = rows[rows["split"] == "test"]["image_id"].tolist()
        assert read_n(tmp_path / protocol / "test") == len(held_out_ids)


def read_n(run: Path) -> int:
    """Returns the number of images of an evaluation."""
    from robustcli.evaluation.cell_table import table

    return int(table(run)["n"].iloc[0])
