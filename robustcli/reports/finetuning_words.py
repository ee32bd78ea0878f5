"""Rules of freezing, and what freezing cost and saved, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from robustcli.finetuning.record import RuleRecord
from robustcli.reports.finetuning_findings import (
    Finetuning,
    ModeRun,
    Pace,
    against_full,
    frozen_elements,
    pace,
    pace_before,
)
from robustcli.reports.measure import relaxed_words
from robustcli.reports.numbers import (
    EN_DASH,
    MISSING,
    counted,
    decimal,
    is_missing,
    mebibytes,
    megabytes,
    p_value,
    seconds,
)
from robustcli.reports.scoring import Difference, Scoring

# Rules of freezing in words.


STATISTICS = {
    "mean_abs": "mean of |g|",
    "rms": "root mean square of g",
    "max_abs": "largest |g|",
    "abs_mean": "|mean of g|",
}


def statistic_name(rule: RuleRecord) -> str:
    """What a rule compares."""
    over = ", relative to the weight's rms" if rule.relative else ""
    return f"{STATISTICS[rule.kind]} over a tensor's elements{over}"


def is_within(rule: RuleRecord, mamba: pd.Series) -> pd.Series:
    """Which tensors a rule chooses from; all where it is about all or there is no such block.

    Args:
        rule: The rule.
        mamba: Per tensor, whether it belongs to a state-space block.
    """
    narrow = rule.scope == "mamba" and rule.pattern is None and bool(mamba.any())
    return mamba if narrow else mamba | True


def rule_label(row: Mapping[str, Any] | pd.Series) -> str:
    """What a line of a sweep (`finetune_record.SWEEP`) freezes, in few letters."""
    if row["frozen_share"] == 0:
        return "nothing frozen"
    if not pd.isna(row["pattern"]):
        return "all but the heads" if row["pattern"] == "*" else str(row["pattern"])
    if not is_missing(row["quantile"]):
        return f"smallest {row['quantile']:g}"
    return f"below {row['threshold']:g}"


def rule_scope(row: Mapping[str, Any] | pd.Series) -> str:
    """What a line of a sweep chooses from."""
    if not pd.isna(row["pattern"]):
        return "by name"
    return "state-space blocks" if row["scope"] == "mamba" else "all tensors"


# What freezing cost and saved, in sentences that say no more than was measured.


CLEAR = 0.05
FEW = 30  # groups: with fewer, intervals are wide and their ends are uncertain themselves


def verdict(finetuning: Finetuning) -> list[str]:
    """Scores, their difference to full fine-tuning, time, memory; what is not measured is left."""
    return [
        *_scores(finetuning),
        *_relaxed(finetuning),
        *_differences(finetuning),
        *_time(finetuning),
        *_memory(finetuning),
        *_count(finetuning),
    ]


def few_held_out(finetuning: Finetuning) -> str:
    """How little can be seen with few held-out images; empty where they are many."""
    training = finetuning.training
    if training is None or training.test is None:
        return ""
    group, groups = training.record.grouping, training.test.groups
    if groups >= FEW:
        return ""
    held, width = counted(groups, f"held-out {group}"), _widest(finetuning)
    if width is None:
        return f"From {held} nothing can be said about others, so no interval is given."
    scoring = finetuning.scoring
    return f"With {held}, {scoring.few_words.format(width=scoring.width(width))}"


def _widest(finetuning: Finetuning) -> float | None:
    """The width of the widest interval of a mode's score; None where no mode has one."""
    tests = [run.training.test for run in finetuning.modes]
    low, high = (f"{finetuning.scoring.measure.column}_{end}" for end in ("low", "high"))
    widths = [t.numbers[high] - t.numbers[low] for t in tests if t is not None]
    return max((float(width) for width in widths if not is_missing(width)), default=None)


