"""What MONAI's transforms lack for nnU-Net's augmentation: each channel by itself, no metadata."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms.transform import RandomizableTransform
from torch import Tensor


class PerChannel(RandomizableTransform):
    """`transform` on each channel by itself, with draws of its own.

    Args:
        transform: Applied whenever it is called.
        prob: Of touching the sample at all.
        channel_prob: Of touching a channel of it.
    """

    def __init__(
        self, transform: RandomizableTransform, *, prob: float, channel_prob: float = 1.0
    ) -> None:
        super().__init__(prob)
        self._transform, self._channel_prob = transform, channel_prob

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> PerChannel:
        """Seeds itself; its transform draws from the same generator in turn. MONAI calls it."""
        super().set_random_state(seed, state)
        self._transform.set_random_state(state=self.R)
        return self

    def __call__(self, image: Tensor) -> Tensor:
        """The changed image, (C, H, W)."""
        self.randomize(None)
        if not self._do_transform:
            return image
        channels = [
            plain(self._transform(c)) if self.R.rand() < self._channel_prob else c
            for c in image.split(1)
        ]
        return torch.cat(channels)


@contextmanager
def without_metadata() -> Iterator[None]:
    """MONAI keeps no record of what it did to a tensor, which would take a third of the time."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def plain(tensor: Tensor) -> Tensor:
    """`tensor` without MONAI's metadata."""
    bare: Tensor = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return bare
