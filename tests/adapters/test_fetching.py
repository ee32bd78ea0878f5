"""Where weights lie, and downloads by name."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from robustcli.adapters import fetching
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.fetching import (
    Fetched,
    fetch,
    hub_file,
    is_here,
    local_path,
    official_weights,
    state_digest,
)
from robustcli.core.errors import RunError, UsageError

SWIN = "swin_tiny_patch4_window7_224.ms_in1k"


CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def put_in_cache(cache: Path, variant: str = SWIN) -> Path:
    """A weights file where the hub's client would lay it."""
    file = cache / f"models--timm--{variant}" / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    return file


def test_releases_lie_in_the_home_under_their_own_file_name(home: Path) -> None:
    expected = home / "weights" / "vssm1_tiny_0230s_ckpt_epoch_264.pth"
    assert local_path(CATALOGUE["vmamba-t"]) == expected == local_path(CATALOGUE["vmamba-t-s1l8"])
    assert not is_here(CATALOGUE["vmamba-t"])
    expected.parent.mkdir()
    expected.touch()
    assert is_here(CATALOGUE["vmamba-t"])
    assert not is_here(CATALOGUE["vmamba-t-s2l5"])


def test_the_home_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_HOME", "~/somewhere")
    assert local_path(CATALOGUE["vmamba-t"]).is_relative_to(Path.home() / "somewhere")


def test_no_two_releases_share_a_file() -> None:
    custom = [e for e in CATALOGUE.values() if e.builder == "vmamba" and not e.alias]
    assert len({local_path(entry) for entry in custom}) == len(custom) == 10


def test_networks_without_published_weights_are_never_here() -> None:
    segmenters = [e for e in CATALOGUE.values() if e.task == "seg" and not e.asset]
    assert segmenters
    assert not any(is_here(entry) for entry in segmenters)


def test_timm_weights_are_found_in_the_hubs_cache(home: Path) -> None:
    assert hub_file(SWIN) is None
    assert not is_here(CATALOGUE["swin-t"])
    file = put_in_cache(home / "hub")
    assert hub_file(SWIN) == file
    assert is_here(CATALOGUE["swin-t"])
    assert not is_here(CATALOGUE["swin-s"])
    file.rename(file.with_name("config.json"))
    assert hub_file(SWIN) is None


SETTINGS: list[dict[str, str]] = [
    {},
    {"XDG_CACHE_HOME": "{tmp}/xdg"},
    {"HF_HOME": "{tmp}/hf"},
    {"HF_HOME": "{tmp}/hf", "XDG_CACHE_HOME": "{tmp}/xdg"},
    {"HF_HUB_CACHE": "{tmp}/cache", "HF_HOME": "{tmp}/hf"},
    {"HF_HUB_CACHE": "~/cache"},
]


