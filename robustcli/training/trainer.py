"""Lightning callbacks, checkpoints, devices and processes of a training."""

from __future__ import annotations

import csv
import io
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.trainer.states import TrainerStatus
from torch.optim import Optimizer

from robustcli.adapters.checkpoint import check_nesting
from robustcli.adapters.memory import free_cached, is_out_of_memory
from robustcli.core.errors import RunError, UsageError, first_line
from robustcli.core.io import replacing, write_text
from robustcli.core.listener import Listener
from robustcli.core.machine import may_start_processes, start_method, usable_cores
from robustcli.core.ranks import ranks, share_of_cores
from robustcli.core.seeds import identity_seed
from robustcli.core.signals import interruptible, was_interrupted
from robustcli.evaluation.device import choose_device
from robustcli.training.datamodule import BaseDataModule
from robustcli.training.lit_module import LitModule
from robustcli.training.record import AVERAGED, Validation

_FETCH = "train_dataloader_next"


class WaitingTime(Profiler):
    """Measures the time that the training waits for batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._started = 0.0

    def start(self, action_name: str) -> None:
        """Starts the clock if `action_name` fetches a batch."""
        if action_name.endswith(_FETCH):
            self._started = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Stops the clock."""
        if action_name.endswith(_FETCH):
            self.seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def summary(self) -> str:
        """Empty: the share of waiting time is a column of `metrics.csv`."""
        return ""


class SeededSteps(pl.Callback):
    """Seeds torch before each step, so that dropout is the same in a resumed training."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds torch with run seed, epoch, step and rank."""
        identity = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(identity_seed("step", *identity, bits=63))


class TrainProgress(pl.Callback):
    """Updates the progress bar, in training images."""

    def __init__(self, listener: Listener, per_epoch: int) -> None:
        self.listener, self.per_epoch = listener, per_epoch
        self._left = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the bar after the finished epochs."""
        epochs = trainer.max_epochs or 0
        self.listener.start(self.per_epoch * epochs, self.per_epoch * trainer.current_epoch)
        self._left = self.per_epoch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Counts the images of all processes, at most the total."""
        count = min(self._left, len(batch.ids) * trainer.world_size)
        self._left -= count
        self.listener.advance(count)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Resets the images of the epoch to 0."""
        self._left = self.per_epoch


CHECKPOINT_FOLDER = "checkpoints"
LAST, BEST = "last.ckpt", "best.ckpt"


class KeepLastAndBest(Checkpoint):
    """Saves a checkpoint of the last epoch, and one of the best epoch.

    Lightning's ModelCheckpoint forgets the best score after the run folder was moved.

    Args:
        best: Whether to keep the best epoch; the earliest one with the highest value.
        monitor: Name of the logged value.
    """

    def __init__(self, run: Path, *, best: bool, monitor: str) -> None:
        self.folder, self.best, self.monitor = run / CHECKPOINT_FOLDER, best, monitor
        self.best_value: float | None = None
        self.best_epoch: int | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the best checkpoint first: a kill between the two repeats the epoch on resume."""
        value = float(trainer.callback_metrics[self.monitor])
        if self.best and (
            self.best_value is None or math.isnan(self.best_value) or value > self.best_value
        ):
            self.best_value, self.best_epoch = value, trainer.current_epoch + 1
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far; for old checkpoints, its key is always `best_dice`."""
        return {
            "best_dice": self.best_value, "best_epoch": self.best_epoch, "monitor": self.monitor
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.best_value, self.best_epoch = state_dict["best_dice"], state_dict["best_epoch"]


METRICS_FILE = "metrics.csv"
_LOGGED = ("train_loss", "grad_norm", "val_loss")


class MetricsLog(pl.Callback):
    """Writes `metrics.csv`; its rows are part of the checkpoint, so both have the same epochs."""

    def __init__(
        self, run: Path, waiting: WaitingTime, listener: Listener, validation: Validation
    ) -> None:
        self.file, self.waiting, self.listener = run / METRICS_FILE, waiting, listener
        self.validation = validation
        self.rows: list[dict[str, float]] = []
        self._started = self._trained = time.perf_counter()
        self._lr = math.nan

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of the first epoch."""
        self._started = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Records the learning rate of the step; after it, the schedule sets that of the next."""
        self._lr = optimizer.param_groups[0]["lr"]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records the end of the epoch's training steps."""
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the row of the epoch and writes the file durably."""
        now = time.perf_counter()
        training = self._trained - self._started
        metrics = trainer.callback_metrics
        names = (*_LOGGED, *self.validation.columns)
        logged = {name: float(metrics.get(name, math.nan)) for name in names}
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": now - self._started,
            "lr": self._lr,
            "waiting_share": min(1.0, self.waiting.take() / max(training, 1e-9)),
            "val_seconds": now - self._trained,
            **logged,
        }
        self.rows.append({name: row[name] for name in self.validation.metrics})
        if AVERAGED in metrics:
            self.rows[-1][AVERAGED] = float(metrics[AVERAGED])
        self._started = time.perf_counter()
        if trainer.is_global_zero:
            write_text(self.file, as_csv(self.rows))
            self.listener.say(self._line(trainer.max_epochs))

    def state_dict(self) -> dict[str, Any]:
        """All rows so far."""
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.rows = list(state_dict["rows"])

    def _line(self, epochs: int | None) -> str:
        row, validation = self.rows[-1], self.validation
        return (
            f"Epoch {row['epoch']} of {epochs}: training loss {row['train_loss']:.4f}, validation "
            f"loss {row['val_loss']:.4f}, {validation.word} {row[validation.score]:.4f}, "
            f"{row['seconds']:.1f} s."
        )


def as_csv(rows: list[dict[str, float]]) -> str:
    """`rows`, at least one, as CSV with a header; missing cells are empty.

    Epochs that an older version trained can have fewer columns.
    """
    text, columns = io.StringIO(), dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class DurableCheckpoints(CheckpointIO):
    """Writes checkpoints atomically: to a temporary file, with fsync and rename."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Writes `checkpoint` to `path`.

        Raises:
            RunError: The file system refused; the old file is unchanged.
        """
        # Into a file opened by Python: torch's writer hides the reason of a disk error.
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads the checkpoint at `path` without running code in it.

        Raises:
            RunError: The file is missing or damaged.
        """
        try:
            check_nesting(Path(path))
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes raise anything
            raise RunError(
                f"The checkpoint `{path}` cannot be read.",
                first_line(error),
                "Start again with `--fresh`.",
            ) from error
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes `path` if it exists."""
        Path(path).unlink(missing_ok=True)


_LOGGERS = ("lightning.pytorch", "lightning.fabric")
_KNOWN = (
    # With cached images, loader processes cost more than they save; `--workers` sets them.
    r".*does not have many workers which may be a bottleneck.*",
    # Epochs of a few steps are usual here.
    r"The number of training batches .* is smaller than the logging interval.*",
    # Between torch and Lightning: torch renamed what Lightning 2.6 still calls.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    # Under DDP, for Mamba's depthwise convolution: copies 64 numbers.
    r"Grad strides do not match bucket view strides.*",
    # With `--device cpu` on a machine with a GPU.
    r"GPU available but not used.*",
    # The loss scaler of float16 often skips the first steps, to find its scale.
    r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",
    # On machines of a SLURM cluster, about a training that runs in one process.
    r"The `srun` command is available on your system but is not used.*",
    # The folder of checkpoints exists in a resumed run.
    r"Checkpoint directory .* exists and is not empty.*",
)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Silences Lightning's notes, and warnings about intended behaviour."""
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


