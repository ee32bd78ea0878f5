"""Which of several models is better, and how sure that is: pure functions of rows.

Rows are given as `{model: {(transform, severity): rows}}`, with the columns of
`metrics.columns.ROW_SCHEMAS`. Every number is over images that all the compared models have.

The table of verdicts holds every pair of models in every cell; p-values are adjusted over the whole
table, so that a table of chance results claims any difference with a probability of at most 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.core.names import TaskName
from robustcli.metrics.class_scores import is_correct
from robustcli.metrics.intervals import Bootstrap, Interval, wilson_interval
from robustcli.metrics.mask_scores import group_dice
from robustcli.metrics.paired import (
    dice_difference,
    exact_sign_flip_p,
    hit_difference,
    mean_interval,
)
from robustcli.metrics.rows import common_images, have_same_images

CellKey = tuple[str, int]
"""Transform and severity."""
ModelRows = Mapping[str, Mapping[CellKey, pd.DataFrame]]
FloatArray = NDArray[np.float64]
Outcome = Literal["first ahead", "second ahead", "no difference shown"]

ALPHA = 0.05
"""The family-wise error rate: a difference is shown where the adjusted p is at most this."""
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
    """Two models under one transform.

    Args:
        first: One model.
        second: The other one.
        transform: The transform's name.
        severity: Its severity; None where the numbers are means over several severities.
        n: Images that both have.
        groups: Independent units among them: images, or a segmenter's groups of images.
        difference: First minus second, a fraction: of top-1, or of dice averaged over groups.
        low: Lower end of its paired 95 % interval; None where it does not exist (one group).
        high: Its upper end.
        p: Two-sided, of the paired test; None where it does not exist (one group).
        p_adjusted: The same after Holm's correction over the table.
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
        """Which model is ahead, if the adjusted p shows it at `ALPHA`."""
        if self.p_adjusted is None or self.p_adjusted > ALPHA:
            return "no difference shown"
        return "first ahead" if self.difference > 0 else "second ahead"


def verdicts(
    rows: ModelRows, task: TaskName, bootstrap: Bootstrap, *, common: bool = False
) -> list[Verdict]:
    """A verdict for each pair of models and each cell that both have, pair by pair.

    Classifiers: McNemar's exact test and Newcombe's paired interval. Segmenters: the sign-flip test
    of the groups' dice, and a paired bootstrap over groups.

    Args:
        rows: See the module.
        task: What the models do.
        bootstrap: The resamples of segmenters; its seed also draws the signs.
        common: Compares the images that both models have; else they must have the same ones.

    Raises:
        ValueError: The models have different images in a cell, and `common` is False; the message
            names models and cell.
    """
    return _table(rows, [(t, s, [(t, s)]) for t, s in _cells(rows)], task, bootstrap, common)


def transform_verdicts(
    rows: ModelRows, task: TaskName, bootstrap: Bootstrap, *, common: bool = False
) -> list[Verdict]:
    """A verdict for each pair of models and each transform, by its mean over severities.

    A transform with one severity is judged as in `verdicts`, and so is one whose full range
    (severity 0) was measured beside others: that one counts. With several, the number of an image
    (or group) is its mean over the severities that both models have: classifiers get an exact
    sign-flip test of these (McNemar's where there is one severity) and the adjusted Wald interval.

    Args:
        rows: See the module.
        task: See `verdicts`.
        bootstrap: See `verdicts`.
        common: See `verdicts`.

    Raises:
        ValueError: See `verdicts`.
    """
    transforms = _by_transform(_cells(rows))
    lines = [(t, c[0][1] if len(c) == 1 else None, c) for t, c in transforms.items()]
    return _table(rows, lines, task, bootstrap, common)


def _cells(rows: ModelRows) -> list[CellKey]:
    """All cells, in the order in which the models have them."""
    return list(dict.fromkeys(cell for cells in rows.values() for cell in cells))


def _by_transform(cells: Iterable[CellKey]) -> dict[str, list[CellKey]]:
    """The cells that stand for each transform: its full range alone, or else all severities."""
    transforms: dict[str, list[CellKey]] = {}
    for cell in cells:
        transforms.setdefault(cell[0], []).append(cell)
    return {t: [(t, 0)] if (t, 0) in found else found for t, found in transforms.items()}


