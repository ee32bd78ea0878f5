"""Findings of a fine-tuning: its modes, each compared with full fine-tuning, and this as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.core.io import read_csv, reading
from robustcli.core.names import counted, unknown_spread
from robustcli.core.rundir import has_record
from robustcli.finetuning.record import (
    AFTER_STEPS,
    CHOSEN_EPOCH,
    COSTS,
    DECISION_COLUMNS,
    DECISIONS,
    ITERATIONS,
    MODES,
    PROFILE,
    STEPS,
    SWEEP_ADDED,
    SWEEP_FILE,
    SWEEPS,
    FinetuneRecord,
    Mode,
    ModeCosts,
    RuleRecord,
    read_finetune_record,
)
from robustcli.metrics.paired import PairedDifference
from robustcli.reports.numbers import (
    EN_DASH,
    MISSING,
    decimal,
    is_missing,
    mebibytes,
    megabytes,
    p_equals,
    p_value,
    seconds,
)
from robustcli.reports.scoring import Scoring, relaxed_words, scoring_of
from robustcli.reports.training_findings import TrainingFindings, read_run_table, read_training


@dataclass(frozen=True)
class ModeRun:
    """One mode of a fine-tuning.

    Args:
        mode: Name of the mode.
        training: Its training run.
        steps: A row per iteration (columns: STEPS); empty until the training has ended.
        costs: Costs of the mode; None until the training has ended.
    """

    mode: Mode
    training: TrainingFindings
    steps: pd.DataFrame
    costs: ModeCosts | None

    @property
    def steady(self) -> pd.DataFrame:
        """The iterations after freezing: those with the final set of trained parameters."""
        last = self.steps["trainable"].tail(1)
        return self.steps[self.steps["trainable"].isin(last)]

    @property
    def seconds_per_iteration(self) -> float | None:
        """The median over `steady`; None before the training has ended."""
        steady = self.steady["seconds"]
        return float(steady.median()) if len(steady) else None

    @property
    def frozen_at(self) -> int | None:
        """The last iteration before freezing; None if nothing was frozen during the training."""
        before = len(self.steps) - len(self.steady)
        return int(self.steps["iteration"].iloc[before - 1]) if before else None


@dataclass(frozen=True)
class FinetuningFindings:
    """The results of one fine-tuning.

    Args:
        run: Folder of the fine-tuning.
        record: Its `run.json`.
        modes: The modes that have started, in the order of the record.
        decisions: The decision for each tensor (columns: DECISION_COLUMNS); None until it is made.
        profile: The gradients (a row per iteration and tensor); None without the file.
        sweep: Results of other rules (columns: SWEEPS); None if they were not measured.
        out: Folder into which figures are drawn.
    """

    run: Path
    record: FinetuneRecord
    modes: tuple[ModeRun, ...]
    decisions: pd.DataFrame | None
    profile: pd.DataFrame | None
    sweep: pd.DataFrame | None
    out: Path

    @property
    def scoring(self) -> Scoring:
        """The scores of the task."""
        return scoring_of(self.record.task, self.record.dataset)

    @property
    def is_partial(self) -> bool:
        """Whether the fine-tuning is incomplete."""
        return self.record.status != "complete"

    @property
    def measured(self) -> list[ModeRun]:
        """The modes that were evaluated on the held-out images."""
        return [run for run in self.modes if run.training.test is not None]

    @property
    def finished(self) -> list[ModeRun]:
        """The modes whose training is complete."""
        return [run for run in self.modes if run.training.record.status == "complete"]

    @property
    def baseline_numbers(self) -> Mapping[str, Any] | pd.Series | None:
        """See `TrainingFindings.baseline_numbers`."""
        known = (run.training.baseline_numbers for run in self.modes)
        return next((numbers for numbers in known if numbers is not None), None)

    @property
    def held(self) -> int:
        """Number of held-out images; 0 until they are evaluated."""
        training = self.training
        if training is None or training.test is None:
            return 0
        return int(training.test.numbers["n"])

    def of(self, mode: Mode) -> ModeRun | None:
        """The run of a mode; None if it has not started."""
        return next((run for run in self.modes if run.mode == mode), None)

    @property
    def tolerance(self) -> int | None:
        """See `TrainingFindings.tolerance`; None if no mode has it."""
        known = [run.training.tolerance for run in self.modes]
        return next((pixels for pixels in known if pixels is not None), None)

    @property
    def training(self) -> TrainingFindings | None:
        """Any of the trainings, all of which have the same data and recipe."""
        return next((run.training for run in [*self.measured, *self.modes]), None)


def read_finetuning(run: Path, out: Path | None = None) -> FinetuningFindings:
    """The fine-tuning in folder `run`, complete or not; see `read_findings`.

    Raises:
        UsageError: The fine-tuning does not exist or cannot be read.
    """
    record = read_finetune_record(run)
    begun = [mode for mode in MODES if mode in record.modes and has_record(run / mode)]
    decisions, profile, sweep = run / DECISIONS, run / PROFILE, run / SWEEP_FILE
    return FinetuningFindings(
        run,
        record,
        tuple(_mode(run, mode) for mode in begun),
        _decisions(decisions) if decisions.is_file() else None,
        read_run_table(profile) if profile.is_file() else None,
        _read_sweep(sweep, SWEEPS[record.task]) if sweep.is_file() else None,
        out or run,
    )


def _mode(run: Path, mode: Mode) -> ModeRun:
    steps, costs = run / mode / ITERATIONS, run / mode / COSTS
    return ModeRun(
        mode,
        read_training(run / mode),
        read_run_table(steps, STEPS)
        if steps.is_file()
        else pd.DataFrame(columns=list(STEPS), dtype=float),
        _costs(costs) if costs.is_file() else None,
    )


def _read_sweep(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The sweep in `path`; columns that earlier versions did not write have their defaults."""
    table = read_run_table(path)
    table = table.assign(**{n: v for n, v in SWEEP_ADDED.items() if n not in table})
    with reading(path):
        return table[list(columns)]


