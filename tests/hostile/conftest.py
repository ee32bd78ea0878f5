"""Commands in this process, checked for tracebacks, control characters and their time."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from robustcli.cli.main import main

SECONDS = 6
CONTROL_CODES = re.compile("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u202e]")


class Robust:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(
        self, *arguments: str | Path, code: int | tuple[int, ...], seconds: float = SECONDS
    ) -> str:
        """Returns the output of a command; checks exit code, time, and absence of a traceback."""
        started_at = time.process_time()
        try:
            main([str(argument) for argument in arguments])
            exit_code: object = 0
        except SystemExit as error:
            exit_code = error.code
        captured = self.capsys.readouterr()
        text = captured.out + captured.err
        assert exit_code in (code if isinstance(code, tuple) else (code,)), text
        assert "probably a bug" not in text
        assert "Traceback" not in text
        assert not CONTROL_CODES.search(text)
        assert time.process_time() - started_at < seconds, arguments
        return text


@pytest.fixture
def robust(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Robust:
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return Robust(capsys)
