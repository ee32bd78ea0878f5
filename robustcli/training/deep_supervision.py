"""A loss over several outputs of a network, highest resolution first.

Source: nnU-Net v2.1.1, `DeepSupervisionWrapper` and `nnUNetTrainer._build_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeepSupervision(nn.Module):
    """`loss` over all outputs of a network; with one output it is `loss` itself."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The weighted sum, a scalar.

        Args:
            outputs: (N, C, H, W), or several of them, highest resolution first.
            target: (N, H, W) or (N, 1, H, W), at the first output's size.
        """
        several = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        terms = [
            weight * self.loss(output, shrunk(target, output))
            for weight, output in zip(supervision_weights(len(several)), several, strict=True)
            if weight
        ]
        return torch.stack(terms).sum()


def supervision_weights(outputs: int) -> tuple[float, ...]:
    """The share of each output in the loss, highest resolution first; they sum to 1.

    Source: 1 / 2^i, the lowest resolution left out where there are several.
    """
    halves = [2.0**-i for i in range(outputs)]
    if outputs > 1:
        halves[-1] = 0.0
    return tuple(half / sum(halves) for half in halves)


def shrunk(target: Tensor, output: Tensor) -> Tensor:
    """`target` at the height and width of `output`, by nearest neighbour; else as it is.

    Source: nnU-Net resizes with scikit-image's order 0, which takes the pixel at or after the
    middle of each cell: what torch calls `nearest-exact`, not `nearest`.
    """
    height, width = target.shape[-2:]
    if output.shape[-2:] == (height, width):
        return target
    # Labels are small whole numbers: float32 holds them exactly, and interpolation needs a float.
    flat = target.reshape(-1, 1, height, width).float()
    small = F.interpolate(flat, output.shape[-2:], mode="nearest-exact")
    return small.reshape(*target.shape[:-2], *output.shape[-2:]).to(target.dtype)
