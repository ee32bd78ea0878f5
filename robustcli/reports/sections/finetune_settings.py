"""What a fine-tuning was made of: the start, the recipe, the rule, and the command."""

from __future__ import annotations

import json

from robustcli.reports.document import (
    Block,
    Code,
    Heading,
    Listing,
    Mono,
    Paragraph,
    Text,
    joined,
    marked,
    text,
)
from robustcli.reports.finetuning import Finetuning
from robustcli.reports.numbers import counted
from robustcli.reports.rules import rule_words
from robustcli.reports.sections.relaxed import relaxed_source
from robustcli.reports.sections.settings import repeating
from robustcli.reports.sections.training_course import data
from robustcli.reports.sections.training_settings import recipe_table


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
