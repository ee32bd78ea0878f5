"""Callback that writes `metrics.csv`, a line per finished epoch, and tells the listener."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from robustcli.core.atomic import write_text
from robustcli.evaluation.listener import Listener
from robustcli.training.batches.waiting import WaitingTime
from robustcli.training.record import AVERAGED, Validation

FILE = "metrics.csv"
_LOGGED = ("train_loss", "grad_norm", "val_loss")
Row = dict[str, float]


class MetricsLog(pl.Callback):
    """Its lines are part of the checkpoint, so that both always tell of the same epochs.

    Args:
        run: The run's folder.
        waiting: The clock of the loader.
        listener: Hears of each epoch.
        validation: What is logged of the validation images.
    """

    def __init__(
        self, run: Path, waiting: WaitingTime, listener: Listener, validation: Validation
    ) -> None:
        self.file, self.waiting, self.listener = run / FILE, waiting, listener
        self.validation = validation
        self.rows: list[Row] = []
        self._started = self._trained = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first epoch of this process begins."""
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch's steps are done."""
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes all lines anew, durably."""
        now = time.perf_counter()
        training = self._trained - self._started
        said = trainer.callback_metrics
        names = (*_LOGGED, *self.validation.columns)
        logged = {name: float(said.get(name, math.nan)) for name in names}
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": now - self._started,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "waiting_share": min(1.0, self.waiting.take() / max(training, 1e-9)),
            **logged,
        }
        self.rows.append({name: row[name] for name in self.validation.metrics})
        if AVERAGED in said:
            self.rows[-1][AVERAGED] = float(said[AVERAGED])
        self._started = time.perf_counter()
        if trainer.is_global_zero:
            write_text(self.file, as_csv(self.rows))
            self.listener.say(self._line(trainer.max_epochs))

    def state_dict(self) -> dict[str, Any]:
        """All lines so far."""
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.rows = list(state_dict["rows"])

    def _line(self, epochs: int | None) -> str:
        row, said = self.rows[-1], self.validation
        return (
            f"Epoch {row['epoch']} of {epochs}: training loss {row['train_loss']:.4f}, validation "
            f"loss {row['val_loss']:.4f}, {said.word} {row[said.score]:.4f}, "
            f"{row['seconds']:.1f} s."
        )


def as_csv(rows: list[Row]) -> str:
    """`rows`, at least one, under their columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
