"""Runs a model on batches, measures the time, and splits batches that do not fit into memory."""

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
    """Runs one model; halves the size of pieces whenever memory runs out.

    Args:
        model: The model, already on its device.
        predict: Called with inputs of equal length, one entry per image; None for `model.predict`.
        announce: Receives a line if the model continues with smaller pieces.
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
        """The predictions for `inputs`, as a list of consecutive pieces.

        Raises:
            RunError: A single image does not fit into memory.
        """
        images, started = len(inputs[0]), time.perf_counter()
        windows = _windows(self.model)
        pieces = self.limit.run(
            images, lambda part: self.predict(*(values[part] for values in inputs)),
            _size_in_words(inputs[0]),
        )  # fmt: skip
        if self.announce is not None and _windows(self.model) != windows:
            self.announce(
                f"Out of memory on {self.model.device}: `{self.model.facts.name}` now processes "
                f"the windows of an image in batches of {_windows(self.model)}."
            )
        self.cost.seconds += time.perf_counter() - started
        self.cost.images += images
        return pieces


def _windows(model: Model) -> int | None:
    return model.most_windows if isinstance(model, Segmenter) else None


def _size_in_words(images: Tensor | Sequence[Any]) -> str:
    """Width and height of a batch (n, C, H, W), or of the largest of several images (H, W, 3)."""
    if isinstance(images, Tensor):
        height, width = images.shape[-2:]
        return f"{width}x{height} pixels"
    height, width = max((np.shape(image)[:2] for image in images), key=np.prod)
    return f"{width}x{height} pixels"
