"""Where a patch lies in its image, and what it is cut to.

Source: nnU-Net v2.1.1, `nnUNetDataLoaderBase.get_bbox` and `get_patch_size`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.adapters.nnunet_normalise import Normaliser
from robustcli.models.umamba_config import Pair
from robustcli.training.nnunet.spatial import largest_angle

SMALLEST_SCALE = 0.85  # upstream's, for the margin only: the scaling itself goes down to 0.7


def loader_patch(patch: Pair) -> Pair:
    """The size to cut for training, from whose middle `patch` comes after rotation and scaling.

    Source: `get_patch_size`: the patch turned by the largest angle (at most 90 degrees), over 0.85;
    512 x 512 gives 602 x 602.
    """
    angle = min(math.radians(90), math.radians(largest_angle(patch)))
    cos, sin = math.cos(angle), math.sin(angle)
    turned = abs(patch[0] * cos + patch[1] * sin), abs(patch[1] * cos - patch[0] * sin)
    height, width = (
        int(max(side, own) / SMALLEST_SCALE) for side, own in zip(turned, patch, strict=True)
    )
    return height, width


def choose_corner(
    shape: tuple[int, ...], size: Pair, final: Pair, centre: Pair | None, rng: np.random.Generator
) -> Pair:
    """The upper left corner of a patch; it may lie outside of the image, which is then padded.

    Args:
        shape: Of the image.
        size: Of the patch to cut.
        final: Of the patch that the network gets: the margin of `size` around it may be padding.
        centre: What the patch is cut around, where it must show something; its corner is then not
            above or left of the lowest valid one, as upstream; else it is drawn from all valid.
        rng: For the draw.
    """
    corner = []
    for axis in (0, 1):
        padding = max(size[axis] - final[axis], size[axis] - shape[axis])
        low = -padding // 2
        high = shape[axis] + padding // 2 + padding % 2 - size[axis]
        if centre is None:
            corner.append(int(rng.integers(low, high + 1)))
        else:
            corner.append(max(low, centre[axis] - size[axis] // 2))
    return corner[0], corner[1]


def cut(
    image: NDArray[np.uint8],
    labels: NDArray[Any],
    normaliser: Normaliser,
    corner: Pair,
    size: Pair,
) -> tuple[Tensor, Tensor]:
    """The patch of `size` at `corner`, normalised: (C, h, w) float32 and (h, w) int64.

    Outside of the image the pixels are 0, the mean under z-scores, and the labels background:
    upstream writes -1 there and turns it into 0 before the loss.
    """
    pixels = np.zeros((image.shape[2], *size), np.float32)
    truth = np.zeros(size, np.int64)
    starts = [max(0, c) for c in corner]
    ends = [min(c + s, full) for c, s, full in zip(corner, size, labels.shape, strict=True)]
    here = slice(starts[0], ends[0]), slice(starts[1], ends[1])
    there = tuple(slice(a - c, b - c) for a, b, c in zip(starts, ends, corner, strict=True))
    pixels[:, *there] = normaliser(image, here)
    truth[there] = labels[here]
    return torch.from_numpy(pixels), torch.from_numpy(truth)


def foreground_pixel(
    labels: NDArray[Any], ignore_label: int | None, *, forced: bool, rng: np.random.Generator
) -> Pair | None:
    """A random pixel of a random class if `forced`; else an annotated one where not all are."""
    if forced:
        classes = [c for c in np.unique(labels) if c > 0 and c != ignore_label]
        chosen = labels == rng.choice(classes) if classes else np.zeros(labels.shape, bool)
    elif ignore_label is not None:
        chosen = labels != ignore_label
    else:
        return None
    found = np.flatnonzero(chosen)
    if not found.size:
        return None
    row, column = divmod(int(rng.choice(found)), labels.shape[1])
    return row, column