def _costs(path: Path) -> ModeCosts:
    with reading(path):
        return ModeCosts.model_validate_json(path.read_bytes())


def _decisions(path: Path) -> pd.DataFrame:
    kinds = {"name": str, "shape": str, "count": int, "statistic": float, "why": str}
    with reading(path):
        table = read_csv(path, dtype=kinds)[list(DECISION_COLUMNS)]
        return table.astype({"mamba": bool, "frozen": bool})


@dataclass(frozen=True)
class Pace:
    """Duration of an iteration in a mode, in seconds: median and quartiles."""

    median: float
    low: float
    high: float
    iterations: int


def pace(run: ModeRun) -> Pace | None:
    """The iteration time after freezing; None before the training has ended."""
    return _pace(run.steady["seconds"])


def pace_before(run: ModeRun) -> Pace | None:
    """The iteration time before freezing; None if nothing was frozen during the training."""
    return _pace(run.steps["seconds"].drop(run.steady.index))


def _pace(seconds: pd.Series) -> Pace | None:
    if seconds.empty:
        return None
    low, median, high = (float(seconds.quantile(share)) for share in (0.25, 0.5, 0.75))
    return Pace(median, low, high, len(seconds))


def seconds_ratio(finetuning: FinetuningFindings, mode: Mode) -> float | None:
    """Iteration time divided by that of full fine-tuning; None until both are measured."""
    run, full = finetuning.of(mode), finetuning.of("full")
    if run is None or full is None:
        return None
    seconds, full_seconds = run.seconds_per_iteration, full.seconds_per_iteration
    return None if seconds is None or not full_seconds else seconds / full_seconds


def against_full(finetuning: FinetuningFindings, mode: Mode) -> PairedDifference | None:
    """The score of a mode minus that of full fine-tuning; None until both are measured."""
    run, full = finetuning.of(mode), finetuning.of("full")
    if mode == "full" or run is None or full is None:
        return None
    if run.training.test is None or full.training.test is None:
        return None
    rows = full.training.test.rows, run.training.test.rows
    return finetuning.scoring.difference(*rows, finetuning.record.seed)


