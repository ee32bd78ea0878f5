"""A classifier ready to measure: uint8 views in, classes and probabilities out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.adapters.model import (
    AUTOCAST,
    ModelFacts,
    Precision,
    Trial,
    check_scores,
    first_pass,
    made_up_image,
)
from robustcli.adapters.preprocessing import Preprocessing


@dataclass(frozen=True)
class Predictions:
    """Of n images: the classes of the five highest logits, best first, and two probabilities."""

    top5: NDArray[np.int32]
    probability: NDArray[np.float32]
    target_probability: NDArray[np.float32]


class Classifier:
    """A network on its device, with its preprocessing and precision.

    Args:
        network: In eval mode.
        preprocessing: How images become its input.
        facts: For the record.
        notes: What is to be announced of how it was loaded.
    """

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, facts: ModelFacts,
        notes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.network, self.preprocessing, self.facts = network, preprocessing, facts
        self.notes = notes
        self.device = torch.device("cpu")
        self.precision: Precision = "fp32"

    def to(self, device: torch.device, precision: Precision) -> Classifier:
        """This classifier, moved."""
        self.network.to(device)
        self.device, self.precision = device, precision
        return self

    def try_out(self) -> None:
        """Puts one made-up image through the network.

        Raises:
            UsageError: It cannot take images of its preprocessing, or does not answer as a
                classifier; the message says what it wants.
        """
        own, facts = self.preprocessing, self.facts
        shape = (own.channels, own.crop, own.crop)
        tried = Trial(facts.name, facts.builder, facts.arguments, shape, precision=self.precision)
        scores = first_pass(lambda: self._output(made_up_image(shape)), tried)
        check_scores(scores, getattr(self.network, "num_classes", None), tried)

    @torch.inference_mode()
    def logits(self, views: Tensor) -> Tensor:
        """Float32 logits (n, classes) of uint8 views (n, C, H, W) on any device."""
        logits: Tensor = self._output(views)
        return logits.float()

    def _output(self, views: Tensor) -> Any:
        images = self._normalise(views.to(self.device, non_blocking=True))
        autocast = AUTOCAST.get(self.precision)
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            return self.network(images)

    def predict(self, views: Tensor, targets: Tensor) -> Predictions:
        """The answers for uint8 views (n, C, H, W) whose true classes are `targets` (n)."""
        probabilities = self.logits(views).softmax(1)
        most = min(5, probabilities.shape[1])
        best = probabilities.topk(most, 1)
        of_target = probabilities.gather(1, targets.to(self.device)[:, None])
        return Predictions(
            best.indices.to(torch.int32).cpu().numpy(),
            best.values[:, 0].cpu().numpy(),
            of_target[:, 0].cpu().numpy(),
        )

    def _normalise(self, views: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(v, device=self.device).view(1, -1, 1, 1)
            for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (views.float() / 255 - mean) / std
