"""`robust train cls` and `robust finetune` of a classifier, then `eval` and `report`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Robust
from tests.training.photos import write_photos

TINY = ["vmamba-pico", "--model-arg", "depths=[1,1]", "--model-arg", "dim=8", "--epochs", "1",
        "--batch-size", "10", "--device", "cpu"]  # fmt: skip


@pytest.fixture
def here(robust: Robust, tmp_path: Path) -> Path:
    """The working folder with photos."""
    write_photos(tmp_path / "paints", 12)
    return tmp_path


def test_train_then_eval_then_report(robust: Robust, here: Path) -> None:
    told = robust("train", "cls", "--model", *TINY, "--data", "paints", "--out", "run")
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert lines[0].split()[0] == "model"
    assert [line.split()[0] for line in lines[2:4]] == ["vmamba-pico", "most"]
    assert "dice" not in told.out + told.err
    told = robust("eval", "--model", "run", "--data", "paints", "--transform", "fliplr", "--json")
    assert told.code == 0, told.err
    assert [row["n"] for row in json.loads(told.out)] == [3, 3]
    for option, number, taken in (
        ("--limit", "2", "2 images spread over the classes"),
        ("--per-class", "1", "1 per class"),
    ):
        out = f"part{option}"
        part = ("--data", "paints", option, number, "--out", out, "--quiet")
        assert robust("eval", "--model", "run", *part, "--transform", "fliplr").code == 0
        record = json.loads(Path(out, "run.json").read_text(encoding="utf-8"))
        assert record["dataset"]["subset"] == f"test part of `run`: {taken}, seed 0"
        assert "test part of `run`" in Path(out, "report.md").read_text(encoding="utf-8")
    assert robust("report", "run").code == 0
    told = robust("report", "run", "run", "--out", "zoo")
    assert told.code == 2
    assert "is the training of a classifier" in told.err


def test_finetune_prints_top1(robust: Robust, here: Path) -> None:
    told = robust(
        "finetune", *TINY, "--data", "paints", "--mode", "scratch", "--out", "run", "--quiet"
    )
    assert told.code == 0, told.err
    assert "Top-1 on 3 held-out images" in told.out
    assert "dice" not in told.out.lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "cls", "--model", "unet"], "`unet` is a segmenter"),
        (["train", "cls", "--model", "vmamba-pico"], "No `--data`: there is nothing to train"),
        (["train", "seg", "--model", "vmamba-pico"], "robust train cls --model vmamba-pico"),
        (["finetune", "vmamba-pico"], "No `--data`: there is nothing to train"),
        (["finetune", "vmamba-pico", "--data", "nuclei-mini"], "has masks, no classes"),
    ],
)
def test_what_is_refused(robust: Robust, arguments: list[str], message: str) -> None:
    told = robust(*arguments)
    assert told.code == 2
    assert message in told.err
