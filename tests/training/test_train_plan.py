"""The plan of a training: lookups before it starts, forecast, and announcements."""

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
from robustcli.training.datamodule import Decoded
from robustcli.training.engine import run_training
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.recipes import recipe_for
from robustcli.training.segmenter_training import (
    LOGIT_HALF,
    decision_words,
    foreground_threshold,
    split_record,
)
from robustcli.training.train_plan import forecast_training, plan_training, step_seconds
from tests.training.images import decoded, write_pairs
from tests.training.runs import Recorder, tiny_unet


def test_the_forecast_matches_the_training(data: Path, tmp_path: Path) -> None:
    config = tiny_unet(
        data, tmp_path / "run", epochs=2, accumulate=2, model_args={"features": [16, 32, 64]}
    )
    forecast = forecast_training(config, Recorder())
    assert not (tmp_path / "run").exists()
    assert (forecast.images, forecast.groups) == ({"train": 12, "val": 1, "test": 1},) * 2
    assert forecast.steps == 2 * 2  # three batches per epoch, two per step
    assert forecast.pixels_bytes == 13 * 32 * 32 * 4
    assert 0 < forecast.seconds < 60
    assert not forecast.started
    run_training(config)
    assert forecast_training(config, Recorder()).started
    files = [*(tmp_path / "run" / "checkpoints").iterdir(), tmp_path / "run/weights.safetensors"]
    assert forecast.disk_bytes == pytest.approx(sum(f.stat().st_size for f in files), rel=0.1)


def test_text_and_json_contain_the_same_forecast(data: Path, tmp_path: Path) -> None:
    forecast = forecast_training(tiny_unet(data, tmp_path / "run", protocol="paper"), Recorder())
    parsed = json.loads(forecast.as_json())
    assert parsed["recipe"]["loss"] == "dice"
    text = forecast.as_text()
    assert f"{parsed['parameters']:,} parameters" in text
    assert "paper, logit >= 0.5" in text
    assert "train 11 images of 11 images" in text


def test_weights_of_imagenet_are_not_needed_for_it(data: Path, tmp_path: Path) -> None:
    config = tiny_unet(
        data, tmp_path / "run", model="resnet18_seg", model_args={}, window=64, batch_size=1
    )
    assert forecast_training(config, Recorder()).parameters == 13_930_497


def test_protocol_parts_and_recipe_are_announced(data: Path, tmp_path: Path) -> None:
    listener = Recorder()
    plan_training(tiny_unet(data, tmp_path / "run"), listener)
    assert listener.lines == [
        "Protocol `patient`: train 12 images, val 1 images, test 1 images (train part, split by "
        "image, seed 0).",
        "Recipe `patient` (ours): 3 epochs, batch 4, window 16, bce-dice loss, AdamW at 0.01, "
        "warmup-cosine, augmentation light.",
    ]


def test_a_default_is_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)
    listener = Recorder()
    config = tiny_unet(tmp_path, tmp_path / "run", limit=30)
    default_plan = plan_training(type(config)(model="ulvm", limit=30), listener)
    assert listener.lines[0].startswith(
        "`--data` is not set; using nuclei-mini (a demonstration set), 30 images, "
    )
    assert " photos, " in listener.lines[1]
    assert default_plan.recipe.name == "nuclei-mini"
    assert default_plan.run.parent == Path("runs")


def test_the_paper_takes_whole_images_in_opencvs_order(data: Path, tmp_path: Path) -> None:
    patient_plan = plan_training(tiny_unet(data, tmp_path / "run"), Recorder())
    paper = plan_training(tiny_unet(data, tmp_path / "run", protocol="paper"), Recorder())
    assert (patient_plan.procedure.keeps_best, patient_plan.channels) == (True, "rgb")
    assert (paper.procedure.keeps_best, paper.channels) == (False, "bgr")
    assert paper.per_epoch == len(paper.splits.train.samples) == 11
    quick_plan = plan_training(tiny_unet(data, tmp_path / "run", quick=True), Recorder())
    assert quick_plan.per_epoch == 12  # as many as exist


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
        plan_training(replace(tiny_unet(tmp_path / name, Path()), out=None), Recorder()).run
        for name in ("first", "copy", "images", "masks")
    )
    assert first == copy
    assert len({first, images, masks}) == 3


def test_a_foreign_folder_is_refused(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="is not empty and contains no run"):
        plan_training(tiny_unet(data, run), Recorder())
    with pytest.raises(UsageError, match="is a file"):
        plan_training(tiny_unet(data, run / "thesis.tex"), Recorder())


