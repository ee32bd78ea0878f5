"""The Lightning module of nnU-Net's training, on its own."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from robustcli.models.registry import architecture
from robustcli.training.nnunet.module import NnUNetModule
from robustcli.training.nnunet.schedule import poly_lr
from robustcli.training.record import AVERAGED
from tests.training.nnunet.trainings import RECIPE, TINY


def umamba() -> nn.Module:
    options: dict[str, Any] = TINY
    return architecture("umamba-pico").build(**options)


def test_a_umamba_answers_at_every_resolution() -> None:
    options: dict[str, Any] = {**TINY, "features": [4, 4, 8], "strides": [1, 2, 2]}
    network = architecture("umamba-pico").build(**options)
    NnUNetModule(network, RECIPE)
    assert [o.shape[-1] for o in network(torch.rand(1, 3, 16, 16))] == [16, 8]


def test_the_optimizer_is_sgd_with_nesterov_over_what_trains() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1))
    network[0].requires_grad_(False)
    made = NnUNetModule(network, RECIPE).make_optimizer()
    assert isinstance(made, torch.optim.SGD)
    (group,) = made.param_groups
    assert group["params"] == list(network[1].parameters())
    found = [group[key] for key in ("lr", "momentum", "nesterov", "weight_decay")]
    assert found == [1e-2, 0.99, True, 3e-5]


def test_the_learning_rate_is_the_epochs() -> None:
    module = NnUNetModule(umamba(), replace(RECIPE, epochs=10))
    optimizer = module.make_optimizer()
    module._trainer = SimpleNamespace(optimizers=[optimizer], current_epoch=4)  # type: ignore[assignment]
    module.on_train_epoch_start()
    assert optimizer.param_groups[0]["lr"] == poly_lr(4, 10, 1e-2)


def test_the_average_goes_into_the_checkpoint_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    module = NnUNetModule(umamba(), RECIPE)
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "_log", lambda name, value: logged.update({name: float(value)}))
    module.log_scores(math.nan, math.nan)
    assert module.average is None
    assert math.isnan(logged[AVERAGED])
    module.log_scores(0.5, 0.4)
    module.log_scores(0.7, 0.6)
    assert logged == pytest.approx({"val_dice": 0.7, "val_iou": 0.6, AVERAGED: 0.52})
    kept: dict[str, Any] = {}
    module.on_save_checkpoint(kept)
    other = NnUNetModule(umamba(), RECIPE)
    other.on_load_checkpoint(kept)
    assert other.average == pytest.approx(0.52)


def test_patches_pool_their_pixels() -> None:
    """One group for all: nnU-Net's pseudo dice."""
    assert set(NnUNetModule(umamba(), RECIPE).val_groups) == {"all"}
    assert len(NnUNetModule(umamba(), RECIPE).val_groups) == 2 * 3
