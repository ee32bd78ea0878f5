"""`robust train seg`, then `eval`, `predict` and `report` on what it made, as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustcli.training import engine
from robustcli.training.config import TrainConfig
from robustcli.training.record import read_train_record
from tests.cli.conftest import Asked, Robust, put_run
from tests.training.images import write_pairs, write_photos

TINY = ["--model", "ulvm", "--epochs", "1", "--window", "32", "--batch-size", "4", "--device",
        "cpu", "--workers", "0"]  # fmt: skip


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pairs/` and, once a test made it, `run/`: training costs seconds."""
    folder = tmp_path_factory.mktemp("trained")
    write_pairs(folder / "pairs", 20)
    return folder


@pytest.fixture
def here(_trained: Path, robust: Robust, tmp_path: Path) -> Path:
    """The working folder with data and a finished training."""
    shutil.copytree(_trained / "pairs", "pairs")
    training = ("train", "seg", *TINY, "--data", "pairs", "--out", "run", "--quiet")
    put_run(_trained / "run", lambda: robust(*training))
    return tmp_path


def test_a_training_prints_its_table_and_says_where_things_are(robust: Robust, here: Path) -> None:
    outcome = robust("train", "seg", *TINY, "--data", "pairs", "--out", "run")
    assert outcome.code == 0
    assert "`run` is already finished." in outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split()[:2] == ["model", "dice"]
    assert [line.split()[0] for line in lines[2:4]] == ["ulvm", "otsu"]
    assert lines[-1] == "Report: run/report.md"
    assert (here / "run" / "weights.safetensors").is_file()
    assert read_train_record(here / "run").status == "complete"


def test_json_is_one_document(robust: Robust, here: Path) -> None:
    outcome = robust("train", "seg", *TINY, "--data", "pairs", "--out", "run", "--json", "--quiet")
    assert outcome.err == ""
    (row,) = json.loads(outcome.out)
    assert (row["model"], row["protocol"]) == ("ulvm", "patient")
    assert 0 <= row["dice"] <= 1


def test_its_weights_under_transforms_leave_out_the_training_images(
    robust: Robust, here: Path
) -> None:
    outcome = robust("eval", "--model", "ulvm", "--weights", "run", "--data", "pairs",
                     "--transform", "fliplr", "--out", "ev", "--workers", "0",
                     "--device", "cpu")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "were held out for testing" in outcome.err
    held_out = read_train_record(here / "run").splits["test"].images
    rows = json.loads((here / "ev" / "results.json").read_text())
    assert {row["transform"]: row["n"] for row in rows} == {
        "identity": held_out, "fliplr": held_out,
    }  # fmt: skip
    assert "dice" in outcome.out.splitlines()[0]
    again = robust("report", "ev")
    assert again.out == outcome.out


def test_masks_for_new_images(robust: Robust, here: Path) -> None:
    image = next((here / "pairs" / "images").iterdir())
    (here / "new").mkdir()
    with Image.open(image) as opened:
        opened.resize((45, 77)).save(here / "new" / "photo.png")
    outcome = robust("predict", "--model", "run", "--data", "new", "--out", "masks", "--overlays",
                  "--device", "cpu")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.out == "1 mask in `masks`, 0 of which already existed.\n"
    with Image.open(here / "masks" / "photo.png") as mask:
        assert mask.size == (45, 77)
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert (here / "masks" / "photo_overlay.png").is_file()
    again = robust("predict", "--model", "run", "--data", "new", "--out", "masks", "--overlays",
                   "--device", "cpu", "--json", "--quiet")  # fmt: skip
    assert json.loads(again.out) == ["masks/photo.png"]


