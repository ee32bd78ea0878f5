"""The trial step."""

from __future__ import annotations

import time

import torch

from robustcli.models.architectures import architecture, everything_decays
from robustcli.training.lit_segmenter import SegmentationModule
from robustcli.training.recipes import recipe_for
from robustcli.training.trial import step_seconds


def test_more_images_take_longer_and_no_longer_than_it_took() -> None:
    network = architecture("unet").build(features=(8, 16))
    module = SegmentationModule(
        network, recipe_for("unet", "patient", "x"), channels="rgb", decays=everything_decays,
        val_groups=(),
    )  # fmt: skip
    started = time.perf_counter()
    few, many = (step_seconds(module, size, torch.device("cpu")) for size in (1, 16))
    assert 0 < few < many < time.perf_counter() - started
