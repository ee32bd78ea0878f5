"""What a training took."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from robustcli.training import memory


def test_the_peak_grows_with_what_is_taken() -> None:
    before = memory.peak_bytes()
    taken = np.ones(60_000_000, np.uint8)
    assert memory.peak_bytes() >= before
    assert memory.peak_bytes() > taken.nbytes


def test_windows_has_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=123))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert memory.peak_bytes() == 123
