"""The report of a fine-tuning: results, figures, page, printed tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.core.names import counted
from robustcli.finetuning.record import MODES
from robustcli.metrics.paired import PairedDifference
from robustcli.reports.evaluation_page import case_figures
from robustcli.reports.figures.canvas import Estimate
from robustcli.reports.figures.freezing_figures import (
    GradientCurve,
    Limit,
    ModeCourse,
    RulePoint,
    draw_gradients,
    draw_modes,
    draw_tradeoff,
)
from robustcli.reports.figures.training_figures import draw_strips
from robustcli.reports.findings import records
from robustcli.reports.finetuning_findings import (
    FinetuningFindings,
    ModeRun,
    Pace,
    against_full,
    chosen_from,
    curve_name,
    few_held_out,
    finetuning_summary,
    frozen_by_rule,
    frozen_elements,
    is_within,
    ordered,
    pace,
    read_finetuning,
    rule_label,
    rule_scope,
    saved,
    seconds_ratio,
    statistic_name,
    sweep_start,
    swept_before_freezing,
)
from robustcli.reports.markdown import Picture, from_template
from robustcli.reports.numbers import (
    MISSING,
    decimal,
    duration,
    mebibytes,
    megabytes,
    p_value,
    seconds,
    statistic,
)
from robustcli.reports.pages import Page, grid, in_ascii, typed_table
from robustcli.reports.scoring import SCORINGS, Scoring
from robustcli.reports.training_page import strip, validated

_COUNTS = (
    *("epochs", "chosen_epoch", "iterations", "iterations_measured"),
    *("trainable", "frozen", "optimizer_bytes", "peak_memory_bytes"),
)
_WORDS = ("mode", "model", "dataset", "status")


def columns(scoring: Scoring) -> tuple[str, ...]:
    """The columns of the results of a fine-tuning with this scoring."""
    against = f"{scoring.measure.column}_minus_full"
    return (
        *_WORDS,
        *scoring.columns,
        *("epochs", "chosen_epoch", "iterations", "iterations_measured"),
        *("seconds_per_iteration", "iterations_per_second", "seconds_ratio"),
        *("trainable", "frozen", "optimizer_bytes", "peak_memory_bytes", "training_seconds"),
        *(against, f"{against}_low", f"{against}_high", f"{against}_p"),
        *(f"baseline_{name}" for name in scoring.baseline_columns),
    )


SEGMENTER_MODE_COLUMNS = columns(SCORINGS["seg"])


def finetuning_results(finetuning: FinetuningFindings) -> pd.DataFrame:
    """One row per mode with `columns`; unknown values are missing.

    Shares are fractions in [0, 1]; times are of the iterations after freezing.
    """
    names, counts = columns(finetuning.scoring), (*_COUNTS, *finetuning.scoring.counts)
    rows = [_row(finetuning, run) for run in finetuning.modes]
    return typed_table(rows, names, words=_WORDS, counts=counts)


def _row(finetuning: FinetuningFindings, run: ModeRun) -> dict[str, object]:
    training, costs, seconds = run.training, run.costs, run.seconds_per_iteration
    row: dict[str, object] = {
        "mode": run.mode,
        "model": finetuning.record.model,
        "dataset": finetuning.record.dataset.name,
        "status": training.record.status,
        "epochs": training.epochs,
        "chosen_epoch": training.record.chosen_epoch,
        "iterations": int(training.metrics["step"].max()) if training.epochs else 0,
        "iterations_measured": len(run.steady),
        "training_seconds": training.seconds,
        "frozen": frozen_elements(run),
        "seconds_per_iteration": seconds,
        "iterations_per_second": 1 / seconds if seconds else None,
        "seconds_ratio": seconds_ratio(finetuning, run.mode),
        **_scores(finetuning, run),
    }
    if costs is not None:
        row |= costs.model_dump()
    return row


def _scores(finetuning: FinetuningFindings, run: ModeRun) -> dict[str, object]:
    row: dict[str, object] = {}
    scoring, test, baseline = finetuning.scoring, run.training.test, run.training.baseline_numbers
    difference = against_full(finetuning, run.mode)
    if test is not None:
        row |= {name: test.numbers[name] for name in scoring.columns}
    if baseline is not None:
        row |= {f"baseline_{name}": baseline[name] for name in scoring.baseline_columns}
    if difference is not None:
        name = f"{scoring.measure.column}_minus_full"
        row |= {name: difference.value, f"{name}_p": difference.p}
        row |= {f"{name}_low": difference.low, f"{name}_high": difference.high}
    return row


_LEAST_RMS = 1e-30  # as in `finetuning.selection`; avoids division by 0 for weights of zeros
# Vim has separate tensors for the backward scan (`_b`); VMamba stacks four directions (`s`).
_KINDS = (
    *(("A_log", r"A(_b)?_logs?"), ("D", r"Ds?(_b)?"), ("dt_proj", r"dt_projs?\w*")),
    *(("x_proj", r"x_proj\w*"), ("in_proj", r"in_proj\w*"), ("out_proj", r"out_proj\w*")),
    *(("conv1d", r"conv1d\w*"), ("conv2d", r"conv2d\w*"), ("norm", r"\w*norm\w*")),
)
_OUTSIDE = {1: "scales", 2: "linear layers"}


def curves(finetuning: FinetuningFindings) -> list[GradientCurve]:
    """A curve per tensor in the scope of the rule, smallest mean first; empty without a profile.

    These are the tensors of state-space blocks, or all tensors if the scope of the rule is all or
    the network has no such blocks.
    """
    if finetuning.profile is None or finetuning.profile.empty:
        return []
    rule = finetuning.record.rule
    rows = finetuning.profile[is_within(rule, finetuning.profile["mamba"])]
    values = rows[rule.kind] / (rows["weight_rms"].clip(lower=_LEAST_RMS) if rule.relative else 1)
    courses = {
        str(name): course.to_numpy(dtype=float)
        for name, course in values.groupby(rows["name"], sort=False)
    }
    first = rows.drop_duplicates("name")
    facts = zip(
        first["name"].tolist(), first["shape"].tolist(), first["mamba"].tolist(), strict=True
    )
    kinds = [kind_of_tensor(name, len(shape), inside=inside) for name, shape, inside in facts]
    frozen, labels = _frozen_names(finetuning), short_names(list(courses))
    lines = [
        GradientCurve(label, kind, values, _mean(values), name in frozen)
        for (name, values), label, kind in zip(courses.items(), labels, kinds, strict=True)
    ]
    return sorted(lines, key=lambda line: math.inf if line.mean is None else line.mean)


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean over the iterations with a gradient; None if no iteration has one."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def rule_limit(finetuning: FinetuningFindings, lines: list[GradientCurve]) -> Limit | None:
    """The threshold of the rule between `lines`; None if the rule selects by name."""
    rule = finetuning.record.rule
    if rule.threshold is not None:
        return Limit(f"threshold {rule.threshold:g}", rule.threshold)
    taken = [line.mean for line in lines if line.frozen and line.mean is not None]
    if rule.quantile is None or not taken:
        return None
    return Limit(f"the smallest {rule.quantile:g}: up to {max(taken):.1e}", max(taken))


def kind_of_tensor(name: str, dimensions: int, *, inside: bool) -> str:
    """The role of a tensor: its part in a state-space block, else its layer's kind."""
    for part in reversed(name.split(".")) if inside else ():
        for kind, pattern in _KINDS:
            if re.fullmatch(pattern, part):
                return kind
    if name.endswith("bias"):
        return "biases"
    return _OUTSIDE.get(dimensions, "convolutions")


