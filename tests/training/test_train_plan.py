"""What is looked up before a training begins, and what is said of it."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcli.adapters.training_run import WeightsHeader, write_weights
from robustcli.core.errors import UsageError
from robustcli.data.mask_values import MaskReading
from robustcli.models.architectures import architecture, everything_decays
from robustcli.training.cache import Decoded
from robustcli.training.engine import run_training
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.recipes import recipe_for
from robustcli.training.segmenter_training import (
    LOGIT_HALF,
    decision_words,
    foreground_threshold,
    split_record,
)
from robustcli.training.train_forecast import forecast_training, step_seconds
from robustcli.training.train_plan import plan_training
from tests.training.images import decoded, write_pairs
from tests.training.runs import Heard, small


def test_it_tells_what_the_training_then_is(data: Path, tmp_path: Path) -> None:
    config = small(
        data, tmp_path / "run", epochs=2, accumulate=2, model_args={"features": [16, 32, 64]}
    )
    told = forecast_training(config, Heard())
    assert not (tmp_path / "run").exists()
    assert (told.images, told.groups) == ({"train": 12, "val": 1, "test": 1},) * 2
    assert told.steps == 2 * 2  # three batches an epoch, two a step
    assert told.pixels_bytes == 13 * 32 * 32 * 4
    assert 0 < told.seconds < 60
    assert not told.started
    run_training(config)
    assert forecast_training(config, Heard()).started
    files = [*(tmp_path / "run" / "checkpoints").iterdir(), tmp_path / "run/weights.safetensors"]
    assert told.disk_bytes == pytest.approx(sum(f.stat().st_size for f in files), rel=0.1)


def test_both_forms_say_the_same(data: Path, tmp_path: Path) -> None:
    told = forecast_training(small(data, tmp_path / "run", protocol="paper"), Heard())
    parsed = json.loads(told.as_json())
    assert parsed["recipe"]["loss"] == "dice"
    text = told.as_text()
    assert f"{parsed['parameters']:,} parameters" in text
    assert "paper, logit >= 0.5" in text
    assert "train 11 images of 11 images" in text


def test_weights_of_imagenet_are_not_needed_for_it(data: Path, tmp_path: Path) -> None:
    config = small(
        data, tmp_path / "run", model="resnet18_seg", model_args={}, window=64, batch_size=1
    )
    assert forecast_training(config, Heard()).parameters == 13_930_497


def test_protocol_parts_and_recipe_are_announced(data: Path, tmp_path: Path) -> None:
    heard = Heard()
    plan_training(small(data, tmp_path / "run"), heard)
    assert heard.lines == [
        "Protocol `patient`: train 12 images, val 1 images, test 1 images (train part, split by "
        "image, seed 0).",
        "Recipe `patient` (ours): 3 epochs, batch 4, window 16, bce-dice loss, AdamW at 0.01, "
        "warmup-cosine, augmentation light.",
    ]


def test_a_default_is_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)
    heard = Heard()
    config = small(tmp_path, tmp_path / "run", limit=30)
    chosen = plan_training(type(config)(model="ulvm", limit=30), heard)
    assert heard.lines[0].startswith(
        "`--data` is not set; using nuclei-mini (a demonstration set), 30 images, "
    )
    assert " photos, " in heard.lines[1]
    assert chosen.recipe.name == "nuclei-mini"
    assert chosen.run.parent == Path("runs")


def test_the_paper_takes_whole_images_in_opencvs_order(data: Path, tmp_path: Path) -> None:
    usual = plan_training(small(data, tmp_path / "run"), Heard())
    paper = plan_training(small(data, tmp_path / "run", protocol="paper"), Heard())
    assert (usual.procedure.keeps_best, usual.channels) == (True, "rgb")
    assert (paper.procedure.keeps_best, paper.channels) == (False, "bgr")
    assert paper.per_epoch == len(paper.splits.train.samples) == 11
    quick = plan_training(small(data, tmp_path / "run", quick=True), Heard())
    assert quick.per_epoch == 12  # no more than there are


def test_other_images_or_masks_of_the_same_names_are_another_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "first", 8)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    for kind in ("images", "masks"):
        shutil.copytree(tmp_path / "first", tmp_path / kind)
        shutil.copy(tmp_path / kind / kind / "001.png", tmp_path / kind / kind / "002.png")
    first, copy, images, masks = (
        plan_training(replace(small(tmp_path / name, Path()), out=None), Heard()).run
        for name in ("first", "copy", "images", "masks")
    )
    assert first == copy
    assert len({first, images, masks}) == 3


def test_somebody_elses_folder_is_left_alone(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="is not empty and contains no run"):
        plan_training(small(data, run), Heard())
    with pytest.raises(UsageError, match="is a file"):
        plan_training(small(data, run / "thesis.tex"), Heard())


def test_a_run_is_no_network(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    header = WeightsHeader(
        model="ulvm", arguments={}, window=16, channels="rgb", threshold=0.5, protocol="patient",
        trained_on="elsewhere", images_sha256="0" * 64,
    )  # fmt: skip
    (tmp_path / "mine").mkdir()
    write_weights(tmp_path / "mine" / "weights.safetensors", {"w": torch.zeros(1)}, header)
    with pytest.raises(UsageError, match=r"`--model mine` is a folder"):
        plan_training(small(data, tmp_path / "run", model="mine", model_args={}), Heard())


def test_a_network_goes_before_a_folder_of_its_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ulvm").mkdir()
    (tmp_path / "ulvm" / "run.json").write_text("{}")
    found = plan_training(small(data, tmp_path / "run", model="ulvm", model_args={}), Heard())
    assert found.entry.name == "ulvm"


def test_one_patient_cannot_be_split(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 2)
    with pytest.raises(UsageError, match="cannot be split by image"):
        plan_training(small(data, tmp_path / "run"), Heard())


@pytest.mark.parametrize("by", ["--devices", "torchrun"])
def test_a_batch_divides_among_the_processes_whoever_starts_them(
    by: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "torchrun":
        said = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        for name, value in (said | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
            monkeypatch.setenv(name, value)
    config = small(data, tmp_path / "run", batch_size=5, devices=2 if by == "--devices" else 1)
    with pytest.raises(UsageError, match="batch of 5 cannot be divided evenly among 2 processes"):
        plan_training(config, Heard())


def test_all_devices_of_a_machine_without_gpu_are_explained(data: Path, tmp_path: Path) -> None:
    heard = Heard()
    assert plan_training(small(data, tmp_path / "run", devices="all"), heard).machine.world == 1
    assert "`--devices all` counts GPUs; on cpu it is 1 process." in heard.lines[0]


def test_more_images_take_longer_and_no_longer_than_it_took() -> None:
    network = architecture("unet").build(features=(8, 16))
    module = SegmenterModule(
        network, replace(recipe_for("unet", "patient", "x"), window=64), channels="rgb",
        decays=everything_decays, val_groups=(),
    )  # fmt: skip
    started = time.perf_counter()
    # The best of three: a busy machine may stop one of them for a while.
    few, many = (
        min(step_seconds(module, size, torch.device("cpu")) for _ in range(3)) for size in (1, 16)
    )
    assert 0 < few < many < time.perf_counter() - started


def test_a_logit_of_a_half_as_a_probability(tmp_path: Path) -> None:
    assert pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-15) == LOGIT_HALF
    data = write_pairs(tmp_path / "data", 10)
    recipe = plan_training(small(data, tmp_path / "run", protocol="paper"), Heard()).recipe
    assert foreground_threshold(recipe, probabilities=False) == LOGIT_HALF
    assert foreground_threshold(recipe, probabilities=True) == 0.5
    assert foreground_threshold(replace(recipe, decision="probability"), probabilities=False) == 0.5


def test_the_decision_in_words() -> None:
    assert decision_words(0.5) == "probability >= 0.5"
    assert decision_words(LOGIT_HALF) == "logit >= 0.5 (probability >= 0.622)"


def test_a_part_counts_images_groups_and_empty_masks(tmp_path: Path) -> None:
    part = plan_training(
        small(write_pairs(tmp_path / "data", 10), tmp_path / "run"), Heard()
    ).splits.train
    pixels = decoded(8)
    pixels[3] = Decoded(pixels[3].image, np.zeros_like(pixels[3].mask))
    counted = split_record(part, (one.mask for one in pixels))
    assert (counted.images, counted.groups, counted.empty) == (8, 8, 1)


def test_a_part_names_the_classes_that_it_does_not_show(tmp_path: Path) -> None:
    part = plan_training(
        small(write_pairs(tmp_path / "data", 10), tmp_path / "run"), Heard()
    ).splits.train
    assert split_record(part, [np.zeros((2, 2), np.uint8)]).absent is None, "two values"
    names = ("liver", "kidney", "spleen")
    reading = MaskReading(None, classes=names, class_values=((1,), (2,), (4,)))
    several = replace(part, reading=reading)
    masks = [np.array([[0, 1], [255, 0]], np.uint8), np.array([[3, 1]], np.uint8)]
    assert split_record(several, masks).absent == ["kidney"]
    assert split_record(several, [*masks, np.array([[2]], np.uint8)]).absent is None
