"""nnU-Net's inference: windows over images of any size, averaged over flips."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.core.errors import UsageError

# Inference with mirroring: averages a network's scores over flips of its input. Source: nnU-Net
# v2.1.1, `predict_from_raw_data.py`, `_internal_maybe_mirror_and_predict`.


class Mirrored(nn.Module):
    """Averages the scores of `network` over all combinations of flips.

    Wrap the network before the sliding window is applied, so that each window is flipped
    separately. With n axes, it needs 2^n forward passes.

    Args:
        network: Maps (B, C, H, W) to scores (B, K, H, W), or to several score maps, highest
            resolution first, of which only the first is used.
        axes: Axes of the image that may be flipped, 0 for height and 1 for width: the
            `inference_allowed_mirroring_axes` of a checkpoint.

    Raises:
        UsageError: An axis is neither 0 nor 1.
    """

    def __init__(self, network: nn.Module, axes: Sequence[int]) -> None:
        super().__init__()
        wrong = [axis for axis in axes if axis not in (0, 1)]
        if wrong:
            raise UsageError(
                f"Axis {wrong[0]} cannot be mirrored.",
                "An image has the axes 0 (height) and 1 (width).",
                "Use the axes of a two-dimensional network.",
            )
        self.network = network
        self.axes = tuple(sorted(set(axes)))

    def forward(self, x: Tensor) -> Tensor:
        """The mean scores, (B, K, H, W), before softmax, as the network outputs them."""
        total, count = self._scores(x), 1
        for flips in self._flips():
            total = total + self._scores(x.flip(flips)).flip(flips)
            count += 1
        return total / count

    def _flips(self) -> Iterator[tuple[int, ...]]:
        for number in range(1, len(self.axes) + 1):
            for axes in combinations(self.axes, number):
                yield tuple(axis + 2 for axis in axes)

    def _scores(self, x: Tensor) -> Tensor:
        scores = self.network(x)
        return scores if isinstance(scores, torch.Tensor) else scores[0]


# nnU-Net's sliding window, for images of any size with a network for square windows. The windows
# are evenly spaced, and the weights of their pixels are a Gaussian around the pixel to the lower
# right of the centre. MONAI's sliding window uses a fixed step, except for the last window, and
# centred weights: near the border of an object, its masks differ from nnU-Net's.
#
# Source: nnU-Net v2.1.1, `sliding_window_prediction.py`. Deviation: sums are in float32, upstream's
# in float16.

_SIGMA = 1 / 8  # as a share of the window's side


def covered_evenly(
    images: Tensor, window: tuple[int, int], predict: Callable[[Tensor], Tensor], *,
    overlap: float, batch: int, device: torch.device,
) -> Tensor:  # fmt: skip
    """The outputs of `predict` for evenly spaced windows, Gaussian-weighted mean: (n, C, H, W).

    The arguments are those of `adapters.segmenter.covered`; neighbouring windows overlap by at
    least `overlap`.
    """
    count, _, *size = images.shape
    tops, lefts = (window_starts(*sides, 1 - overlap) for sides in zip(size, window, strict=True))
    height, width = window
    corners = [
        (number, slice(top, top + height), slice(left, left + width))
        for number, top, left in product(range(count), tops, lefts)
    ]
    weights = gaussian_weights(window).to(images.device)
    total, parts = torch.zeros(0), torch.zeros(count, 1, *size).to(images.device)
    for first in range(0, len(corners), batch):
        some = corners[first : first + batch]
        cut = torch.stack([images[number, :, rows, columns] for number, rows, columns in some])
        scores = predict(cut.to(device)).to(images.device)
        if not len(total):
            total = torch.zeros(count, scores.shape[1], *size).to(images.device)
        for (number, rows, columns), score in zip(some, scores, strict=True):
            total[number, :, rows, columns] += score * weights
            parts[number, :, rows, columns] += weights
    return total / parts


def window_starts(side: int, window: int, step: float) -> list[int]:
    """The start positions in pixels of windows along an image side; the last ends at its end.

    Args:
        side: Side of the image in pixels, at least `window`.
        window: Side of a window in pixels.
        step: Largest distance between neighbouring windows as a share of `window`, in (0, 1].
    """
    count = math.ceil((side - window) / (window * step)) + 1
    distance = (side - window) / max(1, count - 1)
    return [int(np.round(distance * number)) for number in range(count)]


def gaussian_weights(window: tuple[int, int]) -> Tensor:
    """The weights of a window's pixels, float32 (height, width), in (0, 1], with maximum 1."""
    from scipy.ndimage import gaussian_filter1d

    curves = []
    for side in window:
        impulse = np.zeros(side)
        impulse[side // 2] = 1.0
        curves.append(gaussian_filter1d(impulse, side * _SIGMA, mode="constant"))
    down, across = (curve / curve.max() for curve in curves)
    weights = torch.from_numpy(np.outer(down, across)).float()
    return weights.clamp(min=float(weights[weights > 0].min()))
