"""Which process writes, and how the others wait for it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from robustcli.training.processes import (
    await_first,
    end_of_others,
    environment_kept,
    is_first,
    release_others,
)
from robustcli.training.trainer import machine

CPU = torch.device("cpu")


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_the_first_one_is_that_of_rank_zero(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_first()
    monkeypatch.setenv(variable, "0")
    assert is_first()
    monkeypatch.setenv(variable, "1")
    assert not is_first()


def test_without_torchrun_nobody_waits(tmp_path: Path) -> None:
    await_first(tmp_path)
    release_others(tmp_path)
    assert not list(tmp_path.iterdir())


def test_torchruns_processes_wait_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    waiting = threading.Thread(target=await_first, args=(tmp_path,), daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    release_others(tmp_path)
    waiting.join(5)
    assert not waiting.is_alive()


def test_the_others_end_well() -> None:
    with pytest.raises(SystemExit) as ended:
        end_of_others()
    assert ended.value.code == 0


def test_the_machine_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine(CPU, 3).world == 3
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    on = machine(CPU, 1)
    assert (on.devices, on.nodes, on.world) == (4, 2, 8)


def test_what_lightning_writes_into_the_environment_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with environment_kept():
        os.environ.update(MASTER_PORT="2", LOCAL_RANK="0")
    assert os.environ["MASTER_PORT"] == "1"
    assert "LOCAL_RANK" not in os.environ
