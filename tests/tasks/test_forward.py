"""Halving on out-of-memory, timing, and errors that are none of its business."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from robustcli.adapters.classifier import Predictions
from robustcli.core.errors import RunError
from robustcli.tasks.forward import Forward


class Small:
    """A classifier whose memory holds `most` images; it remembers the sizes it was asked for."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.sizes = most, error, []
        self.facts, self.device = SimpleNamespace(name="small"), torch.device("cpu")

    def forward(self) -> Forward:
        return Forward(self)

    def predict(self, views: torch.Tensor, targets: torch.Tensor) -> Predictions:
        self.sizes.append(len(views))
        if len(views) > self.most:
            raise self.error
        top5 = targets[:, None].to(torch.int32).numpy()
        chance = views[:, 0, 0, 0].numpy().astype(np.float32)
        return Predictions(top5, chance, targets.numpy(), chance)


VIEWS = torch.arange(11, dtype=torch.uint8)[:, None, None, None].expand(11, 3, 2, 2)
TARGETS = torch.arange(11)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_the_batch_is_halved_until_it_fits_and_stays_in_order(error):
    small = Small(3, error)
    forward = small.forward()
    answers = forward(VIEWS, TARGETS)
    assert [n for a in answers for n in a.top5[:, 0].tolist()] == list(range(11))
    assert [n for a in answers for n in a.probability.tolist()] == list(range(11))
    assert small.sizes == [11, 5, 2, 2, 2, 2, 2, 1]
    small.sizes.clear()
    forward(VIEWS, TARGETS)
    assert max(small.sizes) == 2, "the size that fits is remembered"


def test_not_even_one_image_fits():
    forward = Small(0, torch.OutOfMemoryError("CUDA out of memory")).forward()
    with pytest.raises(RunError, match="`small` does not fit into the memory of cpu"):
        forward(VIEWS, TARGETS)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes differ"):
        Small(0, RuntimeError("shapes differ")).forward()(VIEWS, TARGETS)


def test_cost_counts_images_and_seconds():
    forward = Small(99, MemoryError()).forward()
    forward(VIEWS, TARGETS)
    forward(VIEWS, TARGETS)
    assert forward.cost.images == 22
    assert forward.cost.seconds > 0
