"""The forecast of a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustcli.training.dry import forecast_training
from robustcli.training.train import run_training
from tests.training.pairs import write_pairs
from tests.training.runs import Heard, small


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "data", 14)


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
