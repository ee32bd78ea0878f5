"""Inference with mirroring: a network's scores averaged over flips of its input.

Source: nnU-Net v2.1.1, `predict_from_raw_data.py`, `_internal_maybe_mirror_and_predict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from robustcli.core.errors import UsageError


class Mirrored(nn.Module):
    """`network`, whose scores are averaged over every combination of flips.

    To be wrapped around the network before a sliding window: each window is flipped by itself. With
    n axes it costs 2^n passes.

    Args:
        network: (B, C, H, W) to scores (B, K, H, W), or to several, highest resolution first, of
            which the first counts.
        axes: Axes of the image that may be flipped, 0 for height and 1 for width: the
            `inference_allowed_mirroring_axes` of a checkpoint.

    Raises:
        UsageError: An axis is neither.
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
        """The mean scores, (B, K, H, W); before softmax, as the network gives them."""
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