DEFAULT_WORKERS = 8


def fit_run(trainer: pl.Trainer, lit_module: LitModule, data: BaseDataModule, run: Path) -> None:
    """Trains `lit_module`, resuming after the last finished epoch of `run`.

    Raises:
        RunError: A loss or gradient is not finite, a checkpoint cannot be written, memory ran out,
            or a loader process died.
        KeyboardInterrupt: On Ctrl+C; Lightning would end the process instead.
    """
    last = run / CHECKPOINT_FOLDER / LAST
    if last.is_file():
        data.first_epoch = _finished_epochs(DurableCheckpoints().load_checkpoint(last))
    with without_chatter(), _naming_memory(trainer, lit_module), data.watchdog as watchdog:
        watchdog.start()
        with interruptible(), _ending_by_interrupt(trainer):
            trainer.fit(lit_module, data, ckpt_path=str(last) if last.is_file() else None)


def described_checkpoint(run: Path) -> str:
    """The checkpoint from which `fit_run` continues, in words."""
    last = run / CHECKPOINT_FOLDER / LAST
    if not last.is_file():
        return f"no `{last}`"
    return f"the checkpoint of epoch {_finished_epochs(DurableCheckpoints().load_checkpoint(last))}"


@contextmanager
def _naming_memory(trainer: pl.Trainer, lit_module: LitModule) -> Iterator[None]:
    """Converts an out-of-memory error to a RunError that suggests which options to change.

    Unlike in evaluations, the batch size is not reduced automatically: with batch norm, the output
    for an image depends on its batch, so a smaller batch changes the training.

    Raises:
        RunError: Memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        recipe, world = lit_module.recipe, trainer.world_size
        free_cached(lit_module.device)
        batch, window = recipe.batch_size, recipe.window
        of = f"{batch} images" if batch > 1 else "one image"
        per_process = f", {batch // world} in each of {world} processes" if world > 1 else ""
        todo = f"a smaller `--window` than {window}, `--precision bf16`, or a smaller network"
        if batch // world > 1:
            half, accumulation = batch // 2, 2 * recipe.accumulate
            todo = (
                f"`--batch-size {half} --accumulate {accumulation}`, which has the same number of "
                f"images per step (but batch norm uses {half} images, which changes the training), "
                "or `--precision bf16`"
            )
        raise RunError(
            f"Out of memory on {lit_module.device} in epoch {trainer.current_epoch + 1}, step "
            f"{trainer.global_step + 1}.",
            f"A batch has {of} of {window}x{window} pixels{per_process}. {first_line(error)}",
            "Finished epochs are kept. If another program used the memory, repeat the same "
            f"command. Otherwise use {todo}, with another `--out` or `--fresh`.",
        ) from error


def is_trained(run: Path, epochs: int) -> bool:
    """Whether the last checkpoint of `run` is from its last epoch, also after early stopping."""
    last = run / CHECKPOINT_FOLDER / LAST
    if not last.is_file():
        return False
    checkpoint = DurableCheckpoints().load_checkpoint(last)
    stopped = any(
        name.startswith("EarlyStopping") and state["wait_count"] >= state["patience"]
        for name, state in checkpoint["callbacks"].items()
    )
    return stopped or _finished_epochs(checkpoint) >= epochs


def _finished_epochs(checkpoint: Mapping[str, Any]) -> int:
    return int(checkpoint["epoch"]) + 1


@contextmanager
def _ending_by_interrupt(trainer: pl.Trainer) -> Iterator[None]:
    """Restores the effect of Ctrl+C, which Lightning turns into exit code 1."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if trainer.state.status == TrainerStatus.INTERRUPTED:
            raise KeyboardInterrupt from error
        raise
    except Exception as error:
        # The signal also ends the loader processes, and `torch.save` replaces KeyboardInterrupt.
        if trainer.received_sigterm or was_interrupted():
            raise KeyboardInterrupt from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def default_workers(device: torch.device, processes: int = 1) -> int:
    """Default number of loader processes for each of the `processes` on this machine.

    Only a GPU outpaces a single process with cached images. 0 if processes are not forked, because
    each process would copy the images.
    """
    if device.type != "cuda" or start_method() != "fork" or not may_start_processes():
        return 0
    return min(DEFAULT_WORKERS, max(1, share_of_cores(usable_cores(), processes) - 1))