def _table(
    rows: ModelRows,
    lines: Iterable[tuple[str, int | None, Sequence[CellKey]]],
    task: TaskName,
    bootstrap: Bootstrap,
    common: bool,
) -> list[Verdict]:
    compare, lines = _COMPARE[task], list(lines)
    table: list[Verdict] = []
    for first, second in combinations(rows, 2):
        for transform, severity, cells in lines:
            shared = [cell for cell in cells if cell in rows[first] and cell in rows[second]]
            if not shared:
                continue
            frames = _paired(rows, (first, second), shared, common)
            if not len(frames[0]):
                continue
            difference = compare(frames[: len(shared)], frames[len(shared) :], bootstrap)
            table.append(Verdict(first, second, transform, severity, *difference))
    return _adjusted(table)


def _paired(
    rows: ModelRows, models: Sequence[str], cells: Sequence[CellKey], common: bool
) -> list[pd.DataFrame]:
    """The rows of `models` in `cells`, models outermost, over the same images in one order."""
    frames = [rows[model][cell] for model in models for cell in cells]
    if not common and not have_same_images(frames):
        names = " and ".join(f"`{model}`" for model in models)
        where = ", ".join(f"`{t}`" + (f" severity {s}" if s else "") for t, s in cells)
        raise ValueError(
            f"{names} have different images under {where}: "
            f"{', '.join(str(len(frame)) for frame in frames)} rows. "
            "Compare the images that they have in common (`common=True`), or complete both runs."
        )
    return common_images(frames)


_Compared = tuple[int, int, float, float | None, float | None, float | None]


def _compare_classes(
    first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame], bootstrap: Bootstrap
) -> _Compared:
    if len(first) == 1:
        one = hit_difference(is_correct(second[0]), is_correct(first[0]))
        return one.n, one.groups, one.value, one.low, one.high, one.p
    won = _hits(first) - _hits(second)
    gained = won / len(first)
    low, high = mean_interval(gained)
    return len(won), len(won), float(gained.mean()), low, high, exact_sign_flip_p(won)


def _hits(frames: Sequence[pd.DataFrame]) -> NDArray[np.int64]:
    """In how many of `frames` each image is right."""
    hits: NDArray[np.int64] = np.stack([is_correct(rows) for rows in frames]).sum(axis=0)
    return hits


def _compare_masks(
    first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame], bootstrap: Bootstrap
) -> _Compared:
    gained = np.mean([group_dice(rows) for rows in first], axis=0)
    gained = gained - np.mean([group_dice(rows) for rows in second], axis=0)
    one = dice_difference(gained, len(first[0]), bootstrap)
    return one.n, one.groups, one.value, one.low, one.high, one.p


_COMPARE: Mapping[
    TaskName, Callable[[Sequence[pd.DataFrame], Sequence[pd.DataFrame], Bootstrap], _Compared]
] = {"cls": _compare_classes, "seg": _compare_masks}


def _adjusted(table: Sequence[Verdict]) -> list[Verdict]:
    adjusted = iter(holm([line.p for line in table if line.p is not None]))
    return [line if line.p is None else replace(line, p_adjusted=next(adjusted)) for line in table]


@dataclass(frozen=True)
class Claim:
    """Over how many transforms one model is ahead of another.

    Args:
        first: One model.
        second: The other one.
        ahead: Transforms on which `first` is shown to be better.
        behind: Transforms on which `second` is.
        open: Transforms on which no difference is shown.
        n: Images of the transform with the fewest.
    """

    first: str
    second: str
    ahead: int
    behind: int
    open: int
    n: int

    @property
    def transforms(self) -> int:
        """How many transforms were compared."""
        return self.ahead + self.behind + self.open

    def sentence(self, thing: str = "transform") -> str:
        """The claim in words, about the model with more transforms.

        Args:
            thing: What was compared, in the singular.
        """
        ahead, behind, first, second = self.ahead, self.behind, self.first, self.second
        if behind > ahead:
            ahead, behind, first, second = behind, ahead, second, first
        things = thing if self.transforms == 1 else f"{thing}s"
        if not ahead:
            return (
                f"Between {first} and {second} no difference is shown on any of "
                f"{self.transforms} {things}."
            )
        return (
            f"{first} is ahead of {second} on {ahead} of {self.transforms} {things}, behind on "
            f"{behind}, no difference shown on {self.open}."
        )


