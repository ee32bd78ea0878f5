"""Rules of freezing, and what freezing cost and saved, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from robustcli.finetuning.record import RuleRecord
from robustcli.reports.document import (
    Block,
    Figure,
    Heading,
    Mono,
    Paragraph,
    Strong,
    Table,
    Text,
    cells,
    marked,
    text,
)
from robustcli.reports.finetuning_findings import Finetuning, ModeRun
from robustcli.reports.finetuning_results import (
    Pace,
    against_full,
    frozen_elements,
    pace,
    pace_before,
)
from robustcli.reports.numbers import MISSING, counted, decimal, duration, is_missing
from robustcli.reports.relaxed import relaxed_words
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


def rule_words(rule: RuleRecord) -> Text:
    """What a rule freezes."""
    if rule.pattern is not None:
        return text("tensors called ", Mono(rule.pattern))
    where = "of state-space blocks" if rule.scope == "mamba" else "of the whole network"
    name = statistic_name(rule)
    if rule.quantile is not None:
        share = decimal(100 * rule.quantile, 0)
        return text(f"the {share} % of the tensors {where} with the smallest {name}")
    return text(f"tensors {where} whose {name} is below {rule.threshold:g}")


def is_within(rule: RuleRecord, mamba: pd.Series) -> pd.Series:
    """Which tensors a rule chooses from; all where it is about all or there is no such block.

    Args:
        rule: The rule.
        mamba: Per tensor, whether it belongs to a state-space block.
    """
    narrow = rule.scope == "mamba" and rule.pattern is None and bool(mamba.any())
    return mamba if narrow else mamba | True


def rule_label(row: pd.Series) -> str:
    """What a line of a sweep (`finetune_record.SWEEP`) freezes, in few letters."""
    if row["frozen_share"] == 0:
        return "nothing frozen"
    if not pd.isna(row["pattern"]):
        return "all but the heads" if row["pattern"] == "*" else str(row["pattern"])
    if not is_missing(row["quantile"]):
        return f"smallest {row['quantile']:g}"
    return f"below {row['threshold']:g}"


def rule_scope(row: pd.Series) -> str:
    """What a line of a sweep chooses from."""
    if not pd.isna(row["pattern"]):
        return "by name"
    return "state-space blocks" if row["scope"] == "mamba" else "all tensors"


# What freezing cost and saved, in sentences that say no more than was measured.


CLEAR = 0.05


def verdict(found: Finetuning) -> list[Text]:
    """Scores, their difference to full fine-tuning, time, memory; what is not measured is left."""
    told = (
        *_scores(found),
        *_relaxed(found),
        *_differences(found),
        *_time(found),
        *_memory(found),
        *_count(found),
    )
    return [text(words) for words in told]


def score_of(run: ModeRun) -> str:
    """The score of a mode with its interval; empty until it is measured."""
    test = run.training.test
    return "" if test is None else run.training.scoring.shown(test.numbers)


def _scores(found: Finetuning) -> list[str]:
    measured = [run for run in found.modes if run.training.test is not None]
    training = found.training
    if not measured or training is None or training.test is None:
        return []
    scoring, group = found.scoring, training.record.grouping
    held = counted(int(training.test.numbers["n"]), "held-out image")
    held += "" if group == "image" else f" of {counted(training.test.groups, group)}"
    held += f", per {group}" if scoring.per_group else ""
    told = f"{scoring.measure.title} on {held}, with 95 % intervals: "
    told += ", ".join(f"{run.mode} {score_of(run)}" for run in measured) + "."
    if training.floor is not None:
        told += f" {scoring.floor_words} on the same images: {scoring.shown(training.floor)}."
    return [told]


def _relaxed(found: Finetuning) -> list[str]:
    """Beside dice, where the data have a tolerance."""
    if found.tolerance is None:
        return []
    measured = [
        f"{run.mode} {relaxed_words(run.training.test.numbers)}"
        for run in found.modes
        if run.training.test is not None
    ]
    how = f"{counted(found.tolerance, 'pixel')}, pixels of all images pooled"
    return [f"Relaxed precision and recall ({how}): {', '.join(measured)}."]


def _differences(found: Finetuning) -> list[str]:
    """Each mode against full; freezing first, since it is what the question is about."""
    order = sorted(found.modes, key=lambda run: run.mode != "freeze")
    compared = [(run, against_full(found, run.mode)) for run in order]
    group = found.training.record.grouping if found.training else "image"
    told = [
        f"{found.scoring.measure.title} of {run.mode} minus that of full: "
        f"{_difference(one, group, found.scoring)}"
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


def p_value(p: float) -> str:
    """A p-value with the digits that mean something."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _time(found: Finetuning) -> list[str]:
    """The time of an iteration after the freeze against that of full fine-tuning."""
    freeze, full = found.of("freeze"), found.of("full")
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


