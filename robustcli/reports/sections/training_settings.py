"""What a training was made of: data, recipe, weights, versions, and the command."""

from __future__ import annotations

import json

from robustcli.reports.document import (
    Block,
    Heading,
    Listing,
    Mono,
    Table,
    Text,
    cells,
    marked,
    text,
)
from robustcli.reports.numbers import MISSING, as_printed, counted
from robustcli.reports.sections.relaxed import relaxed_source
from robustcli.reports.sections.settings import repeating
from robustcli.reports.training import Training
from robustcli.training.nnunet.patchwise import Patchwise
from robustcli.training.record import RecipeRecord

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