@pytest.fixture(scope="module")
def client_says(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A home folder, and the cache that the hub's client takes under each of SETTINGS."""
    tmp = tmp_path_factory.mktemp("user")
    code = (
        "import importlib, json, os, sys\n"
        "from huggingface_hub import constants\n"
        "found = []\n"
        "for setting in json.loads(sys.argv[1]):\n"
        "    os.environ.update(setting)\n"
        "    found.append(importlib.reload(constants).HF_HUB_CACHE)\n"
        "    [os.environ.pop(name) for name in setting]\n"
        "print(json.dumps(found))\n"
    )
    settings = json.dumps(SETTINGS).replace("{tmp}", str(tmp))
    environment = {"HOME": str(tmp), "PATH": os.environ["PATH"]}
    child = subprocess.run(
        [sys.executable, "-c", code, settings], env=environment, capture_output=True, check=True
    )
    return tmp, json.loads(child.stdout)


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_the_cache_is_where_the_hubs_client_has_it(
    client_says: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    tmp, caches = client_says
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HOME", str(tmp))
    for name, value in SETTINGS[number].items():
        monkeypatch.setenv(name, value.replace("{tmp}", str(tmp)))
    file = put_in_cache(Path(caches[number]), f"model{number}")
    assert hub_file(f"model{number}") == file


ENTRY = CATALOGUE["vmamba-t"]


def test_files_that_are_there_and_bundled_ones_need_no_download(attempts: list[object]) -> None:
    path, bundled = local_path(ENTRY), CATALOGUE["vmamba-pico"]
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert official_weights(ENTRY, offline=False) == path
    assert official_weights(bundled, offline=True) == local_path(bundled)
    assert local_path(bundled).parent.name == "assets"
    assert attempts == []


def test_missing_weights_get_address_file_and_flag(attempts: list[object]) -> None:
    with pytest.raises(UsageError) as caught:
        official_weights(ENTRY, offline=True)
    assert caught.value.what == "The weights of `vmamba-t` are not on this machine."
    assert "`--offline` forbids downloads" in caught.value.why
    assert str(ENTRY.weights_url) in caught.value.todo
    assert f"to `{local_path(ENTRY)}`" in caught.value.todo
    assert "`--weights FILE`" in caught.value.todo
    assert attempts == []
    with pytest.raises(
        UsageError, match=r"The weights of `vmamba-t` are not on this machine\.\nCannot download"
    ):
        official_weights(ENTRY, offline=False)
    assert attempts == ["github.com"]


def test_an_address_that_nobody_confirmed_comes_with_its_folder(attempts: list[object]) -> None:
    entry = CATALOGUE["vim-s"]
    folder = r"https://huggingface\.co/hustvl/Vim-small-midclstok/tree/main"
    with pytest.raises(UsageError, match=rf"The file name is taken from .*its folder is {folder}"):
        official_weights(entry, offline=True)
    with pytest.raises(UsageError) as caught:
        official_weights(CATALOGUE["vim-t"], offline=True)
    assert "its folder" not in str(caught.value)
    assert "Vim-tiny-midclstok/resolve/main/vim_t_midclstok_76p1acc.pth" in caught.value.todo


def test_hash_state_by_hand() -> None:
    state = {"b": torch.tensor([[1.0, -2.0]]), "a": torch.tensor(7, dtype=torch.int64)}
    content = (
        b"a torch.int64 ()\n" + struct.pack("<q", 7) + b"b torch.float32 (1, 2)\n"
        + struct.pack("<2f", 1, -2)
    )  # fmt: skip
    assert state_digest(state) == hashlib.sha256(content).hexdigest()
    # Written into every run.json: it must never change.
    pinned = "7fc81a725f77639304ed8a5d03930d04263924600bfa341544d61feb17cd6a87"
    assert state_digest(state) == pinned


def test_the_hash_depends_on_names_types_shapes_and_values_but_not_on_order() -> None:
    state = {"a": torch.ones(2, 3), "b": torch.zeros(2)}
    variants = [
        state,
        {"x": state["a"], "b": state["b"]},
        {**state, "a": torch.ones(3, 2)},
        {**state, "a": torch.ones(2, 3, dtype=torch.float64)},
        {**state, "b": torch.tensor([0.0, 1e-30])},
        {"a": state["a"]},
    ]
    assert len({state_digest(variant) for variant in variants}) == len(variants)
    assert state_digest(dict(reversed(state.items()))) == state_digest(state)


def test_every_type_and_memory_layout_can_be_hashed() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.bool, torch.uint8):
        assert len(state_digest({"a": torch.ones(3, dtype=dtype), "e": torch.empty(0)})) == 64
    matrix = torch.arange(6.0).view(2, 3)
    assert state_digest({"a": matrix.t().contiguous().t()}) == state_digest({"a": matrix})
    assert state_digest({"a": matrix.requires_grad_()}) == state_digest({"a": matrix.detach()})


def test_a_download_ends_where_it_is_looked_for(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.pth").write_bytes(CONTENT)
    entry = replace(CATALOGUE["vmamba-t"], weights_url=(tmp_path / "w.pth").as_uri())
    monkeypatch.setitem(CATALOGUE, "vmamba-t", entry)
    expected = Fetched("vmamba-t", home / "weights" / "w.pth", SHA256, pinned=False)
    assert fetch("VMamba_T", offline=False) == expected
    assert local_path(entry).read_bytes() == CONTENT
    (tmp_path / "w.pth").unlink()
    assert fetch("vmamba-t", offline=True) == expected


def test_offline(attempts: list[object]) -> None:
    message = (
        r"`vssm1_tiny.*` is not on this machine, and `--offline` forbids.*\nIt would be "
        r"downloaded from"
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
    file = put_in_cache(home / "hub")
    assert fetch("swin-t", offline=True) == Fetched("swin-t", file, SHA256, pinned=True)
    assert fetch("swin-t", offline=False).path == file
    assert attempts == []


def test_timm_weights_come_through_the_hubs_client(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(put_in_cache(home / "hub"))

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


def test_bundled_weights_and_data_sets(attempts: list[object]) -> None:
    path = local_path(CATALOGUE["vmamba-pico"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert fetch("vmamba-pico", offline=True) == Fetched("vmamba-pico", path, digest, pinned=True)
    fetched = fetch("CIFAR10_mini", offline=True)
    assert fetched.name == "cifar10-mini"
    assert fetched.sha256 == hashlib.sha256(fetched.path.read_bytes()).hexdigest()
    assert attempts == []


@pytest.mark.parametrize(
    ("typed", "meant"), [("vmamba-tt", "vmamba-t"), ("imagenet-sampel", "imagenet-sample")]
)
def test_unknown_names_get_the_nearest(typed: str, meant: str) -> None:
    message = rf"No model or data set is called `{typed}`\.\nDid you mean .*`{meant}`"
    with pytest.raises(UsageError, match=message):
        fetch(typed, offline=True)


@pytest.mark.parametrize(("name", "task"), [("unet", "seg"), ("otsu", "seg"), ("vim", "cls")])
def test_what_has_no_published_weights(name: str, task: str, attempts: list[object]) -> None:
    no_weights = rf"`{name}` has no published weights"
    train = rf"(.|\n)*`robust train {task} --model {name}"
    with pytest.raises(UsageError, match=rf"{no_weights}\.\nTrain it: {train}`"):
        fetch(name, offline=False)
    if name != "otsu":
        with pytest.raises(UsageError, match=no_weights + train):
            official_weights(CATALOGUE[name], offline=False)
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
        == "the host name `huggingface.co` cannot be resolved (Name or service not known)"
    )
    with fetching.hub(offline=False):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_session_that_was_opened_offline_is_not_kept():
    def error() -> str:
        with pytest.raises(Exception) as raised:  # noqa: PT011  of the client, by version
            get_session().get("http://127.0.0.1:1/")
        return type(raised.value).__name__

    assert error().startswith("Connect")
    with fetching.hub(offline=True):
        assert error() == "OfflineModeIsEnabled"
    assert error().startswith("Connect")


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
def test_the_reason_is_said(monkeypatch):
    assert (
        fetching.hub_failure_reason(OSError("x"), offline=True) == "`--offline` forbids downloads"
    )
    assert "host name `huggingface.co`" in fetching.hub_failure_reason(OSError("x"), offline=False)
    monkeypatch.setattr(fetching, "unreachable", lambda: None)
    assert (
        fetching.hub_failure_reason(OSError("401 Unauthorized"), offline=False)
        == "OSError: 401 Unauthorized"
    )
