"""What is there to use, and what was used."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from robustcli.training import memory


def test_there_is_some_memory() -> None:
    assert 1 << 20 < memory.available_bytes() < 1 << 50


def test_the_machine_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 999 kB\nMemFree: 1 kB\nMemAvailable: 123 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes() == 123 * 1024


def test_a_container_allows_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes() == 2000000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() > 2000000


def test_where_nothing_tells_something_small_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.delattr(os, "sysconf")
    assert memory.available_bytes() == 4 << 30


def test_the_peak_grows_with_what_is_taken() -> None:
    before = memory.peak_bytes()
    taken = np.ones(60_000_000, np.uint8)
    assert memory.peak_bytes() >= before
    assert memory.peak_bytes() > taken.nbytes
