"""The profile while a network trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustcli.finetuning.profiling import ProfileGradients

NONE: Any = SimpleNamespace()


def steps(profiler: ProfileGradients, layer: nn.Linear, values: list[float]) -> None:
    for value in values:
        layer.weight.grad = torch.full_like(layer.weight, value)
        profiler.on_before_optimizer_step(NONE, NONE, NONE)


def test_so_many_steps_are_taken_and_told_once() -> None:
    layer, told = nn.Linear(2, 1, bias=False), list[pd.DataFrame]()
    profiler = ProfileGradients(layer, 2, told.append)
    steps(profiler, layer, [1.0])
    assert not profiler.full
    steps(profiler, layer, [2.0, 3.0])
    assert profiler.full
    (rows,) = told
    assert rows["mean_abs"].tolist() == [1.0, 2.0]


def test_without_a_number_it_goes_on() -> None:
    layer = nn.Linear(2, 1, bias=False)
    profiler = ProfileGradients(layer)
    steps(profiler, layer, [1.0] * 5)
    assert not profiler.full
    assert len(profiler.profile) == 5


def test_what_is_no_number_does_not_count() -> None:
    """As where float16's loss scaler skips a step."""
    layer = nn.Linear(2, 1, bias=False)
    profiler = ProfileGradients(layer, 2)
    steps(profiler, layer, [torch.inf, 1.0, torch.nan, 2.0])
    assert profiler.profile.rows()["mean_abs"].tolist() == [1.0, 2.0]


def test_a_resumed_profile_is_that_of_an_unbroken_run() -> None:
    layer = nn.Linear(2, 1, bias=False)
    whole, first = ProfileGradients(layer, 3), ProfileGradients(layer, 3)
    steps(whole, layer, [1.0, 2.0, 3.0])
    steps(first, layer, [1.0, 2.0])
    second = ProfileGradients(layer, 3)
    second.load_state_dict(first.state_dict())
    steps(second, layer, [3.0])
    pd.testing.assert_frame_equal(second.profile.rows(), whole.profile.rows())
