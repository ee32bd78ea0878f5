"""A model's answers for a batch, timed, in as many pieces as its memory needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from robustcli.adapters.memory import Announce, BatchLimit
from robustcli.adapters.model import Model
from robustcli.adapters.segmenter import Segmenter
from robustcli.tasks.record import ModelCost


class Forward:
    """Runs one model; halves the piece it computes at once whenever memory runs out.

    Args:
        model: On its device.
        predict: Takes equally long inputs, one entry an image; None for the model's own.
        announce: Receives a line when the model goes on with smaller pieces.
    """

    def __init__(
        self, model: Model, predict: Callable[..., Any] | None = None,
        announce: Announce | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.predict = predict or model.predict
        self.cost = ModelCost()
        self.announce = announce
        self.limit = BatchLimit(model, announce)

    def __call__(self, *inputs: Tensor | Sequence[Any]) -> list[Any]:
        """The answers for `inputs`, in pieces that follow one another.

        Raises:
            RunError: Not even one image fits into memory.
        """
        images, started = len(inputs[0]), time.perf_counter()
        windows = _windows(self.model)
        pieces = self.limit.run(
            images, lambda part: self.predict(*(values[part] for values in inputs)),
            _size_in_words(inputs[0]),
        )  # fmt: skip
        if self.announce is not None and _windows(self.model) != windows:
            self.announce(
                f"Out of memory on {self.model.device}: `{self.model.facts.name}` goes on with the "
                f"windows of an image in batches of {_windows(self.model)}."
            )
        self.cost.seconds += time.perf_counter() - started
        self.cost.images += images
        return pieces


def _windows(model: Model) -> int | None:
    return model.most_windows if isinstance(model, Segmenter) else None


def _size_in_words(images: Tensor | Sequence[Any]) -> str:
    """The largest width and height of (n, C, H, W), or of images (H, W, 3)."""
    if isinstance(images, Tensor):
        height, width = images.shape[-2:]
        return f"{width}x{height} pixels"
    height, width = max((np.shape(image)[:2] for image in images), key=np.prod)
    return f"{width}x{height} pixels"
