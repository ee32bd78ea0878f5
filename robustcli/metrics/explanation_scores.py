"""Scores of explanations: of single maps, and of the rows of a run of `robust explain`.

A map, (H, W), contains the relevance of each pixel for a class. In signed maps, negative values are
evidence against the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed
from robustcli.metrics.intervals import Bootstrap, both_ends, wilson_interval

Map = NDArray[np.floating]

# Scores of one map.


POINTING_TOLERANCE = 15
"""In pixels of a 224 x 224 image. Source: J. Zhang et al., Top-down neural attention by excitation
backprop, IJCV 126 (2018), section 5.1."""


def curve_area(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """The area under insertion or deletion curves, by trapezoids; (N, S) -> (N,).

    The scores are those after inserting (or deleting) 0, 1 / (S - 1), ..., 1 of the pixels, so the
    area of a score in [0, 1] is in [0, 1].

    Args:
        scores: Scores of N images at S evenly spaced shares of pixels; S is at least 2.

    Source: V. Petsiuk, A. Das, K. Saenko, RISE: Randomized input sampling for explanation of
    black-box models, BMVC 2018, section 3.4.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"`scores` must be (N, S) with S at least 2, not {scores.shape}.")
    values = scores.astype(np.float64)
    areas: NDArray[np.float64] = (values[:, 1:] + values[:, :-1]).mean(axis=1) / 2
    return areas


def pointing_hit(
    relevance: Map, region: NDArray[np.bool_], tolerance: float | None = None
) -> bool | None:
    """Whether the largest value of a map is in `region`, or within `tolerance` pixels of it.

    Of several largest values, the first in row-major order is used. None if the map is constant or
    not finite, or the region is empty.

    Args:
        relevance: (H, W).
        region: (H, W), true inside the object.
        tolerance: Euclidean distance in pixels, 0 or more; None for POINTING_TOLERANCE of a
            224 x 224 image, scaled by the map's longer side.

    Source: J. Zhang et al., IJCV 126 (2018), section 5.1.
    """
    if relevance.shape != region.shape:
        raise ValueError(f"Map {relevance.shape} and region {region.shape} differ in size.")
    if not _tells_pixels_apart(relevance) or not region.any():
        return None
    if tolerance is None:
        tolerance = POINTING_TOLERANCE * max(relevance.shape) / 224
    row, column = np.unravel_index(int(np.argmax(relevance)), relevance.shape)
    rows, columns = np.nonzero(region)
    nearest = np.hypot(rows - row, columns - column).min()
    return bool(nearest <= tolerance)


