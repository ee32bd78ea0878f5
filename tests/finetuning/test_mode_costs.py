"""What a mode costs: files, counts, and the peak since the last freeze."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from robustcli.finetuning import mode_costs
from robustcli.finetuning.mode_costs import (
    MeasureCosts,
    optimizer_bytes,
    peak_resident,
    start_anew,
    trainable,
)
from robustcli.finetuning.record import STEPS, ModeCosts

MODULE: Any = SimpleNamespace(device=torch.device("cpu"))


def trained(run: Path, measured: MeasureCosts, steps: range, optimizer: Any) -> None:
    for step in steps:
        trainer: Any = SimpleNamespace(
            is_global_zero=True, global_step=step, optimizers=[optimizer]
        )
        measured.on_train_batch_start(trainer, MODULE, None, step)
        measured.on_train_batch_end(trainer, MODULE, None, None, step)
    measured.on_validation_start(trainer, MODULE)
    measured.on_validation_end(trainer, MODULE)
    measured.on_train_end(trainer, MODULE)


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the system tells, in this order."""
    told: list[int] = []
    monkeypatch.setattr(mode_costs, "peak_resident", lambda device: told.pop(0))
    monkeypatch.setattr(mode_costs, "start_anew", lambda device: None)
    return told


def test_a_line_per_step_and_the_costs_at_the_end(tmp_path: Path, peaks: list[int]) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    measured = MeasureCosts(tmp_path, net)
    peaks.append(500)
    trained(tmp_path, measured, range(1, 3), optimizer)
    net.bias.requires_grad_(False)
    again = MeasureCosts(tmp_path, net)  # after an interruption
    again.load_state_dict(measured.state_dict())
    peaks.append(300)
    trained(tmp_path, again, range(3, 5), optimizer)
    lines = pd.read_csv(tmp_path / "iterations.csv")
    assert tuple(lines.columns) == STEPS
    assert lines["iteration"].tolist() == [1, 2, 3, 4]
    assert lines["trainable"].tolist() == [8, 8, 6, 6]
    costs = ModeCosts.model_validate_json((tmp_path / "costs.json").read_text())
    assert (costs.trainable, costs.peak_memory_bytes) == (6, 300)  # since the freeze
    assert costs.optimizer_bytes == optimizer_bytes(optimizer) == 2 * 4 * 8 + 2 * 4


def test_without_a_freeze_the_peak_is_that_of_all_epochs(tmp_path: Path, peaks: list[int]) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    measured = MeasureCosts(tmp_path, net)
    for peak in (500, 300):
        peaks.append(peak)
        trained(tmp_path, measured, range(1, 2), optimizer)
    costs = ModeCosts.model_validate_json((tmp_path / "costs.json").read_text())
    assert (costs.peak_memory_bytes, costs.optimizer_bytes) == (500, 0)


def test_trainable_counts_elements() -> None:
    net = nn.Linear(3, 2)
    assert trainable(net) == 8
    net.weight.requires_grad_(False)
    assert trainable(net) == 2


CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_what_was_taken_counts_until_it_is_started_anew() -> None:
    start_anew(CPU)
    before = peak_resident(CPU)
    block = bytearray(1 << 27)
    block[::4096] = b"x" * len(block[::4096])
    with_block = peak_resident(CPU)
    assert with_block >= before + (1 << 26)
    del block
    assert peak_resident(CPU) > with_block - (1 << 26)  # the kernel counts in batches


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode_costs, "_PROCESS", tmp_path / "nowhere")
    start_anew(CPU)
    assert peak_resident(CPU) == 0
