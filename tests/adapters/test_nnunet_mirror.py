"""Inference averaged over flips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustcli.adapters.nnunet_mirror import Mirrored
from robustcli.core.errors import UsageError


class Ramp(nn.Module):
    """Scores that depend on the place: the input times a ramp that rises to the lower right."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(float(x[0, 0].numel())).view(x.shape[2:])


def test_is_the_mean_over_the_flips_turned_back() -> None:
    x = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(12.0).view(3, 4)
    both = (ramp + ramp.flip(0) + ramp.flip(1) + ramp.flip(0, 1)) / 4
    assert torch.allclose(Mirrored(Ramp(), (0, 1))(x), x * both)
    assert torch.allclose(Mirrored(Ramp(), (1,))(x), x * (ramp + ramp.flip(1)) / 2)
    assert torch.equal(Mirrored(Ramp(), ())(x), Ramp()(x))


@pytest.mark.parametrize(("axes", "passes"), [((), 1), ((0,), 2), ((0, 1), 4), ((1, 0, 1), 4)])
def test_costs_a_pass_per_combination(axes: tuple[int, ...], passes: int) -> None:
    seen = []
    network = nn.Identity()
    network.register_forward_hook(lambda *_: seen.append(1))
    Mirrored(network, axes)(torch.zeros(1, 1, 2, 2))
    assert len(seen) == passes


def test_a_network_that_does_not_care_keeps_its_scores() -> None:
    torch.manual_seed(0)
    network, x = nn.Conv2d(3, 2, 1), torch.randn(1, 3, 5, 6)
    assert torch.allclose(Mirrored(network, (0, 1))(x), network(x), atol=1e-6)


def test_of_several_outputs_the_first_counts() -> None:
    class Deep(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, x[..., ::2, ::2]]

    x = torch.randn(1, 2, 4, 4)
    assert torch.allclose(Mirrored(Deep(), (0, 1))(x), x)


def test_an_axis_that_an_image_lacks() -> None:
    with pytest.raises(UsageError, match=r"Axis 2 cannot be mirrored\.\nAn image has the axes 0"):
        Mirrored(nn.Identity(), (0, 1, 2))
