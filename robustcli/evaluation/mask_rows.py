"""A segmenter's answers as rows: pixel counts and distances of outlines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robustcli.adapters.segmenter import Segmenter
from robustcli.data.mask_values import IGNORED
from robustcli.evaluation.forward import Forward
from robustcli.evaluation.loader import Batch
from robustcli.evaluation.moved_pairs import Mask, MaskedImages
from robustcli.evaluation.relaxed import near_counts
from robustcli.evaluation.sessions import ModelCost
from robustcli.evaluation.surfaces import surface_distance
from robustcli.evaluation.task import Row


class MaskRows:
    """One segmenter answering batches of masked images.

    Args:
        segmenter: On its device.
        tolerance: Of the data, in pixels; None for data without.
    """

    def __init__(self, segmenter: Segmenter, tolerance: int | None = None) -> None:
        self.tolerance = tolerance
        self.threshold = segmenter.preprocessing.threshold
        self.forward = Forward(segmenter.facts.name, segmenter.device, segmenter.probabilities)

    @property
    def cost(self) -> ModelCost:
        """What its forward passes took; comparing the masks is not in it."""
        return self.forward.cost

    def rows(self, batch: Batch[MaskedImages]) -> list[Row]:
        """One row an image (columns: `store.mask_schema`)."""
        pieces = self.forward(batch.inputs.images)
        found = [probability >= self.threshold for piece in pieces for probability in piece]
        both = zip(batch.image_ids, batch.inputs.groups, found, batch.inputs.masks, strict=True)
        return [
            {"image_id": name, "group": group, **mask_row(prediction, truth, self.tolerance)}
            for name, group, prediction, truth in both
        ]


def mask_row(prediction: Mask, truth: Mask, tolerance: int | None = None) -> Row:
    """What a row says of a predicted and a true mask, both (H, W).

    Args:
        prediction: Where foreground was found.
        truth: Where it is: bool, or uint8 with 0, 1 and IGNORED. Ignored pixels are in no count,
            and outlines are those of what is left.
        tolerance: In pixels, for the counts of `relaxed`; None leaves them out.
    """
    counted = np.ones(truth.shape, bool) if truth.dtype == bool else truth != IGNORED
    prediction, truth = prediction & counted, truth == 1
    outlines = surface_distance(prediction, truth)
    row: Row = {
        "tp": _pixels(prediction & truth),
        "fp": _pixels(prediction & ~truth),
        "fn": _pixels(~prediction & truth),
        "tn": _pixels(~prediction & ~truth & counted),
        "hd95": None if outlines is None else outlines.hd95,
        "boundary_dice": None if outlines is None else outlines.boundary_dice,
    }
    return row if tolerance is None else row | near_counts(prediction, truth, tolerance)


def _pixels(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))
