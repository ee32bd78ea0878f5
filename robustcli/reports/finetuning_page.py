"""The report of a fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from robustcli.finetuning.record import Mode
from robustcli.reports.document import (
    Block,
    Code,
    Figure,
    Heading,
    Listing,
    Mono,
    Page,
    Paragraph,
    Strong,
    Table,
    Text,
    cells,
    joined,
    marked,
    page_of,
    text,
)
from robustcli.reports.evaluation_sections import demonstration, repeating, subset
from robustcli.reports.finetuning_findings import Finetuning, ModeRun, read_finetuning
from robustcli.reports.finetuning_gallery import FinetuningGallery, draw_finetuning_gallery
from robustcli.reports.finetuning_results import (
    against_full,
    finetuning_results,
    frozen_elements,
    pace,
)
from robustcli.reports.finetuning_words import (
    chosen_from,
    every_tensor,
    gradients,
    mebibytes,
    megabytes,
    p_value,
    rule_label,
    rule_scope,
    rule_words,
    score_of,
    seconds,
    statistic,
    verdict,
)
from robustcli.reports.numbers import EN_DASH, MISSING, counted, decimal, duration, is_missing
from robustcli.reports.relaxed import RELAXED, relaxed_cells, relaxed_note, relaxed_source
from robustcli.reports.segmentation_page import DETAILS, DETAILS_NOTE, cases, details
from robustcli.reports.training_findings import Held
from robustcli.reports.training_page import data, recipe_table

# The modes of a fine-tuning side by side: what each cost, and what it gave.


COSTS = (
    *("mode", "iterations/s", "s per iteration (middle half)", "trained parameters", "frozen"),
    *("optimizer", "peak memory", "training time", "epochs"),
)
_COSTS_NOTE = (
    "Iterations: medians of training steps (forward, backward, update; without waiting for "
    "images), for freeze of those after the freeze. Training time is of all epochs with their "
    "validation. Optimizer: the tensors that it keeps between steps, at the end."
)


def modes(found: Finetuning, gallery: FinetuningGallery) -> list[Block]:
    """The tables, the curves and the spread over groups; nothing for a run that only profiles."""
    if not found.record.modes:
        return []
    heading = Heading(2, text("Modes"))
    if not found.modes:
        return [heading, Paragraph(text("None has begun yet."))]
    return [
        heading,
        *_scores(found),
        *gallery.modes,
        Heading(3, text("What each mode cost")),
        Table(cells(*COSTS), tuple(_cost(run) for run in found.modes)),
        Paragraph(text(_COSTS_NOTE)),
        *_held_out(found, gallery.strips),
    ]


def _scores(found: Finetuning) -> list[Block]:
    scoring = found.scoring
    relaxed = () if found.tolerance is None else RELAXED
    rows = [_score(found, run, len(relaxed)) for run in found.modes]
    floors = (run.training.floor for run in found.modes)
    floor = next((one for one in floors if one is not None), None)
    if floor is not None:
        own = cells(scoring.shown(floor), scoring.second_shown(floor))
        own = (*own, *(relaxed_cells(pd.Series(floor)) if relaxed else ()))
        rows.append((text(Mono(scoring.baseline)), *own, *cells(MISSING, MISSING)))
    name = scoring.measure.name
    header = ("mode", name, scoring.second, *relaxed, f"{name} minus full", "p")
    notes = [Paragraph(text(scoring.score_note)), *relaxed_note(found.tolerance)]
    return [Table(cells(*header), tuple(rows)), *notes]


def _score(found: Finetuning, run: ModeRun, relaxed: int) -> tuple[Text, ...]:
    """A line of the table, with so many cells for relaxed numbers."""
    name, test = text(Mono(run.mode)), run.training.test
    if test is None:
        return (name, *cells(*(MISSING,) * (4 + relaxed)))
    scoring, one = found.scoring, against_full(found, run.mode)
    own = cells(score_of(run), scoring.second_shown(test.numbers))
    own = (*own, *(relaxed_cells(test.numbers) if relaxed else ()))
    if one is None:
        return (name, *own, *cells(MISSING, MISSING))
    apart = scoring.apart
    ends = "" if one.low is None else f" ({apart(one.low)} to {apart(one.high)})"
    p = MISSING if one.p is None else p_value(one.p)
    return (name, *own, *cells(f"{apart(one.value)}{ends}", p))


def _baseline(found: Finetuning) -> Held | None:
    held = [run.training.baseline for run in found.modes]
    return next((one for one in held if one is not None), None)


def _cost(run: ModeRun) -> tuple[Text, ...]:
    speed, costs, frozen = pace(run), run.costs, frozen_elements(run)
    times = (MISSING, MISSING)
    if speed is not None:
        half = f"({seconds(speed.low)}{EN_DASH}{seconds(speed.high)})"
        times = (decimal(1 / speed.median, 2), f"{seconds(speed.median)} {half}")
    kept = (MISSING,) * 4
    if costs is not None:
        peak = costs.peak_memory_bytes
        memory = MISSING if peak is None else mebibytes(peak)
        counts = (f"{costs.trainable:,}", f"{frozen or 0:,}")
        kept = (*counts, megabytes(costs.optimizer_bytes), memory)
    rest = (duration(run.training.seconds), str(run.training.epochs))
    return (text(Mono(run.mode)), *cells(*times, *kept, *rest))


def _held_out(found: Finetuning, strips: Sequence[Figure]) -> list[Block]:
    """A segmenter's held-out images in detail; nothing until they are measured."""
    named: list[tuple[str, Held]] = [
        (run.mode, run.training.test) for run in found.modes if run.training.test is not None
    ]
    if not named or found.record.task != "seg":
        return []
    otsu = _baseline(found)
    rows = [*named, *([("otsu", otsu)] if otsu is not None else [])]
    table = tuple((text(Mono(name)), *details(held.numbers)) for name, held in rows)
    return [
        *strips,
        Heading(3, text("Single images, precision and recall, borders")),
        Paragraph(text(DETAILS_NOTE)),
        Table(cells("mode", *DETAILS), table),
    ]