def seconds(value: float) -> str:
    """A short stretch of time: `0.231 s`, `12 ms`, `1.2 s`."""
    if value < 0.1:
        return f"{decimal(1000 * value)} ms"
    return f"{value:.3f} s" if value < 1 else duration(value)


def _memory(found: Finetuning) -> list[str]:
    freeze, full = found.of("freeze"), found.of("full")
    mine, theirs = (run.costs if run else None for run in (freeze, full))
    if freeze is None or mine is None or theirs is None or not frozen_elements(freeze):
        return []
    told = f"The optimizer kept {megabytes(mine.optimizer_bytes)} against "
    told += megabytes(theirs.optimizer_bytes)
    if mine.peak_memory_bytes is not None and theirs.peak_memory_bytes is not None:
        told += f"; the peak of memory was {mebibytes(mine.peak_memory_bytes)} after the freeze "
        told += f"against {mebibytes(theirs.peak_memory_bytes)}"
    return [f"{told}."]


def _count(found: Finetuning) -> list[str]:
    """What freezing leaves out by count, and what it cannot leave out."""
    saving = found.record.saving
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


def megabytes(count: int) -> str:
    """Bytes in 10⁶ bytes, so exactly that a few frozen tensors show."""
    return f"{decimal(count / 1e6, 3 if count < 1e7 else 1)} MB"


def mebibytes(count: int) -> str:
    """Bytes in 2²⁰ bytes."""
    return f"{decimal(count / 2**20, 0)} MiB"


HEADER = ("parameter", "shape", "count", "statistic", "frozen", "why")


def gradients(found: Finetuning, figures: Sequence[Figure]) -> list[Block]:
    """The picture, and the table of the tensors that the rule chose from."""
    heading = Heading(2, text("Gradients and what was frozen"))
    if found.decisions is None:
        waiting = "The profile is not complete yet: nothing is decided."
        return [heading, *figures, Paragraph(text(waiting))]
    near = chosen_from(found)
    rest = len(found.decisions) - len(near)
    words = f"Statistic: {statistic_name(found.record.rule)}. The smallest comes first."
    if rest:
        words += f" {counted(rest, 'more tensor')}, out of the rule's reach, under “Every tensor”."
    return [heading, *figures, Paragraph(text(words)), _table(near)]


def every_tensor(found: Finetuning) -> list[Block]:
    """The table of all tensors, where the first one left some out."""
    if found.decisions is None or len(chosen_from(found)) == len(found.decisions):
        return []
    return [Heading(2, text("Every tensor")), _table(ordered(found.decisions))]


def chosen_from(found: Finetuning) -> pd.DataFrame:
    """The tensors that the rule could freeze, and those it froze, the smallest statistic first."""
    assert found.decisions is not None
    table = found.decisions
    return ordered(table[table["frozen"] | is_within(found.record.rule, table["mamba"])])


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the smallest statistic first; tensors without one at the end."""
    return table.sort_values("statistic", kind="stable", na_position="last")


def statistic(value: float | None) -> str:
    """A statistic with two digits."""
    if value is None or is_missing(value):
        return MISSING
    return "0" if value == 0 else f"{value:.1e}"


def _table(table: pd.DataFrame) -> Table:
    rows = [_gradient_row(row) for _, row in table.iterrows()]
    return Table(cells(*HEADER), tuple(rows))


def _gradient_row(row: pd.Series) -> tuple[Text, ...]:
    shape = str(row["shape"]).replace("x", " x ")
    frozen = text(Strong("frozen")) if row["frozen"] else text("no")
    middle = cells(shape, f"{row['count']:,}", statistic(row["statistic"]))
    return (text(Mono(str(row["name"]))), *middle, frozen, marked(str(row["why"])))
