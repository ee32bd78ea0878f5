"""The baseline that knows nothing: a threshold on each image's luminance, after Otsu."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""
_LEVELS = 256


class Otsu(nn.Module):
    """Images (B, 3, H, W) in [0, 1], RGB, to masks (B, 1, H, W) of zeros and ones.

    The foreground is the side of the threshold with fewer pixels, the brighter one where both have
    as many; an image of one brightness has none.
    """

    num_classes = 1

    def forward(self, x: Tensor) -> Tensor:
        """The masks, each from its own image alone."""
        weights = torch.tensor(LUMINANCE, dtype=torch.float32, device=x.device).view(1, 3, 1, 1)
        levels = ((x.float() * weights).sum(1) * (_LEVELS - 1)).round().long()
        return torch.stack([_minority(image) for image in levels])[:, None].to(x.dtype)


def _minority(levels: Tensor) -> Tensor:
    bright = levels > threshold(levels)
    if 2 * int(bright.sum()) <= bright.numel():
        return bright
    return ~bright & (levels.min() < levels.max())


def threshold(levels: Tensor) -> int:
    """The level that best separates those at most as high from the higher ones.

    It is the lowest that maximises the variance between the two.
    Source: Otsu, "A Threshold Selection Method from Gray-Level Histograms" (1979).

    Args:
        levels: Whole numbers from 0 to 255, of any shape.
    """
    # On the CPU: not every device has float64.
    counts = torch.bincount(levels.flatten(), minlength=_LEVELS).cpu().double()
    below, sums = counts.cumsum(0), (counts * torch.arange(_LEVELS)).cumsum(0)
    above = below[-1] - below
    split = (below > 0) & (above > 0)
    means = sums / below.clamp(min=1), (sums[-1] - sums) / above.clamp(min=1)
    between = torch.where(split, below * above * (means[0] - means[1]) ** 2, 0.0)
    return int(between.argmax())
