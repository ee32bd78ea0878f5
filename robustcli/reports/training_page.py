"""The report of a training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from robustcli.metrics.mask_scores import MaskComparison
from robustcli.reports.document import (
    Block,
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
    marked,
    page_of,
    text,
)
from robustcli.reports.evaluation_sections import demonstration, repeating, subset
from robustcli.reports.numbers import (
    MISSING,
    as_printed,
    counted,
    decimal,
    duration,
    fraction,
    fraction_range,
    signed,
    with_range,
)
from robustcli.reports.relaxed import (
    RELAXED,
    relaxed_cells,
    relaxed_note,
    relaxed_source,
    relaxed_words,
)
from robustcli.reports.segmentation_page import (
    DETAILS,
    DETAILS_NOTE,
    cases,
    details,
    how_empty_counts,
)
from robustcli.reports.training_findings import Training, read_training
from robustcli.reports.training_gallery import TrainingGallery, draw_training_gallery
from robustcli.reports.training_results import (
    Score,
    class_results,
    gain,
    group_score,
    headline,
    pooled,
    training_results,
)
from robustcli.reports.zoo_page import zoo_table
from robustcli.training.recipes import Patchwise, Protocol
from robustcli.training.record import RecipeRecord, TrainRecord

# The head of a training's report: what was trained, what came of it, and what limits that.


PROTOCOLS: dict[Protocol, str] = {
    "patient": "split by {group}, best epoch by validation dice, scored per {group}",
    "paper": "split by image with seed 37, last epoch, dice pooled over batches, as the paper did",
}


def training_title(training: Training) -> Text:
    """One line: network, data, protocol, and the dice."""
    record, score = training.record, headline(training)
    found = f"dice {_score(score)}" if score else "not measured yet"
    return text(
        "Training of ",
        Mono(record.model),
        " on ",
        Mono(record.dataset.name),
        f", protocol {record.protocol}: {found}",
    )


def training_opening(training: Training) -> list[Block]:
    """The title, the notices that apply, and the result in words."""
    notices = (
        *demonstration(training.record.dataset),
        *subset(training.record.dataset),
        *_about_progress(training),
        *_about_recipe(training),
        *_about_groups(training),
        *_about_nothing(training),
    )
    words = (_what(training), *_chosen(training), *_result(training))
    heading = Heading(1, training_title(training))
    return [heading, *map(Paragraph, (*notices, *words))]


def _score(score: Score) -> str:
    return with_range(score.dice, score.dice_low, score.dice_high)


def _about_progress(training: Training) -> list[Text]:
    if not training.is_partial:
        return []
    record = training.record
    told = (
        f" {training.epochs} of {counted(record.recipe.epochs, 'epoch')} are finished (status: "
        f"{record.status}). The commands under “How to repeat it” go on."
    )
    return [text(Strong("Partial run."), told)]


def _about_recipe(training: Training) -> list[Text]:
    recipe = training.record.recipe
    if "quick" not in recipe.name:
        return []
    told = f" {counted(recipe.epochs, 'epoch')}: enough to see that it learns, not how far it gets."
    return [text(Strong("Quick recipe."), told)]


def _about_groups(training: Training) -> list[Text]:
    group, test = training.record.grouping, training.record.splits.get("test")
    if test is None or test.groups != 1:
        return []
    told = f" From one {group} nothing can be said about others, so no interval is given."
    return [text(Strong(f"One held-out {group} only."), told)]


def _about_nothing(training: Training) -> list[Text]:
    """That a high dice comes from empty images alone, where it does."""
    if training.test is None or training.test.numbers["recall"] != 0:
        return []
    told = " Not one pixel of true foreground: the dice is that of images without any."
    return [text(Strong("Nothing found."), told)]


def _what(training: Training) -> Text:
    record = training.record
    train = record.splits.get("train")
    images = f"{counted(train.images, 'image')} of " if train else ""
    assert record.protocol is not None, "a segmenter's"
    protocol = PROTOCOLS[record.protocol].format(group=record.grouping)
    verb = "is being" if record.status == "running" else "was"
    return text(
        Mono(record.model),
        f" ({record.parameters:,} parameters) {verb} trained on {images}",
        Mono(record.dataset.name),
        f" under the protocol {record.protocol}: {protocol}.",
    )


def _chosen(training: Training) -> list[Text]:
    record = training.record
    if record.chosen_epoch is None:
        return []
    why = f": {record.chosen_why}" if record.chosen_why else ""
    told = f"Weights of epoch {record.chosen_epoch} of {training.epochs}{why}."
    return [marked(told)]


def _result(training: Training) -> list[Text]:
    """The numbers of the held-out images in words, against Otsu's threshold."""
    if training.test is None:
        return []
    numbers, group = training.test.numbers, training.record.grouping
    score = group_score(numbers)
    iou = with_range(score.iou, score.iou_low, score.iou_high)
    held = f"{counted(int(numbers['n']), 'held-out image')}"
    foreground = fraction(numbers["dice_foreground"])
    held += "" if group == "image" else f" of {counted(int(numbers['groups']), group)}"
    told = f"On {held}: dice {_score(score)}, IoU {iou}, per {group}; 95 % intervals in brackets."
    told += f" Over images with foreground alone, dice per image is {foreground}."
    if training.tolerance is not None:
        told += f" Relaxed precision and recall ({counted(training.tolerance, 'pixel')}): "
        told += f"{relaxed_words(numbers)}."
    return [text(told), *_against_otsu(training), *_paper(training)]


