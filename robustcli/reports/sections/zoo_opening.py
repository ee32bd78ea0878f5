"""The head of a report over several trainings, and what each of them was made of."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.reports.document import (
    Block,
    Code,
    Heading,
    Mono,
    Paragraph,
    Strong,
    Table,
    Text,
    cells,
    joined,
    text,
)
from robustcli.reports.numbers import counted
from robustcli.reports.sections.mask_opening import how_empty_counts
from robustcli.reports.sections.notices import demonstration, subset
from robustcli.reports.training import Training
from robustcli.reports.zoo_rows import label


def zoo_title(trainings: Sequence[Training]) -> Text:
    """One line: how many trainings, on what, under which protocols."""
    names = list(dict.fromkeys(training.record.dataset.name for training in trainings))
    protocols = list(dict.fromkeys(str(training.record.protocol) for training in trainings))
    count = counted(len(trainings), "training")
    told = f", protocol {' and '.join(protocols)}"
    return text(f"{count} of the segmentation zoo: ", *joined([Mono(n) for n in names]), told)


def zoo_opening(trainings: Sequence[Training]) -> list[Block]:
    """The title, and the notices that apply to some or all of the trainings."""
    records = [training.record for training in trainings]
    notices: list[Text] = []
    for record in {record.dataset.digest: record for record in records}.values():
        notices += [*demonstration(record.dataset), *subset(record.dataset)]
    notices += _about_progress(trainings)
    notices += _about_mixture(trainings)
    groups = sorted({record.grouping for record in records})
    notices.append(text(how_empty_counts(" or ".join(groups))))
    numbers = joined([Mono("results.csv"), Mono("results.json")])
    notices.append(text("Every number, unrounded: ", *numbers, "."))
    return [Heading(1, zoo_title(trainings)), *map(Paragraph, notices)]


def _about_progress(trainings: Sequence[Training]) -> list[Text]:
    partial = [Mono(label(t, trainings)) for t in trainings if t.is_partial]
    if not partial:
        return []
    return [text(Strong("Partial runs."), " Not finished: ", *joined(partial), ".")]


def _about_mixture(trainings: Sequence[Training]) -> list[Text]:
    """What keeps these trainings from being compared with each other."""
    records = [training.record for training in trainings]
    notices = []
    if len({record.protocol for record in records}) > 1:
        told = " Dice of different protocols are different numbers; do not compare them."
        notices.append(text(Strong("Mixed protocols."), told))
    if len({(record.dataset.digest, record.seed) for record in records}) > 1:
        told = (
            " Not all were trained and tested on the same images (other data or another seed of "
            "the split), so a difference between them may come from the images."
        )
        notices.append(text(Strong("Mixed data."), told))
    if len({record.recipe.epochs for record in records}) > 1:
        told = " Not all were trained for the same number of epochs; see the recipes."
        notices.append(text(Strong("Mixed lengths."), told))
    return notices


HEADER = (
    *("training", "data", "protocol", "seed", "loss", "optimizer", "learning rate", "batch"),
    *("window", "augmentation", "foreground", "device"),
)


def zoo_recipes(trainings: Sequence[Training]) -> list[Block]:
    """How each was trained, and the commands to repeat them."""
    rows = tuple(_recipe(training, trainings) for training in trainings)
    commands = "\n".join(dict.fromkeys(training.record.command for training in trainings))
    return [
        Heading(2, text("Recipes")),
        Table(cells(*HEADER), rows, left=len(HEADER)),
        Heading(2, text("How to repeat it")),
        Code(commands),
        *(Paragraph(line) for line in _versions(trainings)),
    ]


def _recipe(training: Training, trainings: Sequence[Training]) -> tuple[Text, ...]:
    record, recipe = training.record, training.record.recipe
    batch = f"{recipe.batch_size}" + (f" x {recipe.accumulate}" if recipe.accumulate > 1 else "")
    values = (
        *(
            record.dataset.name,
            str(record.protocol),
            str(record.seed),
            recipe.loss,
            recipe.optimizer,
        ),
        *(f"{recipe.lr:g}, {recipe.schedule}", batch, f"{recipe.window} px", recipe.augmentation),
        *(record.decision, record.device),
    )
    return (text(Mono(label(training, trainings))), *cells(*values))


def _versions(trainings: Sequence[Training]) -> list[Text]:
    """A line per set of versions, with the trainings that it is of where there are several."""
    sets: dict[str, list[Mono]] = {}
    for training in trainings:
        told = ", ".join(f"{name} {v}" for name, v in sorted(training.record.versions.items()))
        sets.setdefault(told, []).append(Mono(label(training, trainings)))
    if len(sets) == 1:
        return [text(f"Versions: {next(iter(sets))}.")]
    return [text("Versions of ", *joined(names), f": {told}.") for told, names in sets.items()]
