"""What nnU-Net's way of training has beside the fields of every recipe.

Source: nnU-Net v2.1.1, `nnUNetTrainer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustcli.adapters.nnunet_normalise import Channel


@dataclass(frozen=True)
class Patchwise:
    """Epochs of patches drawn at random, instead of passes over images.

    Args:
        iterations: Batches of an epoch, each an optimizer step.
        validation_iterations: Batches of a validation pass.
        momentum: Of SGD, with Nesterov's correction.
        exponent: Of the learning rate's decay by the epoch.
        oversampling: The share of a batch, at its end, that is sure to show foreground.
        batch_dice: Whether the loss pools its dice over the batch; the plan may say otherwise.
        ema: The share of the old value in the moving average of the dice on validation patches.
        most_patch: Largest side of a patch in pixels; None leaves it to the plan.
        most_batch: Largest batch; None leaves it to the plan.
        channels: How each input channel is normalised; the plan may say otherwise.
    """

    iterations: int = 250
    validation_iterations: int = 50
    momentum: float = 0.99
    exponent: float = 0.9
    oversampling: float = 0.33
    batch_dice: bool = True
    ema: float = 0.9
    most_patch: int | None = None
    most_batch: int | None = None
    channels: tuple[Channel, ...] = (Channel(), Channel(), Channel())
