"""Trainings in several real processes, as torchrun, SLURM and `--devices` start them.

Slow: each job imports torch and Lightning once per process. Jobs are shared between assertions.
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
from tests.training.runs import small, tiny_classifier
from tests.training.test_ddp import environment

pytestmark = pytest.mark.slow

ULVM = {"model": "ulvm", "model_args": {}, "window": 32, "loss": "bce"}
_TRAIN = """
import os, signal, sys
from pathlib import Path
from robustcli.core.errors import RobustError
from robustcli.training import engine, trainer
from tests.training.runs import small

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
said = {"model": "ulvm", "model_args": {}, "window": 32, "loss": "bce"}
try:
    engine.run_training(small(Path(data), Path(out), **said, devices=int(devices)))
except RobustError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
print("finished")
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def torchrun(count: int, *more: str) -> list[str]:
    port = str(free_port())
    where = ["--nnodes", "1", "--rdzv-backend", "static", "--master-addr", "127.0.0.1"]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return [*start, *where, "--master-port", port, *more]


def job(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment() | more, capture_output=True, text=True, check=False, timeout=240
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
    (run / ".open-none-0").touch()  # what older versions waited for; static jobs are all `none`
    train = [
        "-m", "robustcli", "train", "seg", "--model", "ulvm", "--data", str(data), "--out",
        str(run), "--window", "32", "--batch-size", "4", "--epochs", "1", "--device", "cpu",
    ]  # fmt: skip
    first = job([*torchrun(2), *train])
    assert first.returncode == 0, first.stderr
    assert (first.stderr + first.stdout).count("Epoch 1 of 1") == 1
    assert first.stdout.count("Report:") == 1
    written = (run / "metrics.csv").stat().st_mtime_ns
    again = job([*torchrun(2), *train])
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("is already finished") == 1
    refused = job([*torchrun(2), *train, "--lr", "0.5"])
    assert refused.returncode != 0
    assert refused.stderr.count("holds a training with other settings") == 1
    assert "exitcode  : 2" in refused.stderr
    assert (run / "metrics.csv").stat().st_mtime_ns == written
    fresh = job([*torchrun(2), *train, "--lr", "0.5", "--fresh"])
    assert fresh.returncode == 0, fresh.stderr
    assert (run / "metrics.csv").stat().st_mtime_ns > written


def test_torchrun_restarts_a_killed_process_and_the_training_goes_on(
    data: Path, tmp_path: Path, script: Path
) -> None:
    run = tmp_path / "run"
    starter = torchrun(2, "--max-restarts", "1")
    done = job([*starter, str(script), str(data), str(run), "1", "dies in training"])
    assert done.returncode == 0, done.stderr
    assert "SIGKILL" in done.stderr or "exitcode: -9" in done.stderr
    assert pd.read_csv(run / "metrics.csv")["step"].tolist() == [3, 6, 9]
    assert read_train_record(run).status == "complete"


def test_a_process_that_dies_ends_the_others_and_the_command_goes_on(
    data: Path, tmp_path: Path, script: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(script), str(data), str(run), "2"]
    at_once = job([*command, "dies at once"])
    assert at_once.returncode == 1, at_once.stderr
    assert "Process 1 of 2 ended" in at_once.stdout
    assert "exit code was 3" in at_once.stdout
    killed = job([*command, "dies in training"])
    assert killed.returncode == 1, killed.stderr
    assert killed.stdout.count("Process 1 of 2 ended") == 1
    assert "SIGKILL" in killed.stdout
    assert read_train_record(run).status == "failed"
    assert len(pd.read_csv(run / "metrics.csv")) == 1
    on = job([*command, "nothing"])
    assert (on.returncode, on.stdout.split()) == (0, ["finished"]), on.stderr
    assert pd.read_csv(run / "metrics.csv")["step"].tolist() == [3, 6, 9]


def together(command: list[str], count: int) -> list[tuple[int, str]]:
    """Exit codes and outputs of processes that only know the variables of torch's `env://`."""
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
    ("what", "named"),
    [("other version", "version of `robustcli`"), ("other pixels", "the same pixels")],
)
def test_processes_that_would_not_train_the_same_are_refused(
    what: str, named: str, data: Path, tmp_path: Path, script: Path
) -> None:
    run = tmp_path / "run"
    (first, told), (other, silent) = together(
        [sys.executable, str(script), str(data), str(run), "1", what], 2
    )
    assert (first, other) == (2, 2), told + silent
    assert "Process 1 of 2 differs from the first process in" in told
    assert named in told
    assert silent == ""
    assert not (run / "metrics.csv").exists()


