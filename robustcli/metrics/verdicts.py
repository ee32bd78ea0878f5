"""Compares several models, with the uncertainty of each comparison; pure functions of rows.

Rows are passed as `{model: {(transform, severity): rows}}`, with the columns of
`metrics.columns.ROW_SCHEMAS`. Every score only uses images that all compared models have.

The table of verdicts contains every pair of models in every cell; p-values are adjusted over the
entire table, so the probability of any false difference in a table is at most 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.core.names import TaskName
from robustcli.metrics.class_scores import is_correct
from robustcli.metrics.columns import common_images
from robustcli.metrics.intervals import (
    DIFFERENCES_OF_SHARES,
    FEWEST_UNITS,
    SHARES,
    Bootstrap,
    FloatArray,
    Interval,
    both_ends,
    mean_interval,
    wilson_interval,
)
from robustcli.metrics.mask_scores import group_dice
from robustcli.metrics.paired import (
    PairedDifference,
    dice_difference,
    exact_sign_flip_p,
    hit_difference,
    smallest_exact_p,
)

CellKey = tuple[str, int]
"""Transform and severity."""
ModelRows = Mapping[str, Mapping[CellKey, pd.DataFrame]]
Outcome = Literal["first ahead", "second ahead", "no difference shown"]

ALPHA = 0.05
"""The family-wise error rate: a difference is significant if the adjusted p is at most this."""
RANK_DRAWS = 2_000


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order of `p_values`.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal
    of Statistics 6 (1979), 65-70.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class Verdict:
    """Compares two models under one transform, on `n` common images in `groups` independent units.

    The units are images, or a segmenter's groups of images. `severity` is None for means over
    several severities. `difference` is the top-1 (or the dice averaged over groups) of `first`
    minus that of `second`, a fraction, with its paired 95 % interval and the two-sided `p` of the
    paired test, None for few groups; `p_adjusted` is adjusted by Holm's method over the table.
    """

    first: str
    second: str
    transform: str
    severity: int | None
    n: int
    groups: int
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None = None

    @property
    def outcome(self) -> Outcome:
        """Which model is ahead, if the adjusted p is significant at `ALPHA`."""
        if self.p_adjusted is None or self.p_adjusted > ALPHA:
            return "no difference shown"
        return "first ahead" if self.difference > 0 else "second ahead"


def verdicts(rows: ModelRows, task: TaskName, bootstrap: Bootstrap) -> list[Verdict]:
    """A verdict for each pair of models in each common cell, pair by pair.

    Classifiers: McNemar's exact test and Newcombe's paired interval. Segmenters: the sign-flip test
    of the groups' dice, and a paired bootstrap over groups.

    Args:
        rows: Rows by model and cell, see the docstring of the module.
        task: The task of the models.
        bootstrap: Settings of the resamples for segmenters; the seed also draws the signs.
    """
    return _table(rows, [(t, s, [(t, s)]) for t, s in _cells(rows)], task, bootstrap)


def transform_verdicts(rows: ModelRows, task: TaskName, bootstrap: Bootstrap) -> list[Verdict]:
    """A verdict for each pair of models and each transform, by its mean over severities.

    Arguments are those of `verdicts`. A transform with one severity, or with
    a full range (severity 0), is compared as in `verdicts`. With several severities, the score of
    an image (or group) is its mean over the severities that both models have; for classifiers,
    these means are compared with an exact sign-flip test and the adjusted Wald interval.
    """
    transforms = _by_transform(_cells(rows))
    lines = [(t, c[0][1] if len(c) == 1 else None, c) for t, c in transforms.items()]
    return _table(rows, lines, task, bootstrap)


def _cells(rows: ModelRows) -> list[CellKey]:
    """All cells, in the order of the models."""
    return list(dict.fromkeys(cell for cells in rows.values() for cell in cells))


def _by_transform(cells: Iterable[CellKey]) -> dict[str, list[CellKey]]:
    """The cells of each transform: its full range if it was measured, else all severities."""
    transforms: dict[str, list[CellKey]] = {}
    for cell in cells:
        transforms.setdefault(cell[0], []).append(cell)
    return {t: [(t, 0)] if (t, 0) in cells else cells for t, cells in transforms.items()}


def _table(
    rows: ModelRows,
    lines: Iterable[tuple[str, int | None, Sequence[CellKey]]],
    task: TaskName,
    bootstrap: Bootstrap,
) -> list[Verdict]:
    compare, lines = _COMPARE[task], list(lines)
    table: list[Verdict] = []
    for first, second in combinations(rows, 2):
        for transform, severity, cells in lines:
            shared = [cell for cell in cells if cell in rows[first] and cell in rows[second]]
            if not shared:
                continue
            frames = _paired(rows, (first, second), shared)
            if not len(frames[0]):
                continue
            paired = compare(frames[: len(shared)], frames[len(shared) :], bootstrap)
            table.append(
                Verdict(
                    first, second, transform, severity, paired.n, paired.groups, paired.value,
                    paired.low, paired.high, paired.p,
                )
            )  # fmt: skip
    adjusted = iter(holm([line.p for line in table if line.p is not None]))
    return [line if line.p is None else replace(line, p_adjusted=next(adjusted)) for line in table]


def _paired(rows: ModelRows, models: Sequence[str], cells: Sequence[CellKey]) -> list[pd.DataFrame]:
    """The rows by model, then cell, restricted to the same images in the same order."""
    return common_images([rows[model][cell] for model in models for cell in cells])


def _compare_classes(
    first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame], bootstrap: Bootstrap
) -> PairedDifference:
    if len(first) == 1:
        return hit_difference(is_correct(second[0]), is_correct(first[0]))
    gained_hits = _hits(first) - _hits(second)
    gained, n = gained_hits / len(first), len(gained_hits)
    value, p = float(gained.mean()), exact_sign_flip_p(gained_hits)
    return PairedDifference(
        n, n, value, *mean_interval(gained, DIFFERENCES_OF_SHARES), p, smallest_exact_p(n)
    )


def _hits(frames: Sequence[pd.DataFrame]) -> NDArray[np.int64]:
    """The number of `frames` in which each image is predicted correctly."""
    hits: NDArray[np.int64] = np.stack([is_correct(rows) for rows in frames]).sum(axis=0)
    return hits


def _compare_masks(
    first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame], bootstrap: Bootstrap
) -> PairedDifference:
    gained = np.mean([group_dice(rows) for rows in first], axis=0)
    gained = gained - np.mean([group_dice(rows) for rows in second], axis=0)
    return dice_difference(gained, len(first[0]), bootstrap)


_Compare = Callable[[Sequence[pd.DataFrame], Sequence[pd.DataFrame], Bootstrap], PairedDifference]
_COMPARE: Mapping[TaskName, _Compare] = {"cls": _compare_classes, "seg": _compare_masks}


@dataclass(frozen=True)
class Claim:
    """Numbers of transforms on which `first`, `second` or neither (`open`) is significantly better.

    `n` is the smallest number of images of any of the transforms.
    """

    first: str
    second: str
    ahead: int
    behind: int
    open: int
    n: int

    @property
    def transforms(self) -> int:
        """The number of compared transforms."""
        return self.ahead + self.behind + self.open

    def sentence(self) -> str:
        """The claim as a sentence."""
        ahead, behind, first, second = self.ahead, self.behind, self.first, self.second
        if behind > ahead:
            ahead, behind, first, second = behind, ahead, second, first
        items = "transform" if self.transforms == 1 else "transforms"
        if not ahead:
            where = "the" if self.transforms == 1 else f"any of {self.transforms}"
            return f"Between {first} and {second} no difference is shown on {where} {items}."
        return (
            f"{first} is ahead of {second} on {ahead} of {self.transforms} {items}, behind on "
            f"{behind}, no difference shown on {self.open}."
        )


def claims(table: Iterable[Verdict]) -> list[Claim]:
    """One claim per pair of models, in the order of `table`.

    `table` is the result of `transform_verdicts` for claims about transforms (each counts once,
    for any number of severities) or of `verdicts` for claims about cells.
    """
    pairs: dict[tuple[str, str], list[Verdict]] = {}
    for line in table:
        pairs.setdefault((line.first, line.second), []).append(line)
    return [
        Claim(
            *pair,
            sum(line.outcome == "first ahead" for line in lines),
            sum(line.outcome == "second ahead" for line in lines),
            sum(line.outcome == "no difference shown" for line in lines),
            min(line.n for line in lines),
        )
        for pair, lines in pairs.items()
    ]


@dataclass(frozen=True)
class Agreement:
    """The agreement of two classifiers on one cell; the five counts sum to `n`.

    The fields count the images that are predicted correctly by both, only by `first` or only by
    `second`, and the images for which both predict the same wrong class or different wrong classes.
    """

    first: str
    second: str
    transform: str
    severity: int
    both_right: int
    first_only: int
    second_only: int
    wrong_alike: int
    wrong_differently: int

    @property
    def n(self) -> int:
        """The number of common images."""
        right_by_any = self.both_right + self.first_only + self.second_only
        return right_by_any + self.wrong_alike + self.wrong_differently

    @property
    def share(self) -> float:
        """The share of images with the same prediction."""
        return (self.both_right + self.wrong_alike) / self.n

    @property
    def error_consistency(self) -> float | None:
        """Cohen's kappa of correctness: 1 for errors on the same images, 0 for chance.

        None if both predict every image correctly, or every image wrongly.

        Source: R. Geirhos, K. Meding, F. A. Wichmann, Beyond accuracy: quantifying trial-by-trial
        behaviour of CNNs and humans by measuring error consistency, NeurIPS 2020.
        """
        n = self.n
        first, second = self.both_right + self.first_only, self.both_right + self.second_only
        chance = (first * second + (n - first) * (n - second)) / n**2
        observed = 1 - (self.first_only + self.second_only) / n
        return None if chance == 1 else (observed - chance) / (1 - chance)


def agreements(rows: ModelRows) -> list[Agreement]:
    """The agreement of each pair of classifiers in each common cell, pair by pair."""
    table = []
    for first, second in combinations(rows, 2):
        for cell in _cells(rows):
            if cell not in rows[first] or cell not in rows[second]:
                continue
            frames = _paired(rows, (first, second), [cell])
            hits, other_hits = map(is_correct, frames)
            same_prediction = np.equal(*(frame["prediction"].to_numpy() for frame in frames))
            if len(hits):
                wrong = ~hits & ~other_hits
                counts = (
                    *(hits & other_hits, hits & ~other_hits, ~hits & other_hits),
                    *(wrong & same_prediction, wrong & ~same_prediction),
                )
                table.append(Agreement(first, second, *cell, *(int(c.sum()) for c in counts)))
    return table


@dataclass(frozen=True)
class Flips:
    """Changes of a classifier's predictions by a transform; the four counts sum to `n`."""

    model: str
    transform: str
    severity: int
    right_to_wrong: int
    wrong_to_right: int
    wrong_to_other_wrong: int
    unchanged: int

    @property
    def n(self) -> int:
        """The number of common images of the clean cell and this cell."""
        return self.flipped + self.unchanged

    @property
    def flipped(self) -> int:
        """The number of images with a changed prediction."""
        return self.right_to_wrong + self.wrong_to_right + self.wrong_to_other_wrong

    @property
    def rate(self) -> float:
        """The share of images with a changed prediction."""
        return self.flipped / self.n

    @property
    def rate_interval(self) -> Interval:
        """The 95 % Wilson interval of `rate`."""
        return wilson_interval(self.flipped, self.n)