def claims(table: Iterable[Verdict]) -> list[Claim]:
    """One claim per pair of models, in the order of `table`.

    Args:
        table: `transform_verdicts` for a claim about transforms (each counts once, whatever number
            of severities it has), or `verdicts` for one about cells; without the clean images where
            the claim is to be about transforms alone.
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
    """How two classifiers answer the same images of one cell; the five counts sum to `n`.

    Args:
        first: One model.
        second: The other one.
        transform: The transform's name.
        severity: Its severity.
        both_right: Images that both have right.
        first_only: Images that only `first` has right.
        second_only: Images that only `second` has right.
        wrong_alike: Images to which both give the same wrong class.
        wrong_differently: Images to which they give two wrong classes.
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
        """Images that both have."""
        right = self.both_right + self.first_only + self.second_only
        return right + self.wrong_alike + self.wrong_differently

    @property
    def share(self) -> float:
        """The share of images to which both give the same class."""
        return (self.both_right + self.wrong_alike) / self.n

    @property
    def error_consistency(self) -> float | None:
        """Cohen's kappa of being right: 1 for the same errors, 0 for as many alike as by chance.

        None where both have every image right, or every image wrong.

        Source: R. Geirhos, K. Meding, F. A. Wichmann, Beyond accuracy: quantifying trial-by-trial
        behaviour of CNNs and humans by measuring error consistency, NeurIPS 2020.
        """
        n = self.n
        first, second = self.both_right + self.first_only, self.both_right + self.second_only
        chance = (first * second + (n - first) * (n - second)) / n**2
        observed = 1 - (self.first_only + self.second_only) / n
        return None if chance == 1 else (observed - chance) / (1 - chance)


def agreements(rows: ModelRows, *, common: bool = False) -> list[Agreement]:
    """The agreement of each pair of classifiers in each cell that both have, pair by pair.

    Args:
        rows: See the module.
        common: See `verdicts`.

    Raises:
        ValueError: See `verdicts`.
    """
    table = []
    for first, second in combinations(rows, 2):
        for cell in _cells(rows):
            if cell not in rows[first] or cell not in rows[second]:
                continue
            one, other = _paired(rows, (first, second), [cell], common)
            right, also_right = is_correct(one), is_correct(other)
            alike = one["prediction"].to_numpy() == other["prediction"].to_numpy()
            if len(one):
                wrong = ~right & ~also_right
                counts = (
                    *(right & also_right, right & ~also_right, ~right & also_right),
                    *(wrong & alike, wrong & ~alike),
                )
                table.append(Agreement(first, second, *cell, *(int(c.sum()) for c in counts)))
    return table


@dataclass(frozen=True)
class Flips:
    """What a transform does to the answers of a classifier; the four counts sum to `n`.

    Args:
        model: The model.
        transform: The transform's name.
        severity: Its severity.
        right_to_wrong: Images that are right only when clean.
        wrong_to_right: Images that are right only under the transform.
        wrong_to_other_wrong: Images that get two wrong classes.
        unchanged: Images that get the same class.
    """

    model: str
    transform: str
    severity: int
    right_to_wrong: int
    wrong_to_right: int
    wrong_to_other_wrong: int
    unchanged: int

    @property
    def n(self) -> int:
        """Images that both the clean cell and this one have."""
        return self.flipped + self.unchanged

    @property
    def flipped(self) -> int:
        """Images whose class changes."""
        return self.right_to_wrong + self.wrong_to_right + self.wrong_to_other_wrong

    @property
    def rate(self) -> float:
        """The share of images whose class changes."""
        return self.flipped / self.n

    @property
    def rate_interval(self) -> Interval:
        """The 95 % Wilson interval of `rate`."""
        return wilson_interval(self.flipped, self.n)


