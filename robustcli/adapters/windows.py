"""Images of any size through a network that takes squares of one size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Padded:
    """An image (H, W, 3) in which the original lies at `top` and `left`."""

    image: NDArray[Any]
    top: int
    left: int


def padded(
    image: NDArray[Any], window: int, *, by: Literal["reflect", "constant"] = "reflect"
) -> Padded:
    """`image` (H, W, 3) with both sides at least `window`.

    It is continued by reflection, as often as it takes (one of a single pixel's width is repeated),
    or `constant`: by zeros.
    """
    short = [max(0, window - side) for side in image.shape[:2]]
    if not any(short):
        return Padded(image, 0, 0)
    top, left = (missing // 2 for missing in short)
    pads = [(top, short[0] - top), (left, short[1] - left), (0, 0)]
    return Padded(np.pad(image, pads, mode=by), top, left)


def covered(
    images: Tensor, window: int, predict: Callable[[Tensor], Tensor], *, overlap: float, batch: int,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """What `predict` says of overlapping windows, averaged with Gaussian weights: (n, 1, H, W).

    The images and the result stay where they are; only windows go to `device`.

    Args:
        images: (n, 3, H, W), each side at least `window`.
        window: Side of a window in pixels.
        predict: Windows (m, 3, window, window) to scores (m, 1, window, window).
        overlap: Share of a window's side that the next one covers again, in [0, 1).
        batch: Windows at a time.
        device: Where `predict` computes.
    """
    # Slow to import, and not needed for images of the window's size.
    from monai.inferers.utils import sliding_window_inference

    size = (window, window)
    found = sliding_window_inference(
        images, size, batch, predict, overlap, mode="gaussian", sw_device=device,
        device=images.device,
    )  # fmt: skip
    assert isinstance(found, Tensor), "one output, so no tuple of them"
    return found
