"""LaTeX tables of a run for a paper, with booktabs and with captions that describe the data.

Every value is escaped, so that any name compiles with pdfLaTeX, XeLaTeX and LuaLaTeX.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from robustcli.core.names import counted, file_name
from robustcli.metrics.intervals import FEWEST_UNITS
from robustcli.reports.explanation_findings import (
    SHIFT,
    SIMILARITY,
    read_explanation,
    shown_difference,
    shown_mean,
    title_of,
)
from robustcli.reports.findings import HEADS, Findings, TransformRows, read_findings
from robustcli.reports.finetuning_findings import (
    FinetuningFindings,
    ModeRun,
    against_full,
    frozen_elements,
    pace,
    read_finetuning,
)
from robustcli.reports.markdown import TEMPLATES, template_environment
from robustcli.reports.numbers import (
    MISSING,
    as_printed,
    cell_label,
    decimal,
    duration,
    p_value,
    percent,
    seconds,
    short_count,
    signed,
    thousands,
    with_range,
)
from robustcli.reports.scoring import Measure
from robustcli.reports.seeds_findings import read_seeds
from robustcli.reports.seeds_page import SeedsShown, mean_cells
from robustcli.reports.training_findings import (
    Score,
    TrainingFindings,
    group_score,
    pooled,
    read_training,
)
from robustcli.reports.zoo_findings import Zoo

LONGEST = 45
"""Largest number of rows on a page; a longer table is a `longtable`."""
MOST_COLUMNS = 6
"""Largest number of columns in the type of the text."""
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
# LaTeX's special characters, and non-ASCII characters of the reports.
_SPECIAL = {character: f"\\{character}" for character in "{}$&#_%"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{MINUS SIGN}": "$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{LEFT DOUBLE QUOTATION MARK}": r"\textquotedblleft{}",
    "\N{RIGHT DOUBLE QUOTATION MARK}": r"\textquotedblright{}",
    "\N{LEFT SINGLE QUOTATION MARK}": r"\textquoteleft{}",
    "\N{RIGHT SINGLE QUOTATION MARK}": r"\textquoteright{}",
}


@dataclass(frozen=True)
class LatexTable:
    """One table.

    Args:
        kind: Selects the caption: a name in `templates/tables.tex.j2`.
        label: Label without `tab:`.
        heads: Headers of the columns.
        left: Number of text columns, counted from the first; the other columns contain numbers.
        rows: Cells as text, or as finished LaTeX (Markup).
        values: Values of the caption.
    """

    kind: str
    label: str
    heads: Sequence[str]
    left: int
    rows: Sequence[Sequence[str]]
    values: Mapping[str, object] = field(default_factory=dict)

    @property
    def columns(self) -> Markup:
        """The column alignment."""
        return Markup("l" * self.left + "r" * (len(self.heads) - self.left))

    @property
    def is_wide(self) -> bool:
        """Whether the table needs smaller type to fit the width of a page."""
        return len(self.heads) > MOST_COLUMNS

    @property
    def is_long(self) -> bool:
        """Whether the table takes several pages."""
        return len(self.rows) > LONGEST


def tex(value: object) -> Markup:
    """`value` escaped for LaTeX, so that it is shown unchanged; Markup is not escaped.

    Characters that pdfLaTeX's usual fonts lack are replaced by their code point, such as U+4E2D.
    """
    if isinstance(value, Markup):
        return value
    line = " ".join(str(MISSING if value is None else value).split())
    return Markup("".join(map(_letter, line)))


def _letter(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii() and character.isprintable():
        return character
    if character.isalpha() and ord(character) < 0x100:  # Western European letters
        return character
    return f"U+{ord(character):04X}"


def cell(value: str) -> Markup:
    """`value` escaped; hyphens before digits become minus signs."""
    return tex(value if isinstance(value, Markup) else _MINUS.sub("\N{MINUS SIGN}", value))


def name(value: object) -> Markup:
    """A name of a model, transform or dataset in typewriter type."""
    return Markup(rf"\texttt{{{tex(value)}}}")


def bold(value: str) -> Markup:
    """A number in bold type."""
    return Markup(rf"\textbf{{{cell(value)}}}")


def evaluation_tables(run: Path) -> str:
    """LaTeX tables of the scores and drops of the evaluation in `run`.

    Raises:
        UsageError: The run does not exist or cannot be read.
    """
    findings = read_findings(run)
    measures = findings.scoring.measures
    tables = [_scores(findings, measure) for measure in measures]
    if findings.transforms:
        tables.append(_drops(findings, measures[0]))
    if findings.classes:
        tables += [_classes(findings, model.name) for model in findings.models]
    return _document(tables, [run], partial=findings.is_partial)


def _classes(findings: Findings, model: str) -> LatexTable:
    """The class scores of one model on clean images."""
    rows = [[tex(line.name), *line.cells] for line in findings.classes.clean(model)]
    values = {"model": model, **_of_findings(findings)}
    return LatexTable("classes", f"classes-{file_name(model)}", ["class", *HEADS], 1, rows, values)


def _scores(findings: Findings, measure: Measure) -> LatexTable:
    several = len(findings.models) > 1

    def score(row: Mapping[str, object], line: TransformRows) -> str:
        if not row["n"]:
            return "not yet"
        value = measure.value(row)
        highest = several and row[measure.column] == line.highest(measure)
        shown, interval = bold(value) if highest else tex(value), measure.value_range(row)
        return shown if interval == MISSING else Markup("{} ({})").format(shown, tex(interval))

    rows = [[name(line.label), *(score(row, line) for row in line.rows)] for line in findings.lines]
    return _by_model("scores", findings, measure, rows)


def _drops(findings: Findings, measure: Measure) -> LatexTable:
    def drop(row: Mapping[str, object]) -> str:
        n = int(str(row[measure.paired]))
        if not n:
            return "not yet"
        low, high = row["drop_low"], row["drop_high"]
        interval = measure.show_range(low, high, n, " to ")  # type: ignore[arg-type]
        ends = "" if interval == MISSING else f" ({interval})"
        return f"{measure.show(row['drop'], n)}{ends}"  # type: ignore[arg-type]

    rows = [
        [name(line.label), *(drop(row) for row in line.rows)]
        for line in findings.lines
        if line.transform != "identity"
    ]
    return _by_model("drops", findings, measure, rows)


def _by_model(
    kind: str, findings: Findings, measure: Measure, rows: Sequence[Sequence[str]]
) -> LatexTable:
    values = {"measure": measure, "several": len(findings.models) > 1, **_of_findings(findings)}
    heads = ["transform", *(name(model.name) for model in findings.models)]
    return LatexTable(kind, f"{kind}-{measure.column}", heads, 1, rows, values)


def _of_findings(findings: Findings) -> dict[str, object]:
    record = findings.record
    return {"findings": findings, "record": record, "version": _version(record.versions)}


def training_tables(run: Path) -> str:
    """LaTeX table of the scores of the training in `run` and of its baseline.

    Raises:
        UsageError: The training does not exist or cannot be read.
    """
    training = read_training(run)
    scoring = training.scoring
    rows: list[list[str]] = []
    for label, numbers in (
        (name(training.record.network), None if training.test is None else training.test.numbers),
        (scoring.floor_words, training.baseline_numbers),
    ):
        if numbers is None and rows and training.mask_classes:
            continue  # Otsu's threshold has two classes only
        if numbers is None:
            rows.append([label, *scoring.cells(None)])
        elif "top1" in numbers and "top1_low" not in numbers:
            top1 = percent(numbers["top1"], int(numbers["n"]))
            rows.append([label, top1, *scoring.cells(None)[1:]])
        else:
            rows.append([label, *scoring.cells(numbers)])
    paper = pooled(training)
    if paper is not None:
        label = Markup("{}, pooled over batches of {}").format(
            name(training.record.network), paper.batch
        )
        rows.insert(1, [label, *_shown(paper.score)])
    heads = ["", *scoring.heads]
    values = _of_training(training)
    table = LatexTable("training", "training", heads, 1, rows, values)
    return _document([table], [run], partial=training.is_partial)


def _shown(score: Score | None) -> tuple[str, str]:
    if score is None or score.dice is None:
        return MISSING, MISSING
    return score.dice_words, score.iou_words


def _of_training(training: TrainingFindings) -> dict[str, object]:
    test = training.test
    return {
        "record": training.record,
        "scoring": training.scoring,
        "n": 0 if test is None else int(test.numbers["n"]),
        "groups": 0 if test is None else test.groups,
        "version": _version(training.record.versions),
    }


def zoo_tables(trainings: Sequence[TrainingFindings]) -> str:
    """LaTeX tables of scores and costs of `trainings`; for segmenters also of published numbers."""
    zoo = Zoo(trainings)
    tables = [_costs(zoo)]
    if trainings[0].record.task == "seg":
        tables.append(_published(zoo))
    partial = any(training.is_partial for training in trainings)
    return _document(tables, [training.run for training in trainings], partial=partial)


def _costs(zoo: Zoo) -> LatexTable:
    scoring = zoo.trainings[0].scoring
    classifiers = not scoring.per_group
    rows = []
    for training in zoo.trainings:
        test, f1, epoch = training.test, training.macro_f1, training.epoch_seconds
        second = MISSING if f1 is None else with_range(f1.f1, f1.f1_low, f1.f1_high)
        if test is not None and not classifiers:
            second = scoring.second_shown(test.numbers)
        rows.append(
            [
                name(zoo.label(training)),
                thousands(training.record.parameters),
                short_count(training.record.multiply_adds),
                MISSING if test is None else scoring.shown(test.numbers),
                second,
                duration(None if epoch is None else epoch.median),
                decimal(training.images_per_second),
            ]
        )
    heads = ["network", "parameters", "multiply-adds", scoring.measure.name]
    heads += ["macro F1" if classifiers else "IoU", "epoch", "images/s"]
    return LatexTable("costs", "costs", heads, 1, rows, _of_zoo(zoo))


def _of_zoo(zoo: Zoo) -> dict[str, object]:
    scoring = zoo.trainings[0].scoring
    return {
        "trainings": [_of_training(training) for training in zoo.trainings],
        "several": zoo.image_sets > 1,
        "scoring": scoring,
    }


def _published(zoo: Zoo) -> LatexTable:
    rows = []
    for row in zoo.rows:
        printed = row.printed
        rows.append(
            [
                name(row.label),
                thousands(row.parameters),
                MISSING if printed is None else as_printed(printed.dice),
                MISSING if printed is None else as_printed(printed.iou),
                *_shown(row.score),
                signed(row.difference),
            ]
        )
    for floor in zoo.baselines:
        label = f"Otsu's threshold{f', {floor.images}' if floor.images else ''}"
        rows.append([label, "0", MISSING, MISSING, *_shown(group_score(floor.numbers)), MISSING])
    heads = ["network", "parameters", "printed dice", "printed IoU", "dice", "IoU", "difference"]
    return LatexTable("zoo", "zoo", heads, 1, rows, _of_zoo(zoo))


def finetuning_tables(run: Path) -> str:
    """LaTeX table of the modes of the fine-tuning in `run`, compared with full fine-tuning.

    Raises:
        UsageError: The fine-tuning does not exist or cannot be read.
    """
    finetuning = read_finetuning(run)
    scoring = finetuning.scoring
    against = f"{scoring.measure.name} minus full"
    heads = [
        "mode",
        *scoring.heads,
        against,
        "p",
        "s per iteration",
        "frozen",
    ]
    rows = [_mode(finetuning, mode) for mode in finetuning.modes]
    training = finetuning.training
    values = {"finetuning": finetuning, **({} if training is None else _of_training(training))}
    values |= {"record": finetuning.record, "scoring": scoring}
    values = {"n": 0, "version": _version({}), **values}
    table = LatexTable("finetuning", "finetuning", heads, 1, rows, values)
    return _document([table], [run], partial=finetuning.is_partial)


def seeds_tables(run: Path) -> str:
    """LaTeX table of the means over the seeds in `run`, with their intervals.

    Raises:
        UsageError: The runs of the seeds do not exist or cannot be read.
    """
    findings = read_seeds(run)
    show, training = SeedsShown(findings), findings.training
    rows = [
        [name(series.name), *mean_cells(series, show)[1:]]
        for series in findings.series
        if series.scores is not None
    ]
    heads = ["", f"mean {findings.scoring.measure.name}", "deviation", "over seeds"]
    heads += [f"over {findings.units}", "over both"]
    values = {} if training is None else _of_training(training)
    values |= {"findings": findings, "of": findings.record, "record": findings.record}
    table = LatexTable("seeds", "seeds", heads, 1, rows, {"n": 0, "version": "", **values})
    return _document([table], [run], partial=findings.is_partial)


def _mode(finetuning: FinetuningFindings, run: ModeRun) -> list[str]:
    test, scoring = run.training.test, finetuning.scoring
    scores = scoring.cells(None if test is None else test.numbers)
    compared = against_full(finetuning, run.mode)
    difference = MISSING
    if compared is not None:
        ends = ""
        if compared.low is not None and compared.high is not None:
            ends = f" ({scoring.gap_range(compared.low, compared.high)})"
        difference = f"{scoring.gap_shown(compared.value)}{ends}"
    steady, frozen = pace(run), frozen_elements(run)
    return [
        name(run.mode),
        *scores,
        difference,
        p_value(None if compared is None else compared.p),
        MISSING if steady is None else seconds(steady.median),
        MISSING if frozen is None else thousands(frozen),
    ]


def explanation_tables(run: Path) -> str:
    """LaTeX tables of how maps of the explanation in `run` change when the prediction flips.

    Raises:
        UsageError: The explanation does not exist or cannot be read.
        RunError: A file of rows is damaged.
    """
    explanation = read_explanation(run)
    tables = []
    for score, kind in ((SIMILARITY, "similarity"), (SHIFT, "shift")):
        rows = [
            [
                title_of(cell.key.method),
                name(cell_label(cell.key.transform, cell.key.severity)),
                cell.key.target_kind,
                thousands(cell.n),
                thousands(cell.flipped),
                *(shown_mean(score, mean) for mean in (c.flipped, c.kept)),
                bold(shown_difference(score, c)) if c.shown else shown_difference(score, c),
            ]
            for cell in explanation.transformed
            for c in [cell.contrasts[score]]
        ]
        heads = ["method", "transform", "class", "photos", "flipped", "flipped", "others"]
        record = explanation.record
        values = {"record": record, "version": _version(record.versions)}
        tables.append(LatexTable(kind, kind, [*heads, "difference"], 3, rows, values))
    return _document(tables, [run], partial=explanation.is_partial)


def _version(versions: Mapping[str, str]) -> str:
    return versions.get("robustcli") or versions.get("robust") or "of an unknown version"


def _document(tables: Sequence[LatexTable], runs: Sequence[Path], *, partial: bool) -> str:
    page = (
        _environment()
        .get_template("tables.tex.j2")
        .render(tables=tables, folders=[run.resolve().name for run in runs], partial=partial)
    )
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


@cache
def _environment() -> Environment:
    environment = template_environment(
        TEMPLATES,
        finalize=tex,
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.globals["fewest_units"] = FEWEST_UNITS
    environment.filters |= {"cell": cell, "name": name, "counted": counted, "thousands": thousands}
    return environment
