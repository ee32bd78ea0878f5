"""The numbers of a fine-tuning's modes against full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from robustcli.finetuning.record import Mode
from robustcli.reports.finetuning import Finetuning, ModeRun
from robustcli.reports.scoring.scoring import Difference


@dataclass(frozen=True)
class Pace:
    """How long an iteration takes in a mode, in seconds: the median and the middle half."""

    median: float
    low: float
    high: float
    iterations: int


def pace(run: ModeRun) -> Pace | None:
    """The pace after the freeze; None before the training has ended."""
    return _pace(run.steady["seconds"])


def pace_before(run: ModeRun) -> Pace | None:
    """The pace of a mode before the freeze; None where nothing was frozen on the way."""
    return _pace(run.steps["seconds"].drop(run.steady.index))


def _pace(seconds: pd.Series) -> Pace | None:
    if seconds.empty:
        return None
    low, median, high = (float(seconds.quantile(share)) for share in (0.25, 0.5, 0.75))
    return Pace(median, low, high, len(seconds))


def seconds_ratio(found: Finetuning, mode: Mode) -> float | None:
    """Time of an iteration over that of full fine-tuning; None until both are measured."""
    own, full = found.of(mode), found.of("full")
    if own is None or full is None:
        return None
    mine, theirs = own.seconds_per_iteration, full.seconds_per_iteration
    return None if mine is None or not theirs else mine / theirs


def against_full(found: Finetuning, mode: Mode) -> Difference | None:
    """What a mode's score has over that of full fine-tuning; None until both are measured."""
    own, full = found.of(mode), found.of("full")
    if mode == "full" or own is None or full is None:
        return None
    if own.training.test is None or full.training.test is None:
        return None
    rows = full.training.test.rows, own.training.test.rows
    return found.scoring.difference(*rows, found.record.seed)


def frozen_elements(run: ModeRun) -> int | None:
    """Elements that stood still at the end of a mode; None before its training has ended."""
    if run.costs is None:
        return None
    return max(0, run.training.record.parameters - run.costs.trainable)