def test_a_run_is_no_network(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    header = WeightsHeader(
        model="ulvm", arguments={}, window=16, channels="rgb", threshold=0.5, protocol="patient",
        trained_on="elsewhere", images_sha256="0" * 64,
    )  # fmt: skip
    (tmp_path / "mine").mkdir()
    write_weights(tmp_path / "mine" / "weights.safetensors", {"w": torch.zeros(1)}, header)
    with pytest.raises(UsageError, match=r"`--model mine` is a folder"):
        plan_training(tiny_unet(data, tmp_path / "run", model="mine", model_args={}), Recorder())


def test_a_network_goes_before_a_folder_of_its_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ulvm").mkdir()
    (tmp_path / "ulvm" / "run.json").write_text("{}")
    plan = plan_training(tiny_unet(data, tmp_path / "run", model="ulvm", model_args={}), Recorder())
    assert plan.entry.name == "ulvm"


def test_one_patient_cannot_be_split(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 2)
    with pytest.raises(UsageError, match="cannot be split by image"):
        plan_training(tiny_unet(data, tmp_path / "run"), Recorder())


@pytest.mark.parametrize("launcher", ["--devices", "torchrun"])
def test_a_batch_divides_among_the_processes_whoever_starts_them(
    launcher: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launcher == "torchrun":
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        for name, value in (variables | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
            monkeypatch.setenv(name, value)
    config = tiny_unet(
        data, tmp_path / "run", batch_size=5, devices=2 if launcher == "--devices" else 1
    )
    with pytest.raises(UsageError, match="batch of 5 cannot be divided evenly among 2 processes"):
        plan_training(config, Recorder())


def test_all_devices_of_a_machine_without_gpu_are_explained(data: Path, tmp_path: Path) -> None:
    listener = Recorder()
    assert (
        plan_training(tiny_unet(data, tmp_path / "run", devices="all"), listener).machine.world == 1
    )
    assert "`--devices all` counts GPUs; on cpu it is 1 process." in listener.lines[0]


def test_the_measured_step_time_grows_with_the_batch() -> None:
    network = architecture("unet").build(features=(8, 16))
    module = SegmenterModule(
        network, replace(recipe_for("unet", "patient", "x"), window=64), channels="rgb",
        decays=everything_decays, val_groups=(),
    )  # fmt: skip
    started = time.perf_counter()
    # The best of three measurements, because another process may interrupt one.
    few_seconds, many_seconds = (
        min(step_seconds(module, size, torch.device("cpu")) for _ in range(3)) for size in (1, 16)
    )
    assert 0 < few_seconds < many_seconds < time.perf_counter() - started


def test_a_logit_of_a_half_as_a_probability(tmp_path: Path) -> None:
    assert pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-15) == LOGIT_HALF
    data = write_pairs(tmp_path / "data", 10)
    recipe = plan_training(tiny_unet(data, tmp_path / "run", protocol="paper"), Recorder()).recipe
    assert foreground_threshold(recipe, probabilities=False) == LOGIT_HALF
    assert foreground_threshold(recipe, probabilities=True) == 0.5
    assert foreground_threshold(replace(recipe, decision="probability"), probabilities=False) == 0.5


def test_the_decision_in_words() -> None:
    assert decision_words(0.5) == "probability >= 0.5"
    assert decision_words(LOGIT_HALF) == "logit >= 0.5 (probability >= 0.622)"


def test_a_part_counts_images_groups_and_empty_masks(tmp_path: Path) -> None:
    split = plan_training(
        tiny_unet(write_pairs(tmp_path / "data", 10), tmp_path / "run"), Recorder()
    ).splits.train
    pixels = decoded(8)
    pixels[3] = Decoded(pixels[3].image, np.zeros_like(pixels[3].mask))
    split_counts = split_record(split, (item.mask for item in pixels))
    assert (split_counts.images, split_counts.groups, split_counts.empty) == (8, 8, 1)


def test_a_part_names_the_classes_that_it_does_not_show(tmp_path: Path) -> None:
    split = plan_training(
        tiny_unet(write_pairs(tmp_path / "data", 10), tmp_path / "run"), Recorder()
    ).splits.train
    assert split_record(split, [np.zeros((2, 2), np.uint8)]).absent is None, (
        "masks of two values have no class names"
    )
    names = ("liver", "kidney", "spleen")
    mask_reading = MaskReading(None, classes=names, class_values=((1,), (2,), (4,)))
    split_of_classes = replace(split, reading=mask_reading)
    masks = [np.array([[0, 1], [255, 0]], np.uint8), np.array([[3, 1]], np.uint8)]
    assert split_record(split_of_classes, masks).absent == ["kidney"]
    assert split_record(split_of_classes, [*masks, np.array([[2]], np.uint8)]).absent is None
