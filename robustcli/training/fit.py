"""Lightning's fit with what goes wrong around it put right."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerStatus

from robustcli.core.machine import start_method, usable_cores
from robustcli.training.checkpoint_io import DurableCheckpoints
from robustcli.training.keeping import FOLDER, LAST
from robustcli.training.learning import Learner
from robustcli.training.quiet import without_chatter

DEFAULT_WORKERS = 8


def fit(trainer: pl.Trainer, learner: Learner, data: pl.LightningDataModule, run: Path) -> None:
    """Trains `learner` from the last finished epoch of `run` on, if there is one.

    Raises:
        RunError: A loss or gradient is not finite, or a checkpoint cannot be written.
        KeyboardInterrupt: As the user asked; Lightning would end the process instead.
    """
    last = run / FOLDER / LAST
    with without_chatter(), _interruptible(trainer):
        trainer.fit(learner, data, ckpt_path=str(last) if last.is_file() else None)


def is_trained(run: Path, epochs: int) -> bool:
    """Whether the last checkpoint of `run` is that of its last epoch: of all, or stopped early."""
    last = run / FOLDER / LAST
    if not last.is_file():
        return False
    checkpoint = DurableCheckpoints().load_checkpoint(last)
    stopped = any(
        name.startswith("EarlyStopping") and state["wait_count"] >= state["patience"]
        for name, state in checkpoint["callbacks"].items()
    )
    return stopped or int(checkpoint["epoch"]) + 1 >= epochs


@contextmanager
def _interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Lightning answers Ctrl+C with exit code 1, and leaves the process deaf to further ones."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if trainer.state.status == TrainerStatus.INTERRUPTED:
            raise KeyboardInterrupt from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def default_workers(device: torch.device) -> int:
    """Loader processes: with images in memory, only a GPU is faster than one process.

    None where each would get a copy of these images, as one that is started anew does.
    """
    if device.type != "cuda" or start_method() != "fork":
        return 0
    return min(DEFAULT_WORKERS, max(1, usable_cores() - 1))
