"""A model's answers for a batch, timed, in as many pieces as its memory needs."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from robustcli.adapters.classifier import Classifier, Predictions
from robustcli.core.errors import RunError
from robustcli.evaluation.sessions import ModelCost


class Forward:
    """Runs one classifier; halves the piece it computes at once whenever memory runs out."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.cost = ModelCost()
        self.most: int | None = None

    def __call__(self, views: Tensor, targets: Tensor) -> Predictions:
        """The answers for uint8 views (n, 3, H, W), n at least 1, and true classes (n).

        Raises:
            RunError: Not even one image fits into memory.
        """
        started = time.perf_counter()
        while True:
            try:
                pieces = self._pieces(views, targets)
                break
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._halve(len(views), error)
        self.cost.seconds += time.perf_counter() - started
        self.cost.images += len(views)
        return Predictions(
            *(
                np.concatenate([getattr(piece, name) for piece in pieces])
                for name in ("top5", "probability", "target_probability")
            )
        )

    def _pieces(self, views: Tensor, targets: Tensor) -> list[Predictions]:
        size = self.most or len(views)
        parts = zip(views.split(size), targets.split(size), strict=True)
        return [self.classifier.predict(*part) for part in parts]

    def _halve(self, size: int, error: Exception) -> None:
        if not _is_out_of_memory(error):
            raise error
        self.most = (self.most or size) // 2
        if self.classifier.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.most == 0:
            raise RunError(
                f"`{self.classifier.facts.name}` does not fit into the memory of "
                f"{self.classifier.device}.",
                "It ran out with a batch of one image.",
                "Try `--precision bf16` or `--device cpu`; the same command continues the run.",
            ) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; the CPU allocator says so only in the text of a RuntimeError."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or "can't allocate memory" in str(error) or "out of memory" in str(error)
