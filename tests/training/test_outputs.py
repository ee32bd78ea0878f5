"""What networks say in training."""

from __future__ import annotations

import torch
from torch import nn

from robustcli.models.registry import architecture
from robustcli.training.outputs import outputs


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