def test_a_dry_run_trains_nothing(robust: Robust, here: Path) -> None:
    outcome = robust("train", "seg", *TINY, "--data", "pairs", "--out", "other", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "49,457" in outcome.out
    assert not (here / "other").exists()
    command = ("train", "seg", *TINY, "--data", "pairs", "--out", "run")
    assert "run (exists: would be resumed)" in robust(*command, "--dry-run").out
    refusal = robust(*command, "--lr", "0.5")
    assert refusal.code == 2
    assert "contains a training with other settings" in refusal.err
    assert robust(*command, "--lr", "0.5", "--dry-run").err == refusal.err


def test_every_option_reaches_the_configuration(robust: Robust, asked: Asked) -> None:
    configs = asked(engine, "run_training")
    outcome = robust(
        "train", "seg", "--model", "unet", "--data", "d", "--protocol", "paper", "--limit", "9",
        "--weights", "w", "--untrained", "--model-arg", "a=1", "--ablate", "scan", "--quick",
        "--epochs", "3", "--lr",
        "0.1", "--batch-size", "5", "--accumulate", "2", "--loss", "dice", "--aug", "none",
        "--window", "64", "--clip", "2", "--patience", "4", "--out", "o", "--seed", "7",
        "--device", "cuda", "--devices", "2", "--precision", "bf16", "--workers", "1", "--fresh",
        "--offline",
    )  # fmt: skip
    assert outcome.code == 1
    (config,) = configs
    assert config == TrainConfig(
        "unet", "d", Path("o"), "paper", 9, Path("w"), True, {"a": 1}, True, 3, 0.1, 5, 2, "dice",
        "none", 64, 2.0, 4, "bf16", 7, "cuda", 2, 1, True, True, config.command, task="seg",
        ablate="scan",
    )  # fmt: skip
    assert config.command.split()[0] == "robust"


def test_a_target_reaches_the_configuration_of_a_classifier(robust: Robust, asked: Asked) -> None:
    configs = asked(engine, "run_training")
    usual = ("train", "cls", "--model", "vim", "--data", "d", "--recipe", "speedrun")
    for options in ((), ("--target", "0.9")):
        robust(*usual, *options)
    assert [config.target for config in configs] == [None, 0.9]
    assert [config.precision for config in configs] == [None, None]
    assert robust(*usual, "--target", "1.2").code == 2


TINY_TRAIN_CLASSES = ["vmamba-pico", "--model-arg", "depths=[1,1]", "--model-arg", "dim=8",
                      "--epochs", "1", "--batch-size", "10", "--device", "cpu",
                      "--workers", "0"]  # fmt: skip


@pytest.fixture
def here_train_classes(robust: Robust, tmp_path: Path) -> Path:
    """The working folder with photos."""
    write_photos(tmp_path / "paints", 12)
    return tmp_path


def test_train_then_eval_then_report(robust: Robust, here_train_classes: Path) -> None:
    outcome = robust(
        "train", "cls", "--model", *TINY_TRAIN_CLASSES, "--data", "paints", "--out", "run"
    )
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split()[0] == "model"
    assert [line.split()[0] for line in lines[2:4]] == ["vmamba-pico", "most"]
    assert "dice" not in outcome.out + outcome.err
    outcome = robust(
        "eval",
        "--model",
        "run",
        "--data",
        "paints",
        "--transform",
        "fliplr",
        "--json",
        "--workers",
        "0",
    )
    assert outcome.code == 0, outcome.err
    assert [row["n"] for row in json.loads(outcome.out)] == [3, 3]
    for option, number, taken in (
        ("--limit", "2", "2 images distributed over the classes"),
        ("--per-class", "1", "1 per class"),
    ):
        out = f"part{option}"
        part = ("--data", "paints", option, number, "--out", out, "--quiet", "--workers", "0")
        assert robust("eval", "--model", "run", *part, "--transform", "fliplr").code == 0
        record = json.loads(Path(out, "run.json").read_text(encoding="utf-8"))
        assert record["dataset"]["subset"] == f"test split of `run`: {taken}, seed 0"
        assert "test split of `run`" in Path(out, "report.md").read_text(encoding="utf-8")
    assert robust("report", "run").code == 0
    shutil.copytree("run", "twin")
    outcome = robust("report", "run", "twin", "--out", "zoo")
    assert outcome.code == 0, outcome.err
    assert "top-1" in outcome.out


TINY_RESNET9 = ["resnet9", "--model-arg", "channels=[4,4,4,8]", "--workers", "0", "--device", "cpu"]


def test_the_command_as_typed_takes_the_bundled_photos(robust: Robust) -> None:
    outcome = robust(
        "train", "cls", "--model", *TINY_RESNET9, "--limit", "100", "--epochs", "1", "--out", "run"
    )
    assert outcome.code == 0, outcome.err
    assert (
        "`--data` is not set; using cifar10-mini (a demonstration set), 100 images" in outcome.err
    )
    assert "Recipe `cifar10-mini`" in outcome.err
    record = json.loads(Path("run", "run.json").read_text(encoding="utf-8"))
    assert (record["dataset"]["name"], record["dataset"]["label_space"]) == (
        "cifar10-mini", "cifar10",
    )  # fmt: skip
    outcome = robust(
        "eval", "--model", "run", "--transform", "identity", "--json", "--workers", "0"
    )
    assert outcome.code == 0, outcome.err
    assert [row["n"] for row in json.loads(outcome.out)] == [10]  # the held-out ones
    assert "held out for testing" in outcome.err


def test_finetune_prints_top1(robust: Robust, here_train_classes: Path) -> None:
    outcome = robust(
        "finetune",
        *TINY_TRAIN_CLASSES,
        "--data",
        "paints",
        "--mode",
        "scratch",
        "--out",
        "run",
        "--quiet",
    )
    assert outcome.code == 0, outcome.err
    assert "Top-1 on 3 held-out images" in outcome.out
    assert "dice" not in outcome.out.lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "seg", "--model", "ulvm_v9"], "No model is called `ulvm_v9`"),
        (["train", "seg", "--model", "vmamba-t"], "`vmamba-t` is a classifier"),
        (["train", "seg", "--model", "otsu"], "`otsu` cannot be trained"),
        (["train", "seg", "--model", "ulvm", "--data", "nowhere"], "nowhere"),
        (["train", "seg", "--model", "ulvm", "--loss", "hinge"], "hinge"),
        (["train", "seg", "--model", "resnet18_seg"], "--untrained"),
        (["train", "cls", "--model", "unet"], "`unet` is a segmenter"),
        (["train", "cls", "--model", "swin-t"], "`--data` is not set, and `swin-t`"),
        (["train", "cls", "--model", "timm:resnet18"], "`--data` is not set"),
        (["train", "cls", "--model", "vit", "--model-arg", "patch=8"], "Did you mean `patch_size`"),
        (["train", "seg", "--model", "vmamba-pico"], "robust train cls --model vmamba-pico"),
        (["finetune", "swin-t", "--mode", "scratch"], "`--data` is not set"),
        (["finetune", "vmamba-pico", "--data", "nuclei-mini"], "has masks, not classes"),
    ],
)
def test_what_is_refused(robust: Robust, arguments: list[str], message: str) -> None:
    outcome = robust(*arguments, "--offline")
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