# The head of a fine-tuning's report: what was fine-tuned from what, and what limits the answer.


FEW = 30  # groups: with fewer, intervals are wide and their ends are uncertain themselves
MODE_WORDS: dict[Mode, str] = {
    "scratch": "scratch (nothing pretrained)",
    "full": "full (everything is trained)",
    "freeze": "freeze (full until it is decided what to freeze, then without that)",
    "lora": "lora (low-rank additions to the projections are trained)",
}


def finetune_title(found: Finetuning) -> Text:
    """One line: network, data, and the score of each mode."""
    measured = [f"{run.mode} {score_of(run)}" for run in found.modes if score_of(run)]
    if found.record.modes:
        scores = f": {found.scoring.measure.name} {', '.join(measured)}"
        told = scores if measured else ": not measured yet"
    else:
        told = ": profile of the gradients"
    record = found.record
    return text("Fine-tuning of ", Mono(record.model), " on ", Mono(record.dataset.name), told)


def finetune_opening(found: Finetuning) -> list[Block]:
    """The title, the notices that apply, what was done, and the verdict in words."""
    notices = (
        *demonstration(found.record.dataset),
        *subset(found.record.dataset),
        *_about_progress(found),
        *_about_few(found),
    )
    words = (_what(found), *_rule(found), *verdict(found))
    return [Heading(1, finetune_title(found)), *map(Paragraph, (*notices, *words))]


def _about_progress(found: Finetuning) -> list[Text]:
    if not found.is_partial:
        return []
    done = [r.mode for r in found.modes if r.training.record.status == "complete"]
    modes = found.record.modes
    told = f" {len(done)} of {counted(len(modes), 'mode')} finished." if modes else ""
    told += f" Status: {found.record.status}. The commands under “How to repeat it” go on."
    return [text(Strong("Partial run."), told)]