def box_region(box: tuple[float, float, float, float], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask, bool (H, W), of the pixels with a centre inside a box.

    Args:
        box: Left, top, right and bottom edge in pixels; pixel (0, 0) extends from 0 to 1.
        shape: Height and width.
    """
    left, top, right, bottom = box
    y, x = (np.arange(side) + 0.5 for side in shape)
    return np.outer((y >= top) & (y < bottom), (x >= left) & (x < right))


def map_correlation(
    first: Map, second: Map, where: NDArray[np.bool_] | None = None
) -> float | None:
    """Spearman's rank correlation of two maps, in [-1, 1]; equal values share their mean rank.

    None if one of them is constant or not finite.

    Args:
        first: (H, W).
        second: (H, W).
        where: The pixels to compare, bool (H, W); None for all.
    """
    if first.shape != second.shape:
        raise ValueError(f"The maps differ in size: {first.shape} and {second.shape}.")
    mask = np.ones(first.shape, dtype=bool) if where is None else where
    first_values, second_values = first[mask], second[mask]
    if not (_tells_pixels_apart(first_values) and _tells_pixels_apart(second_values)):
        return None
    x, y = (
        ranks - ranks.mean() for ranks in (_mean_ranks(first_values), _mean_ranks(second_values))
    )
    return float(np.clip((x @ y) / math.sqrt((x @ x) * (y @ y)), -1, 1))


def _mean_ranks(values: Map) -> NDArray[np.float64]:
    _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[level]
    return ranks


def _tells_pixels_apart(values: Map) -> bool:
    return bool(values.size and np.isfinite(values).all() and values.min() < values.max())


def centroid(relevance: Map) -> tuple[float, float] | None:
    """Row and column of the centroid of the positive values, the evidence for the class.

    None if no value is positive, or a value is not finite.
    """
    evidence = np.clip(relevance.astype(np.float64), 0, None)
    total = float(evidence.sum())
    if not math.isfinite(total) or total <= 0:
        return None
    row = float(evidence.sum(axis=1) @ np.arange(evidence.shape[0])) / total
    column = float(evidence.sum(axis=0) @ np.arange(evidence.shape[1])) / total
    return row, column


def centroid_shift(first: Map, second: Map) -> float | None:
    """The distance of the centroids of two maps as a share of the image diagonal, in [0, 1].

    The diagonal connects the centres of two corner pixels. None if a map has no centroid, or the
    image is a single pixel.
    """
    if first.shape != second.shape:
        raise ValueError(f"The maps differ in size: {first.shape} and {second.shape}.")
    first_centroid, second_centroid = centroid(first), centroid(second)
    diagonal = math.hypot(*(side - 1 for side in first.shape))
    if first_centroid is None or second_centroid is None or diagonal == 0:
        return None
    return math.dist(first_centroid, second_centroid) / diagonal


FIELD_SHARES = (0.5, 0.95)
"""Shares of the total influence on one position of a feature map."""


def field_sides(influence: Map) -> dict[float, float]:
    """The side of the smallest centred square with each of FIELD_SHARES of the influence.

    Sides are shares of the shorter side of the map, in (0, 1]; 1 if no square contains the share.

    Args:
        influence: Influence of each input pixel, (H, W), not negative.

    Source: X. Ding et al., Scaling up your kernels to 31x31, CVPR 2022, section 5.3.
    """
    values = influence.astype(np.float64)
    sides, total = dict.fromkeys(FIELD_SHARES, 1.0), float(values.sum())
    if total <= 0:
        return sides
    y, x = (np.abs(np.arange(side) - (side - 1) / 2) for side in values.shape)
    distance = np.maximum(y[:, None], x[None, :]).ravel()
    order = np.argsort(distance, kind="stable")
    reached = np.cumsum(values.ravel()[order]) / total
    for share in FIELD_SHARES:
        # Because of rounding, the cumulative share at the last pixel can be below 1.
        last = order[min(int(np.searchsorted(reached, share - 1e-12)), len(order) - 1)]
        sides[share] = min(1.0, (2 * float(distance[last]) + 1) / min(values.shape))
    return sides


# Means over the photos of a cell, with intervals.


FEWEST = 5
"""Smallest number of photos per group for an interval of the difference of two groups."""
_DRAWS = 2_000


@dataclass(frozen=True)
class Mean:
    """The mean of a score over photos.

    Args:
        n: Number of photos with the score.
        value: The mean; None if no photo has the score.
        low: Lower end of its 95 % bootstrap interval; None for fewer than `FEWEST_UNITS` photos.
        high: Upper end of that interval.
    """

    n: int
    value: float | None
    low: float | None
    high: float | None


def mean_scores(values: NDArray[np.floating], bootstrap: Bootstrap) -> list[Mean]:
    """The mean of each column of `values` (photos, scores) over the photos that have the score.

    Args:
        values: Scores; NaN or infinite if a photo does not have a score.
        bootstrap: Defines seed and confidence level; 2,000 resamples are drawn.
    """
    return [sample.mean for sample in _samples(values, bootstrap)]


@dataclass(frozen=True)
class _Sample:
    """A mean with the means of its resamples, which are None for fewer than two photos."""

    mean: Mean
    draws: NDArray[np.float64] | None


def _samples(values: NDArray[np.floating], bootstrap: Bootstrap) -> list[_Sample]:
    """One sample per column; columns that are finite for the same photos share their resamples."""
    numbers = np.asarray(values, dtype=np.float64)
    known = np.isfinite(numbers)
    resampling = replace(bootstrap, draws=_DRAWS)
    samples: dict[int, _Sample] = {}
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        columns = np.flatnonzero(pattern_of == number)
        part = numbers[np.ix_(patterns[:, number], columns)]
        n = len(part)
        draws = resampling.means(part) if n > 1 else None
        for place, column in enumerate(columns):
            of_column = None if draws is None else draws[:, place]
            low, high = both_ends(None if of_column is None else bootstrap.ends(of_column, n))
            value = float(part[:, place].mean()) if n else None
            samples[int(column)] = _Sample(Mean(n, value, low, high), of_column)
    return [samples[column] for column in range(numbers.shape[1])]


@dataclass(frozen=True)
class FlipContrast:
    """Compares a score between photos with a changed and with an unchanged prediction.

    Args:
        flipped: Mean over the photos with a prediction that differs from the clean photo's.
        kept: Mean over the photos with the same prediction as the clean photo.
        difference: Mean of the flipped minus mean of the kept; None if a group is empty.
        low: Lower end of its 95 % interval; None if a group has fewer than FEWEST photos.
        high: Upper end of that interval.
    """

    flipped: Mean
    kept: Mean
    difference: float | None
    low: float | None
    high: float | None

    @property
    def shown(self) -> bool:
        """Whether the interval of the difference excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def flip_contrasts(
    values: NDArray[np.floating], flipped: NDArray[np.bool_], bootstrap: Bootstrap
) -> list[FlipContrast]:
    """The contrast of each column of `values` (photos, scores) between flipped and kept photos.

    The two groups are resampled independently of each other.

    Args:
        values: See `mean_scores`.
        flipped: Whether the prediction of each photo flips, bool (photos,).
        bootstrap: See `mean_scores`.

    Source: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993, section 8.3.
    """
    # Two seeds: with one seed, groups of equal size would get the same resamples.
    of_flipped, of_kept = (
        replace(bootstrap, seed=identity_seed(bootstrap.seed, name)) for name in ("flipped", "kept")
    )
    pairs = zip(
        _samples(values[flipped], of_flipped), _samples(values[~flipped], of_kept), strict=True
    )
    return [_contrast(*pair, bootstrap) for pair in pairs]


def _contrast(flipped: _Sample, kept: _Sample, bootstrap: Bootstrap) -> FlipContrast:
    flipped_mean, kept_mean = flipped.mean, kept.mean
    if flipped_mean.value is None or kept_mean.value is None:
        return FlipContrast(flipped_mean, kept_mean, None, None, None)
    difference, fewest = flipped_mean.value - kept_mean.value, min(flipped_mean.n, kept_mean.n)
    if fewest < FEWEST or flipped.draws is None or kept.draws is None:
        return FlipContrast(flipped_mean, kept_mean, difference, None, None)
    ends = both_ends(bootstrap.ends(flipped.draws - kept.draws, fewest))
    return FlipContrast(flipped_mean, kept_mean, difference, *ends)


# Numerical errors of the methods.


@dataclass(frozen=True)
class ErrorSummary:
    """The absolute errors of a method's numerical self-check over photos.

    Args:
        n: Number of photos with the check.
        median: Median error; None if no photo has the check.
        p95: 95th percentile, interpolated; None if no photo has the check.
        largest: Largest error; None if no photo has the check.
    """

    n: int
    median: float | None
    p95: float | None
    largest: float | None


def error_summary(errors: Sequence[float] | NDArray[np.floating]) -> ErrorSummary:
    """The median, the 95th percentile and the maximum of the known absolute errors."""
    known = np.abs(np.asarray(errors, dtype=np.float64))
    known = known[np.isfinite(known)]
    if not len(known):
        return ErrorSummary(0, None, None, None)
    median, p95 = np.percentile(known, [50, 95])
    return ErrorSummary(len(known), float(median), float(p95), float(known.max()))


# The scores of a run of `robust explain` by cell.


SCORES = (
    *("insertion_auc", "deletion_auc", "pointing_hit"),
    *("map_similarity", "centroid_shift", "sanity_similarity"),
)
"""Columns of rows that are averaged."""
ERRORS = ("completeness_error", "conservation_error")
CONTRASTED = ("map_similarity", "centroid_shift")
"""Scores that compare the map of a transformed photo with that of the clean photo."""


class ExplanationCellKey(NamedTuple):
    """The columns that define a cell."""

    model: str
    method: str
    transform: str
    severity: int
    view: str
    target_kind: str


@dataclass(frozen=True)
class ExplanationCell:
    """The scores for one method, transform, photo view and kind of target class.

    Args:
        key: The values that define the cell.
        n: Number of photos.
        flipped: Number of photos with a prediction that the transform changes.
        means: Means of the columns SCORES, by name; with the Wilson interval for `pointing_hit`.
        contrasts: Contrasts of the columns CONTRASTED, by name.
        errors: Errors of the columns ERRORS, by name.
    """

    key: ExplanationCellKey
    n: int
    flipped: int
    means: dict[str, Mean]
    contrasts: dict[str, FlipContrast]
    errors: dict[str, ErrorSummary]


def explanation_cells(rows: pd.DataFrame, bootstrap: Bootstrap) -> list[ExplanationCell]:
    """The cells of `rows`, in the order in which they first occur.

    Args:
        rows: One row per photo and cell; columns: the fields of ExplanationCellKey, `image_id`,
            `flipped`, SCORES and ERRORS.
        bootstrap: The settings of the run's resamples.

    Raises:
        ValueError: A photo has two rows in a cell.
    """
    cells = []
    rows = rows.assign(**{name: _numbers(rows[name]) for name in (*SCORES, *ERRORS)})
    for _, cell in rows.groupby(list(ExplanationCellKey._fields), sort=False):
        first = cell.iloc[0]
        key = ExplanationCellKey._make(first[name] for name in ExplanationCellKey._fields)
        twice = cell["image_id"][cell["image_id"].duplicated()]
        if len(twice):
            raise ValueError(f"The photo `{twice.iloc[0]}` has two rows in the cell {key}.")
        flipped = np.array([value is True for value in cell["flipped"].astype(object)])
        scores = cell[list(SCORES)].to_numpy()
        contrasted = scores[:, [SCORES.index(name) for name in CONTRASTED]]
        means = dict(zip(SCORES, mean_scores(scores, bootstrap), strict=True))
        means["pointing_hit"] = _share(means["pointing_hit"], bootstrap.confidence)
        cells.append(
            ExplanationCell(
                key._replace(severity=int(key.severity)),
                len(cell),
                int(flipped.sum()),
                means,
                dict(zip(CONTRASTED, flip_contrasts(contrasted, flipped, bootstrap), strict=True)),
                {name: error_summary(cell[name].to_numpy()) for name in ERRORS},
            )
        )
    return cells


def _share(mean: Mean, confidence: float) -> Mean:
    """`mean` of zeros and ones with its Wilson interval, which has a width if all are equal."""
    if mean.value is None:
        return mean
    interval = wilson_interval(round(mean.value * mean.n), mean.n, confidence)
    return Mean(mean.n, mean.value, *interval)


def sanity_summary(rows: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Mean]:
    """The mean rank correlation of maps with maps of shuffled weights, by method.

    The correlations of one photo are averaged first. A value near 0 shows that a map depends on the
    learned weights; a value near 1 shows that it does not.

    Args:
        rows: Rows with the columns `image_id`, `method`, `sanity_similarity`.
        bootstrap: The settings of the run's resamples.

    Source: J. Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018.
    """
    known = rows[rows["sanity_similarity"].notna()]
    return {
        str(method): mean_scores(
            of_method.groupby("image_id", sort=False)[["sanity_similarity"]].mean().to_numpy(),
            bootstrap,
        )[0]
        for method, of_method in known.groupby("method", sort=False)
    }


def _numbers(column: pd.Series) -> NDArray[np.float64]:
    """`column` (numbers, booleans or None) as floats, with NaN for None."""
    numbers = column.astype(object).where(column.notna(), np.nan)
    return np.asarray(numbers, dtype=np.float64)