def _paper(training: Training) -> list[Text]:
    found = pooled(training)
    if found is None:
        return []
    score = found.score
    iou = with_range(score.iou, score.iou_low, score.iou_high)
    counts = f"{counted(found.batches, 'batch', 'batches')} of {found.batch} slices"
    return [text(f"Counted as the paper did, over {counts}: dice {_score(score)}, IoU {iou}.")]


def _against_otsu(training: Training) -> list[Text]:
    compared, baseline = gain(training), training.baseline
    if compared is None or compared.drop is None or baseline is None:
        return []
    otsu = _score(group_score(baseline.numbers))
    told = f"Otsu's threshold on the same images: dice {otsu}. The network gains "
    return [text(f"{told}{signed(-compared.drop)}{_gain_range(compared)}.")]


def _gain_range(compared: MaskComparison) -> str:
    """The interval of the gain: what Otsu has over the network, the other way round."""
    if compared.drop_low is None or compared.drop_high is None:
        return ""
    low, high = -compared.drop_high, -compared.drop_low
    chance = ": it includes 0, so this can be chance" if low <= 0 <= high else ""
    return f" (paired 95 % interval {fraction_range(low, high, ' to ')}{chance})"


# How a training went, and what it was trained on.


_CLASSES = "{:,} classes; each is in every part that was drawn."
_PARTS = {"train": "training", "val": "validation", "test": "held out"}


def course(training: Training, curves: Sequence[Figure]) -> list[Block]:
    """The curves; one sentence before the first epoch has ended."""
    heading = Heading(2, text("How the training went"))
    if training.metrics.empty:
        return [heading, Paragraph(text("No epoch is finished yet."))]
    return [heading, *curves, Listing(_facts(training))]


def _facts(training: Training) -> tuple[Text, ...]:
    record, metrics = training.record, training.metrics
    seconds = float(metrics["seconds"].sum())
    waiting = float((metrics["waiting_share"] * metrics["seconds"]).sum()) / max(seconds, 1e-9)
    epochs = f"{counted(training.epochs, 'epoch')}, {int(metrics['step'].max()):,} steps"
    median = duration(float(metrics["seconds"].median()))
    facts = [
        f"{epochs} in {duration(seconds)} (median epoch {median}, with its validation).",
        f"The network waited for images {decimal(100 * waiting)} % of its training time.",
        f"On {_machine(record)}.",
    ]
    if record.peak_memory_bytes is not None:
        facts.append(f"Peak memory: {decimal(record.peak_memory_bytes / 2**30, 2)} GiB.")
    if record.energy_joules is not None:
        facts.append(f"Energy of the device: {decimal(record.energy_joules / 3600, 2)} Wh.")
    return tuple(text(fact) for fact in facts)


