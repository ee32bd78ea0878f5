"""The report over several trainings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.reports.document import (
    Block,
    Code,
    Figure,
    Heading,
    Listing,
    Mono,
    Page,
    Paragraph,
    Span,
    Strong,
    Table,
    Text,
    cells,
    joined,
    page_of,
    text,
)
from robustcli.reports.evaluation_sections import demonstration, subset
from robustcli.reports.numbers import (
    MISSING,
    as_printed,
    counted,
    decimal,
    duration,
    fraction,
    signed,
    with_range,
)
from robustcli.reports.segmentation_page import how_empty_counts
from robustcli.reports.training_findings import Training, read_training
from robustcli.reports.training_gallery import draw_zoo_gallery
from robustcli.reports.training_results import (
    group_score,
    other_experiment,
    published,
    training_results,
)
from robustcli.reports.zoo_rows import Baseline, ZooRow, baselines, label, zoo_rows

# The curves of several trainings beside each other.


def zoo_curves(figures: Sequence[Figure]) -> list[Block]:
    """The section; empty before any epoch has ended."""
    return [Heading(2, text("How the trainings went")), *figures] if figures else []


# The head of a report over several trainings, and what each of them was made of.


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


TRAINING_HEADER = (
    *("training", "data", "protocol", "seed", "loss", "optimizer", "learning rate", "batch"),
    *("window", "augmentation", "foreground", "device"),
)


def zoo_recipes(trainings: Sequence[Training]) -> list[Block]:
    """How each was trained, and the commands to repeat them."""
    rows = tuple(_recipe(training, trainings) for training in trainings)
    commands = "\n".join(dict.fromkeys(training.record.command for training in trainings))
    return [
        Heading(2, text("Recipes")),
        Table(cells(*TRAINING_HEADER), rows, left=len(TRAINING_HEADER)),
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


# What the reader must know before subtracting a published number from an own one.


def zoo_remarks(rows: Sequence[ZooRow], trainings: Sequence[Training]) -> list[Text]:
    """Where the published numbers come from, in what the trainings differ, and known slips."""
    remarks = [
        text(
            "Published: “Mamba-Based Tumor Segmentation”, Table I, and its notebooks for IoU: LGG, "
            "protocol paper, 100 epochs."
        )
    ]
    remarks += _other_experiments(trainings)
    printed = {row.printed.model: row.printed for row in rows if row.printed}
    remarks += [
        text(Mono(line.model), f": {line.remark}") for line in printed.values() if line.remark
    ]
    return remarks


def _other_experiments(trainings: Sequence[Training]) -> list[Text]:
    """In what the trainings differ from the published ones, those that differ alike together."""
    alike: dict[str, list[Span]] = {}
    for training in trainings:
        if published(training.record.model) is not None:
            reasons = "; ".join(other_experiment(training.record))
            alike.setdefault(reasons, []).append(Mono(label(training, trainings)))
    return [
        text(
            *joined(names),
            f": another experiment than the published one ({reasons}), so the difference says "
            "nothing of the network alone."
            if reasons
            else ": the published experiment, but for seeds, the order of files and the machine.",
        )
        for reasons, names in alike.items()
    ]


# The table in the form of the paper's Table I: published numbers and own ones side by side.


SCORE_HEADER = (
    *("model", "parameters", "published dice", "published IoU", "dice here", "IoU here"),
    *("with foreground", "difference", "epochs", "training time", "peak memory", "state file"),
)
ENERGY = "energy"


def zoo_table(trainings: Sequence[Training], scatter: Sequence[Figure]) -> list[Block]:
    """The section: the table, what is to be known of it, and dice against parameters."""
    rows = zoo_rows(trainings)
    energy = any(training.record.energy_joules is not None for training in trainings)
    header = (*SCORE_HEADER, *((ENERGY,) if energy else ()))
    lines = [
        *(_line(row, energy) for row in rows),
        *(_baseline(b, energy) for b in baselines(trainings)),
    ]
    return [
        Heading(2, text("Published and measured")),
        Table(cells(*header), tuple(lines)),
        Paragraph(text(_READING)),
        Listing(tuple(zoo_remarks(rows, trainings))),
        *scatter,
    ]


_READING = (
    "Dice and IoU here are those of the run's own protocol on its held-out images (patient: mean "
    "over groups; paper: mean over batches of slices), with 95 % bootstrap intervals over these; "
    "Otsu's threshold is always scored over groups. With foreground: dice per image over images "
    "that have any. Difference: dice here minus the published one; "
    "“outside” marks a published dice outside the interval. Times are of all epochs with their "
    "validation. State file: the chosen weights, in 10⁶ bytes."
)


def _line(row: ZooRow, energy: bool) -> tuple[Text, ...]:
    printed, score = row.printed, row.score
    known = cells(
        f"{row.parameters:,}",
        as_printed(printed.dice) if printed else MISSING,
        as_printed(printed.iou) if printed else MISSING,
    )
    iou = with_range(score.iou, score.iou_low, score.iou_high) if score else MISSING
    own = (_own(row), text(iou), text(_foreground(row)), _difference(row))
    return (text(Mono(row.label)), *known, *own, *cells(*_costs(row, energy)))


def _foreground(row: ZooRow) -> str:
    if row.training is None or row.training.test is None:
        return MISSING
    return fraction(row.training.test.numbers["dice_foreground"])


def _own(row: ZooRow) -> Text:
    """The own dice, to be found at a glance."""
    score = row.score
    if score is None:
        return text(MISSING)
    number = fraction(score.dice)
    return text(
        Strong(number), with_range(score.dice, score.dice_low, score.dice_high)[len(number) :]
    )


def _difference(row: ZooRow) -> Text:
    told = signed(row.difference)
    return text(f"{told} ", Strong("outside")) if row.is_outside else text(told)


def _costs(row: ZooRow, energy: bool) -> tuple[str, ...]:
    training = row.training
    if training is None:
        return (MISSING,) * (4 + energy)
    record, size = training.record, training.weights_bytes
    memory, joules = record.peak_memory_bytes, record.energy_joules
    costs = (
        str(training.epochs),
        duration(training.seconds),
        MISSING if memory is None else f"{decimal(memory / 2**30, 2)} GiB",
        MISSING if size is None else f"{decimal(size / 1e6, 2)} MB",
    )
    used = MISSING if joules is None else f"{decimal(joules / 3600)} Wh"
    return (*costs, used) if energy else costs


def _baseline(baseline: Baseline, energy: bool) -> tuple[Text, ...]:
    """The line of Otsu's threshold, which nothing was printed of and nothing was spent on."""
    score = group_score(baseline.numbers)
    place = f" ({baseline.images})" if baseline.images else ""
    known = cells("0", MISSING, MISSING)
    dice = with_range(score.dice, score.dice_low, score.dice_high)
    iou = with_range(score.iou, score.iou_low, score.iou_high)
    foreground = fraction(baseline.numbers["dice_foreground"])
    rest = (MISSING,) * (len(SCORE_HEADER) + energy - 7)
    return (text(Mono("otsu"), place), *known, *cells(dice, iou, foreground, *rest))


def zoo(runs: Sequence[Path], out: Path) -> Page:
    """The page of the trainings in `runs`; its figures are drawn into `out`/figures.

    Raises:
        UsageError: There is no readable training in one of them, or `out` is one of them.
    """
    different = {run.resolve(): run for run in runs}
    if out.resolve() in different:
        raise UsageError(
            f"`--out {out}` is one of the trainings to compare.",
            "The comparison would overwrite that training's own report.",
            "Name another folder.",
        )
    trainings = [read_training(run) for run in different.values()]
    other = next((one for one in trainings if one.record.task != "seg"), None)
    if other is not None:
        raise UsageError(
            f"`{other.run}` is the training of a classifier.",
            "Several trainings are compared by dice, which it has none of.",
            "Render it alone: `robust report RUN`.",
        )
    gallery = draw_zoo_gallery(trainings, out)
    return page_of(
        training_results(trainings),
        zoo_title(trainings),
        [
            *zoo_opening(trainings),
            *zoo_table(trainings, gallery.scatter),
            *zoo_curves(gallery.curves),
            *zoo_recipes(trainings),
        ],
    )
