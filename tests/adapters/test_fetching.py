"""The hub's client: no retries where its host is unknown, and everything put back afterwards."""

from __future__ import annotations

import hashlib
import logging
import socket
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from robustcli.adapters import fetching
from robustcli.adapters import fetching as module
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.fetching import Fetched, fetch
from robustcli.core.errors import RunError, UsageError

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SWIN = "swin_tiny_patch4_window7_224.ms_in1k"


def in_cache(home: Path) -> Path:
    file = home / "hub" / f"models--timm--{SWIN}" / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    return file


def test_official_weights(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pth").write_bytes(CONTENT)
    entry = replace(CATALOGUE["vmamba-t"], weights_url=(tmp_path / "w.pth").as_uri())
    monkeypatch.setitem(CATALOGUE, "vmamba-t", entry)
    expected = Fetched("vmamba-t", home / "weights" / "w.pth", SHA256, pinned=False)
    assert fetch("VMamba_T", offline=False) == expected
    (tmp_path / "w.pth").unlink()
    assert fetch("vmamba-t", offline=True) == expected


def test_offline(attempts: list[object]) -> None:
    message = (
        r"`vssm1_tiny.*` is not on this machine, and `--offline` forbids.*\nIt would come from"
    )
    with pytest.raises(UsageError, match=message):
        fetch("vmamba-t", offline=True)
    message = rf"`{SWIN}` is not in the hub's cache, and `--offline` is set"
    with pytest.raises(UsageError, match=message):
        fetch("swin-t", offline=True)
    with pytest.raises(UsageError, match="--offline"):
        fetch("imagenet-sample", offline=True)
    assert attempts == []


def test_timm_weights_that_are_in_the_cache(home: Path, attempts: list[object]) -> None:
    file = in_cache(home)
    assert fetch("swin-t", offline=True) == Fetched("swin-t", file, SHA256, pinned=True)
    assert fetch("swin-t", offline=False).path == file
    assert attempts == []


def test_timm_weights_come_through_the_hubs_client(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(in_cache(home))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fetch("swin-t", offline=False).sha256 == SHA256
    assert asked == [(f"timm/{SWIN}", "model.safetensors")]


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError("no route\nmore"), "OSError: no route"), (OSError(), "OSError: OSError")],
)
def test_a_failed_download_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: str) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr("robustcli.adapters.fetching.unreachable", lambda: None)
    message = (
        rf"`{SWIN}` could not be downloaded\.\nThe reason: {words}\.\n"
        r"It is at https://hugging.*`--weights F"
    )
    with pytest.raises(RunError, match=message):
        fetch("swin-t", offline=False)


def test_a_bundled_data_set(attempts: list[object]) -> None:
    found = fetch("CIFAR10_mini", offline=True)
    assert found.name == "cifar10-mini"
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
    assert attempts == []


def test_bundled_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pico").write_bytes(CONTENT)
    monkeypatch.setattr(module, "local_path", lambda entry: tmp_path / "pico")
    assert fetch("vmamba-pico", offline=True) == Fetched(
        "vmamba-pico", tmp_path / "pico", SHA256, pinned=True
    )


@pytest.mark.parametrize(
    ("typed", "meant"), [("vmamba-tt", "vmamba-t"), ("imagenet-sampel", "imagenet-sample")]
)
def test_unknown_names_get_the_nearest(typed: str, meant: str) -> None:
    message = rf"No model or data set is called `{typed}`\.\nDid you mean .*`{meant}`"
    with pytest.raises(UsageError, match=message):
        fetch(typed, offline=True)


@pytest.mark.parametrize("name", ["unet", "umamba-enc", "otsu"])
def test_what_has_no_published_weights(name: str, attempts: list[object]) -> None:
    message = rf"`{name}` has no published weights\.\nTrain it: `robust train seg --model {name}`"
    with pytest.raises(UsageError, match=message):
        fetch(name, offline=False)
    assert attempts == []


@pytest.fixture
def no_names(monkeypatch):
    def fail(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr("urllib.request.getproxies", dict)


@pytest.mark.usefixtures("no_names")
def test_an_unknown_host_is_not_asked():
    assert (
        fetching.unreachable()
        == "the network knows no `huggingface.co` (Name or service not known)"
    )
    with fetching.hub(offline=False):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("no_names")
def test_behind_a_proxy_names_need_not_be_known_here(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy:3128"})
    assert fetching.unreachable() is None


def test_a_known_host_is_asked(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    monkeypatch.setattr("urllib.request.getproxies", dict)
    level = logging.getLogger("huggingface_hub").level
    with fetching.hub(offline=False):
        assert not constants.HF_HUB_OFFLINE
        assert logging.getLogger("huggingface_hub").level == logging.ERROR
    assert logging.getLogger("huggingface_hub").level == level


@pytest.mark.usefixtures("no_names")
def test_the_reason_is_said():
    assert fetching.why_none(OSError("x"), offline=True) == "`--offline` forbids the network"
    assert "knows no `huggingface.co`" in fetching.why_none(OSError("x"), offline=False)


def test_other_reasons_are_the_clients_own(monkeypatch):
    monkeypatch.setattr(fetching, "unreachable", lambda: None)
    assert (
        fetching.why_none(OSError("401 Unauthorized"), offline=False) == "OSError: 401 Unauthorized"
    )
