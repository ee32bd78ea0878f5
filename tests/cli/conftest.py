"""The command line in this process, in an empty folder, with nothing of the user's own.

Figures of reports are blank; `reports/` draws them, and so does `test_as_typed_in_a_shell`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from robustcli.cli import main
from robustcli.core.errors import RunError


@dataclass(frozen=True)
class Outcome:
    """What a command ended with."""

    code: int
    out: str
    err: str


Robust = Callable[..., Outcome]
REPOSITORY = Path(__file__).parents[2]


def python(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs a new interpreter on this source, with further `settings` of `subprocess.run`."""
    return subprocess.run(
        [sys.executable, *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False,
           "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}, **settings},
    )  # fmt: skip


def put_run(kept: Path, make: Callable[[], Outcome]) -> None:
    """Puts the folder `run` into this folder: a copy of `kept`, which the first call makes."""
    if kept.exists():
        shutil.copytree(kept, "run")
        return
    outcome = make()
    assert outcome.code == 0, outcome.err
    shutil.copytree("run", kept)


Asked = Callable[[ModuleType, str], list[Any]]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank_figures: None) -> None:
    for variable in [name for name in os.environ if name.startswith("ROBUST_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def robust(capsys: pytest.CaptureFixture[str]) -> Robust:
    """Runs `robust` with the given arguments."""

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments), prog_name="robust")
        result = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return Outcome(stopped.value.code, result.out, result.err)

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Replaces a function of a module; returns the configurations that commands then pass to it.

    Each call ends as a failed run.
    """

    def replace(module: ModuleType, function: str) -> list[Any]:
        configs: list[Any] = []

        def note(config: Any, *_: object, **__: object) -> Path:
            configs.append(config)
            raise RunError("It failed.", "A test wants it so.", "Nothing.")

        monkeypatch.setattr(module, function, note)
        return configs

    return replace
