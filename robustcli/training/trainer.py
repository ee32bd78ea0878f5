"""Lightning's Trainer as a run needs it."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.trainer.states import TrainerStatus

from robustcli.core.errors import RunError, UsageError, first_line
from robustcli.core.io import replacing
from robustcli.core.listener import Listener
from robustcli.core.machine import start_method, usable_cores
from robustcli.core.ranks import Ranks, environment, ranks
from robustcli.evaluation.device import choose_device
from robustcli.training.callbacks import (
    FOLDER,
    LAST,
    KeepLastAndBest,
    MetricsLog,
    Progress,
    SeededSteps,
    WaitingTime,
)
from robustcli.training.lit_module import LitModule
from robustcli.training.recipes import Recipe
from robustcli.training.record import Validation

# Lightning's checkpoints written durably and read without running code.


class DurableCheckpoints(CheckpointIO):
    """Writes beside, fsyncs and renames: a checkpoint is there whole or as it was before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Writes `checkpoint` to `path`.

        Raises:
            RunError: The file system refused; the file is as it was.
        """
        # Into a file that Python opened: torch's own writer hides why the disk refused.
        with replacing(Path(path)) as beside, beside.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What `path` holds; code in it is refused.

        Raises:
            RunError: The file is missing or damaged.
        """
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes raise anything
            raise RunError(
                f"The checkpoint `{path}` cannot be read.",
                first_line(error),
                "Start again with `--fresh`.",
            ) from error
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes `path`, if it is there."""
        Path(path).unlink(missing_ok=True)


# Silences Lightning's own messages; the listener hears what matters of them.


_LOGGERS = ("lightning.pytorch", "lightning.fabric")
_KNOWN = (
    # Loader processes cost more than they bring where images are cached: `--workers` decides.
    r".*does not have many workers which may be a bottleneck.*",
    # Epochs of a few steps are usual here.
    r"The number of training batches .* is smaller than the logging interval.*",
    # Between torch and Lightning: torch renamed what Lightning 2.6 still calls.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    # Under DDP, of Mamba's convolution over channels: a copy of 64 numbers.
    r"Grad strides do not match bucket view strides.*",
    # The folder of checkpoints is there when a run goes on.
    r"Checkpoint directory .* exists and is not empty.*",
)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Silences Lightning's notes and the warnings that are about what is done on purpose."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in _KNOWN:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


# Fitting: resumes from the last checkpoint and passes Ctrl+C on.


DEFAULT_WORKERS = 8


def fit(
    trainer: pl.Trainer, lit_module: LitModule, data: pl.LightningDataModule, run: Path
) -> None:
    """Trains `lit_module` from the last finished epoch of `run` on, if there is one.

    Raises:
        RunError: A loss or gradient is not finite, or a checkpoint cannot be written.
        KeyboardInterrupt: As the user asked; Lightning would end the process instead.
    """
    last = run / FOLDER / LAST
    with without_chatter(), _interruptible(trainer):
        trainer.fit(lit_module, data, ckpt_path=str(last) if last.is_file() else None)


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


PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_DDP = "ddp_find_unused_parameters_true"  # UMambaBot has 451 parameters that no output depends on


@dataclass(frozen=True)
class Machine:
    """What a run computes on.

    Args:
        device: The device of this process, or of the first one.
        devices: Processes on this machine.
        nodes: Machines.
    """

    device: torch.device
    devices: int
    nodes: int

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes


def machine(name: str, devices: int | Literal["all"]) -> Machine:
    """The machine as `--device` and `--devices` say, or as a launcher says to its processes.

    Args:
        name: A device, or `auto`.
        devices: Processes to start; `all` for one per GPU of this machine.

    Raises:
        UsageError: There are fewer devices than processes, or two numbers contradict each other.
    """
    device, place = choose_device(name), ranks()
    count = _count(device, devices)
    if place.world > 1:
        if devices not in (1, "all") and count not in (place.local_world, place.world):
            raise UsageError(
                f"`--devices {devices}` contradicts the launcher of this command.",
                f"It started {place.local_world} processes on this machine.",
                "Leave out `--devices`: each process takes one device.",
            )
        count = place.local_world
    if place.world == count == 1:
        return Machine(device, 1, 1)
    _check_devices(device, name, count)
    if device.type == "cuda":
        device = torch.device("cuda", place.local_rank)
    return Machine(device, count, place.nodes)


def _count(device: torch.device, devices: int | Literal["all"]) -> int:
    if devices != "all":
        return devices
    return torch.cuda.device_count() if device == torch.device("cuda") else 1


def _check_devices(device: torch.device, name: str, count: int) -> None:
    if device.type == "mps" or device.index is not None:
        raise UsageError(
            f"`--device {name}` is one device, and {count} processes need {count}.",
            "Each process computes on a device of its own.",
            "Use `--device cuda` or `--device cpu`, or one process.",
        )
    there = torch.cuda.device_count()
    if device.type == "cuda" and there < count:
        raise UsageError(
            f"{count} processes need {count} GPUs; this machine shows {there}.",
            "Each process computes on a GPU of its own, that of its number on the machine.",
            f"Use `--devices {there}` or `--devices all`. Under SLURM let every task see all GPUs "
            "of its machine (`--gpus-per-node`, not `--gpus-per-task`).",
        )


@without_chatter()
def make_trainer(
    run: Path, recipe: Recipe, on: Machine, place: Ranks, *, seed: int, best: bool, per_epoch: int,
    listener: Listener, validation: Validation, monitor: str, extra: Sequence[pl.Callback] = (),
) -> pl.Trainer:  # fmt: skip
    """The Trainer of a run: its own checkpoints, logs and progress instead of Lightning's.

    Args:
        run: The run's folder.
        recipe: How long, how precise, how clipped.
        on: Devices and processes.
        place: Which of the processes this one is.
        seed: Of the run.
        best: Whether the best epoch is kept beside the last.
        per_epoch: Images of an epoch, for the listener.
        listener: Who hears of the progress.
        validation: What is logged of the validation images.
        monitor: What the best epoch has the highest value of.
        extra: More callbacks, called before those that log and save.
    """
    waiting = WaitingTime()
    callbacks: list[pl.Callback] = [
        SeededSteps(seed),
        *extra,
        Progress(listener, per_epoch),
        MetricsLog(run, waiting, listener, validation),
        KeepLastAndBest(run, best=best, monitor=monitor),
    ]
    if recipe.patience is not None:
        callbacks.append(
            EarlyStopping(validation.score, mode="max", patience=recipe.patience, verbose=False,
                          check_on_train_epoch_end=True)
        )  # fmt: skip
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(on.device.type, on.device.type),
        devices=_devices(on),
        num_nodes=on.nodes,
        strategy=_DDP if on.world > 1 else "auto",
        precision=PRECISIONS[recipe.precision],  # type: ignore[arg-type]
        max_epochs=recipe.epochs,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip,
        callbacks=callbacks,
        plugins=[DurableCheckpoints(), environment(place)],
        logger=TensorBoardLogger(run, name=None, version="tensorboard"),
        profiler=waiting,
        default_root_dir=run,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _devices(on: Machine) -> int | list[int]:
    if on.device.type == "cuda" and on.world == 1:
        return [on.device.index or 0]
    return on.devices
