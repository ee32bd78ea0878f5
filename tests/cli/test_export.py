"""`robust export` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustcli.evaluation import exporting
from tests.cli.conftest import Robust

TINY = ("export", "vmamba-pico", "--untrained", "--model-arg", "depths=[1,1]", "--model-arg",
        "dim=8", "--format", "torchscript")  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_SECONDS", 0.0)
    monkeypatch.setattr(exporting, "_BATCHES", (1,))


def test_export_says_where_and_how_well(robust: Robust):
    told = robust(*TINY)
    assert told.code == 0, told.err
    (path,) = Path("runs").glob("export-vmamba-pico-*/vmamba-pico.pt")
    assert str(path) in told.out
    assert "8 of 8" in told.out
    assert "TorchScript" in told.out
    told = robust(*TINY, "--json", "--quiet")
    (document,) = json.loads(told.out)
    assert (told.code, told.err) == (0, "")
    assert document["path"] == str(path)
    assert document["parity"][0]["difference"] <= document["parity"][0]["allowed"]
    # Nothing has to be typed again, and an untrained network is called so.
    told = robust("predict", "--model", str(path), "cifar10-mini", "--limit", "1", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["untrained"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "vmamba-pica"), "Did you mean `vmamba-pico`"),
        (("export", "otsu", "--format", "torchscript"), "cannot be exported"),
        ((*TINY, "--out", "net.onnx"), "does not have the suffix of torchscript"),
        (("export", "vim", "--offline", "--format", "torchscript"), "vim"),
        ((*TINY, "--image-size", "0"), "--image-size"),
    ],
)
def test_what_is_refused(robust: Robust, arguments: tuple[str, ...], message: str):
    told = robust(*arguments)
    assert (told.code, told.out) == (2, "")
    assert message in told.err