def frozen_elements(run: ModeRun) -> int | None:
    """The number of frozen parameters at the end of a mode; None before its training has ended."""
    if run.costs is None:
        return None
    return max(0, run.training.record.parameters - run.costs.trainable)


# The fine-tuning as text: the freezing rule, and its effect on score, time and memory.


_USUAL_KIND = "mean_abs"
_STATISTIC_NAMES = {
    "mean_abs": "mean of |g|",
    "rms": "root mean square of g",
    "max_abs": "largest |g|",
    "abs_mean": "|mean of g|",
    "change": "mean of |g - g of the step before|",
}


def statistic_name(rule: RuleRecord) -> str:
    """The name of the statistic that a rule compares."""
    if rule.change is not None:
        return "ratio of the late change of the gradient to its early change"
    return curve_name(rule)


def curve_name(rule: RuleRecord) -> str:
    """The name of the statistic that is recorded in each step of the profile."""
    scale = ", relative to the weight's rms" if rule.relative else ""
    return f"{_STATISTIC_NAMES[rule.kind]} over a tensor's elements{scale}"


def is_within(rule: RuleRecord, mamba: pd.Series) -> pd.Series:
    """Marks the tensors among which a rule selects: those of state-space blocks, or all.

    All if its scope is all, if it selects by name, or if the network has no state-space block.

    Args:
        rule: The rule.
        mamba: Per tensor, whether it belongs to a state-space block.
    """
    blocks_only = rule.scope == "mamba" and rule.pattern is None and bool(mamba.any())
    return mamba if blocks_only else mamba | True


def rule_label(row: Mapping[str, Any] | pd.Series) -> str:
    """Short name of what a row of a sweep (columns: `finetuning.record.SWEEPS`) freezes."""
    if row["frozen_share"] == 0:
        return "nothing frozen"
    if not pd.isna(row["pattern"]):
        return "all but the heads" if row["pattern"] == "*" else str(row["pattern"])
    if not is_missing(row.get("change")):
        return f"change below {row['change']:g} of the early one"
    quantile = row["quantile"]
    label = f"below {row['threshold']:g}" if is_missing(quantile) else f"smallest {quantile:g}"
    if row.get("relative"):
        label += " of the weight's rms"
    kind = row.get("statistic")
    return label if kind is None or pd.isna(kind) or kind == _USUAL_KIND else f"{label} ({kind})"


def rule_scope(row: Mapping[str, Any] | pd.Series) -> str:
    """The tensors among which a row of a sweep selects, as text."""
    if not pd.isna(row["pattern"]):
        return "by name"
    return "state-space blocks" if row["scope"] == "mamba" else "all tensors"


