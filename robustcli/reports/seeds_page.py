"""The report of several seeds: results, figures, page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robustcli.core.names import counted
from robustcli.core.rundir import RECORD_FILE
from robustcli.finetuning.record import MODES
from robustcli.metrics.intervals import Interval
from robustcli.metrics.seed_scores import WIDEST
from robustcli.reports.figures.seed_figures import (
    ScoreLine,
    SeedCourses,
    draw_seed_courses,
    draw_seed_scores,
)
from robustcli.reports.finetuning_findings import frozen_elements, seconds_ratio
from robustcli.reports.finetuning_page import finetuning_report
from robustcli.reports.markdown import Picture, from_template
from robustcli.reports.numbers import MISSING, decimal, p_value
from robustcli.reports.pages import Page, grid, in_ascii, typed_table, write_page
from robustcli.reports.scoring import Measure
from robustcli.reports.seeds_findings import (
    REFERENCE,
    PublishedVerdict,
    SeedSeries,
    SeedsFindings,
    SeedTraining,
    read_seeds,
)
from robustcli.reports.training_page import training_report

_INTERVALS = ("seeds", "units", "joint", "single")
_SEEDS_COLUMNS = (
    *("level", "mode", "seed", "run", "model", "dataset", "status", "measure"),
    *("n", "seeds", "units", "score", "deviation"),
    *(f"{name}_{end}" for name in _INTERVALS for end in ("low", "high")),
    *("p", "published", "verdict", "epochs", "chosen_epoch", "training_seconds"),
    *("frozen", "seconds_ratio"),
)
_WORDS = ("level", "mode", "run", "model", "dataset", "status", "measure", "verdict")
_COUNTS = ("seed", "n", "seeds", "units", "epochs", "chosen_epoch", "frozen")
NOT_COMPARABLE = "not comparable"


def seeds_results(findings: SeedsFindings) -> pd.DataFrame:
    """Rows with _SEEDS_COLUMNS; unknown numbers are missing, shares are in [0, 1].

    Rows of `level` `seed` are those of single seeds (and modes); their `units_low` and `units_high`
    are the run's interval over held-out images. Rows of `level` `mean` contain the statistics over
    seeds, rows of `level` `difference` the score of a mode minus that of full fine-tuning, paired
    by seed.
    """
    rows = [*_seed_rows(findings), *_mean_rows(findings), *_difference_rows(findings)]
    return typed_table(rows, _SEEDS_COLUMNS, words=_WORDS, counts=_COUNTS)


def _common(findings: SeedsFindings, mode: str | None) -> dict[str, object]:
    record = findings.record
    return {
        "mode": mode,
        "model": record.model,
        "dataset": record.dataset.name,
        "measure": findings.scoring.measure.column,
    }


def _seed_rows(findings: SeedsFindings) -> Iterator[dict[str, object]]:
    for series in findings.series:
        for run in series.trainings:
            training, score = run.training, run.score
            row = _common(findings, series.mode) | {
                "level": "seed",
                "seed": run.seed,
                "run": training.run.relative_to(findings.run).as_posix(),
                "status": training.record.status,
                "epochs": training.epochs,
                "chosen_epoch": training.record.chosen_epoch,
                "training_seconds": training.seconds,
            }
            finetuning = findings.finetunings.get(run.seed)
            if finetuning is not None and series.mode is not None:
                mode = finetuning.of(series.mode)
                row["frozen"] = None if mode is None else frozen_elements(mode)
                row["seconds_ratio"] = seconds_ratio(finetuning, series.mode)
            if score is not None and training.test is not None:
                row |= {"score": score.value, "n": int(training.test.numbers["n"])}
                row |= {"units_low": score.low, "units_high": score.high}
            yield row


def _mean_rows(findings: SeedsFindings) -> Iterator[dict[str, object]]:
    verdict = findings.published
    for series in findings.series:
        scores = series.scores
        if scores is None:
            continue
        row = _common(findings, series.mode) | {
            "level": "mean",
            "status": findings.record.status,
            "n": findings.held_out,
            "seeds": scores.seeds,
            "units": scores.units,
            "score": scores.mean,
            "deviation": scores.deviation,
        }
        intervals = (scores.over_seeds, scores.over_units, scores.joint, scores.single)
        for name, interval in zip(_INTERVALS, intervals, strict=True):
            if interval is not None:
                row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        if verdict is not None:
            row |= {"published": verdict.score.value, "verdict": verdict.outcome or NOT_COMPARABLE}
        yield row


def _difference_rows(findings: SeedsFindings) -> Iterator[dict[str, object]]:
    for mode, difference in findings.differences.items():
        yield _common(findings, mode) | {
            "level": "difference",
            "status": findings.record.status,
            "seeds": difference.seeds,
            "score": difference.value,
            "seeds_low": difference.low,
            "seeds_high": difference.high,
            "p": difference.p,
        }


@dataclass(frozen=True)
class SeedsGallery:
    """The figures of several seeds; empty tuples for kinds without figures."""

    courses: tuple[Picture, ...] = ()
    scores: tuple[Picture, ...] = ()


def draw_seeds_gallery(findings: SeedsFindings) -> SeedsGallery:
    """Draws all figures for which the seeds have data."""
    return SeedsGallery(_courses(findings), _scores(findings))


def _courses(findings: SeedsFindings) -> tuple[Picture, ...]:
    column = findings.scoring.validation.score
    courses = []
    for series in findings.series:
        metrics = [run.training.metrics for run in series.trainings if run.training.epochs]
        lines = [table.set_index("epoch")[column].astype(float) for table in metrics]
        if lines:
            courses.append(SeedCourses(series.name, lines))
    if not courses:
        return ()
    path = "figures/seed_courses.png"
    draw_seed_courses(courses, f"validation {findings.scoring.axis}", findings.run / path)
    caption = (
        f"The {findings.scoring.measure.name} of the validation images by epoch: single seeds "
        "(thin), and their mean over the epochs that all seeds have (thick)."
    )
    return (Picture(path, caption),)


def _scores(findings: SeedsFindings) -> tuple[Picture, ...]:
    lines = [line for series in findings.series for line in _lines(findings, series)]
    if not lines:
        return ()
    path, verdict = "figures/seed_scores.png", findings.published
    published = None if verdict is None or verdict.outcome is None else verdict.score.value
    scale, axis = findings.scoring.measure.scale, findings.scoring.measure.axis
    marked = None if published is None else scale * published
    draw_seed_scores(lines, f"{axis} of the held-out images", marked, findings.run / path)
    caption = (
        f"The {findings.scoring.measure.name} of the held-out images: each seed with its 95 % "
        "interval over images, and the mean over seeds with its intervals over seeds (thick) and "
        "over both (thin)."
    )
    return (Picture(path, caption),)


def _lines(findings: SeedsFindings, series: SeedSeries) -> Iterator[ScoreLine]:
    scale = findings.scoring.measure.scale
    prefix = f"{series.mode}, " if series.mode else ""

    def drawn(low: float | None, high: float | None) -> tuple[float, float] | None:
        return None if low is None or high is None else (scale * low, scale * high)

    for run in series.measured:
        assert run.score is not None
        ends = drawn(run.score.low, run.score.high)
        yield ScoreLine(f"{prefix}seed {run.seed}", scale * run.score.value, ends)
    scores = series.scores
    if scores is not None and scores.seeds > 1:
        wide, narrow = (drawn(*(i or (None, None))) for i in (scores.joint, scores.over_seeds))
        yield ScoreLine(f"{prefix}mean", scale * scores.mean, wide, narrow, mean=True)


def seeds_report(run: Path) -> Page:
    """The page of the seeds in `run`; draws its figures.

    Writes the report of a seed if it has none, or if its run has changed since.

    Raises:
        UsageError: The record of the seeds does not exist or cannot be read.
    """
    findings = read_seeds(run)
    of_seed = training_report if findings.record.of == "train" else finetuning_report
    folders = findings.record.folders(run)
    for folder in (folders[seed] for seed in findings.begun):
        if not _has_report(folder):
            write_page(of_seed(folder), folder)
    text = seeds_text(findings, draw_seeds_gallery(findings))
    return Page(seeds_results(findings), text, terminal=seeds_table(findings))


def _has_report(run: Path) -> bool:
    """Whether the report of `run` is newer than the records of its trainings."""
    report = run / "report.html"
    records = [*run.glob(RECORD_FILE), *run.glob(f"*/{RECORD_FILE}")]
    written = report.stat().st_mtime_ns if report.is_file() else 0
    return all(record.stat().st_mtime_ns <= written for record in records)


def seeds_text(findings: SeedsFindings, gallery: SeedsGallery | None = None) -> str:
    """The Markdown of the page, with the figures of `gallery`."""
    return from_template(
        "seeds",
        findings=findings,
        gallery=gallery or SeedsGallery(),
        show=SeedsShown(findings),
        reference=REFERENCE,
        widest=WIDEST,
    )


@dataclass(frozen=True)
class SeedsShown:
    """Formats the numbers of several seeds with the digits and the unit of their task."""

    findings: SeedsFindings

    @property
    def measure(self) -> Measure:
        """The score of the task."""
        return self.findings.scoring.measure

    def value(self, value: float | None) -> str:
        """A score with its unit."""
        text = self.measure.show(value, self.findings.held_out)
        return text if text == MISSING else f"{text}{self.measure.suffix}"

    def bare(self, value: float | None) -> str:
        """A score, or a width, without the unit."""
        return self.measure.show(value, self.findings.held_out)

    def interval(self, interval: Interval | None) -> str:
        """An interval of scores; a dash if it is None."""
        return self.ends(*(interval or (None, None)))

    def ends(self, low: float | None, high: float | None) -> str:
        """The interval from `low` to `high`; a dash if it is unknown."""
        return self.measure.show_range(low, high, self.findings.held_out, " to ")

    def gap_shown(self, value: float | None) -> str:
        """A difference of scores, with its sign."""
        return self.findings.scoring.gap_shown(value)

    def gap_ends(self, low: float | None, high: float | None) -> str:
        """The interval of a difference; a dash if it is unknown."""
        if low is None or high is None:
            return MISSING
        return f"{self.gap_shown(low)} to {self.gap_shown(high)}"

    def score_of(self, run: SeedTraining) -> str:
        """The score of one seed with its interval over the held-out images."""
        score = run.score
        if score is None:
            return MISSING
        ends = self.ends(score.low, score.high)
        return self.value(score.value) if ends == MISSING else f"{self.value(score.value)} ({ends})"

    def mean(self, series: SeedSeries) -> str:
        """The mean with its interval over seeds, for titles and verdicts."""
        scores = series.scores
        if scores is None:
            return "not measured yet"
        seeds = counted(scores.seeds, "seed")
        if scores.over_seeds is None:
            return f"{self.value(scores.mean)} ({seeds})"
        return f"{self.value(scores.mean)} ({self.interval(scores.over_seeds)} over {seeds})"

    def printed(self, value: float) -> str:
        """A published score with its published digits."""
        return (
            f"{self.measure.scale * value:.{2 if self.measure.suffix else 4}f}{self.measure.suffix}"
        )

    def verdict(self, verdict: PublishedVerdict) -> str:
        """The published score, the mean over seeds, and the verdict."""
        mean, outcome = self.mean(self.findings.series[0]), verdict.outcome or NOT_COMPARABLE
        return f"published {self.printed(verdict.score.value)}; here {mean}: {outcome}"


def seeds_table(findings: SeedsFindings) -> str:
    """The printed summary of several seeds: the score of each, the means, the verdicts."""
    if not any(series.scores for series in findings.series):
        return f"No scores yet for {counted(findings.record.count, 'seed')}."
    show, measure = SeedsShown(findings), findings.scoring.measure
    parts = [_each_seed(findings, show), _means(findings, show)]
    if findings.differences:
        parts.append(_against(findings, show))
    if findings.freezing:
        parts.append(_frozen(findings))
    if findings.published is not None:
        reasons = "; ".join(findings.published.score.differences)
        sentence = show.verdict(findings.published) + (f" ({reasons})" if reasons else "")
        parts.append(f"{measure.title}: {sentence}.")
    if findings.missing:
        parts.append(_missing(findings))
    return in_ascii("\n\n".join(parts))


def _missing(findings: SeedsFindings) -> str:
    """The unfinished seeds and modes; if no command failed, the options that train them."""
    plural = "s" * (len(findings.missing) > 1)
    sentence = f"Not finished: seed{plural} {findings.missing_in_words}."
    lacked = [mode for mode in MODES if any(mode in modes for modes in findings.missing.values())]
    if findings.record.status != "complete" or not lacked:
        return sentence
    options = ", then with ".join(f"`--mode {mode}`" for mode in lacked)
    return f"{sentence} To finish, repeat the command with {options}."


def _each_seed(findings: SeedsFindings, show: SeedsShown) -> str:
    name = findings.scoring.measure.name
    heads = [f"{s.name if s.mode else name}, 95 % over {findings.units}" for s in findings.series]
    by_seed: list[dict[int, SeedTraining]] = [
        {run.seed: run for run in series.trainings} for series in findings.series
    ]
    rows = [
        (
            f"seed {seed}",
            *(show.score_of(runs[seed]) if seed in runs else MISSING for runs in by_seed),
        )
        for seed in findings.record.seeds
    ]
    return grid(("", *heads), rows)


def _means(findings: SeedsFindings, show: SeedsShown) -> str:
    header = ("", "mean", "deviation", "95 % over seeds", f"over {findings.units}", "over both")
    return grid(header, [mean_cells(series, show) for series in findings.series if series.scores])


def mean_cells(series: SeedSeries, show: SeedsShown) -> tuple[str, ...]:
    """The statistics over seeds as cells: name, mean, deviation, three intervals."""
    scores = series.scores
    assert scores is not None
    intervals = (scores.over_seeds, scores.over_units, scores.joint)
    return (
        f"{series.name}, {counted(scores.seeds, 'seed')}",
        *(show.value(scores.mean), show.bare(scores.deviation)),
        *(show.interval(interval) for interval in intervals),
    )


def _against(findings: SeedsFindings, show: SeedsShown) -> str:
    header = (f"minus {REFERENCE}, seed by seed", "difference", "95 %", "p")
    rows: list[tuple[str, ...]] = [
        (
            f"{mode}, {counted(difference.seeds, 'seed')}",
            show.gap_shown(difference.value),
            show.gap_ends(difference.low, difference.high),
            p_value(difference.p),
        )
        for mode, difference in findings.differences.items()
    ]
    return grid(header, rows)


def _frozen(findings: SeedsFindings) -> str:
    if findings.froze_nothing:
        return (
            "The rule froze no tensor with any seed: mode freeze is the same as full fine-tuning."
        )
    header = ("frozen with seed", "tensors", "% of parameters", f"time / {REFERENCE}")
    rows: list[tuple[str, ...]] = [
        (
            *(str(line.seed), f"{line.frozen.tensors:,} of {line.frozen.of_tensors:,}"),
            *(decimal(line.frozen.percent, 2), decimal(line.seconds, 2)),
        )
        for line in findings.freezing
    ]
    return grid(header, rows)
