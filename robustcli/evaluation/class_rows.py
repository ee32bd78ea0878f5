"""A classifier's answers as rows."""

from __future__ import annotations

import torch

from robustcli.adapters.classifier import Classifier, Predictions
from robustcli.evaluation.forward import Forward
from robustcli.evaluation.loader import Batch
from robustcli.evaluation.sessions import ModelCost
from robustcli.evaluation.task import Row
from robustcli.evaluation.views import Views


class ClassRows:
    """One classifier answering batches of views."""

    def __init__(self, classifier: Classifier) -> None:
        self.view = classifier.preprocessing.view
        self.forward = Forward(classifier.facts.name, classifier.device, classifier.predict)

    @property
    def cost(self) -> ModelCost:
        """What its forward passes took."""
        return self.forward.cost

    def rows(self, batch: Batch[Views]) -> list[Row]:
        """One row an image (columns: `store.PREDICTION_SCHEMA`)."""
        targets = batch.inputs.targets
        pieces = self.forward(batch.inputs.views[self.view], torch.tensor(targets))
        answers = [answer for piece in pieces for answer in _rows(piece)]
        named = zip(batch.image_ids, targets, answers, strict=True)
        return [{"image_id": name, "target": target, **answer} for name, target, answer in named]


def _rows(piece: Predictions) -> list[Row]:
    return [
        {
            "prediction": int(top5[0]),
            "top5": top5.tolist(),
            "probability": float(probability),
            "target_probability": float(of_target),
        }
        for top5, probability, of_target in zip(
            piece.top5, piece.probability, piece.target_probability, strict=True
        )
    ]
