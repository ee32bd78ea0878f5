"""Where weights lie, against what the hub's own client says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.places import hub_file, is_here, local_path

SWIN = "swin_tiny_patch4_window7_224.ms_in1k"


def put_in_cache(cache: Path, variant: str, revision: str = "abc") -> Path:
    """A weights file where the hub's client would lay it."""
    file = cache / f"models--timm--{variant}" / "snapshots" / revision / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
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
    own = [e for e in CATALOGUE.values() if e.builder == "vmamba" and not e.alias]
    assert len({local_path(entry) for entry in own}) == len(own) == 10


def test_networks_without_published_weights_are_never_here() -> None:
    segmenters = [e for e in CATALOGUE.values() if e.task == "seg" and not e.asset]
    assert segmenters
    assert not any(is_here(entry) for entry in segmenters)


def test_bundled_weights_lie_in_the_package() -> None:
    path = local_path(CATALOGUE["vmamba-pico"])
    assert path.parent.name == "assets"
    assert (path.parent / "cifar10-mini.tar").is_file()


def test_timm_weights_are_found_in_the_hubs_cache(home: Path) -> None:
    assert hub_file(SWIN) is None
    assert not is_here(CATALOGUE["swin-t"])
    file = put_in_cache(home / "hub", SWIN)
    assert hub_file(SWIN) == file
    assert is_here(CATALOGUE["swin-t"])
    assert not is_here(CATALOGUE["swin-s"])


def test_a_snapshot_without_weights_does_not_count(home: Path) -> None:
    file = put_in_cache(home / "hub", SWIN)
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
