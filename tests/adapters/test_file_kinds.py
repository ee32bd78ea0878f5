"""Files that are no weights: the message says what they are and how to get the real ones."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.file_kinds import is_safetensors, not_weights
from robustcli.core.errors import UsageError
from tests.adapters.files import STATE, saved


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return content.getvalue()


def tarred(name: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def numpys(write: Callable[..., None]) -> bytes:
    content = io.BytesIO()
    write(content, np.ones(3))
    return content.getvalue()


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    return content.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14203520\n"
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(range(200))
FILE_KINDS = {
    "empty": (b"", "an empty file", "Download or copy it again"),
    "zeros": (bytes(3000), "a file of zeros", "Download it again"),
    "pointer": (POINTER, "a Git LFS pointer", "`git lfs pull`"),
    "page": (b"<!DOCTYPE html><title>Sign in</title>", "a web page", "in a browser"),
    "late page": (b"\r\n  <HTML lang=en>", "a web page", "in a browser"),
    "page in UTF-16": ("<!DOCTYPE html>".encode("utf-16"), "a web page", "in a browser"),
    "page with a mark": (b"\xef\xbb\xbf<html>", "a web page", "in a browser"),
    "bucket": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "a web page", "in a browser"),
    "json": (b'{"error": "Repository not found"}', "JSON", "Pass the file with the weights"),
    "text": (b"Not Found", "a text", "the text may contain the reason"),
    "long text": ("Grüße\n".encode() * 500, "a text", "Check the path"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0\0\0\0" + bytes(90), "an HDF5 file", "Pass a PyTorch file"),
    "keras": (zipped(model__weights__h5=b"x", config__json=b"{}"), "a Keras", "Pass a PyTorch"),
    "onnx": (ONNX, "an ONNX file", "it was exported"),
    "npy": (numpys(np.save), "a NumPy file", "Pass a PyTorch file"),
    "npz": (numpys(np.savez), "a NumPy file", "Pass a PyTorch file"),
    "gguf": (b"GGUF\x03\0\0\0", "a GGUF file", "it was made"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(20), "a TensorFlow Lite file", "Pass a PyTorch"),
    "export of torch 2.6": (
        zipped(serialized_exported_program__json=b"{}", serialized_state_dict__pt=b"x"),
        "an archive of torch.export",
        "`torch.save(dict(torch.export.load(FILE).state_dict)",
    ),
    "picture": (picture(), "a picture", "Check the path"),
    "gzip": (gzip.compress(b"weights"), "a compressed file", "Unpack it"),
    "zip": (zipped(best__pth=b"x"), "a zip archive of other files", "Unpack it"),
    "tar": (tarred("best.pth"), "a tar archive", "Unpack it"),
}


@pytest.mark.parametrize("name", FILE_KINDS)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_it_is_and_what_to_do(tmp_path: Path, name: str, ending: str) -> None:
    content, what, todo = FILE_KINDS[name]
    path = tmp_path / f"w{ending}"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_weights(path)
    assert caught.value.what.startswith(f"`{path}` cannot be used as weights: it is {what}")
    assert todo in caught.value.todo
    assert "partial download" not in str(caught.value)


def test_the_beginning_of_a_text_and_what_is_inside_a_zip_are_shown(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("quota exceeded\nsee below")
    (tmp_path / "b").write_bytes(zipped(best__pth=b"x"))
    for name, shown in (
        ("a", "It starts with: 'quota exceeded'"),
        ("b", "It contains `best.pth`."),
    ):
        error = not_weights(tmp_path / name)
        assert error is not None
        assert error.why.endswith(shown)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_programs_of_torch_are_not_run(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "script.pt"))
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(exported, tmp_path / "exported.pt2")
    for name, what in (("script.pt", "a TorchScript"), ("exported.pt2", "an archive of torch.exp")):
        with pytest.raises(UsageError, match=f"it is {what}(.|\n)*state_dict"):
            read_weights(tmp_path / name)


def test_files_of_weights_are_none_of_these(tmp_path: Path) -> None:
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        assert not_weights(saved(STATE, tmp_path / "w.pth.tar", **options)) is None
        assert not is_safetensors(tmp_path / "w.pth.tar")
    save_file(STATE, tmp_path / "w")
    assert is_safetensors(tmp_path / "w")
