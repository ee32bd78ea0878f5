"""Measures how often the intervals and tests of small test sets are right; no data are needed.

    python benchmarks/intervals.py [--trials 4000]

A trial draws scores of a few groups (such as patients) from a known distribution, and computes the
95 % interval of their mean as reports do. Coverage is the share of trials whose interval contains
the true mean. For differences of two equal models, the false positives are the share of trials in
which the sign-flip test gives p <= 0.05. `docs/eval.md` explains the results. Takes a minute.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import norm, t
from tabulate import tabulate

from robustcli.metrics.class_scores import BINS, _bins, ece_interval, macro_f1_with_interval
from robustcli.metrics.intervals import Bootstrap, FloatArray, Interval
from robustcli.metrics.paired import sign_flip_p

GROUPS = (3, 4, 5, 8, 10, 20, 50)
Draw = Callable[[np.random.Generator, tuple[int, ...]], FloatArray]
SCORES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda g, shape: g.normal(size=shape), 0.0),
    "dice near 0.8": (lambda g, shape: g.beta(8, 2, shape), 0.8),
    "dice near 0.87, skewed": (lambda g, shape: g.beta(2, 0.3, shape), 2 / 2.3),
    "one group in ten fails": (
        lambda g, shape: np.where(g.random(shape) < 0.1, g.beta(1, 8, shape), g.beta(30, 4, shape)),
        0.1 / 9 + 0.9 * 30 / 34,
    ),
}
"""The distributions of the score of one group, with their means."""
DIFFERENCES: dict[str, Draw] = {
    "normal": lambda g, shape: g.normal(size=shape),
    "skewed (exponential)": lambda g, shape: g.exponential(size=shape) - 1,
}
"""Distributions of the difference of two models in one group, with a mean of 0."""


IMAGES = (10, 20, 50, 100, 200, 500)
CLASSES, PER_CLASS = (3, 10, 100), (5, 10, 20, 50)
Accuracy = Callable[[FloatArray], FloatArray]
CALIBRATIONS: dict[str, tuple[Draw, Accuracy]] = {
    "calibrated": (lambda g, shape: g.uniform(0.5, 1, shape), lambda c: c),
    "calibrated, confident": (lambda g, shape: g.beta(8, 1, shape), lambda c: c),
    "0.1 too confident": (lambda g, shape: g.uniform(0.5, 1, shape), lambda c: c - 0.1),
    "0.03 too confident, mostly 0.99": (
        lambda g, shape: g.beta(30, 0.3, shape), lambda c: np.clip(c - 0.03, 0, 1)
    ),
}  # fmt: skip
"""The distributions of the confidence, with the accuracy of images of a given confidence."""


class Plain(Bootstrap):
    """Percentile intervals that are not expanded, for comparison."""

    def ends(self, draws: FloatArray, units: int, bounds: Interval | None = None) -> Interval:
        """The 2.5th and 97.5th percentile of `draws`."""
        return Interval(*(float(end) for end in np.percentile(draws, [2.5, 97.5])))


def covers(draw: Draw, mean: float, groups: int, trials: int, kind: type[Bootstrap]) -> float:
    """The share of 95 % bootstrap intervals of the mean of `groups` scores that contain `mean`."""
    values = draw(np.random.default_rng(groups), (groups, trials))
    ends = kind(0, draws=2_000).ratios(values, np.ones_like(values))
    return float(np.mean([end is not None and end.low <= mean <= end.high for end in ends]))


def covers_error(draw: Draw, accuracy: Accuracy, images: int, trials: int) -> float:
    """The share of intervals of the calibration error of `images` that contain the true error.

    Computed as `class_scores.calibration` does, also for fewer images than FEWEST_CALIBRATED.
    """
    generator, covered = np.random.default_rng(images), 0
    many = draw(np.random.default_rng(0), (10**6,))
    error = np.abs(np.bincount(_bins(many), many - accuracy(many), BINS)).sum() / len(many)
    bootstrap = Bootstrap(0, draws=500)
    for _ in range(trials):
        confidence = draw(generator, (images,))
        gaps = confidence - (generator.random(images) < accuracy(confidence))
        by_bin = np.where(np.equal.outer(_bins(confidence), np.arange(BINS)), gaps[:, None], 0.0)
        draws = bootstrap.means(by_bin)
        low, high = ece_interval(by_bin.mean(axis=0), draws, bootstrap, images)
        covered += low <= error <= high
    return covered / trials


def covers_f1(classes: int, images_per_class: int, trials: int) -> float:
    """The share of intervals of the macro F1 that contain that of infinitely many images.

    The accuracy of each class is Beta(8, 2); its errors are unequally distributed over the others.
    """
    generator, covered = np.random.default_rng(classes), 0
    answers = np.empty((classes, classes))
    for k, right in enumerate(generator.beta(8, 2, classes)):
        wrong = (1 - right) * generator.dirichlet(np.full(classes - 1, 0.5))
        answers[k] = np.insert(wrong, k, right)
    true = float((2 * np.diag(answers) / (1 + answers.sum(axis=0))).mean())
    cumulative, images = answers.cumsum(axis=1), classes * images_per_class
    for _ in range(trials):
        targets = generator.integers(classes, size=images)
        drawn = generator.random(images)
        predictions = (drawn[:, None] > cumulative[targets]).sum(axis=1).clip(max=classes - 1)
        rows = pd.DataFrame({"target": targets, "prediction": predictions})
        scores = macro_f1_with_interval(rows, Bootstrap(0))
        assert scores is not None
        if scores.f1_low is not None and scores.f1_high is not None:
            covered += scores.f1_low <= true <= scores.f1_high
    return covered / trials


def wider(groups: int) -> float:
    """By what factor the interval is wider than plain percentiles, if means are normal."""
    return math.sqrt(groups / (groups - 1)) * float(t.ppf(0.975, groups - 1) / norm.ppf(0.975))


def false_positives(draw: Draw, groups: int, trials: int) -> float:
    """The share of sign-flip tests of differences with mean 0 that give p <= 0.05."""
    values = draw(np.random.default_rng(groups), (trials, groups))
    return float(np.mean([sign_flip_p(row) <= 0.05 for row in values]))


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4_000, help="trials per number")
    trials = parser.parse_args().trials
    for title, kind in (("Coverage of 95 % intervals", Bootstrap), ("Of plain percentiles", Plain)):
        table = [[n, *(covers(*s, n, trials, kind) for s in SCORES.values())] for n in GROUPS]
        print(f"{title} of the mean over groups:\n")
        print(tabulate(table, ["groups", *SCORES], "github", floatfmt=".2f"), end="\n\n")
    print("Coverage of 95 % intervals of the expected calibration error over images:\n")
    table = [[n, *(covers_error(*c, n, trials // 10) for c in CALIBRATIONS.values())]
             for n in IMAGES]  # fmt: skip
    print(tabulate(table, ["images", *CALIBRATIONS], "github", floatfmt=".2f"), end="\n\n")
    print("Coverage of 95 % intervals of the macro F1, by images per class:\n")
    table = [[n, *(covers_f1(c, n, trials // 20) for c in CLASSES)] for n in PER_CLASS]
    heads = ["images per class", *(f"{c} classes" for c in CLASSES)]
    print(tabulate(table, heads, "github", floatfmt=".2f"), end="\n\n")
    widths = ", ".join(f"{wider(n):.2f} for {n}" for n in sorted((*GROUPS, 7, 9, 11, 18, 37, 180)))
    print(f"Width relative to plain percentiles, by groups: {widths}.\n")
    table = [[n, *(false_positives(d, n, trials) for d in DIFFERENCES.values())] for n in GROUPS]
    print("False positives of the sign-flip test at p <= 0.05:\n")
    print(tabulate(table, ["groups", *DIFFERENCES], "github", floatfmt=".3f"))
    print(
        f"\n{trials:,} trials per number; standard error of 0.95: {math.sqrt(0.0475 / trials):.3f}"
    )


if __name__ == "__main__":
    main()
