"""`weights.safetensors` and its header."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from robustcli.adapters import weights_header
from robustcli.adapters.nnunet_inference import NnUNetInference
from robustcli.adapters.nnunet_normalise import Channel, Intensities
from robustcli.adapters.weights_header import WeightsHeader, read_header, write_weights
from robustcli.core.errors import RunError, UsageError
from tests.adapters.files import STATE

HEADER = WeightsHeader(
    model="umamba", arguments={"features": [4, 8], "strides": [1, 2]}, window=128, channels="bgr",
    threshold=0.6224593, protocol="paper", trained_on="ab12", images_sha256="cd34",
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run" / "weights.safetensors"
    write_weights(path, STATE, HEADER)
    assert read_header(path) == HEADER
    torch.testing.assert_close(load_file(path), STATE, rtol=0, atol=0)
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_what_only_some_networks_have_is_written_for_those_alone(tmp_path: Path) -> None:
    """Versions before it refuse keys that they do not know."""
    how = NnUNetInference((Channel("ct", True, Intensities(1, 2, 3, 4)), Channel()), (1,))
    header = HEADER.model_copy(update={"overlap": 0.25, "nnunet": how})
    for name, one in (("usual", HEADER), ("nnunet", header)):
        write_weights(tmp_path / f"{name}.safetensors", STATE, one)
    assert read_header(tmp_path / "nnunet.safetensors") == header
    with safe_open(tmp_path / "usual.safetensors", framework="np") as file:
        said = file.metadata()["robust"]
    assert "nnunet" not in said
    assert "overlap" not in said


def test_the_header_is_plain_safetensors_metadata(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", STATE, HEADER)
    with safe_open(tmp_path / "w.safetensors", framework="np") as file:
        said = file.metadata()
    assert set(said) == {"robust"}
    assert WeightsHeader.model_validate_json(said["robust"]) == HEADER


def test_any_layout_in_memory_can_be_written(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).view(2, 3).t().requires_grad_()
    write_weights(tmp_path / "w.safetensors", {"a": matrix}, HEADER)
    torch.testing.assert_close(load_file(tmp_path / "w.safetensors")["a"], matrix.detach())


def test_files_without_a_header(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "bare.safetensors")
    save_file(STATE, tmp_path / "other.safetensors", metadata={"format": "pt"})
    torch.save(STATE, tmp_path / "w.pth")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 40)
    for name in ("bare.safetensors", "other.safetensors", "w.pth", "damaged.safetensors", "none"):
        assert read_header(tmp_path / name) is None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "Expecting property name"),
        (HEADER.model_dump_json().replace('"umamba"', "7"), "valid string at model"),
        (HEADER.model_dump_json().replace(":1,", ":2,", 1), "should be 1 at schema_version"),
        (HEADER.model_dump_json()[:-1] + ',"more":1}', "not permitted at more"),
    ],
)
def test_a_header_of_another_version(tmp_path: Path, said: str, words: str) -> None:
    save_file(STATE, tmp_path / "w.safetensors", metadata={"robust": said})
    with pytest.raises(UsageError, match=rf"header of `.*w\.safetensors` cannot be(.|\n)*{words}"):
        read_header(tmp_path / "w.safetensors")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, STATE, HEADER)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights_header, "save_file", full)
    with pytest.raises(RunError, match=r"Cannot write `.*w\.safetensors`\.\n.*No space left"):
        write_weights(path, {}, HEADER)
    assert path.read_bytes() == before


def test_what_the_library_cannot_write_is_told_as_the_file_systems_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own errors are no OSErrors: here a real one, of a folder that vanished."""
    path = tmp_path / "w.safetensors"
    elsewhere = partial(save_file, filename=tmp_path / "gone" / "w.safetensors")
    monkeypatch.setattr(weights_header, "save_file", lambda state, _, **__: elsewhere(state))
    with pytest.raises(RunError, match=r"Cannot write `.*w\.safetensors`(.|\n)*No such file"):
        write_weights(path, STATE, HEADER)
    assert list(tmp_path.iterdir()) == []
