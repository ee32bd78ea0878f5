"""Classifiers for evaluation: uint8 images in, classes and probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.adapters.model import (
    ModelFacts,
    Precision,
    Trial,
    check_class_scores,
    check_probabilities,
    first_pass,
    made_up_image,
    number_format,
)
from robustcli.adapters.preprocessing import Preprocessing


@dataclass(frozen=True)
class Predictions:
    """Predictions of n images: the five best classes, best first, and two probabilities.

    `target` is the probability of the true class; with several true classes, of the best-ranked.
    """

    top5: NDArray[np.int32]
    probability: NDArray[np.float32]
    target: NDArray[np.int64]
    target_probability: NDArray[np.float32]


@dataclass(frozen=True)
class Ranking:
    """Indices of the most probable classes of an image, best first, and their probabilities."""

    classes: tuple[int, ...]
    probabilities: tuple[float, ...]


class Classifier:
    """A network on its device, with its preprocessing and precision.

    Args:
        network: The network in eval mode.
        preprocessing: Preprocessing of its input.
        facts: Facts about the model for the record.
        notes: Announcements about loading.
        classes: Number of leading outputs that are classes, if further outputs were never
            trained; None for all.
    """

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, facts: ModelFacts,
        notes: tuple[str, ...] = (), *, classes: int | None = None,
    ) -> None:  # fmt: skip
        self.network, self.preprocessing, self.facts = network, preprocessing, facts
        self.notes, self.classes = notes, classes
        self.device = torch.device("cpu")
        self.precision: Precision = "fp32"

    def to(self, device: torch.device, precision: Precision) -> Classifier:
        """Moves this classifier to `device` and `precision`; returns it."""
        self.network.to(device)
        self.device, self.precision = device, precision
        return self

    def with_preprocessing(
        self, preprocessing: Preprocessing, facts: ModelFacts | None = None
    ) -> Classifier:
        """This classifier with other preprocessing and, if given, other facts."""
        return Classifier(
            self.network, preprocessing, facts or self.facts, self.notes, classes=self.classes
        )

    def try_out(self) -> None:
        """Runs one generated image through the network.

        Raises:
            UsageError: The network cannot process images of its preprocessing, or its output is
                not that of a classifier; the message states the expected input.
        """
        preprocessing, facts = self.preprocessing, self.facts
        shape = (preprocessing.channels, preprocessing.crop, preprocessing.crop)
        tried = Trial(facts.name, facts.builder, facts.arguments, shape, precision=self.precision)
        scores = first_pass(lambda: self._output(made_up_image(shape)), tried)
        check_class_scores(scores, getattr(self.network, "num_classes", None), tried)

    @torch.inference_mode()
    def logits(self, views: Tensor) -> Tensor:
        """Float32 logits (n, classes) of uint8 views (n, C, H, W) on any device."""
        logits: Tensor = self._output(views)
        return logits[:, : self.classes].float()

    def _output(self, views: Tensor) -> Any:
        images = self.normalised(views.to(self.device, non_blocking=True))
        with number_format(self.device, self.precision):
            return self.network(images)

    def predict(
        self,
        views: Tensor,
        targets: Tensor,
        answers: Sequence[int] | None = None,
        members: Sequence[Sequence[int]] | None = None,
    ) -> Predictions:
        """Predictions for uint8 images (n, C, H, W).

        Args:
            views: Preprocessed images.
            targets: True classes (n,), or several per image (n, k), padded by repetition.
            answers: Allowed classes, over whose logits the softmax is computed; None for all.
            members: The classes of each superclass, to predict superclasses. The probability of a
                superclass is the mean over its classes, normalised over all superclasses.

        Raises:
            RunError: A probability is NaN.
        """
        logits, targets = self.logits(views), targets.to(self.device)
        most = min(5, logits.shape[1] if members is None else len(members))
        if answers is not None:
            excluded = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
            excluded[list(answers)] = False
            logits, most = logits.masked_fill(excluded, -torch.inf), min(most, len(answers))
        probabilities = logits.softmax(1)
        if members is not None:
            means = [probabilities[:, list(classes)].mean(1) for classes in members]
            probabilities = torch.stack(means, 1)
            probabilities = probabilities / probabilities.sum(1, keepdim=True)
        best = probabilities.topk(most, 1)
        several = targets if targets.ndim == 2 else targets[:, None]
        of_targets = probabilities.gather(1, several)
        # Equal probabilities: use that of the predicted class.
        chosen = (of_targets + (several == best.indices[:, :1])).argmax(1, keepdim=True)
        probability = best.values[:, 0].cpu().numpy()
        check_probabilities(probability, self.facts.name, self.precision)
        return Predictions(
            best.indices.to(torch.int32).cpu().numpy(),
            probability,
            several.gather(1, chosen)[:, 0].cpu().numpy(),
            of_targets.gather(1, chosen)[:, 0].cpu().numpy(),
        )

    def ranked(self, views: Tensor, most: int) -> list[Ranking]:
        """The `most` most probable classes of each uint8 image (n, C, H, W), or all if fewer.

        Raises:
            RunError: A probability is NaN.
        """
        probabilities = self.logits(views).softmax(1)
        best = probabilities.topk(min(most, probabilities.shape[1]), 1)
        check_probabilities(best.values.cpu().numpy(), self.facts.name, self.precision)
        return [
            Ranking(tuple(indices), tuple(values))
            for indices, values in zip(
                best.indices.cpu().tolist(), best.values.cpu().tolist(), strict=True
            )
        ]

    def normalised(self, views: Tensor) -> Tensor:
        """The network's input, float32 (n, C, H, W), for uint8 images on its device."""
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
            for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (views.float() / 255 - mean) / std
