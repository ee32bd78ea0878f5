"""The head of a fine-tuning's report: what was fine-tuned from what, and what limits the answer."""

from __future__ import annotations

from robustcli.finetuning.record import Mode
from robustcli.reports.document import (
    Block,
    Heading,
    Mono,
    Paragraph,
    Strong,
    Text,
    marked,
    text,
)
from robustcli.reports.finetuning import Finetuning
from robustcli.reports.numbers import counted, decimal, is_missing
from robustcli.reports.rules import rule_words
from robustcli.reports.sections.finetune_gradients import chosen_from, statistic
from robustcli.reports.sections.finetune_verdict import score_of, verdict
from robustcli.reports.sections.notices import demonstration, subset

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
