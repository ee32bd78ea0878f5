"""Callback that measures what training in a mode costs, an iteration at a time.

OUT/MODE/iterations.csv  iteration, seconds, trainable (elements that the step could move)
OUT/MODE/costs.json      `ModeCosts`
"""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim import Optimizer

from robustcli.core.io import write_text
from robustcli.finetuning.record import COSTS, ITERATIONS, ModeCosts

# The peak of memory since a reset.
#
# On a CUDA device it is what torch allocated; elsewhere what the process had in memory, where the
# system tells (Linux).


_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # Source: Linux, Documentation/filesystems/proc.rst, clear_refs


def start_anew(device: torch.device) -> None:
    """From now on the peak is counted; memory that nobody uses is given back first."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # not Linux, or not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK, encoding="ascii")


def peak_resident(device: torch.device) -> int:
    """Bytes at the peak since `start_anew`; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration):
        lines = (_PROCESS / "status").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return 0


Line = tuple[int, float, int]


class MeasureCosts(pl.Callback):
    """Times every training step; memory and the optimizer's state as they are at the end.

    A step is forward, backward and update, without the wait for its batch. The peak of memory is
    that since the last change of what is trained, so a freeze shows.

    Args:
        run: The folder of the mode.
        network: What is trained.
    """

    def __init__(self, run: Path, network: nn.Module) -> None:
        self.run, self.network = run, network
        self.lines: list[Line] = []
        self._started = 0.0
        self._peak: int | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """The clock starts; memory is counted anew where what is trained has changed."""
        if not self.lines or self.lines[-1][2] != trainable(self.network):
            self._peak = None
            start_anew(pl_module.device)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """The clock stops; before a freeze that this very step brings about counts."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        elif pl_module.device.type == "mps":
            torch.mps.synchronize()
        seconds = time.perf_counter() - self._started
        self.lines.append((trainer.global_step, seconds, trainable(self.network)))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What validation takes is not training's."""
        self._peak = max(self._peak or 0, peak_resident(pl_module.device))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See `on_validation_start`."""
        start_anew(pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what was measured, in the first process."""
        if not trainer.is_global_zero:
            return
        costs = ModeCosts(
            trainable=trainable(self.network),
            optimizer_bytes=optimizer_bytes(trainer.optimizers[0]),
            peak_memory_bytes=self._peak,
        )
        rows = "".join(f"{i},{seconds:.6f},{count}\n" for i, seconds, count in self.lines)
        write_text(self.run / ITERATIONS, "iteration,seconds,trainable\n" + rows)
        write_text(self.run / COSTS, costs.model_dump_json(indent=2) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"lines": list(self.lines), "peak": self._peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.lines = [(i, s, n) for i, s, n in state_dict["lines"]]
        self._peak = state_dict["peak"]


def trainable(network: nn.Module) -> int:
    """Elements that training may move."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Bytes of the tensors that `optimizer` keeps between steps."""
    kept = (v for state in optimizer.state.values() for v in state.values())
    return sum(v.numel() * v.element_size() for v in kept if isinstance(v, torch.Tensor))
