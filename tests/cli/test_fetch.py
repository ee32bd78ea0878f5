"""`robust fetch`: what it prints, and what it says when there is no network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from robustcli.adapters.catalogue import CATALOGUE
from tests.cli.conftest import Robust

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of `vmamba-t` come from a file of this machine, which is returned."""
    (tmp_path / "w.pth").write_bytes(CONTENT)
    entry = replace(CATALOGUE["vmamba-t"], weights_url=(tmp_path / "w.pth").as_uri())
    monkeypatch.setitem(CATALOGUE, "vmamba-t", entry)
    return tmp_path / "w.pth"


def test_where_it_lies_and_its_hash(robust: Robust, served: Path, tmp_path: Path) -> None:
    outcome = robust("fetch", "VMamba-T")
    place = tmp_path / "home" / "weights" / "w.pth"
    assert outcome.code == 0
    assert outcome.out == (
        f"vmamba-t: {place}\n  SHA-256 {SHA256} (none is published; stored to check later "
        "downloads)\n"
    )
    assert place.read_bytes() == CONTENT
    assert robust("fetch", "vmamba-t", "--quiet").out == f"vmamba-t: {place}\n"


def test_several_as_one_json_document(robust: Robust, served: Path, tmp_path: Path) -> None:
    outcome = robust("fetch", "vmamba-t", "cifar10-mini", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    first, second = json.loads(outcome.out)
    place = tmp_path / "home" / "weights" / "w.pth"
    assert first == {"name": "vmamba-t", "path": str(place), "sha256": SHA256, "pinned": False}
    assert second["name"] == "cifar10-mini"
    assert second["sha256"] == hashlib.sha256(Path(second["path"]).read_bytes()).hexdigest()


def test_a_changed_file_fails_the_run(robust: Robust, served: Path, tmp_path: Path) -> None:
    robust("fetch", "vmamba-t")
    (tmp_path / "home" / "weights" / "w.pth").write_bytes(b"changed")
    outcome = robust("fetch", "vmamba-t")
    assert (outcome.code, outcome.out) == (1, "")
    assert f"Expected SHA-256 {SHA256}, got " in outcome.err


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_names_before_a_failure_are_printed(
    robust: Robust, served: Path, tmp_path: Path, form: tuple[str, ...]
) -> None:
    robust("fetch", "vmamba-t")
    (tmp_path / "home" / "weights" / "w.pth").write_bytes(b"changed")
    outcome = robust("fetch", "cifar10-mini", "vmamba-t", "nuclei-mini", *form)
    assert outcome.code == 1
    assert "Expected SHA-256" in outcome.err
    if form:
        assert [file["name"] for file in json.loads(outcome.out)] == ["cifar10-mini"]
    else:
        assert outcome.out.startswith("cifar10-mini: ")
        assert "nuclei-mini" not in outcome.out


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_offline_names_the_address_and_the_place(
    robust: Robust, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    if how == "environment":
        monkeypatch.setenv("ROBUST_OFFLINE", "1")
    outcome = robust("fetch", "vmamba-b", *["--offline"] * (how == "flag"))
    file = "vssm_base_0229_ckpt_epoch_237.pth"
    assert outcome.code == 2
    assert f"Error: `{file}` is not on this machine, and `--offline` forbids" in outcome.err
    assert f"It would be downloaded from {CATALOGUE['vmamba-b'].weights_url}." in outcome.err
    assert f"put the file at `{tmp_path / 'home' / 'weights' / file}`." in outcome.err


def test_unknown_names_get_the_nearest(robust: Robust) -> None:
    outcome = robust("fetch", "cifar-mini", "--offline")
    assert outcome.code == 2
    assert "Did you mean `cifar10-mini`" in outcome.err


def test_a_name_must_be_given(robust: Robust) -> None:
    assert robust("fetch").code == 2