def short_names(names: list[str]) -> list[str]:
    """`names` without the module prefix that they share."""
    if len(names) < 2:
        return [".".join(name.split(".")[-2:]) for name in names]
    parts = [name.split(".") for name in names]
    common = 0
    while all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    return [".".join(part[common:]) for part in parts]


def _frozen_names(finetuning: FinetuningFindings) -> frozenset[str]:
    if finetuning.decisions is None:
        return frozenset()
    return frozenset(finetuning.decisions.loc[finetuning.decisions["frozen"], "name"])


@dataclass(frozen=True)
class FinetuningGallery:
    """The figures of a fine-tuning; empty tuples for kinds without figures."""

    gradients: tuple[Picture, ...] = ()
    modes: tuple[Picture, ...] = ()
    strips: tuple[Picture, ...] = ()
    cases: tuple[Picture, ...] = ()
    tradeoff: tuple[Picture, ...] = ()


def draw_finetuning_gallery(finetuning: FinetuningFindings) -> FinetuningGallery:
    """Draws all figures for which a fine-tuning has data."""
    return FinetuningGallery(
        _gradients(finetuning),
        _modes_picture(finetuning),
        _strips(finetuning),
        tuple(figure for run in finetuning.modes for figure in _cases(finetuning, run)),
        _tradeoff(finetuning),
    )


