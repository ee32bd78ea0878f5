"""The head of a training's report: what was trained, what came of it, and what limits that."""

from __future__ import annotations

from robustcli.evaluation.mask_scores import MaskComparison
from robustcli.reports.document import Block, Heading, Mono, Paragraph, Strong, Text, marked, text
from robustcli.reports.numbers import counted, fraction, fraction_range, signed, with_range
from robustcli.reports.sections.notices import demonstration, subset
from robustcli.reports.sections.relaxed import relaxed_words
from robustcli.reports.training import Training
from robustcli.reports.training_scores import Score, gain, group_score, headline, pooled
from robustcli.training.record import Protocol

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