def sweep_start(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the number of steps after which the rules of a sweep froze."""
    freezing = [row for row in rows if row["frozen_share"] > 0]
    by_gradient = {int(row["after_steps"]) for row in freezing if pd.isna(row["pattern"])}
    by_name = {int(row["after_steps"]) for row in freezing if not pd.isna(row["pattern"])}
    if not (by_gradient | by_name) - {0}:
        return "All rules freeze tensors from the first step."
    if by_gradient == by_name or not by_name:
        return (
            f"All rules freeze tensors after {max(by_gradient)} steps, in which all tensors are "
            "trained."
        )
    return (
        f"Rules by gradients freeze tensors after the {max(by_gradient)} steps of their profile, "
        "which train all tensors; rules by name freeze tensors from the first step."
    )


SIGNIFICANT = 0.05
FEW_GROUPS = 30  # with fewer, intervals are wide and their ends are uncertain


def finetuning_summary(finetuning: FinetuningFindings) -> list[str]:
    """Sentences on scores, their differences to full fine-tuning, time and memory.

    Quantities that were not measured are left out.
    """
    return [
        *_scores(finetuning),
        *_chosen_before_freezing(finetuning),
        *_relaxed(finetuning),
        *_differences(finetuning),
        *_time(finetuning),
        *_memory(finetuning),
        *_count(finetuning),
    ]


def few_held_out(finetuning: FinetuningFindings) -> str:
    """A warning about few held-out images; empty if they are many."""
    training = finetuning.training
    if training is None or training.test is None or training.test.groups >= FEW_GROUPS:
        return ""
    groups, grouping = training.test.groups, training.record.grouping
    width = _widest_interval(finetuning)
    if width is None:
        return f"{unknown_spread(groups, grouping)}, so no interval is given."
    scoring, held_out = finetuning.scoring, counted(groups, f"held-out {grouping}")
    return f"With {held_out}, {scoring.few_words.format(width=scoring.width(width))}"


def _widest_interval(finetuning: FinetuningFindings) -> float | None:
    tests = [run.training.test for run in finetuning.modes]
    low, high = (f"{finetuning.scoring.measure.column}_{end}" for end in ("low", "high"))
    widths = [t.numbers[high] - t.numbers[low] for t in tests if t is not None]
    return max((float(width) for width in widths if not is_missing(width)), default=None)


def _scores(finetuning: FinetuningFindings) -> list[str]:
    training = finetuning.training
    if not finetuning.measured or training is None or training.test is None:
        return []
    scoring, group = finetuning.scoring, training.record.grouping
    images = counted(int(training.test.numbers["n"]), "held-out image")
    groups = "" if group == "image" else f" of {counted(training.test.groups, group)}"
    per_group = f", per {group}" if scoring.per_group else ""
    scores = ", ".join(f"{run.mode} {_score(run)}" for run in finetuning.measured)
    intervals = ", with 95 % intervals" if _widest_interval(finetuning) is not None else ""
    sentence = f"{scoring.measure.title} on {images}{groups}{per_group}{intervals}: {scores}."
    if training.baseline_numbers is not None:
        baseline = scoring.shown(training.baseline_numbers)
        sentence += f" {scoring.floor_words} on the same images: {baseline}."
    return [sentence]


def swept_before_freezing(finetuning: FinetuningFindings) -> list[str]:
    """The rules of a sweep whose selected epoch ended before tensors were frozen."""
    rows = [] if finetuning.sweep is None else finetuning.sweep.iterrows()
    return [
        rule_label(row)
        for _, row in rows
        if row["frozen_share"] > 0
        and ended_before(finetuning.training, row[CHOSEN_EPOCH], row[AFTER_STEPS])
    ]


def ended_before(training: TrainingFindings | None, epoch: float | None, step: int) -> bool:
    """Whether an epoch of a training, or of one with as many steps, ended before `step` or at it.

    False if it is not recorded.
    """
    if training is None or is_missing(epoch):
        return False
    metrics = training.metrics
    return bool(metrics.loc[metrics["epoch"] == epoch, "step"].max() <= step)


def _chosen_before_freezing(finetuning: FinetuningFindings) -> list[str]:
    """A caution if the selected epoch of mode freeze ended before tensors were frozen."""
    freeze = finetuning.of("freeze")
    if freeze is None or freeze.frozen_at is None:
        return []
    chosen = freeze.training.record.chosen_epoch
    if not ended_before(freeze.training, chosen, freeze.frozen_at):
        return []
    return [
        f"The weights of freeze are those of epoch {chosen}, the best by the validation images, "
        f"which ended before tensors were frozen (after iteration {freeze.frozen_at:,}): the score "
        "of freeze does not show the effect of freezing."
    ]


def _score(run: ModeRun) -> str:
    assert run.training.test is not None
    return run.training.scoring.shown(run.training.test.numbers)


def _relaxed(finetuning: FinetuningFindings) -> list[str]:
    """Relaxed precision and recall, for data that have a tolerance."""
    if finetuning.tolerance is None:
        return []
    measured = [
        f"{run.mode} {relaxed_words(run.training.test.numbers)}"
        for run in finetuning.modes
        if run.training.test is not None
    ]
    definition = f"{counted(finetuning.tolerance, 'pixel')}, pixels of all images pooled"
    return [f"Relaxed precision and recall ({definition}): {', '.join(measured)}."]


def _differences(finetuning: FinetuningFindings) -> list[str]:
    """Sentences that compare each mode with full fine-tuning, freezing first."""
    modes = sorted(finetuning.modes, key=lambda run: run.mode != "freeze")
    differences = [(run, against_full(finetuning, run.mode)) for run in modes]
    group = finetuning.training.record.grouping if finetuning.training else "image"
    sentences = [
        f"{finetuning.scoring.measure.title} of {run.mode} minus that of full: "
        f"{_difference(difference, group, finetuning.scoring)}"
        for run, difference in differences
        if difference is not None
    ]
    seeds = (
        "Each mode was trained once, so the intervals do not include the variation between seeds."
    )
    return [*sentences, seeds] if sentences else []


def _difference(difference: PairedDifference, group: str, scoring: Scoring) -> str:
    value = f"{scoring.gap_shown(difference.value)}{scoring.unit}"
    low, high, p = difference.low, difference.high, difference.p
    if low is None or high is None or p is None:
        return f"{value}. {unknown_spread(difference.groups, group)}."
    interval_name, test_name = scoring.tested(group)
    interval = f"{interval_name} {scoring.gap_range(low, high)}"
    test = f"{test_name}: p {p_equals(p)}"
    hint = ""
    if difference.smallest_p > SIGNIFICANT:
        hint = (
            f" ({counted(difference.groups, group)} cannot give a p below "
            f"{p_value(difference.smallest_p)})"
        )
    conclusion = _conclusion(difference.value, (low, high), p, difference.smallest_p, scoring)
    return f"{value} ({interval}; {test}{hint}). {conclusion}"


def _conclusion(
    value: float, ends: tuple[float, float], p: float, smallest_p: float, scoring: Scoring
) -> str:
    """The verdict on a difference from its interval and its test."""
    low, high = ends
    is_small = low >= -scoring.equal and high <= scoring.equal
    by_interval, by_test = low > 0 or high < 0, p <= SIGNIFICANT
    if by_interval != by_test:
        size = f" If a difference exists, it is less than {scoring.equal_size}." if is_small else ""
        if by_interval and smallest_p > SIGNIFICANT:
            why = "The interval excludes 0, but the test cannot reach p = 0.05 with so few"
        elif by_interval:
            why = f"The interval excludes 0, but p is above 0.05. {scoring.edge_words}"
        else:
            why = f"The interval includes 0, but p is at most 0.05. {scoring.edge_words}"
        return f"{why}: it is undecided whether a difference exists.{size}"
    if by_interval:
        direction = "better" if value > 0 else "worse"
        size = f" but less than {scoring.equal_size}" if is_small else ""
        return (
            f"Its score is therefore {direction}, by more than the variation between images{size}."
        )
    if is_small:
        return f"Both are therefore equal to within {scoring.equal_words}."
    loss, gain = scoring.gap_shown(low).lstrip("-"), scoring.gap_shown(high).lstrip("+")
    return (
        "The difference may be due to chance, which does not mean that both are equal: a loss of "
        f"up to {loss} or a gain of up to {gain}{scoring.unit} is possible."
    )


def _time(finetuning: FinetuningFindings) -> list[str]:
    """The time of an iteration after freezing, compared with full fine-tuning."""
    freeze = finetuning.of("freeze")
    after, full = (pace(run) if (run := finetuning.of(m)) else None for m in ("freeze", "full"))
    if freeze is None or after is None or full is None:
        return []
    numbers = (
        f"{seconds(after.median)} against {seconds(full.median)}, medians of "
        f"{after.iterations:,} and {full.iterations:,} iterations"
    )
    if not frozen_elements(freeze):
        return [
            "No tensor is frozen, so the difference in time between freeze and full is noise of "
            f"the machine: {numbers}."
        ]
    sentence = (
        f"After freezing, an iteration took {_ratio(after, full)} as in full fine-tuning: "
        f"{numbers}."
    )
    if full.low <= after.median <= full.high and after.low <= full.median <= after.high:
        sentence += (
            " Each median is within the middle half of the other's iterations, so the difference "
            "may be noise of the machine."
        )
    before = pace_before(freeze)
    if before is not None:  # in the same run: less affected by other load on the machine
        sentence += (
            f" Compared with its {counted(before.iterations, 'iteration')} before freezing, which "
            f"were also profiled ({seconds(before.median)}), it took {_ratio(after, before)}."
        )
    return [sentence]


def _ratio(pace: Pace, reference: Pace) -> str:
    ratio = pace.median / reference.median
    percent = f"{decimal(100 * abs(1 - ratio))} % {'less' if ratio <= 1 else 'more'}"
    return f"{decimal(ratio, 2)} times as long ({percent})"


def _memory(finetuning: FinetuningFindings) -> list[str]:
    freeze, full = finetuning.of("freeze"), finetuning.of("full")
    if freeze is None or full is None or not frozen_elements(freeze):
        return []
    costs, full_costs = freeze.costs, full.costs
    if costs is None or full_costs is None:
        return []
    peak = ""
    if costs.peak_memory_bytes is not None and full_costs.peak_memory_bytes is not None:
        peak = (
            f"; the peak memory was {mebibytes(costs.peak_memory_bytes)} after freezing, compared "
            f"with {mebibytes(full_costs.peak_memory_bytes)}"
        )
    return [
        f"The optimizer state was {megabytes(costs.optimizer_bytes)}, compared with "
        f"{megabytes(full_costs.optimizer_bytes)}{peak}."
    ]


def _count(finetuning: FinetuningFindings) -> list[str]:
    """The computation that freezing saves by count, and the part that it cannot save."""
    saving = finetuning.record.saving
    if saving is None or not saving.frozen:
        return []
    flops = 100 * saving.flops_saved / max(1, saving.flops)
    memory = 100 * saving.optimizer_bytes_saved / max(1, saving.optimizer_bytes)
    return [
        f"By count, freezing saves {decimal(flops, 2)} % of the convolutions and matrix products "
        f"of a training step and {decimal(memory, 2)} % of the optimizer's memory. The forward "
        "pass is unchanged, and gradients still pass through frozen layers that follow a trainable "
        "layer."
    ]


def chosen_from(finetuning: FinetuningFindings) -> pd.DataFrame:
    """The tensors that the rule can freeze and those it froze, smallest statistic first."""
    assert finetuning.decisions is not None
    table = finetuning.decisions
    return ordered(table[table["frozen"] | is_within(finetuning.record.rule, table["mamba"])])


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """`table` sorted by statistic, smallest first; tensors without one are last."""
    return table.sort_values("statistic", kind="stable", na_position="last")


@dataclass(frozen=True)
class Frozen:
    """Numbers of tensors and of their elements that a rule freezes.

    Out of `of_tensors` tensors with `of` elements. `smallest` is the smallest compared statistic;
    None without one.
    """

    tensors: int
    of_tensors: int
    elements: int
    of: int
    smallest: float | None

    @property
    def percent(self) -> float:
        """The share of frozen elements, in percent."""
        return 100 * self.elements / max(1, self.of)


def frozen_by_rule(finetuning: FinetuningFindings) -> Frozen | None:
    """What the rule froze; None until it is decided."""
    if finetuning.decisions is None:
        return None
    table = finetuning.decisions
    known = chosen_from(finetuning)["statistic"].dropna()
    return Frozen(
        tensors=int(table["frozen"].sum()),
        of_tensors=len(table),
        elements=int(table.loc[table["frozen"], "count"].sum()),
        of=int(table["count"].sum()),
        smallest=float(known.iloc[0]) if len(known) else None,
    )


def saved(row: Mapping[str, Any] | pd.Series) -> str:
    """The time that a row of the sweep saves, in percent, with its interval."""
    value, low, high = (row[f"seconds_ratio{end}"] for end in ("", "_low", "_high"))
    if is_missing(value):
        return MISSING
    percent = decimal(100 * (1 - value))
    if is_missing(low) or is_missing(high):
        return percent
    return f"{percent} ({decimal(100 * (1 - high))}{EN_DASH}{decimal(100 * (1 - low))})"