def _about_few(found: Finetuning) -> list[Text]:
    """That few images are held out, where they are, and how little can be seen with them."""
    training = found.training
    if training is None or training.test is None:
        return []
    group, groups = training.record.grouping, training.test.groups
    if groups >= FEW:
        return []
    held, width = counted(groups, f"held-out {group}"), _widest(found)
    if width is None:
        told = f" From {held} nothing can be said about others, so no interval is given."
    else:
        scoring = found.scoring
        told = f" With {held}, {scoring.few_words.format(width=scoring.width(width))}"
    return [text(Strong("Few held-out images."), told)]


def _widest(found: Finetuning) -> float | None:
    """The width of the widest interval of a mode's score; None where no mode has one."""
    tests = [run.training.test for run in found.modes]
    low, high = (f"{found.scoring.measure.column}_{end}" for end in ("low", "high"))
    widths = [t.numbers[high] - t.numbers[low] for t in tests if t is not None]
    return max((float(width) for width in widths if not is_missing(width)), default=None)


def _what(found: Finetuning) -> Text:
    record = found.record
    verb = "is being" if record.status == "running" else "was"
    if not record.modes:
        verb = "is being" if record.status == "running" else "was only"
    done = "fine-tuned" if record.modes else "profiled"
    start = f" ({record.parameters:,} parameters) {verb} {done} on "
    modes = [MODE_WORDS[mode] for mode in record.modes]
    told = f", starting from {record.pretrained}"
    if modes:
        budget = f"{counted(record.iterations, 'iteration')} in {counted(record.epochs, 'epoch')}"
        told += f". Modes: {', '.join(modes)}; {budget}"
        told += " each, from the same seed and with the same order of images" * (len(modes) > 1)
    name = Mono(record.dataset.name)
    return text(Mono(record.model), start, name, *marked(told), ".")


def _rule(found: Finetuning) -> list[Text]:
    """What was frozen, of what, and by which rule."""
    if found.decisions is None:
        return []
    record, table = found.record, found.decisions
    frozen = table[table["frozen"]]
    verb = "froze" if "freeze" in record.modes else "would freeze"
    share = 100 * frozen["count"].sum() / max(1, table["count"].sum())
    elements = f"{int(frozen['count'].sum()):,} of {int(table['count'].sum()):,} parameters"
    told = f" {verb} {len(frozen)} of {counted(len(table), 'tensor')}: "
    told += f"{elements}, {decimal(share, 2)} %."
    words = (*_profiled(found), *_nothing(found, verb))
    return [text("The rule (", *rule_words(record.rule), ")", told, *words)]


def _nothing(found: Finetuning, verb: str) -> tuple[str, ...]:
    """That nothing is frozen, where it is so, and from what threshold on something would be."""
    table, rule = found.decisions, found.record.rule
    if table is None or table["frozen"].any():
        return ()
    known = chosen_from(found)["statistic"].dropna()
    told = " So the mode freeze is full fine-tuning." if verb == "froze" else ""
    if rule.threshold is not None and len(known):
        told += f" The smallest statistic that it looked at is {statistic(known.iloc[0])}."
    return (told,) if told else ()


def _profiled(found: Finetuning) -> tuple[str | Mono, ...]:
    record = found.record
    steps = counted(record.profile_iterations, "iteration")
    if record.rule.pattern is not None:
        return (f" It did so after {steps}.",) if record.profile_iterations else ()
    if record.profile == "measured":
        return (f" The gradients are those of {steps}.",)
    return (f" The gradients are those of {steps} in ", Mono(record.profile), ".")


# What other rules of freezing would save, and at what score.


