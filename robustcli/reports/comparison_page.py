"""Output of `robust compare`: tables for a terminal, a page with figures, files of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.io import write_text
from robustcli.core.rundir import has_record
from robustcli.metrics.verdicts import RANK_DRAWS, Rank
from robustcli.reports.comparison import Comparison, ComparisonLine, preprocessing_words
from robustcli.reports.console import grid
from robustcli.reports.markdown import Picture, from_template
from robustcli.reports.numbers import EN_DASH, MISSING, counted, p_value, probability
from robustcli.reports.pages import Page, write_page

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
    return "\n\n".join(blocks).replace(EN_DASH, "-")


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
        p = p_value(verdict.p_adjusted)
        why = f"adjusted p {p}" if p.startswith("<") else f"adjusted p = {p}"
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
    return grid(header, [(line.label, *_row(comparison, line)) for line in lines])


def _row(comparison: Comparison, line: ComparisonLine) -> tuple[str, str, str, str, str, str]:
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


def check_out(out: Path) -> None:
    """Checks that a comparison in `out` would not overwrite a run or a file.

    Raises:
        UsageError: `out` is a run, or a file.
    """
    if out.is_file():
        raise UsageError(f"`--out {out}` is a file.", "", "Name a folder.")
    if has_record(out):
        raise UsageError(
            f"`--out {out}` is a run.",
            "The comparison would overwrite the report of the run.",
            "Name another folder.",
        )


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
