"""Published scores of networks, and whether a training here is the same experiment.

Scores of segmenters are in the catalogue (`zoo_rows.published`), those of classifiers in this file.
Source: "Mamba vs State-of-the-Art for Vision Tasks" (Crews and Whalen, 2024), lxaw/mamba-vs-else-
vision @f55e490: `val_vim.json`, `val_vit.json` and the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustcli.core.names import canonical
from robustcli.reports.zoo_rows import other_experiment, published
from robustcli.training.record import TrainRecord


@dataclass(frozen=True)
class PublishedScore:
    """A published score of the network of a training.

    Args:
        value: The score in [0, 1], with its published digits.
        source: Publication and experiment, as text.
        differences: Settings in which the training here differs from the published experiment, as
            text; empty if none affects the scores.
    """

    value: float
    source: str
    differences: Sequence[str]


@dataclass(frozen=True)
class PrintedAccuracy:
    """The accuracy of one classifier at its best of 100 epochs on CIFAR-10's test images.

    The best epoch is used because recipe `paper` also selects its epoch on these images.

    Args:
        model: Name of the model in this project.
        patch_size: Side of its patches, in pixels.
        top1: Accuracy in [0, 1].
        remark: Origin of the number.
    """

    model: str
    patch_size: int
    top1: float
    remark: str


PRINTED_ACCURACIES = (
    PrintedAccuracy("vim", 4, 0.8947, "val_vim.json, epoch 87, patch 4, a head of 1000 classes"),
    PrintedAccuracy("vit", 4, 0.8619, "val_vit.json, patch 4 by its curve"),
    PrintedAccuracy("vit", 8, 0.796, "read off the figure, patch 8 by its parameters"),
)
CIFAR_IMAGES, CIFAR_CLASSES, CIFAR_EPOCHS = 60_000, 10, 100
_PATCH = "patch_size"
_USUAL_PATCH = 4


def published_score(record: TrainRecord) -> PublishedScore | None:
    """The published score of the network of `record`; None without one."""
    return (_of_classifier if record.task == "cls" else _of_segmenter)(record)


def _of_segmenter(record: TrainRecord) -> PublishedScore | None:
    line = published(record.model)
    if line is None:
        return None
    differences = other_experiment(record)
    if record.arguments:
        differences.append("other options of the network (`--model-arg`)")
    source = "“Mamba-Based Tumor Segmentation”, Table I: LGG, protocol paper, 100 epochs"
    return PublishedScore(line.dice, source, differences)


def _of_classifier(record: TrainRecord) -> PublishedScore | None:
    patch = record.arguments.get(_PATCH, _USUAL_PATCH)
    lines = [line for line in PRINTED_ACCURACIES if line.model == canonical(record.model)]
    line = next((line for line in lines if line.patch_size == patch), None)
    if line is None:
        return None
    source = f"“Mamba vs State-of-the-Art for Vision Tasks”, CIFAR-10, 100 epochs ({line.remark})"
    return PublishedScore(line.top1, source, _other_than_cifar(record))


def _other_than_cifar(record: TrainRecord) -> list[str]:
    """The settings in which a training of a classifier differs from the published ones."""
    recipe, dataset, differences = record.recipe, record.dataset, []
    if recipe.name != "paper":
        differences.append(f"recipe {recipe.name} instead of paper")
    if (dataset.images, dataset.classes) != (CIFAR_IMAGES, CIFAR_CLASSES):
        differences.append(
            f"{dataset.images:,} images of {dataset.name} instead of the {CIFAR_IMAGES:,} of "
            "CIFAR-10"
        )
    if recipe.epochs != CIFAR_EPOCHS or recipe.images_per_epoch is not None:
        differences.append(f"{recipe.epochs} epochs instead of {CIFAR_EPOCHS}")
    return differences
