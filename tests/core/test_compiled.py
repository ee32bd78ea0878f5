"""Compilation by numba without a cache folder, as of a user with a read-only home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.core.compiled import import_compiled


def unwritable(**_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_modules_are_imported_without_a_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from numba import njit\n\n\n@njit(cache=True)\ndef negative(x):\n    return -x\n"
    (tmp_path / "stored_kernels.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", unwritable)  # by which numba tests a folder
    assert import_compiled("stored_kernels").negative(2) == -2


def test_other_errors_of_an_import_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_kernels.py").write_text("raise RuntimeError('broken')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="broken"):
        import_compiled("broken_kernels")
