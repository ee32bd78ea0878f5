"""What prediction needs to know of a network that was trained nnU-Net's way.

Source: nnU-Net v2.1.1, `predict_from_raw_data.py`: the whole image is normalised and padded with
zeros, windows are flipped, and scores are averaged before they become probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustcli.adapters.nnunet_normalise import Channel, fit


@dataclass(frozen=True)
class NnUNetInference:
    """How nnU-Net's inference differs from the usual.

    Args:
        channels: How each input channel of the whole image is normalised.
        mirror_axes: Axes along which each window is flipped, 0 for height; the scores are averaged.
    """

    channels: tuple[Channel, ...]
    mirror_axes: tuple[int, ...] = (0, 1)

    def normalised(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`image` (H, W, C), uint8, normalised: (H, W, C).

        Raises:
            UsageError: It has another number of channels.
        """
        return np.moveaxis(fit(image, self.channels)(image), 0, -1)