@dataclass(frozen=True)
class Machine:
    """The devices and processes of a run.

    Args:
        device: Device of this process, or of the first one.
        devices: Number of processes on this machine.
        nodes: Number of machines.
    """

    device: torch.device
    devices: int
    nodes: int

    @property
    def world(self) -> int:
        """Total number of processes."""
        return self.devices * self.nodes


def machine(name: str, devices: int | Literal["all"]) -> Machine:
    """Devices and processes by `--device` and `--devices`, or by the launcher (torchrun, srun).

    Args:
        name: Name of a device, or `auto`.
        devices: Number of processes to start; `all` for one per GPU of this machine.

    Raises:
        UsageError: There are fewer devices than processes, or two numbers contradict each other.
    """
    device, process = choose_device(name), ranks()
    count = _count(device, devices)
    if process.uneven:
        raise UsageError(
            "The machines of this SLURM job have different numbers of tasks.",
            "A training step is divided among the same number of processes on every machine.",
            "Start it with `srun --ntasks-per-node=N`.",
        )
    if process.world > 1:
        if devices not in (1, "all") and count not in (process.local_world, process.world):
            raise UsageError(
                f"`--devices {devices}` contradicts the launcher of this command.",
                f"The launcher started {process.local_world} processes on this machine.",
                "Omit `--devices`: each process uses one device.",
            )
        count = process.local_world
    if process.world == count == 1:
        return Machine(device, 1, 1)
    _check_devices(device, name, count)
    if device.type == "cuda":
        device = torch.device("cuda", process.local_rank)
    return Machine(device, count, process.nodes)


def _count(device: torch.device, devices: int | Literal["all"]) -> int:
    if devices != "all":
        return devices
    return torch.cuda.device_count() if device == torch.device("cuda") else 1


def _check_devices(device: torch.device, name: str, count: int) -> None:
    if device.type == "mps" or device.index is not None:
        raise UsageError(
            f"`--device {name}` is one device, but {count} processes need {count} devices.",
            "Each process needs a separate device.",
            "Use `--device cuda` or `--device cpu`, or one process.",
        )
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and gpus < count:
        raise UsageError(
            f"{count} processes need {count} GPUs; {gpus} were found on this machine.",
            "Each process uses the GPU with its rank on the machine.",
            f"Use `--devices {gpus}` or `--devices all`. With SLURM, make all GPUs of a machine "
            "visible to each task (`--gpus-per-node`, not `--gpus-per-task`).",
        )