def flips(rows: ModelRows, clean: CellKey) -> list[Flips]:
    """The flips of each classifier in each of its cells but `clean`, over the images of both.

    Args:
        rows: See the module.
        clean: The cell of the untouched images; a model without it has no flips.
    """
    table = []
    for model, cells in rows.items():
        for cell, frame in cells.items():
            if cell == clean or clean not in cells:
                continue
            before, after = common_images([cells[clean], frame])
            if len(before):
                table.append(Flips(model, *cell, *_flip_counts(before, after)))
    return table


def _flip_counts(before: pd.DataFrame, after: pd.DataFrame) -> Iterator[int]:
    was_right, is_right = is_correct(before), is_correct(after)
    same = before["prediction"].to_numpy() == after["prediction"].to_numpy()
    for counted in (
        was_right & ~is_right,
        ~was_right & is_right,
        ~was_right & ~is_right & ~same,
        same,
    ):
        yield int(counted.sum())


@dataclass(frozen=True)
class Rank:
    """Where one model stands among all, by its mean over the transforms.

    Args:
        model: The model.
        mean: Mean over transforms of top-1, or of dice; severities as in `transform_verdicts`.
        low: Lower end of its 95 % bootstrap interval; None with one image or group.
        high: Its upper end.
        probabilities: Of the first rank, the second, ...: the share of resamples; models that tie
            in a resample share its ranks. Empty with one image or group.
        n: Images that all models have in all cells.
        groups: Independent units among them.
    """

    model: str
    mean: float
    low: float | None
    high: float | None
    probabilities: tuple[float, ...]
    n: int
    groups: int


def rank_probabilities(
    rows: ModelRows, task: TaskName, bootstrap: Bootstrap, *, common: bool = False
) -> list[Rank]:
    """The models, best mean over transforms first, with the uncertainty of that order.

    Resamples images (segmenters: groups); every model and transform gets the same ones.

    Args:
        rows: See the module; only cells that all models have count.
        task: See `verdicts`.
        bootstrap: Its seed and confidence; `RANK_DRAWS` resamples are drawn.
        common: See `verdicts`.

    Raises:
        ValueError: See `verdicts`.
    """
    models = list(rows)
    shared = [cell for cell in _cells(rows) if all(cell in rows[model] for model in models)]
    transforms = _by_transform(shared).values()
    cells = [cell for of_transform in transforms for cell in of_transform]
    weights = [1 / len(of) / len(transforms) for of in transforms for _ in of]
    if not cells:
        return []
    frames = _paired(rows, models, cells, common)
    n = len(frames[0])
    if not n:
        return []
    scores = np.column_stack(
        [
            sum(weight * _VALUES[task](frame) for weight, frame in zip(weights, part, strict=True))
            for part in (frames[i : i + len(cells)] for i in range(0, len(frames), len(cells)))
        ]
    )  # (groups, models)
    means, groups = scores.mean(axis=0), len(scores)
    order = np.argsort(-means, kind="stable")
    if groups < 2:
        return [Rank(models[i], float(means[i]), None, None, (), n, groups) for i in order]
    draws = replace(bootstrap, draws=RANK_DRAWS).means(scores)
    tail = 50 * (1 - bootstrap.confidence)
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0).tolist()
    shares = _rank_shares(draws).tolist()
    return [
        Rank(models[i], float(means[i]), low[i], high[i], tuple(shares[i]), n, groups)
        for i in order
    ]


def _rank_shares(draws: FloatArray) -> FloatArray:
    """The share of each rank (models, ranks) in `draws` (draws, models), highest first."""
    models = draws.shape[1]
    rounded = np.round(draws, 12)  # equal models are equal whatever the order of their sums
    better = (rounded[:, None, :] > rounded[:, :, None]).sum(axis=2)  # (draws, models)
    tied = (rounded[:, None, :] == rounded[:, :, None]).sum(axis=2)
    rank = np.arange(models)
    held = (rank >= better[..., None]) & (rank < (better + tied)[..., None])
    shares: FloatArray = (held / tied[..., None]).mean(axis=0)
    return shares


_VALUES: Mapping[TaskName, Callable[[pd.DataFrame], FloatArray]] = {
    "cls": lambda rows: is_correct(rows).astype(np.float64),
    "seg": group_dice,
}
