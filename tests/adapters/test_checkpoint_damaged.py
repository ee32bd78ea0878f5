"""Files that are broken, or that are no weights at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robustcli.adapters.checkpoint import read_weights
from robustcli.core.errors import UsageError
from tests.adapters.files import STATE, saved

DAMAGED = {
    "zip.pth": b"PK\x03\x04 and nothing more",
    "short.safetensors": (1000).to_bytes(8, "little") + b"{}",
    "noise.pth": bytes(range(255, 127, -1)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(
        UsageError, match=rf"`.*{name}` cannot be read as weights\.\nExpected a safet"
    ):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_download_that_broke_off(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        saved(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UsageError, match="a partial download is the usual cause"):
        read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_bytes_change_there_is_a_message(tmp_path: Path, zipped: bool) -> None:
    path = saved(STATE, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(whole)
        for place in generator.integers(0, min(len(whole), 500), 4):
            changed[place] = generator.integers(256)
        path.write_bytes(changed)
        try:
            read_weights(path)
        except UsageError:
            refused += 1
    assert refused > 75


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({}, r"got the keys \(none\)\."),
        ({"epoch": 3, "lr": 0.1}, r"got the keys epoch, lr\."),
        ({"model": {}}, "got the keys model"),
        ([1, 2], "got a list"),
        (torch.zeros(3), "got a Tensor"),
        ({str(n): n for n in range(9)}, r"got the keys 0, 1, 2, 3, 4\."),
    ],
)
def test_a_file_without_weights(tmp_path: Path, content: object, got: str) -> None:
    path = saved(content, tmp_path / "w.pth")
    with pytest.raises(
        UsageError, match=rf"`.*w\.pth` holds no weights\.\nExpected.*model_ema.*{got}"
    ):
        read_weights(path)


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", ""])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"There is no weights file `.*`\.\nCheck the path"):
        read_weights(tmp_path / name)
