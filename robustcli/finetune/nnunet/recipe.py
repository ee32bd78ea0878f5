"""The constants of nnU-Net's training, and of a lighter one for CPUs.

Source: nnU-Net v2.1.1, `nnUNetTrainer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True)
class NnUNetRecipe:
    """The constants of a training; a row of RECIPES.

    Args:
        name: What the user types.
        epochs: Epochs, also the length of the learning rate's schedule.
        iterations: Optimizer steps per epoch.
        validation_iterations: Batches per validation pass.
        lr: Learning rate at the beginning.
        exponent: Of the learning rate's decay.
        momentum: Of SGD, with Nesterov's correction.
        weight_decay: Of SGD, on all parameters.
        clip: Largest norm of the gradient of all parameters.
        oversampling: The share of a batch, at its end, that is sure to show foreground.
        batch_dice: Whether the loss pools its dice over the batch.
        ema: The share of the old value in the moving average of the pseudo dice.
        most_patch: Largest height and width of a patch in pixels; None leaves it to the plan.
        most_batch: Largest batch; None leaves it to the plan.
        source: Where the numbers are from.
    """

    name: str
    epochs: int
    iterations: int
    validation_iterations: int
    lr: float
    exponent: float
    momentum: float
    weight_decay: float
    clip: float
    oversampling: float
    batch_dice: bool
    ema: float
    most_patch: int | None
    most_batch: int | None
    source: str


_FULL = NnUNetRecipe(
    name="nnunet",
    epochs=1000,
    iterations=250,
    validation_iterations=50,
    lr=1e-2,
    exponent=0.9,
    momentum=0.99,
    weight_decay=3e-5,
    clip=12.0,
    oversampling=0.33,
    batch_dice=True,
    ema=0.9,
    most_patch=None,
    most_batch=None,
    source="nnU-Net v2.1.1, nnUNetTrainer; the patch and the batch are the plan's",
)
_LIGHT = replace(
    _FULL,
    name="nnunet-light",
    epochs=20,
    iterations=25,
    validation_iterations=10,
    most_patch=128,
    most_batch=4,
    source="ours, for two CPU cores: nnU-Net v2.1.1 with fewer and smaller iterations, not what "
    "its published scores were trained with",
)
RECIPES: Mapping[str, NnUNetRecipe] = MappingProxyType({r.name: r for r in (_FULL, _LIGHT)})
