"""How far a training has come, as far as nnU-Net's checkpoints say it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NnUNetLog:
    """nnU-Net's log: a value per finished epoch in each; the dice is the pseudo dice.

    Args:
        mean_fg_dice: Mean over the classes.
        ema_fg_dice: Its moving average.
        dice_per_class_or_region: Per class.
        train_losses: Means over the epoch.
        val_losses: Likewise, of the validation pass.
        lrs: Learning rates.
        epoch_start_timestamps: Seconds since 1970.
        epoch_end_timestamps: Likewise.
    """

    mean_fg_dice: tuple[float, ...] = ()
    ema_fg_dice: tuple[float, ...] = ()
    dice_per_class_or_region: tuple[tuple[float, ...], ...] = ()
    train_losses: tuple[float, ...] = ()
    val_losses: tuple[float, ...] = ()
    lrs: tuple[float, ...] = ()
    epoch_start_timestamps: tuple[float, ...] = ()
    epoch_end_timestamps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a training has come.

    Args:
        epochs: Finished epochs.
        best_ema: Best moving average of the pseudo dice; None before the first epoch.
        log: Of the epochs.
        optimizer: Its SGD; None stands for a fresh one. Frozen parameters have no moments in it.
        scaler: Its loss scaler; None on a CPU.
    """

    epochs: int
    best_ema: float | None = None
    log: NnUNetLog = NnUNetLog()
    optimizer: torch.optim.Optimizer | None = None
    scaler: torch.amp.GradScaler | None = None
