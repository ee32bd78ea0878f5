"""What a training's report of a classifier has of its own: the head, and the held-out images."""

from __future__ import annotations

from robustcli.reports.document import (
    Block,
    Heading,
    Mono,
    Paragraph,
    Strong,
    Table,
    Text,
    cells,
    marked,
    text,
)
from robustcli.reports.numbers import counted
from robustcli.reports.sections.notices import demonstration, subset
from robustcli.reports.training import Training


def class_title(training: Training) -> Text:
    """One line: network, data, and top-1."""
    record, test = training.record, training.test
    found = "not measured yet" if test is None else f"top-1 {training.scoring.shown(test.numbers)}"
    return text("Training of ", Mono(record.model), " on ", Mono(record.dataset.name), f": {found}")


def class_opening(training: Training) -> list[Block]:
    """The title, the notices that apply, and the result in words."""
    dataset = training.record.dataset
    notices = (*demonstration(dataset), *subset(dataset), *_about_progress(training))
    words = (_what(training), *_chosen(training), *_result(training))
    return [Heading(1, class_title(training)), *map(Paragraph, (*notices, *words))]


def class_scores(training: Training) -> list[Block]:
    """The numbers of the held-out images; one sentence until they are measured."""
    heading = Heading(2, text("Held-out images"))
    test, floor, scoring = training.test, training.floor, training.scoring
    if test is None or floor is None:
        return [heading, Paragraph(text("Not measured yet."))]
    lines = [(training.record.model, test.numbers), (scoring.baseline, floor)]
    rows = tuple(
        (text(Mono(name)), *cells(scoring.shown(numbers), scoring.second_shown(numbers)))
        for name, numbers in lines
    )
    return [heading, Table(cells("model", scoring.measure.name, scoring.second), rows)]


def _about_progress(training: Training) -> list[Text]:
    if not training.is_partial:
        return []
    record = training.record
    told = (
        f" {training.epochs} of {counted(record.recipe.epochs, 'epoch')} are finished (status: "
        f"{record.status}). The commands under “How to repeat it” go on."
    )
    return [text(Strong("Partial run."), told)]


def _what(training: Training) -> Text:
    record = training.record
    train = record.splits.get("train")
    images = f"{counted(train.images, 'image')} of " if train else ""
    verb = "is being" if record.status == "running" else "was"
    start = f" ({record.parameters:,} parameters) {verb} trained on {images}"
    classes = f", which has {counted(record.dataset.classes, 'class', 'classes')}."
    return text(Mono(record.model), start, Mono(record.dataset.name), classes)


def _chosen(training: Training) -> list[Text]:
    record = training.record
    if record.chosen_epoch is None:
        return []
    why = f": {record.chosen_why}" if record.chosen_why else ""
    return [marked(f"Weights of epoch {record.chosen_epoch} of {training.epochs}{why}.")]


def _result(training: Training) -> list[Text]:
    test, floor, scoring = training.test, training.floor, training.scoring
    if test is None or floor is None:
        return []
    held = counted(int(test.numbers["n"]), "held-out image")
    told = f"On {held}: top-1 {scoring.shown(test.numbers)}, 95 % Wilson interval in brackets. "
    return [text(told + f"{scoring.floor_words} on the same images: {scoring.shown(floor)}.")]
