"""Folders of their own for every test, and no network."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants

_NUMBERS = itertools.count()
GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty `ROBUST_HOME`; the hub's cache is `hub` in it."""
    # `mktemp` would list all folders of earlier tests.
    folder = tmp_path_factory.getbasetemp() / f"home-of-weights{next(_NUMBERS)}"
    folder.mkdir()
    for variable in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "ROBUST_SCAN_BACKEND"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ROBUST_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    # The client read its environment when it was imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    return folder


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses that anything tried to reach; every attempt fails at once."""
    tried: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        tried.append(arguments[-1] if isinstance(arguments[0], socket.socket) else arguments[0])
        raise OSError("there is no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


@pytest.fixture
def golden() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip("needs ../shared")
    return GOLDEN
