"""nnU-Net's sliding window: where the windows lie, and what their pixels weigh."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.nnunet.inference import Mirrored, covered_evenly, gaussian_weights, window_starts


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


CPU = torch.device("cpu")


# By nnU-Net v2.1.2's own `compute_steps_for_sliding_window`.
@pytest.mark.parametrize(
    ("side", "window", "starts"),
    [
        (64, 64, [0]),
        (65, 64, [0, 1]),
        (110, 64, [0, 23, 46]),
        (320, 128, [0, 64, 128, 192]),
        (331, 128, [0, 51, 102, 152, 203]),
        (500, 256, [0, 122, 244]),
    ],
)
def test_windows_lie_at_even_distances(side: int, window: int, starts: list[int]) -> None:
    assert window_starts(side, window, 0.5) == starts


def test_pixels_weigh_as_in_nnunet() -> None:
    weights = gaussian_weights(8)
    middle = torch.tensor(  # by nnU-Net v2.1.2's own `compute_gaussian((8, 8))`
        [3.3546e-4, 1.1109e-2, 0.135335, 0.606531, 1.0, 0.606531, 0.135335, 1.1109e-2]
    )
    torch.testing.assert_close(weights[4], middle, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(weights, weights.T)
    assert weights[0, 0] > 0
    assert gaussian_weights(256).min() > 0  # the curve ends four deviations from its middle


def test_scores_are_averaged_by_weight() -> None:
    images = torch.rand(2, 3, 12, 21, generator=torch.Generator().manual_seed(0))

    def predict(pixels: Tensor) -> Tensor:
        """Says of each window what nothing but its first pixel decides."""
        assert len(pixels) <= 3
        return pixels[:, :1, :1, :1].expand(-1, 1, 8, 8)

    found = covered_evenly(images, 8, predict, overlap=0.5, batch=3, device=CPU)
    weights = gaussian_weights(8)
    for number, y, x in [(0, 0, 0), (0, 5, 6), (1, 11, 20), (1, 7, 13)]:
        heard = [
            (weights[y - top, x - left], images[number, 0, top, left])
            for top in (0, 4)
            for left in (0, 3, 6, 10, 13)
            if 0 <= y - top < 8 and 0 <= x - left < 8
        ]
        mean = sum(w * said for w, said in heard) / sum(w for w, _ in heard)
        assert found[number, 0, y, x] == pytest.approx(float(mean), rel=1e-5)


def test_what_every_window_says_alike_stands() -> None:
    images = torch.rand(1, 3, 31, 17, generator=torch.Generator().manual_seed(1))
    found = covered_evenly(images, 16, lambda x: x[:, 1:2], overlap=0.5, batch=4, device=CPU)
    torch.testing.assert_close(found, images[:, 1:2])
