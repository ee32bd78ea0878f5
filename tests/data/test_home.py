"""Where downloads are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.data.home import data_home


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path))
    assert data_home() == tmp_path


def test_else_it_is_a_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ROBUST_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_home().name == "robust"
    assert not data_home().exists()