def sweep(found: Finetuning, figures: Sequence[Figure]) -> list[Block]:
    """The picture and the table; nothing where no sweep was made."""
    if found.sweep is None:
        return []
    words = (
        "Time saved is that of an iteration after the freeze against full fine-tuning, in percent; "
        "below 0 it took longer. Ranges are 95 % intervals."
    )
    rows = tuple(_sweep_row(found, row) for _, row in found.sweep.iterrows())
    name = found.scoring.measure.name
    header = ("rule", "chosen from", "frozen %", "time saved %", name)
    table = Table(cells(*header), rows, left=2)
    heading = Heading(2, text(f"Time saved against {name}, rule by rule"))
    return [heading, *figures, table, Paragraph(text(words))]


def _sweep_row(found: Finetuning, row: pd.Series) -> tuple[Text, ...]:
    score = found.scoring.shown_in(row, found.held)
    share = decimal(100 * row["frozen_share"], 1)
    middle = cells(rule_scope(row), share, saved(row), score)
    return (text(Mono(rule_label(row))), *middle)


def saved(row: pd.Series) -> str:
    """The saving of a line of the sweep in percent, with its interval."""
    value, low, high = (row[f"seconds_ratio{end}"] for end in ("", "_low", "_high"))
    if is_missing(value):
        return MISSING
    told = decimal(100 * (1 - value))
    if is_missing(low) or is_missing(high):
        return told
    return f"{told} ({decimal(100 * (1 - high))}{EN_DASH}{decimal(100 * (1 - low))})"


# What a fine-tuning was made of: the start, the recipe, the rule, and the command.


def finetune_settings(found: Finetuning) -> list[Block]:
    """The data, the recipe, everything else that was set, and how to repeat the run."""
    training = found.training
    recipe = (
        []
        if training is None
        else [recipe_table(training.record.recipe, masks=training.record.task == "seg")]
    )
    return [
        *([] if training is None else data(training)),
        Heading(2, text("Recipe and settings")),
        *recipe,
        Listing(_choices(found)),
        *_repeating(found),
    ]


def _choices(found: Finetuning) -> tuple[Text, ...]:
    record = found.record
    given = "".join(f", {name}={json.dumps(value)}" for name, value in record.arguments.items())
    digest = record.pretrained_sha256
    weights: Text = () if digest is None else (", SHA-256 ", Mono(digest))
    heads = joined([Mono(head) for head in record.heads]) or text("none")
    return (
        text("Network: ", Mono(f"{record.model}{given}"), f", {record.parameters:,} parameters."),
        text(*marked(f"Start: {record.pretrained}"), *weights, "."),
        text("Heads that are new in this task and never frozen: ", *heads, "."),
        text("Frozen by: ", *rule_words(record.rule), "."),
        _profile(found),
        text("Digest of the image list: ", Mono(record.dataset.digest), "."),
        text(f"Seed: {record.seed}."),
        *relaxed_source(found.tolerance),
    )


def _profile(found: Finetuning) -> Text:
    record = found.record
    if record.profile == "none":
        return text("Profile: none; what is frozen was named.")
    place = "measured in this run" if record.profile == "measured" else Mono(record.profile)
    return text("Profile: ", place, f", {counted(record.profile_iterations, 'iteration')}.")


def _repeating(found: Finetuning) -> list[Block]:
    record, training = found.record, found.training
    if training is not None:
        return repeating(record.command, training.record.versions, record.device)
    device = Paragraph(text(f"Device: {record.device}."))
    return [Heading(2, text("How to repeat it")), Code(record.command), device]


def finetune(run: Path) -> Page:
    """The page of the fine-tuning in `run`; its figures are drawn.

    Raises:
        UsageError: There is no readable fine-tuning.
    """
    found = read_finetuning(run)
    gallery = draw_finetuning_gallery(found)
    return page_of(
        finetuning_results(found),
        finetune_title(found),
        [
            *finetune_opening(found),
            *modes(found, gallery),
            *gradients(found, gallery.gradients),
            *sweep(found, gallery.tradeoff),
            *(cases(gallery.cases) if found.record.modes and found.scoring.per_group else ()),
            *every_tensor(found),
            *finetune_settings(found),
        ],
    )
