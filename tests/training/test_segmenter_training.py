"""Which module and which batches a recipe asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.adapters.start import start_weights
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import Part, SegmentationData
from robustcli.training.prepare import select
from robustcli.training.procedures.nnunet import NnUNetModule, PatchData
from robustcli.training.segmenter_training import make_data, make_module
from tests.training.pairs import decoded, write_pairs
from tests.training.runs import Heard, small

PART, ONE = Part(["a", "b"], decoded(2)), Part(["c"], decoded(1))


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return small(write_pairs(tmp_path / "data", 14), tmp_path / "run", workers=1)


def test_passes_over_windows(config: TrainConfig) -> None:
    selection = select(config, Heard())
    data = make_data(config, selection, PART, ONE)
    assert isinstance(data, SegmentationData)
    assert data.workers == 1
    network, _ = start_weights("unet", None, True, True, 0, config.model_args)
    module = make_module(selection, network.eval(), data)
    assert type(module).__name__ == "SegmentationModule"
    assert len(module.val_groups) == len(data.val_images())
    assert network.training


def test_patches_nnunets_way(config: TrainConfig) -> None:
    said = {**vars(config), "recipe": "nnunet-light"}
    selection = select(TrainConfig(**said), Heard())
    assert isinstance(make_data(config, selection, PART, PART), PatchData)
    network, _ = start_weights("unet", None, True, True, 0, config.model_args)
    assert isinstance(make_module(selection, network), NnUNetModule)
    assert (selection.per_epoch, selection.steps_per_epoch) == (25 * 4, 25)
    assert selection.val_batches == 10