def _machine(record: TrainRecord) -> str:
    """The device; a CPU's name says its threads already."""
    threads = "" if "thread" in record.device else f", {counted(record.threads, 'thread')}"
    shared = f", {record.devices} processes" if record.devices > 1 else ""
    return f"{record.device}{threads}{shared}"


def data(training: Training) -> list[Block]:
    """The parts of the data, and how empty masks count."""
    record = training.record
    masks = record.task == "seg"
    grouped = record.grouping != "image"
    header = (
        "part",
        "images",
        *((training.groups,) if grouped else ()),
        *(("images without foreground",) if masks else ()),
    )
    rows = [
        cells(
            _PARTS[name],
            f"{part.images:,}",
            *((f"{part.groups:,}",) if grouped else ()),
            *((f"{part.empty:,}",) if masks else ()),
        )
        for name in ("train", "val", "test")
        if (part := record.splits.get(name)) is not None
    ]
    table: list[Block] = [Table(cells(*header), tuple(rows))] if rows else []
    told = how_empty_counts(record.grouping) if masks else _CLASSES.format(record.dataset.classes)
    return [Heading(2, text("Data")), *table, Paragraph(text(told))]


# The numbers of a training on its held-out images, beside those of Otsu's threshold.


def held_out(training: Training, strips: Sequence[Figure]) -> list[Block]:
    """The tables and the spread over groups; one sentence until they are measured."""
    heading = Heading(2, text("Held-out images"))
    named = [(training.record.model, training.test), ("otsu", training.baseline)]
    lines = [(name, held.numbers) for name, held in named if held is not None]
    if not lines:
        return [heading, Paragraph(text("Not measured yet."))]
    group = training.record.grouping
    tolerance = training.tolerance
    relaxed = () if tolerance is None else RELAXED
    header = ("model", f"dice per {group}", f"IoU per {group}", *relaxed)
    scores = tuple(
        (*_scores(name, group_score(numbers)), *(relaxed_cells(numbers) if relaxed else ()))
        for name, numbers in lines
    )
    return [
        heading,
        Table(cells(*header), scores),
        *relaxed_note(tolerance),
        *strips,
        Heading(3, text("Single images, precision and recall, borders")),
        Paragraph(text(DETAILS_NOTE)),
        Table(cells("model", *DETAILS), tuple(_details(*line) for line in lines)),
    ]


def _scores(name: str, score: Score) -> tuple[Text, ...]:
    dice = with_range(score.dice, score.dice_low, score.dice_high)
    iou = with_range(score.iou, score.iou_low, score.iou_high)
    return (text(Mono(name)), *cells(dice, iou))


def _details(name: str, numbers: pd.Series) -> tuple[Text, ...]:
    return (text(Mono(name)), *details(numbers))


def paper_protocol(training: Training) -> list[Block]:
    """Protocol `paper` only: both ways of counting, and what is wrong with the paper's."""
    if training.record.protocol != "paper":
        return []
    found, test = pooled(training), training.test
    rows: list[tuple[Text, ...]] = []
    notes: list[Block] = []
    if found is not None:
        rows.append(_named(f"batches of {found.batch} slices, as the paper", found.score))
        if found.undefined:
            told = (
                f"{found.undefined} of {found.batches} batches hold no foreground, true or "
                "predicted; their dice is 0/0 and is left out, their IoU counts as 0."
            )
            notes.append(Paragraph(text(told)))
    if test is not None:
        rows.append(_named(f"per {training.record.grouping}", group_score(test.numbers)))
    table: list[Block] = [Table(cells("counted", "dice", "IoU"), tuple(rows))] if rows else []
    faults = Listing(tuple(marked(fault) for fault in training.record.faults))
    title = Heading(3, text("Known faults of this protocol, kept on purpose"))
    return [
        Heading(2, text("The paper's way of counting")),
        *table,
        *notes,
        *((title, faults) if faults.items else ()),
    ]


