"""The peak of memory over a stretch of time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from robustcli.training.batches import resident
from robustcli.training.batches.resident import peak_resident, start_anew

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
    monkeypatch.setattr(resident, "_PROCESS", tmp_path / "nowhere")
    start_anew(CPU)
    assert peak_resident(CPU) == 0
