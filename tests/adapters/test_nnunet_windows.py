"""nnU-Net's sliding window: where the windows lie, and what their pixels weigh."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustcli.adapters.nnunet_windows import covered_evenly, gaussian_weights, window_starts

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