def _named(how: str, score: Score) -> tuple[Text, ...]:
    dice = with_range(score.dice, score.dice_low, score.dice_high)
    return cells(how, dice, with_range(score.iou, score.iou_low, score.iou_high))


# What a training's report of a classifier has of its own: the head, and the held-out images.


def class_title(training: Training) -> Text:
    """One line: network, data, and top-1."""
    record, test = training.record, training.test
    found = "not measured yet" if test is None else f"top-1 {training.scoring.shown(test.numbers)}"
    return text("Training of ", Mono(record.model), " on ", Mono(record.dataset.name), f": {found}")


def class_opening(training: Training) -> list[Block]:
    """The title, the notices that apply, and the result in words."""
    dataset = training.record.dataset
    notices = (*demonstration(dataset), *subset(dataset), *_about_progress(training))
    words = (_class_what(training), *_class_chosen(training), *_class_result(training))
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


def _class_what(training: Training) -> Text:
    record = training.record
    train = record.splits.get("train")
    images = f"{counted(train.images, 'image')} of " if train else ""
    verb = "is being" if record.status == "running" else "was"
    start = f" ({record.parameters:,} parameters) {verb} trained on {images}"
    classes = f", which has {counted(record.dataset.classes, 'class', 'classes')}."
    return text(Mono(record.model), start, Mono(record.dataset.name), classes)


def _class_chosen(training: Training) -> list[Text]:
    record = training.record
    if record.chosen_epoch is None:
        return []
    why = f": {record.chosen_why}" if record.chosen_why else ""
    return [marked(f"Weights of epoch {record.chosen_epoch} of {training.epochs}{why}.")]


def _class_result(training: Training) -> list[Text]:
    test, floor, scoring = training.test, training.floor, training.scoring
    if test is None or floor is None:
        return []
    held = counted(int(test.numbers["n"]), "held-out image")
    told = f"On {held}: top-1 {scoring.shown(test.numbers)}, 95 % Wilson interval in brackets. "
    return [text(told + f"{scoring.floor_words} on the same images: {scoring.shown(floor)}.")]


# What a training was made of: data, recipe, weights, versions, and the command.


_ANSWER = {"cls": "Answer", "seg": "Foreground"}


def training_settings(training: Training) -> list[Block]:
    """The recipe, everything else that was set, and how to repeat the run."""
    record = training.record
    return [
        Heading(2, text("Recipe and settings")),
        recipe_table(record.recipe, masks=record.task == "seg"),
        Listing(_choices(training)),
        *repeating(record.command, record.versions, record.device),
    ]


def recipe_table(recipe: RecipeRecord, *, masks: bool = True) -> Table:
    """How the network was trained, a line per setting."""
    rows = [cells(name, value) for name, value in recipe_lines(recipe, masks=masks)]
    return Table(cells("setting", "value"), tuple(rows), left=2)


