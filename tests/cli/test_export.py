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
    outcome = robust(*TINY)
    assert outcome.code == 0, outcome.err
    (path,) = Path("runs").glob("export-vmamba-pico-*/vmamba-pico.pt")
    assert str(path) in outcome.out
    assert "8 of 8" in outcome.out
    assert "TorchScript" in outcome.out
    outcome = robust(*TINY, "--json", "--quiet")
    (document,) = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert document["path"] == str(path)
    assert document["parity"][0]["difference"] <= document["parity"][0]["allowed"]
    # Nothing has to be typed again, and an untrained network is called so.
    outcome = robust("predict", "--model", str(path), "cifar10-mini", "--limit", "1", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["untrained"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "vmamba-pica"), "Did you mean `vmamba-pico`"),
        (("export", "vim", "--offline", "--format", "torchscript"), "vim"),
        ((*TINY, "--image-size", "0"), "--image-size"),
    ],
)
def test_what_is_refused(robust: Robust, arguments: tuple[str, ...], message: str):
    outcome = robust(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