def flips(rows: ModelRows, clean: CellKey) -> list[Flips]:
    """The flips of each classifier with the cell `clean`, in each of its other cells."""
    table = []
    for model, cells in rows.items():
        for cell, frame in cells.items():
            if cell == clean or clean not in cells:
                continue
            before, after = common_images([cells[clean], frame])
            if len(before):
                was_right, is_right = is_correct(before), is_correct(after)
                same_class = before["prediction"].to_numpy() == after["prediction"].to_numpy()
                changes = (was_right & ~is_right, ~was_right & is_right)
                counts = (*changes, ~was_right & ~is_right & ~same_class, same_class)
                table.append(Flips(model, *cell, *(int(count.sum()) for count in counts)))
    return table


@dataclass(frozen=True)
class Rank:
    """The rank of one model by its mean over the transforms.

    Args:
        model: The model.
        mean: Mean over transforms of top-1, or of dice; severities as in `transform_verdicts`.
        low: Lower end of its 95 % bootstrap interval; None for fewer than FEWEST_UNITS images (or
            groups).
        high: Upper end of that interval.
        probabilities: The share of resamples with the first rank, the second, ...; models that tie
            in a resample share its ranks. Empty if `low` is None.
        n: Number of images that all models have in all cells.
        groups: Number of independent units among them.
    """

    model: str
    mean: float
    low: float | None
    high: float | None
    probabilities: tuple[float, ...]
    n: int
    groups: int


