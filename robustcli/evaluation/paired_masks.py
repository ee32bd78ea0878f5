"""Two segmenters on the same images: how much their dice differs, and whether by more than chance.

What is drawn and what is flipped is a group, such as a patient: its images resemble each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustcli.evaluation.bootstrap import Bootstrap
from robustcli.evaluation.mask_scores import compare_masks, dice
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
        p: Of the images' own dice, two-sided: the signs of all images of a group are flipped
            together, so that groups are the independent units. None with one group.
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
    compared = compare_masks(reference, rows, bootstrap)
    if compared.drop is None:
        return None
    both = reference.merge(rows, on="image_id", suffixes=("", "_other"), validate="1:1")
    other = both[["tp_other", "fp_other", "fn_other"]].set_axis(["tp", "fp", "fn"], axis=1)
    sums = pd.Series(dice(other) - dice(both)).groupby(both["group"].to_numpy()).sum()
    groups = len(sums)
    return MaskDifference(
        len(both),
        groups,
        -compared.drop,
        None if compared.drop_high is None else -compared.drop_high,
        None if compared.drop_low is None else -compared.drop_low,
        sign_flip_p(np.array(sums.tolist()), bootstrap.seed) if groups > 1 else None,
        smallest_p(groups),
    )