def _gradients(finetuning: FinetuningFindings) -> tuple[Picture, ...]:
    lines = curves(finetuning)
    if not lines:
        return ()
    rule, path = finetuning.record.rule, "figures/gradients.png"
    words = curve_name(rule)
    draw_gradients(lines, rule_limit(finetuning, lines), words, finetuning.out / path)
    compared = (
        "the mean over the iterations, which is compared with the threshold"
        if rule.change is None
        else "the mean over the iterations; the rule compares the mean of the last quarter of a "
        "line with that of its first"
    )
    caption = (
        f"Gradients while profiling: {words}, before clipping. One line per tensor; the mark at "
        f"its right end is {compared}. Dashed, hollow: frozen."
    )
    return (Picture(path, caption),)


def _modes_picture(finetuning: FinetuningFindings) -> tuple[Picture, ...]:
    courses = [_course(run) for run in finetuning.modes if len(run.training.metrics)]
    if not courses:
        return ()
    path = "figures/modes.png"
    scoring = finetuning.scoring
    panel = scoring.validation.score, f"validation {scoring.axis}"
    draw_modes(courses, finetuning.out / path, panel)
    of = validated(finetuning.modes[0].training)
    caption = (
        f"Loss (above) and {scoring.measure.name} (below) of {of}, by epoch and by the training "
        "time including validation. The large mark is the epoch whose weights were selected."
    )
    return (Picture(path, caption),)


def _course(run: ModeRun) -> ModeCourse:
    training = run.training
    frozen_at = run.frozen_at if run.mode == "freeze" else None
    chosen = training.record.chosen_epoch
    return ModeCourse(run.mode, MODES.index(run.mode), training.metrics, chosen, frozen_at)


def _strips(finetuning: FinetuningFindings) -> tuple[Picture, ...]:
    if not finetuning.scoring.per_group:
        return ()
    measured = [(run.mode, run.training.test) for run in finetuning.modes]
    baselines = [
        run.training.baseline for run in finetuning.modes if run.training.baseline is not None
    ]
    named = [*measured, *(("otsu", baseline) for baseline in baselines[:1])]
    strips = [strip(name, held) for name, held in named if held is not None]
    if not strips:
        return ()
    path, group = "figures/groups.png", finetuning.modes[0].training.record.grouping
    draw_strips(strips, group, finetuning.out / path)
    return (Picture(path, f"Dice of all held-out {group}s for each mode."),)


def _cases(finetuning: FinetuningFindings, run: ModeRun) -> tuple[Picture, ...]:
    test = run.training.test
    if test is None or not finetuning.scoring.per_group:
        return ()
    return case_figures(test.findings, test.findings.models[0], finetuning.out, run.mode)


def _tradeoff(finetuning: FinetuningFindings) -> tuple[Picture, ...]:
    if finetuning.sweep is None:
        return ()
    measure = finetuning.scoring.measure
    known = finetuning.sweep.dropna(subset=["seconds_ratio", measure.column])
    if known.empty:
        return ()
    path = "figures/sweep.png"
    rules = [_sweep_rule(row, measure.column) for _, row in known.iterrows()]
    draw_tradeoff(rules, finetuning.out / path, finetuning.scoring.axis)
    caption = (
        "Time per iteration that freezing rules save compared with full fine-tuning, and the "
        f"resulting {measure.name}, both with 95 % intervals."
    )
    return (Picture(path, caption),)


def _sweep_rule(row: pd.Series, score: str) -> RulePoint:
    low, ratio, high = Estimate.of(row, "seconds_ratio")
    saved = Estimate(100 * (1 - high), 100 * (1 - ratio), 100 * (1 - low))
    return RulePoint(rule_label(row), rule_scope(row), saved, Estimate.of(row, score))


def finetuning_report(run: Path, out: Path | None = None) -> Page:
    """The page of the fine-tuning in `run`; draws its figures into `out`, by default `run`.

    Raises:
        UsageError: The fine-tuning does not exist or cannot be read.
    """
    finetuning = read_finetuning(run, out)
    return Page(
        finetuning_results(finetuning),
        finetuning_text(finetuning, draw_finetuning_gallery(finetuning)),
        terminal=finetune_table(finetuning),
    )