def _scores(finetuning: Finetuning) -> list[str]:
    training = finetuning.training
    if not finetuning.measured or training is None or training.test is None:
        return []
    scoring, group = finetuning.scoring, training.record.grouping
    held = counted(int(training.test.numbers["n"]), "held-out image")
    held += "" if group == "image" else f" of {counted(training.test.groups, group)}"
    held += f", per {group}" if scoring.per_group else ""
    told = f"{scoring.measure.title} on {held}, with 95 % intervals: "
    told += ", ".join(f"{run.mode} {_score(run)}" for run in finetuning.measured) + "."
    if training.baseline_numbers is not None:
        baseline = scoring.shown(training.baseline_numbers)
        told += f" {scoring.floor_words} on the same images: {baseline}."
    return [told]


def _score(run: ModeRun) -> str:
    assert run.training.test is not None
    return run.training.scoring.shown(run.training.test.numbers)


def _relaxed(finetuning: Finetuning) -> list[str]:
    """Beside dice, where the data have a tolerance."""
    if finetuning.tolerance is None:
        return []
    measured = [
        f"{run.mode} {relaxed_words(run.training.test.numbers)}"
        for run in finetuning.modes
        if run.training.test is not None
    ]
    how = f"{counted(finetuning.tolerance, 'pixel')}, pixels of all images pooled"
    return [f"Relaxed precision and recall ({how}): {', '.join(measured)}."]


def _differences(finetuning: Finetuning) -> list[str]:
    """Each mode against full; freezing first, since it is what the question is about."""
    order = sorted(finetuning.modes, key=lambda run: run.mode != "freeze")
    compared = [(run, against_full(finetuning, run.mode)) for run in order]
    group = finetuning.training.record.grouping if finetuning.training else "image"
    told = [
        f"{finetuning.scoring.measure.title} of {run.mode} minus that of full: "
        f"{_difference(one, group, finetuning.scoring)}"
        for run, one in compared
        if one is not None
    ]
    once = "Each mode was trained once: what another seed would give is in none of the intervals."
    return [*told, once] if told else []


def _difference(one: Difference, group: str, scoring: Scoring) -> str:
    value = f"{scoring.apart(one.value)}{scoring.unit}"
    if one.low is None or one.high is None or one.p is None:
        return f"{value}; from one {group} nothing can be said about others."
    paired, by = scoring.tested(group)
    interval = f"{paired} {scoring.apart(one.low)} to {scoring.apart(one.high)}"
    p = p_value(one.p)
    test = f"{by}: p {p}" if p.startswith("<") else f"{by}: p = {p}"
    hint = ""
    if one.smallest_p > CLEAR:
        hint = f" ({counted(one.groups, group)} cannot give a p below {p_value(one.smallest_p)})"
    return f"{value} ({interval}; {test}{hint}). {_meaning(one, scoring)}"


def _meaning(one: Difference, scoring: Scoring) -> str:
    assert one.low is not None
    assert one.high is not None
    assert one.p is not None
    small = one.low >= -scoring.equal and one.high <= scoring.equal
    by_interval, by_test = one.low > 0 or one.high < 0, one.p <= CLEAR
    if by_interval != by_test:
        return _disagreement(one, by_test, small, scoring)
    if by_interval:
        word = "better" if one.value > 0 else "worse"
        size = f" but less than {scoring.equal_size}" if small else ""
        return f"So it is {word}, by more than the choice of images explains{size}."
    if small:
        return f"So both are equal to within {scoring.equal_words}."
    loss, gain = scoring.apart(one.low).lstrip("-"), scoring.apart(one.high).lstrip("+")
    return (
        "So a difference cannot be told from chance, which does not mean that there is none: "
        f"a loss of up to {loss} or a gain of up to {gain}{scoring.unit} is possible."
    )


def _disagreement(one: Difference, by_test: bool, small: bool, scoring: Scoring) -> str:
    """Where only the test, or only the interval, tells the difference from chance."""
    size = f" If there is one, it is less than {scoring.equal_size}." if small else ""
    if not by_test and one.smallest_p > CLEAR:
        told = "The interval leaves out 0, but the test cannot come to p = 0.05 with so few"
    else:
        seen = ("includes 0", "at or below") if by_test else ("leaves out 0", "above")
        told = f"The interval {seen[0]}, while p is {seen[1]} 0.05. {scoring.edge_words}"
    return f"{told}: whether there is a difference is not settled.{size}"


