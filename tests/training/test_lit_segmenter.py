"""What networks say in training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustcli.models.architectures import architecture, everything_decays
from robustcli.training.lit_segmenter import SegmentationModule, outputs
from robustcli.training.recipes import recipe_for
from robustcli.training.samples import Batch

RECIPE = recipe_for("unet", "patient", "x")


def module(network: nn.Module | None = None, **said: str) -> SegmentationModule:
    channels = said.pop("channels", "rgb")
    return SegmentationModule(
        network or nn.Conv2d(3, 1, 1), replace(RECIPE, **said), channels=channels,  # type: ignore[arg-type]
        decays=everything_decays, val_groups=(),
    )  # fmt: skip


def batch(images: torch.Tensor) -> Batch:
    empty = torch.zeros(len(images), 1, 1, 1)
    return Batch(images, empty, ["x"] * len(images), torch.arange(len(images)), empty.bool())


def test_bytes_become_zero_to_one_in_the_networks_order() -> None:
    pixel = torch.tensor([255, 51, 0], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert module().pixels(batch(pixel)).flatten().tolist() == pytest.approx([1, 0.2, 0])
    swapped = module(channels="bgr").pixels(batch(pixel))
    assert swapped.flatten().tolist() == pytest.approx([0, 0.2, 1])
    resized = torch.tensor([0.5, 0.25, 1.0]).reshape(1, 3, 1, 1)
    assert torch.equal(module().pixels(batch(resized)), resized)


def test_the_decision_is_the_recipes() -> None:
    said = torch.tensor([-0.1, 0.1, 0.49, 0.5])
    assert module().foreground(said).tolist() == [False, True, True, True]
    by_logit = module(decision="logit").foreground(said)
    assert by_logit.tolist() == [False, False, False, True]
    probabilities = module(architecture("ulvm").build())
    assert probabilities.probabilities
    assert probabilities.foreground(said).tolist() == [False, False, False, True]


def test_frozen_parameters_stay_out_of_the_optimizer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1))
    network[0].requires_grad_(False)
    one = module(network)
    one._trainer = type("T", (), {"estimated_stepping_batches": 10})()
    made = one.configure_optimizers()
    (group,) = made["optimizer"].param_groups
    assert group["params"] == list(network[1].parameters())
    assert group["weight_decay"] == 0.01
    assert made["lr_scheduler"]["interval"] == "step"


def test_one_output_at_the_size_of_the_images() -> None:
    network = architecture("segformer").build().eval()
    (said,) = outputs(network, torch.zeros(1, 3, 64, 64))
    assert said.shape == (1, 1, 64, 64)


class Deep(nn.Module):
    """Two classes at two resolutions."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Background always 1, foreground 3 or 2."""
        b, _, h, w = x.shape
        ones = torch.ones(b, 1, h, w)
        half = ones[..., ::2, ::2]
        return [torch.cat([ones, 3 * ones], 1), torch.cat([half, 2 * half], 1)]


def test_every_resolution_of_deep_supervision_as_a_foreground_logit() -> None:
    fine, coarse = outputs(Deep(), torch.zeros(2, 3, 8, 8))
    assert (fine.shape, coarse.shape) == ((2, 1, 8, 8), (2, 1, 4, 4))
    assert fine.unique().tolist() == [2.0]
    assert coarse.unique().tolist() == [1.0]
