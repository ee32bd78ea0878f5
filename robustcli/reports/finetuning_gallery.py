"""The pictures of a fine-tuning's report, drawn into `figures/` beside it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from robustcli.finetuning.record import MODES
from robustcli.reports.cases import case_figures
from robustcli.reports.document import Figure
from robustcli.reports.figures.gradients import draw_gradients
from robustcli.reports.figures.modes import ModeCourse, draw_modes
from robustcli.reports.figures.strips import draw_strips
from robustcli.reports.figures.tradeoff import Rule, draw_tradeoff
from robustcli.reports.finetuning import Finetuning, ModeRun
from robustcli.reports.numbers import is_missing
from robustcli.reports.rules import rule_label, rule_scope, statistic_name
from robustcli.reports.traces import limit, traces
from robustcli.reports.training_gallery import strip, validated


@dataclass(frozen=True)
class FinetuningGallery:
    """The figures of each kind that there are; an empty tuple where there is nothing to show."""

    gradients: tuple[Figure, ...] = ()
    modes: tuple[Figure, ...] = ()
    strips: tuple[Figure, ...] = ()
    cases: tuple[Figure, ...] = ()
    tradeoff: tuple[Figure, ...] = ()


def draw_finetuning_gallery(found: Finetuning) -> FinetuningGallery:
    """Draws every picture that a fine-tuning has data for."""
    return FinetuningGallery(
        _gradients(found),
        _modes(found),
        _strips(found),
        tuple(figure for run in found.modes for figure in _cases(found, run)),
        _tradeoff(found),
    )


def _gradients(found: Finetuning) -> tuple[Figure, ...]:
    lines = traces(found)
    if not lines:
        return ()
    path, words = "figures/gradients.png", statistic_name(found.record.rule)
    draw_gradients(lines, limit(found, lines), words, found.run / path)
    caption = (
        f"Gradients while profiling: {words}, before clipping. A line per tensor; the mark at its "
        "right end is the mean over the iterations, which the rule compares. Dashed, hollow: "
        "frozen."
    )
    return (Figure(path, caption),)


def _modes(found: Finetuning) -> tuple[Figure, ...]:
    courses = [_course(run) for run in found.modes if len(run.training.metrics)]
    if not courses:
        return ()
    path = "figures/modes.png"
    scoring = found.scoring
    panel = scoring.validation.score, f"validation {scoring.axis}"
    draw_modes(courses, found.run / path, panel)
    of = validated(found.modes[0].training)
    caption = (
        f"Loss (above) and {scoring.measure.name} (below) of {of}, by epoch and by "
        "the time that training with its validations took. The large mark is the epoch whose "
        "weights were taken."
    )
    return (Figure(path, caption),)


def _course(run: ModeRun) -> ModeCourse:
    training = run.training
    frozen_at = run.frozen_at if run.mode == "freeze" else None
    chosen = training.record.chosen_epoch
    return ModeCourse(run.mode, MODES.index(run.mode), training.metrics, chosen, frozen_at)


def _strips(found: Finetuning) -> tuple[Figure, ...]:
    if not found.scoring.per_group:
        return ()
    measured = [(run.mode, run.training.test) for run in found.modes]
    baselines = [run.training.baseline for run in found.modes if run.training.baseline is not None]
    named = [*measured, *(("otsu", baseline) for baseline in baselines[:1])]
    strips = [strip(name, held) for name, held in named if held is not None]
    if not strips:
        return ()
    path, group = "figures/groups.png", found.modes[0].training.record.grouping
    draw_strips(strips, group, found.run / path)
    return (Figure(path, f"Dice of every held-out {group}, mode by mode."),)


def _cases(found: Finetuning, run: ModeRun) -> tuple[Figure, ...]:
    test = run.training.test
    if test is None or not found.scoring.per_group:
        return ()
    return case_figures(test.findings, test.findings.models[0], found.run, run.mode)


def _tradeoff(found: Finetuning) -> tuple[Figure, ...]:
    if found.sweep is None:
        return ()
    measure = found.scoring.measure
    known = found.sweep.dropna(subset=["seconds_ratio", measure.column])
    if known.empty:
        return ()
    path = "figures/sweep.png"
    rules = [_rule(row, measure.column) for _, row in known.iterrows()]
    draw_tradeoff(rules, found.run / path, found.scoring.axis)
    caption = (
        "Time of an iteration that rules of freezing save against full fine-tuning, and the "
        f"{measure.name} that is left, both with 95 % intervals."
    )
    return (Figure(path, caption),)


def _rule(row: pd.Series, score: str) -> Rule:
    ratio = _with_ends(row, "seconds_ratio")
    saved = (100 * (1 - ratio[2]), 100 * (1 - ratio[1]), 100 * (1 - ratio[0]))
    return Rule(rule_label(row), rule_scope(row), saved, _with_ends(row, score))


def _with_ends(row: pd.Series, name: str) -> tuple[float, float, float]:
    value = float(row[name])
    low, high = (float(row[f"{name}_{end}"]) for end in ("low", "high"))
    return value if is_missing(low) else low, value, value if is_missing(high) else high
