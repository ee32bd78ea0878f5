"""Training in several processes: agreement, failures, and equal results."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.distributed import HashStore, Store

from robustcli.core.errors import RobustError, UsageError
from robustcli.core.ranks import Ranks
from robustcli.training.engine import run_training
from robustcli.training.processes import Peers, end_of_others
from robustcli.training.record import read_train_record
from robustcli.training.trainer import machine
from tests.training.images import write_pairs, write_photos
from tests.training.runs import tiny_classifier, tiny_unet

Outcome = object


@pytest.fixture
def peers() -> list[Peers]:
    keys: Store = HashStore()
    keys.set_timeout(timedelta(seconds=20))
    return [Peers(Ranks(rank, 2, rank, 2), keys) for rank in range(2)]


def outcomes(*calls: Callable[[], object]) -> list[Outcome]:
    """Runs `calls` concurrently; returns the result or error of each."""
    results: list[Outcome] = [None] * len(calls)

    def call(number: int) -> None:
        try:
            results[number] = calls[number]()
        except (RobustError, SystemExit) as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


def test_a_single_process_needs_no_peers() -> None:
    single = Peers(Ranks())
    assert single.together(lambda: 3, lambda value: {"x": "y"}) == 3
    single.send("word")
    single.stop_monitoring()


def test_processes_that_agree_go_on(peers: list[Peers]) -> None:
    first, second = outcomes(
        *(
            lambda peer=peer: peer.together(lambda: peer.process.rank, lambda _: {"a": "1"})
            for peer in peers
        )
    )
    assert (first, second) == (0, 1)
    peers[0].send("one")
    peers[0].send("two")
    assert [peers[1].receive(), peers[1].receive()] == ["one", "two"]


def test_the_first_process_tells_what_differs(peers: list[Peers]) -> None:
    def agree(peer: Peers) -> object:
        try:
            return peer.together(
                lambda: 0, lambda _: {"version of `torch`": f"2.{peer.process.rank}"}
            )
        except UsageError as error:
            peer.fail(error)
            raise

    first, second = outcomes(*(lambda peer=peer: agree(peer) for peer in peers))
    assert isinstance(first, UsageError)
    assert "Process 1 of 2 differs from the first process in: version of `torch`" in str(first)
    assert "The first process has 2.0, this process has 2.1." in str(first)
    assert isinstance(second, SystemExit)
    assert second.code == 2


def test_what_stops_another_process_is_told_by_the_first(peers: list[Peers]) -> None:
    def refuse() -> int:
        raise UsageError("The file `x` is missing.", "why", "todo")

    def agree(peer: Peers) -> object:
        try:
            return peer.together(refuse if peer.process.rank else lambda: 0, lambda _: {})
        except UsageError as error:
            peer.fail(error)
            raise

    first, second = outcomes(*(lambda peer=peer: agree(peer) for peer in peers))
    assert isinstance(first, UsageError)
    assert "Process 1 of 2 failed: The file `x` is missing." in str(first)
    assert isinstance(second, SystemExit)
    assert second.code == 2


def test_the_other_processes_exit_with_0() -> None:
    with pytest.raises(SystemExit) as exit_info:
        end_of_others()
    assert exit_info.value.code == 0


def test_the_machine_is_read_from_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine("cpu", 3).world == 3
    assert machine("cpu", "all").world == 1
    variables = {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    machine_state = machine("cpu", 1)
    assert (machine_state.devices, machine_state.nodes, machine_state.world) == (4, 2, 8)
    with pytest.raises(UsageError, match="contradicts the launcher"):
        machine("cpu", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert machine("cuda", 1).device == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("name", "message"), [("cuda", "1 were found"), ("cuda:0", "is one device")]
)
def test_each_process_needs_a_gpu(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=message):
        machine(name, 3)
    assert machine("cuda", "all").world == 1


# Without batch normalisation, whose statistics would depend on the batch of each process.
_OVERRIDES: dict[str, Any] = {
    "model": "ulvm", "model_args": {}, "window": 32, "loss": "bce", "aug": "none", "epochs": 2
}  # fmt: skip
_SCRIPT = """
import sys
from pathlib import Path
from robustcli.training.engine import run_training
from tests.training.runs import tiny_unet
from tests.training.test_processes import _OVERRIDES

data, out, devices = sys.argv[1:]
run_training(tiny_unet(Path(data), Path(out), **_OVERRIDES, devices=int(devices)))
print("finished")
"""


def environment() -> dict[str, str]:
    """Makes the tests importable in subprocesses, which use one core each."""
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def run_script(text: str, folder: Path, *arguments: object, launcher: Sequence[str] = ()) -> None:
    """Runs `text` as a script, which must print "finished" once."""
    script = folder / "train.py"
    script.write_text(text)
    child = subprocess.run(
        [sys.executable, *launcher, str(script), *map(str, arguments)],
        env=environment(), capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stdout.count("finished") == 1


def assert_equal_metrics(run: Path, single: Path, columns: Sequence[str]) -> None:
    record = read_train_record(run)
    assert (record.status, record.devices) == ("complete", 2)
    metrics, expected = (pd.read_csv(r / "metrics.csv") for r in (run, single))
    assert metrics["step"].tolist() == expected["step"].tolist() == [3, 6]
    for column in columns:
        assert metrics[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_two_processes_train_a_segmenter_like_one(tmp_path: Path, torchrun: bool) -> None:
    """For equally many pixels, the mean gradient of the two halves equals that of the batch."""
    data, run = write_pairs(tmp_path / "data", 14), tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if torchrun else []
    run_script(_SCRIPT, tmp_path, data, run, "1" if torchrun else "2", launcher=launcher)
    single = run_training(tiny_unet(data, tmp_path / "single", **_OVERRIDES))
    assert_equal_metrics(run, single, ("train_loss", "grad_norm", "val_loss", "val_dice"))


_SCRIPT_DDP = """
import sys
from pathlib import Path
from robustcli.training.engine import run_training
from tests.training.runs import tiny_classifier

run_training(tiny_classifier(sys.argv[1], Path(sys.argv[2]), epochs=2, devices=2))
print("finished")
"""


@pytest.mark.slow
def test_two_processes_train_a_classifier_like_one(tmp_path: Path) -> None:
    """Layer normalisation does not depend on the batch, so the gradients are equal."""
    data, run = write_photos(tmp_path / "paints", 12), tmp_path / "run"
    run_script(_SCRIPT_DDP, tmp_path, data, run)
    single = run_training(tiny_classifier(data, tmp_path / "single", epochs=2))
    assert_equal_metrics(run, single, ("train_loss", "grad_norm", "val_top1", "val_f1"))