def _time(finetuning: Finetuning) -> list[str]:
    """The time of an iteration after the freeze against that of full fine-tuning."""
    freeze, full = finetuning.of("freeze"), finetuning.of("full")
    if freeze is None or full is None:
        return []
    mine, theirs = pace(freeze), pace(full)
    if mine is None or theirs is None:
        return []
    numbers = (
        f"{seconds(mine.median)} against {seconds(theirs.median)}, medians of "
        f"{mine.iterations:,} and {theirs.iterations:,} iterations"
    )
    if not frozen_elements(freeze):
        told = "Nothing is frozen, so what differs in time between freeze and full is the "
        return [f"{told}machine's noise: {numbers}."]
    told = f"After the freeze an iteration took {_compared(mine, theirs)} as in full fine-tuning: "
    told += f"{numbers}."
    if _within(mine, theirs):
        told += (
            " Each median lies within the middle half of the other's iterations, so the "
            "difference may be the machine's noise."
        )
    return [told + _before(freeze, mine)]


def _compared(one: Pace, other: Pace) -> str:
    ratio = one.median / other.median
    word = f"{decimal(100 * abs(1 - ratio))} % {'less' if ratio <= 1 else 'more'}"
    return f"{decimal(ratio, 2)} times as long ({word})"


def _before(freeze: ModeRun, after: Pace) -> str:
    """The same run before the freeze: a comparison that the machine's other work disturbs less."""
    before = pace_before(freeze)
    if before is None:
        return ""
    return (
        f" Against its own {counted(before.iterations, 'iteration')} before the freeze, which were "
        f"also profiled ({seconds(before.median)}), it took {_compared(after, before)}."
    )


def _within(one: Pace, other: Pace) -> bool:
    return one.low <= other.median <= one.high and other.low <= one.median <= other.high


def _memory(finetuning: Finetuning) -> list[str]:
    freeze, full = finetuning.of("freeze"), finetuning.of("full")
    mine, theirs = (run.costs if run else None for run in (freeze, full))
    if freeze is None or mine is None or theirs is None or not frozen_elements(freeze):
        return []
    told = f"The optimizer kept {megabytes(mine.optimizer_bytes)} against "
    told += megabytes(theirs.optimizer_bytes)
    if mine.peak_memory_bytes is not None and theirs.peak_memory_bytes is not None:
        told += f"; the peak of memory was {mebibytes(mine.peak_memory_bytes)} after the freeze "
        told += f"against {mebibytes(theirs.peak_memory_bytes)}"
    return [f"{told}."]


def _count(finetuning: Finetuning) -> list[str]:
    """What freezing leaves out by count, and what it cannot leave out."""
    saving = finetuning.record.saving
    if saving is None or not saving.frozen:
        return []
    flops = 100 * saving.flops_saved / max(1, saving.flops)
    kept = 100 * saving.optimizer_bytes_saved / max(1, saving.optimizer_bytes)
    return [
        f"By count, freezing leaves out {decimal(flops, 2)} % of the convolutions and matrix "
        f"products of a training step and {decimal(kept, 2)} % of the optimizer's memory. The "
        "forward pass stays as it is, and gradients still pass through frozen layers to the "
        "trainable ones before them."
    ]


# The tensors that a rule chose from, and what a line of a sweep saves.


def chosen_from(finetuning: Finetuning) -> pd.DataFrame:
    """The tensors that the rule could freeze, and those it froze, the smallest statistic first."""
    assert finetuning.decisions is not None
    table = finetuning.decisions
    return ordered(table[table["frozen"] | is_within(finetuning.record.rule, table["mamba"])])


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the smallest statistic first; tensors without one at the end."""
    return table.sort_values("statistic", kind="stable", na_position="last")


def saved(row: Mapping[str, Any] | pd.Series) -> str:
    """The saving of a line of the sweep in percent, with its interval."""
    value, low, high = (row[f"seconds_ratio{end}"] for end in ("", "_low", "_high"))
    if is_missing(value):
        return MISSING
    told = decimal(100 * (1 - value))
    if is_missing(low) or is_missing(high):
        return told
    return f"{told} ({decimal(100 * (1 - high))}{EN_DASH}{decimal(100 * (1 - low))})"
