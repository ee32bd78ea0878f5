"""How far the outlines of two masks lie apart: 95 % Hausdorff distance and surface dice.

Source: MONAI, `compute_hausdorff_distance` and `compute_surface_dice`: an outline are the pixels of
a mask with a neighbour (of four) outside it or outside the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.core.silence import silenced

PERCENTILE = 95
TOLERANCE = 2.0  # pixels
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SurfaceDistance:
    """The two outlines against each other.

    Args:
        hd95: The larger of the two 95th percentiles of the distances from one to the other, pixels.
        boundary_dice: Share of both outlines that lies within TOLERANCE of the other.
    """

    hd95: float
    boundary_dice: float


def surface_distance(prediction: Mask, truth: Mask) -> SurfaceDistance | None:
    """The distance of two masks (H, W); None where one has no pixel, and so no outline.

    MONAI would give infinity or NaN then, with a warning.
    """
    if not (prediction.any() and truth.any()):
        return None
    box = _box(prediction | truth)
    both = _distances(prediction[box], truth[box])
    hd95 = max(float(torch.quantile(one, PERCENTILE / 100)) for one in both)
    near = sum(int((one <= TOLERANCE).sum()) for one in both)
    return SurfaceDistance(hd95, near / sum(map(len, both)))


def _distances(one: Mask, other: Mask) -> tuple[Tensor, ...]:
    """From each pixel of one outline to the nearest of the other, and back, in pixels.

    Both measures come from these: MONAI's own two functions would find them twice.
    """
    from monai.metrics.utils import get_edge_surface_distance

    first, second = torch.from_numpy(one.copy()), torch.from_numpy(other.copy())
    # MONAI 1.5 and 1.6 warn of an argument (`always_return_as_numpy`) that they pass themselves.
    with silenced("monai.utils.deprecate_utils"):
        _, distances, _ = get_edge_surface_distance(first, second, symmetric=True)
    return distances


def _box(mask: Mask) -> tuple[slice, slice]:
    """The smallest box that holds the mask: outlines and distances in it are the same, and cheap.

    A pixel beside the box's edge has, beyond that edge, either background or the image's end, and
    MONAI takes both for the outside.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
