"""Two classifiers on the same images: how their top-1 differs, and whether by more than chance.

Source of the test: Q. McNemar, Note on the sampling error of the difference between correlated
proportions or percentages, Psychometrika 12 (1947), in its exact form: of the images that only one
of both has right, each is as likely to be the one's or the other's.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from robustcli.evaluation.intervals import PairedCounts, paired_interval


@dataclass(frozen=True)
class ClassDifference:
    """A classifier's top-1 minus a reference's.

    Args:
        n: Images that both have.
        value: The difference of the shares that are right.
        low: Lower end of its paired 95 % interval.
        high: Its upper end.
        p: Of McNemar's exact test, two-sided; 1 where both have the same images right.
    """

    n: int
    value: float
    low: float
    high: float
    p: float

    @property
    def groups(self) -> int:
        """Independent units: every image is one."""
        return self.n

    @property
    def smallest_p(self) -> float:
        """The smallest p that so many images can give."""
        return 2.0 ** (1 - self.n)


def class_difference(reference: pd.DataFrame, rows: pd.DataFrame) -> ClassDifference | None:
    """What `rows` gains over `reference`, over the images that both have; None without any.

    Args:
        reference: Rows of one classifier (columns: `store.PREDICTION_SCHEMA`).
        rows: Rows of the other one.
    """
    both = reference.merge(rows, on="image_id", suffixes=("", "_other"), validate="1:1")
    if both.empty:
        return None
    before = (both["prediction"] == both["target"]).to_numpy()
    now = (both["prediction_other"] == both["target_other"]).to_numpy()
    won, lost = int((now & ~before).sum()), int((before & ~now).sum())
    counts = PairedCounts(int((now & before).sum()), won, lost, int((~now & ~before).sum()))
    low, high = paired_interval(counts)
    return ClassDifference(len(both), (won - lost) / len(both), low, high, mcnemar_p(won, lost))


def mcnemar_p(won: int, lost: int) -> float:
    """The two-sided exact p-value of `won` against `lost` single hits being chance alone."""
    if won + lost == 0:
        return 1.0
    from scipy.stats import binomtest  # takes most of a second to import

    return float(binomtest(won, won + lost, 0.5).pvalue)