def finetuning_text(
    finetuning: FinetuningFindings, gallery: FinetuningGallery | None = None
) -> str:
    """The Markdown of the page, with the figures of `gallery`."""
    return from_template(
        "finetuning",
        finetuning=finetuning,
        gallery=gallery or FinetuningGallery(),
        few=few_held_out(finetuning),
        statistic_name=statistic_name(finetuning.record.rule),
        frozen=frozen_by_rule(finetuning),
        summary=finetuning_summary(finetuning),
        differences={run.mode: against_full(finetuning, run.mode) for run in finetuning.modes},
        paces={run.mode: pace(run) for run in finetuning.modes},
        frozen_elements=frozen_elements,
        chosen_from=[] if finetuning.decisions is None else chosen_from(finetuning),
        every_tensor=[] if finetuning.decisions is None else ordered(finetuning.decisions),
        rule_label=rule_label,
        rule_scope=rule_scope,
        sweep_start=sweep_start,
        swept_before_freezing=swept_before_freezing(finetuning),
        saved=saved,
        sweep=[] if finetuning.sweep is None else records(finetuning.sweep),
    )


# The tables that `robust finetune` prints.


TENSORS_SHOWN = 12  # tensors; the report has all of them
_COST_HEADS = ("mode", "s/iteration", "iterations/s", "trained", "optimizer", "peak memory", "time")


def finetune_table(finetuning: FinetuningFindings) -> str:
    """What was frozen, the costs and scores of each mode, and the verdict as text."""
    parts = [
        _tensor_grid(finetuning),
        _score_grid(finetuning),
        _cost_grid(finetuning),
        "\n".join(finetuning_summary(finetuning)),
    ]
    return in_ascii("\n\n".join(filter(None, parts)) or "Nothing is measured yet.")


def _tensor_grid(finetuning: FinetuningFindings) -> str:
    """The first rows of the table of tensors: those with the smallest statistic."""
    if finetuning.decisions is None:
        return ""
    table = chosen_from(finetuning)
    header = ("parameter", "shape", "count", "statistic", "frozen", "why")
    rows: list[tuple[str, ...]] = [
        (
            *(str(row["name"]), str(row["shape"]), f"{row['count']:,}"),
            *(statistic(row["statistic"]), "frozen" if row["frozen"] else "no", str(row["why"])),
        )
        for _, row in table.head(TENSORS_SHOWN).iterrows()
    ]
    shown, omitted = grid(header, rows), len(finetuning.decisions) - len(rows)
    return f"{shown}\nand {counted(omitted, 'more tensor')}: see the report" if omitted else shown


def _score_grid(finetuning: FinetuningFindings) -> str:
    scoring = finetuning.scoring
    rows: list[tuple[str, ...]] = [
        (
            *(run.mode, *_score_cells(scoring, run.training.test.numbers)),
            *_compared_cells(scoring, against_full(finetuning, run.mode)),
        )
        for run in finetuning.modes
        if run.training.test is not None
    ]
    baseline = finetuning.baseline_numbers
    if baseline is not None:
        rows.append(
            (scoring.baseline, *_score_cells(scoring, baseline), *_compared_cells(scoring, None))
        )
    name = scoring.measure.name
    header = ("mode", name, "95 % interval", "minus full", "95 % interval", "p")
    return grid(header, rows) if rows else ""


def _compared_cells(scoring: Scoring, difference: PairedDifference | None) -> tuple[str, str, str]:
    if difference is None:
        return ("", "", "")
    low, high, p = difference.low, difference.high, difference.p
    interval = "" if low is None or high is None else scoring.gap_range(low, high)
    return (scoring.gap_shown(difference.value), interval, "" if p is None else p_value(p))


def _cost_grid(finetuning: FinetuningFindings) -> str:
    rows = [_cost_cells(run, speed) for run in finetuning.modes if (speed := pace(run)) is not None]
    return grid(_COST_HEADS, rows) if rows else ""


def _cost_cells(run: ModeRun, speed: Pace) -> tuple[str, ...]:
    spent = ("", "", "")
    if run.costs is not None:
        peak = run.costs.peak_memory_bytes
        memory = "" if peak is None else mebibytes(peak)
        spent = (f"{run.costs.trainable:,}", megabytes(run.costs.optimizer_bytes), memory)
    times = (seconds(speed.median), decimal(1 / speed.median, 2))
    return (run.mode, *times, *spent, duration(run.training.seconds))


def _score_cells(scoring: Scoring, numbers: Mapping[str, Any] | pd.Series) -> tuple[str, str]:
    """The score and its interval, in separate cells."""
    value, _, ends = scoring.shown(numbers).partition(" (")
    return value, ends.rstrip(")") or ("" if not scoring.per_group else MISSING)
