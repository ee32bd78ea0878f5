"""Lightning's Trainer as a run needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger

from robustcli.core.errors import UsageError
from robustcli.core.ranks import Ranks, environment, ranks
from robustcli.evaluation.device import choose_device
from robustcli.evaluation.listener import Listener
from robustcli.training.batches.waiting import WaitingTime
from robustcli.training.checkpoint_io import DurableCheckpoints
from robustcli.training.keeping import KeepLastAndBest
from robustcli.training.metrics_log import MetricsLog
from robustcli.training.progress import Progress
from robustcli.training.quiet import without_chatter
from robustcli.training.recipes import Recipe
from robustcli.training.record import Validation
from robustcli.training.steps import SeededSteps

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