def recipe_lines(recipe: RecipeRecord, *, masks: bool = True) -> list[tuple[str, str]]:
    """Each setting in words with its value; `masks` where it is of a segmenter."""
    most, patience = recipe.images_per_epoch, recipe.patience
    batch = str(recipe.batch_size)
    if recipe.accumulate > 1:
        batch += f", gradients of {recipe.accumulate} added up"
    lines = [
        ("recipe", recipe.name or MISSING),
        ("loss", recipe.loss),
        ("optimizer", f"{recipe.optimizer}, weight decay {recipe.weight_decay:g}"),
        ("learning rate", f"{recipe.lr:g}, {recipe.schedule}"),
        ("batch", batch),
        ("epochs", str(recipe.epochs)),
        ("images an epoch", "all" if most is None else f"{most:,}"),
        ("early stopping", "no" if patience is None else f"after {counted(patience, 'epoch')}"),
        ("gradient norm at most", "any" if recipe.clip is None else f"{recipe.clip:g}"),
        ("window", f"{recipe.window} px"),
        ("augmentation", recipe.augmentation),
        ("precision", recipe.precision),
        *([("dice it should reach", as_printed(recipe.expected_dice))] if masks else []),
        ("source", recipe.source),
    ]
    if recipe.patches is not None:
        lines = [line for line in lines if line[0] != "images an epoch"]
        lines[6:6] = _patch_lines(recipe.patches)
    if recipe.paper_batch is not None:
        lines.insert(-2, ("slices for one dice", str(recipe.paper_batch)))
    return lines


def _patch_lines(patches: Patchwise) -> list[tuple[str, str]]:
    schemes = ", ".join(dict.fromkeys(channel.scheme for channel in patches.channels))
    return [
        ("iterations an epoch", str(patches.iterations)),
        ("batches of a validation", str(patches.validation_iterations)),
        ("momentum", f"{patches.momentum:g}, Nesterov"),
        ("share of a batch with foreground", f"{patches.oversampling:.0%} at least"),
        ("dice of the loss", "of the batch" if patches.batch_dice else "of each image"),
        ("normalisation", schemes),
        ("best epoch by", f"moving average of the validation dice, {patches.ema:g} of the old"),
    ]


def _choices(training: Training) -> tuple[Text, ...]:
    record, dataset = training.record, training.record.dataset
    arguments = ", ".join(f"{name}={json.dumps(v)}" for name, v in record.arguments.items())
    counts = f"; {dataset.images:,} of {dataset.images_available:,} images."
    choices = [
        text("Images: ", Mono(dataset.name), " at ", Mono(dataset.location), counts),
        marked(f"Subset: {dataset.subset or 'none'}. A group is one {record.grouping}."),
        text("Digest of the image list: ", Mono(dataset.digest), "."),
        text(f"{_ANSWER[record.task]}: {record.decision}. Seed: {record.seed}."),
        text(
            "Network: ", Mono(record.model), f" of family {record.family}; ", *_arguments(arguments)
        ),
        text(
            *marked(f"Started from {record.initial_weights}"),
            *_digest(record.initial_weights_sha256),
        ),
        text(f"Scan: {record.scan_backend or 'none'}."),
    ]
    if record.weights_sha256:
        choices.append(text("Chosen weights: ", Mono("weights.safetensors"),
                            *_digest(record.weights_sha256)))  # fmt: skip
    return (*choices, *relaxed_source(training.tolerance))


def _arguments(arguments: str) -> Text:
    return text("arguments ", Mono(arguments), ".") if arguments else text("no arguments.")


def _digest(sha256: str) -> Text:
    return text(", SHA-256 ", Mono(sha256), ".") if sha256 else text(".")


def training(run: Path) -> Page:
    """The page of the training in `run`; its figures are drawn.

    Raises:
        UsageError: There is no readable training.
    """
    found = read_training(run)
    gallery = draw_training_gallery(found)
    if found.record.task == "cls":
        return _of_classes(found, gallery)
    return page_of(
        training_results([found]),
        training_title(found),
        [
            *training_opening(found),
            *held_out(found, gallery.strips),
            *paper_protocol(found),
            *cases(gallery.cases),
            *course(found, gallery.curves),
            *zoo_table([found], gallery.scatter),
            *data(found),
            *training_settings(found),
        ],
    )


def _of_classes(found: Training, gallery: TrainingGallery) -> Page:
    return page_of(
        class_results(found),
        class_title(found),
        [
            *class_opening(found),
            *class_scores(found),
            *course(found, gallery.curves),
            *data(found),
            *training_settings(found),
        ],
    )
