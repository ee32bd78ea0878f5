"""Callbacks of Lightning's training: seeds, progress, checkpoints, metrics, waiting for data."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.profilers import Profiler

from robustcli.core.io import write_text
from robustcli.core.listener import Listener
from robustcli.core.seeds import identity_seed
from robustcli.training.record import AVERAGED, Validation

# How long training waits for its data, through Lightning's own profiling points.


_FETCH = "train_dataloader_next"


class WaitingTime(Profiler):
    """Sums the seconds spent fetching batches, until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._started = 0.0

    def start(self, action_name: str) -> None:
        """Lightning begins `action_name`."""
        if action_name.endswith(_FETCH):
            self._started = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Lightning has done `action_name`."""
        if action_name.endswith(_FETCH):
            self.seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def summary(self) -> str:
        """Nothing: the share stands in `metrics.csv`."""
        return ""


# Callback that makes every step's randomness a function of seed, epoch and step.


class SeededSteps(pl.Callback):
    """Seeds torch before each step: what is dropped out in it is the same after an interruption.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Each process draws otherwise."""
        identity = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(identity_seed("step", *identity, bits=63))


# Callback that moves the listener's bar instead of Lightning's: in training images seen.


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


# Callback that keeps two checkpoints: of the last finished epoch, and of the best one.


FOLDER = "checkpoints"
LAST, BEST = "last.ckpt", "best.ckpt"


class KeepLastAndBest(Checkpoint):
    """Saves after every epoch.

    Not Lightning's ModelCheckpoint, which forgets the best score when a run's folder was moved.

    Args:
        run: The run's folder.
        best: Whether the epoch with the highest value is kept too; the earlier one of equals.
        monitor: What the value is, as it is logged.
    """

    def __init__(self, run: Path, *, best: bool, monitor: str) -> None:
        self.folder, self.best, self.monitor = run / FOLDER, best, monitor
        self.best_value: float | None = None
        self.best_epoch: int | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The best one first: were this process killed in between, the epoch is done again."""
        value = float(trainer.callback_metrics[self.monitor])
        if self.best and (
            self.best_value is None or math.isnan(self.best_value) or value > self.best_value
        ):
            self.best_value, self.best_epoch = value, trainer.current_epoch + 1
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)

    def state_dict(self) -> dict[str, Any]:
        """The best so far; the first key has the name that it got when only dice was kept."""
        return {
            "best_dice": self.best_value, "best_epoch": self.best_epoch, "monitor": self.monitor
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.best_value, self.best_epoch = state_dict["best_dice"], state_dict["best_epoch"]


# Callback that writes `metrics.csv`, a line per finished epoch, and tells the listener.


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
