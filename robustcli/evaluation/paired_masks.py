"""Two segmenters on the same images: how much their dice differs, and whether by more than chance.

The value, its interval and its p-value are all of one statistic: each group's dice (the pixels of
its images pooled) in one segmenter minus that in the other, averaged over the groups. What is drawn
and what is flipped is a group, such as a patient, since its images resemble each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from robustcli.evaluation.bootstrap import Bootstrap
from robustcli.evaluation.mask_scores import paired_dice
from robustcli.evaluation.sign_flip import sign_flip_p, smallest_p


@dataclass(frozen=True)
class MaskDifference:
    """A segmenter's dice minus a reference's.

    Args:
        n: Images that both have.
        groups: Groups of these images.
        dice: Difference of the dice pooled within groups and averaged over them.
        low: Lower end of its paired 95 % bootstrap interval over groups; None with one group.
        high: Its upper end.
        p: Of the sign-flip test of the groups' differences, two-sided. None with one group.
        smallest_p: The smallest p that so many groups can give.
    """

    n: int
    groups: int
    dice: float
    low: float | None
    high: float | None
    p: float | None
    smallest_p: float

    @property
    def value(self) -> float:
        """The difference, whatever it is of."""
        return self.dice


def mask_difference(
    reference: pd.DataFrame, rows: pd.DataFrame, bootstrap: Bootstrap
) -> MaskDifference | None:
    """What `rows` gains over `reference`, over the images that both have; None without any.

    Args:
        reference: Rows of one segmenter (columns: `store.MASK_SCHEMA`).
        rows: Rows of the other one.
        bootstrap: The run's resamples; its seed also draws the signs.
    """
    before, after = paired_dice(reference, rows)
    gained, groups = after - before, len(before)
    if not groups:
        return None
    interval = bootstrap.mean(gained)
    return MaskDifference(
        len(set(reference["image_id"]) & set(rows["image_id"])),
        groups,
        float(gained.mean()),
        interval.low if interval else None,
        interval.high if interval else None,
        sign_flip_p(gained, bootstrap.seed) if groups > 1 else None,
        smallest_p(groups),
    )
