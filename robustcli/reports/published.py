"""What "Mamba-Based Tumor Segmentation" printed of the networks of its Table I.

Its numbers are of one experiment: the LGG set, protocol `paper`, 100 epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.training.record import TrainRecord

IMAGES = 3929
EPOCHS = 100


@dataclass(frozen=True)
class Published:
    """One line of the table.

    Args:
        model: Its name here.
        parameters: As counted from the code that the paper's numbers were made with.
        dice: In [0, 1], with the digits that were printed.
        iou: From the notebooks behind the table.
        remark: What is to be known of these numbers; empty for nothing.
    """

    model: str
    parameters: int
    dice: float
    iou: float | None
    remark: str


def table_one() -> list[Published]:
    """All lines, the highest dice first."""
    lines = [
        Published(entry.name, entry.parameters, entry.published, entry.published_iou, entry.remark)
        for entry in CATALOGUE.values()
        if entry.task == "seg" and entry.published is not None
    ]
    return sorted(lines, key=lambda line: -line.dice)


def published(model: str) -> Published | None:
    """The line of `model`, where the paper has it."""
    return next((line for line in table_one() if line.model == model), None)


def other_experiment(record: TrainRecord) -> list[str]:
    """In what a training differs from the paper's, as far as it decides the numbers; in words."""
    differences = []
    if record.protocol != "paper":
        differences.append(f"protocol {record.protocol} instead of paper")
    if record.dataset.images != IMAGES:
        differences.append(
            f"{record.dataset.images:,} images of {record.dataset.name} instead of "
            f"the {IMAGES:,} slices of LGG"
        )
    if record.recipe.epochs != EPOCHS or record.recipe.images_per_epoch is not None:
        differences.append(f"{record.recipe.epochs} epochs instead of {EPOCHS}")
    return differences
