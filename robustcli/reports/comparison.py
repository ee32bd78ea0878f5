"""Compares models of several runs image by image: scores, paired differences, tests, page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.core.errors import UsageError
from robustcli.core.io import write_text
from robustcli.core.names import TaskName, counted, unknown_spread
from robustcli.evaluation.record import RunRecord
from robustcli.metrics.verdicts import (
    ALPHA,
    RANK_DRAWS,
    CellKey,
    Claim,
    Rank,
    Verdict,
)
from robustcli.reports.controls import ControlPair, control_pairs
from robustcli.reports.markdown import Picture, from_template
from robustcli.reports.numbers import MISSING, cell_label, p_equals, p_value, probability
from robustcli.reports.pages import (
    Page,
    check_out,
    grid,
    in_ascii,
    json_records,
    typed_table,
    write_page,
)
from robustcli.reports.pairing import (
    ComparedModel,
    PairedRows,
    find_models,
    read_rows,
    setting_differences,
)
from robustcli.reports.scoring import SCORINGS, Scoring
from robustcli.reports.statistics import STATISTICS, Statistics, preprocessing_words
from robustcli.reports.training_findings import read_training
from robustcli.transforms.base import CLEAN

COMPARISON_COLUMNS = (
    *("first", "second", "level", "transform", "severity", "n", "groups"),
    *("first_score", "second_score", "difference", "low", "high", "p", "p_adjusted", "outcome"),
)
_COUNTS = ("severity", "n", "groups")
_WORDS = ("first", "second", "level", "transform", "outcome")


@dataclass(frozen=True)
class ComparisonLine:
    """A verdict with the scores of both models on the same images, in [0, 1]."""

    verdict: Verdict
    first_score: float
    second_score: float

    @property
    def label(self) -> str:
        """The transform, with its severity if it has several."""
        verdict = self.verdict
        if verdict.severity is None:
            return f"{verdict.transform}, mean over severities"
        return cell_label(verdict.transform, verdict.severity)

    @property
    def word(self) -> str:
        """The verdict, with the name of the model that is ahead."""
        verdict = self.verdict
        names = {"first ahead": verdict.first, "second ahead": verdict.second}
        name = names.get(verdict.outcome)
        return verdict.outcome if name is None else f"{name} ahead"


@dataclass(frozen=True)
class Announcement:
    """A limit of what a comparison shows; names in `sentence` are in backticks."""

    title: str
    sentence: str

    def __str__(self) -> str:
        """Title and sentence as plain text."""
        return f"{self.title} {self.sentence}"


@dataclass(frozen=True)
class Comparison:
    """Several models on the same images.

    Args:
        models: At least two models.
        paired: Rows of the images that all models share, and descriptions of the rows left out.
        differences: Sentences on the settings in which the runs differ; empty if they match.
    """

    models: Sequence[ComparedModel]
    paired: PairedRows
    differences: Sequence[str]

    @property
    def left_out(self) -> Sequence[str]:
        """Sentences about the rows that are not compared because not every run has them."""
        return self.paired.left_out

    @property
    def record(self) -> RunRecord:
        """The record of the first run; data, transforms and seed are the same in all runs."""
        return self.models[0].run.record

    @property
    def task(self) -> TaskName:
        """The task of the models."""
        return self.record.task

    @property
    def scoring(self) -> Scoring:
        """The scores of the task."""
        return SCORINGS[self.task]

    @cached_property
    def statistics(self) -> Statistics:
        """Verdicts, ranks, agreements and flips of the paired rows."""
        return STATISTICS[self.task](self.record, self.paired.rows)

    @cached_property
    def controls(self) -> list[ControlPair]:
        """The trainings among the models, paired with their controls among the models."""
        return control_pairs(
            [read_training(m.run.folder.parent) for m in self.models if m.run.trained]
        )

    @property
    def labels(self) -> list[str]:
        """The names of the models in this comparison."""
        return [model.label for model in self.models]

    @property
    def grouping(self) -> str:
        """Name of an independent unit, in the singular."""
        return self.statistics.unit

    @property
    def n(self) -> int:
        """Number of compared images."""
        return max(line.verdict.n for line in self.lines)

    @property
    def groups(self) -> int:
        """Number of independent units of the compared images."""
        return max(line.verdict.groups for line in self.lines)

    @property
    def transforms(self) -> list[str]:
        """The compared transforms without `identity`."""
        names = dict.fromkeys(name for cells in self.paired.rows.values() for name, _ in cells)
        return [name for name in names if name != CLEAN.transform]

    @property
    def has_severities(self) -> bool:
        """Whether some transform counts by its mean over severities."""
        return any(line.verdict.severity is None for line in self.lines)

    @cached_property
    def lines(self) -> list[ComparisonLine]:
        """A line per pair and transform (its mean over severities), pair by pair."""
        return [self._line(verdict) for verdict in self.statistics.verdicts]

    @cached_property
    def cell_lines(self) -> list[ComparisonLine]:
        """A line per pair, transform and severity; empty if no transform has several severities.

        p-values are adjusted over this table, separately from those of `lines`.
        """
        return [self._line(verdict) for verdict in self.statistics.severity_verdicts]

    def _line(self, verdict: Verdict) -> ComparisonLine:
        scores = (
            self._score(label, verdict.transform, verdict.severity)
            for label in (verdict.first, verdict.second)
        )
        return ComparisonLine(verdict, *scores)

    def _score(self, label: str, transform: str, severity: int | None) -> float:
        """The score of a model under a transform; mean over severities if `severity` is None."""
        scores = [
            self._scores[label, key]
            for key in self.paired.rows[label]
            if key[0] == transform and severity in (None, key[1])
        ]
        return sum(scores) / len(scores)

    @cached_property
    def _scores(self) -> dict[tuple[str, CellKey], float]:
        return {
            (label, key): float(self.statistics.scores(rows).mean())
            for label, cells in self.paired.rows.items()
            for key, rows in cells.items()
        }

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of models, in the order of the tables."""
        return list(self.statistics.pairs)

    def of_pair(
        self, pair: tuple[str, str], lines: Iterable[ComparisonLine]
    ) -> list[ComparisonLine]:
        """The lines of one pair."""
        return [line for line in lines if (line.verdict.first, line.verdict.second) == pair]

    @property
    def clean_lines(self) -> list[ComparisonLine]:
        """The lines of clean images, one per pair; empty if clean images were not compared."""
        return [line for line in self.lines if line.verdict.transform == CLEAN.transform]

    @property
    def claims(self) -> list[Claim]:
        """A claim per pair on the transforms; empty if only clean images are compared."""
        return self.statistics.claims

    @property
    def ranks(self) -> list[Rank]:
        """The models ranked by their mean over the transforms.

        If only clean images are compared, they are ranked by their clean score.
        """
        return self.statistics.ranking

    @cached_property
    def announcements(self) -> list[Announcement]:
        """The limits of what the verdicts show."""
        return [*self._few_units(), *_announcements(self.models)]

    def _few_units(self) -> Iterator[Announcement]:
        """Warns if the images or groups are too few for any significant difference."""
        tests = sum(line.verdict.p is not None for line in self.lines)
        least = self.statistics.smallest_p(self.groups)
        units = counted(self.groups, self.grouping)
        if not tests:
            yield Announcement(
                f"Only {'one ' + self.grouping if self.groups == 1 else units}.",
                f"{unknown_spread(self.groups, self.grouping)}, so no test and no interval is "
                "given.",
            )
        elif least * tests > ALPHA:
            yield Announcement(
                "Too few images or too many comparisons to show a difference.",
                f"With {units} and {counted(tests, 'test')} no adjusted p can be below "
                f"{p_value(min(1.0, least * tests))}, even for large differences. Compare fewer "
                "models or transforms, or use more images.",
            )

    def table(self) -> pd.DataFrame:
        """A row per pair and transform with COMPARISON_COLUMNS; unknown values are missing.

        `difference` is `first_score` minus `second_score`; scores are top-1, or dice averaged over
        groups, in [0, 1]. Rows of `level` `transform` contain means over severities; for a
        transform with several severities, a row per severity of `level` `severity` follows.
        `p_adjusted` is adjusted over the rows of a level.
        """
        rows = [_fields(line, "transform") for line in self.lines]
        rows += [_fields(line, "severity") for line in self.cell_lines]
        return typed_table(rows, COMPARISON_COLUMNS, words=_WORDS, counts=_COUNTS)

    def as_json(self) -> str:
        """The complete comparison as a JSON document."""
        document = {
            "task": self.task,
            "score": self.scoring.measure.column,
            "dataset": self.record.dataset.name,
            "n": self.n,
            "groups": self.groups,
            "models": [
                {
                    "label": model.label,
                    "run": model.run.source,
                    "name": model.model.name,
                    "weights_sha256": model.model.weights_sha256,
                    "pretraining": model.model.pretraining,
                    "parameters": model.model.parameters,
                }
                for model in self.models
            ],
            "differences": list(self.differences),
            "left_out": list(self.left_out),
            "announcements": [str(announcement) for announcement in self.announcements],
            "controls": [
                {
                    "network": pair.names[0],
                    "control": pair.names[1],
                    "parameters_apart": pair.parameters_apart,
                    "time_ratio": pair.time_ratio,
                    "verdict": pair.verdict,
                    "sentence": pair.sentence,
                }
                for pair in self.controls
            ],
            "claims": [{**asdict(c), "sentence": c.sentence()} for c in self.claims],
            "ranking": [asdict(rank) for rank in self.ranks],
            "verdicts": json_records(self.table()),
            "agreement": [
                {**asdict(a), "n": a.n, "share": a.share, "error_consistency": a.error_consistency}
                for a in self.statistics.agreements
            ],
            "flips": [{**asdict(f), "n": f.n, "rate": f.rate} for f in self.statistics.flips],
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _fields(line: ComparisonLine, level: str) -> dict[str, Any]:
    scores = {"first_score": line.first_score, "second_score": line.second_score}
    outcome = line.verdict.outcome
    return {**asdict(line.verdict), **scores, "level": level, "outcome": outcome}


def read_comparison(runs: Sequence[str | Path], *, force_common: bool = False) -> Comparison:
    """Reads and pairs the results of the models of `runs`.

    Args:
        runs: Folders of evaluations, trainings or fine-tunings; `RUN:MODEL` selects one of a run's
            models, `RUN:MODE` a mode of a fine-tuning.
        force_common: Compares what the runs have in common if they differ.

    Raises:
        UsageError: There are fewer than two models, a run has no results, or runs differ and
            `force_common` is False, or they have nothing in common; the message names each
            difference.
    """
    models, unmeasured = find_models([str(run) for run in runs])
    unlike = setting_differences(models)
    refusals = [difference.sentence for difference in unlike if not difference.forcible]
    if refusals:
        raise UsageError(
            "These runs cannot be compared image by image.",
            "\n".join(refusals),
            "Compare runs of the same task, classes and masks. No option allows a comparison of "
            "other runs.",
        )
    differences = [difference.sentence for difference in unlike]
    if differences and not force_common:
        raise _not_alike([*differences, *unmeasured])
    paired = read_rows(models)
    if not force_common and len(paired.left_out) > bool(paired.unfinished):
        raise _not_alike([*paired.left_out, *unmeasured])
    paired.left_out += unmeasured
    if not force_common and paired.left_out:
        raise _not_finished(models, paired)
    cells = next(iter(paired.rows.values()))
    if not cells or not len(next(iter(cells.values()))):
        raise UsageError(
            "These runs have no finished transform of the same images in common.",
            "\n".join([*differences, *paired.left_out]),
            "Complete partial runs (repeat their command), or evaluate the models with the same "
            "data, transforms and seed.",
        )
    return Comparison(models, paired, differences)


def _not_alike(sentences: Sequence[str]) -> UsageError:
    return UsageError(
        "These runs differ in more than their models.",
        "\n".join(sentences),
        "Evaluate the models with the same settings, complete partial runs, or compare only the "
        "results that all runs have: `--force-common`.",
    )


def _not_finished(models: Sequence[ComparedModel], paired: PairedRows) -> UsageError:
    """The error for runs that differ in nothing but missing results."""
    runs = [model.run for model in models if model.label in paired.unfinished]
    commands = dict.fromkeys(run.record.command for run in runs or [models[0].run])
    return UsageError(
        "Not all results of these models are finished.",
        "\n".join(paired.left_out),
        f"Continue with {' and '.join(f'`{command}`' for command in commands)}, or compare only "
        "the finished results: `--force-common`.",
    )


def _announcements(models: Sequence[ComparedModel]) -> Iterator[Announcement]:
    pretrainings = {m.label: m.model.pretraining for m in models if m.model.parameters}
    if len(set(pretrainings.values())) > 1:
        trained = ", ".join(f"`{label}` ({words})" for label, words in pretrainings.items())
        yield Announcement(
            "Mixed pretraining.",
            "These models were trained on different data, so a difference between them may be due "
            f"to the data instead of the architecture: {trained}.",
        )
    untrained = [f"`{m.label}`" for m in models if m.model.untrained]
    if untrained:
        yield Announcement(
            "Untrained model.",
            f"These models have random weights, as requested: {', '.join(untrained)}.",
        )
    if any(m.run.trained for m in models):
        yield Announcement(
            "One training each.",
            "The intervals do not include the variation between seeds.",
        )
    yield from _same_network(models)
    for title, values in (
        ("Preprocessing differs.", [preprocessing_words(m.model) for m in models]),
        ("Precision differs.", [m.run.record.precision for m in models]),
        ("Device differs.", [m.run.record.device for m in models]),
        ("Versions differ.", _versions(models)),
    ):
        if len(set(values)) > 1:
            pairs = zip(models, values, strict=True)
            yield Announcement(
                title, "; ".join(f"`{m.label}`: {value}" for m, value in pairs) + "."
            )
    older = {m.run.source: m.run for m in models if not m.run.record.dataset.contents}
    if older and len({m.run.folder for m in models}) > 1:
        names = ", ".join(f"`{source}`" for source in older)
        yield Announcement(
            "Older run.",
            f"The runs {names} contain no digest of the files; ids, classes and pixels were "
            "compared to check that the images are the same.",
        )


def _same_network(models: Sequence[ComparedModel]) -> Iterator[Announcement]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for model in models:
        record = model.model
        network = record.builder, repr(record.arguments), record.weights_sha256
        groups.setdefault((*network, preprocessing_words(record)), []).append(f"`{model.label}`")
    for labels in groups.values():
        if len(labels) > 1:
            yield Announcement(
                "The same network.",
                f"{', '.join(labels)} have the same weights and preprocessing, so any difference "
                "is due to the computation.",
            )


def _versions(models: Sequence[ComparedModel]) -> list[str]:
    """The package versions of each model's run, of packages whose versions differ between runs."""
    records = [model.run.record.versions for model in models]
    names = sorted({name for record in records for name in record})
    changed = [n for n in names if len({record.get(n) for record in records}) > 1]
    return [", ".join(f"{n} {record.get(n, 'unknown')}" for n in changed) for record in records]


# Output: tables for a terminal, a page with figures, files of numbers.


PAIRS_SHOWN = 6
"""Number of pairs with a table and a figure; results.csv contains all pairs."""


def comparison_text(comparison: Comparison) -> str:
    """The tables and sentences for a terminal, in ASCII."""
    pairs = comparison.pairs
    parts = [
        *(f"The runs differ. {sentence}" for sentence in comparison.differences),
        *(f"Not compared: {sentence}" for sentence in comparison.left_out),
        *(str(announcement) for announcement in comparison.announcements),
    ]
    blocks = ["\n".join(parts)] if parts else []
    blocks += [_pair_table(comparison, pair) for pair in pairs[:PAIRS_SHOWN]]
    if len(pairs) > PAIRS_SHOWN:
        omitted_pairs = counted(len(pairs) - PAIRS_SHOWN, "more pair")
        blocks.append(f"{omitted_pairs}: see `--json`, or the files of `--out`.")
    blocks.append(_rank_table(comparison))
    blocks.append("\n".join(conclusions(comparison)))
    if comparison.controls:
        blocks.append("\n".join(pair.sentence.replace("`", "") for pair in comparison.controls))
    return in_ascii("\n\n".join(blocks))


def conclusions(comparison: Comparison) -> list[str]:
    """Conclusions about each pair: on clean images, and over the transforms."""
    sentences = [_on_clean_images(comparison, line) for line in comparison.clean_lines]
    claims = [f"{c.sentence().removesuffix('.')} (n = {c.n:,})." for c in comparison.claims]
    return [*sentences, *claims]


def _on_clean_images(comparison: Comparison, line: ComparisonLine) -> str:
    verdict, scoring, measure = line.verdict, comparison.scoring, comparison.scoring.measure
    by = f"{measure.signed(verdict.difference, verdict.n)}{scoring.unit} of {measure.name}"
    if verdict.low is not None:
        by += f" ({measure.show_range(verdict.low, verdict.high, verdict.n, ' to ')})"
    if verdict.p_adjusted is None:
        why = f"a single {comparison.grouping} allows no test"
    else:
        why = f"adjusted p {p_equals(verdict.p_adjusted)}"
    group = comparison.grouping
    groups = "" if group == "image" else f" of {counted(verdict.groups, group)}"
    return (
        f"On untransformed images, {verdict.first} minus {verdict.second} is {by}: {line.word}; "
        f"{why}, n = {verdict.n:,}{groups}."
    )


def _pair_table(comparison: Comparison, pair: tuple[str, str]) -> str:
    scoring = comparison.scoring
    header = (
        f"{scoring.measure.name} of {pair[0]} and {pair[1]}",
        *("first", "second", "difference", "95 % interval", "p (Holm)", "verdict"),
    )
    lines = comparison.of_pair(pair, comparison.lines)
    return grid(header, [(line.label, *_cells(comparison, line)) for line in lines])


def _cells(comparison: Comparison, line: ComparisonLine) -> tuple[str, str, str, str, str, str]:
    """The scores, their difference, its interval, the adjusted p and the verdict, as text."""
    verdict, measure = line.verdict, comparison.scoring.measure
    return (
        measure.show(line.first_score, verdict.n),
        measure.show(line.second_score, verdict.n),
        measure.signed(verdict.difference, verdict.n),
        measure.show_range(verdict.low, verdict.high, verdict.n, " to "),
        p_value(verdict.p_adjusted),
        line.word,
    )


def _rank_table(comparison: Comparison) -> str:
    ranks = [f"P(rank {number + 1})" for number in range(len(comparison.models))]
    header = (_ranked_by(comparison), comparison.scoring.measure.name, "95 % interval", *ranks)
    return grid(header, [(rank.model, *_rank_row(comparison, rank)) for rank in comparison.ranks])


def _ranked_by(comparison: Comparison) -> str:
    """Describes what the mean of a ranking is taken over."""
    if not comparison.transforms:
        return "untouched images"
    return f"mean over {counted(len(comparison.transforms), 'transform')}"


def _rank_row(comparison: Comparison, rank: Rank) -> tuple[str, ...]:
    """The mean, its interval and the probability of each rank, as text."""
    measure = comparison.scoring.measure
    shares = [probability(share) for share in rank.probabilities]
    return (
        measure.show(rank.mean, rank.n),
        measure.show_range(rank.low, rank.high, rank.n, " to "),
        *(shares or [MISSING] * len(comparison.models)),
    )


@dataclass(frozen=True)
class ComparisonGallery:
    """The figures: one per pair, and the ranking if there are more than two models."""

    forests: Mapping[tuple[str, str], tuple[Picture, ...]]
    ranks: tuple[Picture, ...] = ()


def write_comparison(comparison: Comparison, out: Path, command: str) -> Path:
    """Writes report.md, report.html, results.csv, results.json and figures/.

    Args:
        comparison: The comparison to write.
        out: Output folder, created if it does not exist.
        command: The command that repeats the comparison.

    Returns:
        Path of report.md.

    Raises:
        UsageError: `out` is a run, or a file.
        RunError: A file could not be written.
    """
    check_out(out)
    gallery = draw_comparison(comparison, out)
    text = comparison_page(comparison, command, gallery)
    report = write_page(Page(comparison.table(), text), out)
    write_text(out / "results.json", comparison.as_json())
    return report


def draw_comparison(comparison: Comparison, out: Path) -> ComparisonGallery:
    """Draws the figures into `out`/figures."""
    # Imported here because Matplotlib's import takes longer than a comparison for the terminal.
    from robustcli.reports.figures.evaluation_figures import draw_differences, draw_ranks

    measure, forests = comparison.scoring.measure, {}
    for number, pair in enumerate(comparison.pairs[:PAIRS_SHOWN], start=1):
        verdicts = [line.verdict for line in comparison.of_pair(pair, comparison.lines)]
        path = f"figures/pair-{number}.png"
        draw_differences({pair: verdicts}, comparison.labels, out / path, measure)
        caption = (
            f"{measure.title} of {pair[0]} minus that of {pair[1]}, with paired 95 % intervals. "
            "Coloured: significant after Holm's correction, in the colour of the model that is "
            "ahead; grey and hollow: not significant."
        )
        forests[pair] = (Picture(path, caption),)
    ranks = [rank for rank in comparison.ranks if rank.probabilities]
    if len(ranks) < 3:
        return ComparisonGallery(forests)
    path = "figures/ranks.png"
    draw_ranks([rank.model for rank in ranks], [r.probabilities for r in ranks], out / path)
    caption = (
        f"Certainty of the ranking by the {_ranked_by(comparison)}: the share of {RANK_DRAWS:,} "
        f"resamples of the {comparison.grouping}s in which a model has each rank."
    )
    return ComparisonGallery(forests, (Picture(path, caption),))


def comparison_page(
    comparison: Comparison, command: str, gallery: ComparisonGallery | None = None
) -> str:
    """The Markdown of the page, with the figures of `gallery`."""
    return from_template(
        "comparison",
        comparison=comparison,
        gallery=gallery or ComparisonGallery({}),
        conclusions=conclusions(comparison),
        command=command,
        pairs=comparison.pairs[:PAIRS_SHOWN],
        preprocessing_words=preprocessing_words,
    )