_SILENT = """
import sys, time
from robustcli.core.ranks import ranks
from robustcli.training import processes
processes.SILENCE, processes.GRACE, hangs = 3.0, 2.0, sys.argv[1]

place = ranks()
with processes.meeting(place) as peers:
    peers.tell("go") if place.first else peers.hear()
    if str(place.rank) == hangs:
        peers._stop.set()  # no sign of life any more, as of a machine that lost its network
    time.sleep(600)  # as in a call that never returns
"""


@pytest.mark.parametrize("hangs", ["0", "1"])
def test_a_silent_process_ends_those_that_wait_for_it(tmp_path: Path, hangs: str) -> None:
    script = tmp_path / "silent.py"
    script.write_text(_SILENT)
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    children = [
        subprocess.Popen(
            [sys.executable, str(script), hangs], text=True, stderr=subprocess.PIPE,
            env=environment() | shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    waiting, other = children[1 - int(hangs)], children[int(hangs)]
    try:
        _, told = waiting.communicate(timeout=60)
    finally:
        other.kill()
        other.communicate()
    assert waiting.returncode == 1
    assert f"Process {hangs} of 2 ended" in told
    assert "no heartbeat" in told


def test_the_others_end_when_the_first_process_is_killed(
    data: Path, tmp_path: Path, script: Path
) -> None:
    command = [sys.executable, str(script), str(data), str(tmp_path / "run"), "2", "nothing"]
    first = subprocess.Popen(command, env=environment(), start_new_session=True)
    others: list[int] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "run" / "metrics.csv").exists():
        time.sleep(0.1)
    others = children_of(first.pid)
    first.kill()
    first.wait()
    assert others
    while time.monotonic() < deadline and any(map(lives, others)):
        time.sleep(0.2)
    assert not any(map(lives, others))


def children_of(pid: int) -> list[int]:
    """Processes that `pid` started (Linux)."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] != "Z"


# The weights stay what they are (no step changes a float32), so that validation alone differs.
STILL = {"epochs": 1, "lr": 1e-30, "batch_size": 6}
_VALIDATE = """
import sys
from pathlib import Path
from robustcli.training.engine import run_training
from tests.training.runs import small, tiny_classifier
from tests.training.test_jobs import STILL, ULVM

pairs, photos, out = map(Path, sys.argv[1:])
for config in (
    small(pairs, out / "own", **ULVM, **STILL),
    small(pairs, out / "paper", **ULVM, **STILL, protocol="paper"),
    tiny_classifier(photos, out / "classes", **STILL),
):
    try:
        run_training(config)
    except SystemExit as ended:  # a process that is not the first has done its part
        assert ended.code == 0
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Odd numbers of images, and the trainings of one process on them."""
    folder = tmp_path_factory.mktemp("alone")
    pairs, photos = write_pairs(folder / "pairs", 33), write_photos(folder / "paints", 11)
    run_training(small(pairs, folder / "own", **ULVM, **STILL))
    run_training(small(pairs, folder / "paper", **ULVM, **STILL, protocol="paper"))
    run_training(tiny_classifier(photos, folder / "classes", **STILL))
    return pairs, photos, folder


@pytest.mark.parametrize("count", [2, 3])
def test_validation_is_that_of_one_process(
    alone: tuple[Path, Path, Path], tmp_path: Path, count: int
) -> None:
    pairs, photos, folder = alone
    script = tmp_path / "validate.py"
    script.write_text(_VALIDATE)
    done = job([*torchrun(count), str(script), str(pairs), str(photos), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    for way, score in (("own", "val_dice"), ("paper", "val_dice"), ("classes", "val_top1")):
        assert read_train_record(tmp_path / way).devices == count
        one, several = (pd.read_csv(f / way / "metrics.csv") for f in (folder, tmp_path))
        # Batches are the same, so only the order of a sum of a few float32 numbers may differ.
        for column in ("val_loss", score):
            assert several[column].tolist() == pytest.approx(one[column].tolist(), rel=1e-6)
        rows = pd.read_csv(tmp_path / way / "splits.csv")
        held = rows[rows["split"] == "test"]["image_id"].tolist()
        assert read_n(tmp_path / way / "test") == len(held)


def read_n(run: Path) -> int:
    """Images of an evaluation."""
    from robustcli.evaluation.cell_table import table

    return int(table(run)["n"].iloc[0])
