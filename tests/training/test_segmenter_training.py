"""Which procedure a recipe asks for: its module, its batches, what it watches and keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.adapters.trainable import start_weights
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import DecodedPairs, SegmentationData
from robustcli.training.lit_segmenter import SegmentationModule
from robustcli.training.procedures.nnunet import NNUNet, NnUNetModule, PatchData
from robustcli.training.procedures.paper import Paper, WholeImages
from robustcli.training.procedures.standard import Standard
from robustcli.training.record import AVERAGED
from robustcli.training.train_plan import plan_training
from tests.training.pairs import decoded, write_pairs
from tests.training.runs import Heard, small

PART, ONE = DecodedPairs(["a", "b"], decoded(2)), DecodedPairs(["c"], decoded(1))


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return small(write_pairs(tmp_path / "data", 14), tmp_path / "run", workers=1)


def test_our_procedure_cuts_windows_and_keeps_the_best_epoch(config: TrainConfig) -> None:
    plan = plan_training(config, Heard())
    assert type(plan.procedure) is Standard
    data = plan.procedure.data(PART, ONE, plan.batch_settings())
    assert type(data) is SegmentationData
    assert data.workers == 1
    network, _ = start_weights("unet", None, True, True, 0, config.model_args)
    module = plan.task.lit_module(plan, network.eval(), data)
    assert isinstance(module, SegmentationModule)
    assert len(module.val_groups) == len(data.val_images())
    assert network.training
    assert (plan.monitor, plan.channels, plan.procedure.keeps_best) == ("val_dice", "rgb", True)
    assert (plan.procedure.normalised, plan.procedure.faults("unet")) == ((), [])


def test_the_papers_takes_whole_images_and_the_last_epoch(config: TrainConfig) -> None:
    plan = plan_training(TrainConfig(**{**vars(config), "protocol": "paper"}), Heard())
    assert type(plan.procedure) is Paper
    assert type(plan.procedure.data(PART, ONE, plan.batch_settings())) is WholeImages
    assert (plan.channels, plan.procedure.keeps_best) == ("bgr", False)
    assert len(plan.procedure.faults("unet")) > 3


def test_nnunets_draws_patches_and_watches_a_moving_average(config: TrainConfig) -> None:
    said = {**vars(config), "recipe": "nnunet-light"}
    plan = plan_training(TrainConfig(**said), Heard())
    assert type(plan.procedure) is NNUNet
    assert isinstance(plan.procedure.data(PART, PART, plan.batch_settings()), PatchData)
    network, _ = start_weights("unet", None, True, True, 0, config.model_args)
    assert isinstance(plan.task.lit_module(plan, network), NnUNetModule)
    assert (plan.per_epoch, plan.steps_per_epoch) == (25 * 4, 25)
    assert plan.val_batches == 10
    assert plan.monitor == AVERAGED
    assert [channel.scheme for channel in plan.procedure.normalised] == ["zscore"] * 3
