"""Callback that moves the listener's bar instead of Lightning's: in training images seen."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from robustcli.evaluation.listener import Listener


class Progress(pl.Callback):
    """Tells the listener of every step.

    Args:
        listener: Who hears of it.
        per_epoch: Images of an epoch.
    """

    def __init__(self, listener: Listener, per_epoch: int) -> None:
        self.listener, self.per_epoch = listener, per_epoch
        self._left = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finished epochs were there before."""
        epochs = trainer.max_epochs or 0
        self.listener.start(self.per_epoch * epochs, self.per_epoch * trainer.current_epoch)
        self._left = self.per_epoch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Counts the other processes' images too; where they do not divide, no more than all."""
        count = min(self._left, len(batch.ids) * trainer.world_size)
        self._left -= count
        self.listener.advance(count)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The next epoch begins."""
        self._left = self.per_epoch