def rank_probabilities(rows: ModelRows, task: TaskName, bootstrap: Bootstrap) -> list[Rank]:
    """The models, sorted by mean over transforms (best first), with rank probabilities.

    Arguments are those of `verdicts`; only cells that all models have are used. The same
    `RANK_DRAWS` resamples of images (for segmenters, of groups) are used for all models and
    transforms.
    """
    models = list(rows)
    shared = [cell for cell in _cells(rows) if all(cell in rows[model] for model in models)]
    transforms = _by_transform(shared).values()
    cells = [cell for severities in transforms for cell in severities]
    weights = [1 / len(cells) / len(transforms) for cells in transforms for _ in cells]
    if not cells:
        return []
    frames = _paired(rows, models, cells)
    n = len(frames[0])
    if not n:
        return []
    scores = np.column_stack(
        [
            sum(
                weight * _SCORES[task](frame)
                for weight, frame in zip(weights, model_frames, strict=True)
            )
            for model_frames in (
                frames[i : i + len(cells)] for i in range(0, len(frames), len(cells))
            )
        ]
    )  # (groups, models)
    means, groups = scores.mean(axis=0), len(scores)
    order = np.argsort(-means, kind="stable")
    if groups < FEWEST_UNITS:
        return [Rank(models[i], float(means[i]), None, None, (), n, groups) for i in order]
    draws = replace(bootstrap, draws=RANK_DRAWS).means(scores)
    shares = _rank_shares(draws).tolist()
    ranks = []
    for i in order:
        low, high = both_ends(bootstrap.ends(draws[:, i], groups, SHARES))
        ranks.append(Rank(models[i], float(means[i]), low, high, tuple(shares[i]), n, groups))
    return ranks


def _rank_shares(draws: FloatArray) -> FloatArray:
    """The share of each rank (models, ranks) in `draws` (draws, models); the highest is first."""
    models = draws.shape[1]
    rounded = np.round(draws, 12)  # treats sums of the same terms in another order as equal
    better = (rounded[:, None, :] > rounded[:, :, None]).sum(axis=2)  # (draws, models)
    tied = (rounded[:, None, :] == rounded[:, :, None]).sum(axis=2)
    rank = np.arange(models)
    has_rank = (rank >= better[..., None]) & (rank < (better + tied)[..., None])
    shares: FloatArray = (has_rank / tied[..., None]).mean(axis=0)
    return shares


_SCORES: Mapping[TaskName, Callable[[pd.DataFrame], FloatArray]] = {
    "cls": lambda rows: is_correct(rows).astype(np.float64),
    "seg": group_dice,
}
