"""The modes of a fine-tuning: their changes to a training, and their measured costs."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.core.errors import UsageError
from robustcli.core.io import write_text
from robustcli.core.seeds import identity_seed
from robustcli.finetuning.config import LORA_LAYERS
from robustcli.finetuning.finetune_plan import FinetunePlan
from robustcli.finetuning.freezing import (
    FreezeAfterProfile,
    FreezeAfterSteps,
    KeepFrozen,
    ProfileGradients,
)
from robustcli.finetuning.gradients import SCAN_MODULES
from robustcli.finetuning.record import COSTS, ITERATIONS, Mode, ModeCosts
from robustcli.finetuning.selection import Decision
from robustcli.training.processes import EndTraining
from robustcli.training.train_plan import try_out
from robustcli.training.training_task import TrainStart

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # Source: Linux, Documentation/filesystems/proc.rst, clear_refs


def start_anew(device: torch.device) -> None:
    """Resets the peak of memory: torch's on CUDA, else the process's if the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # not Linux, or not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK, encoding="ascii")


def peak_resident(device: torch.device) -> int:
    """Peak memory in bytes since `start_anew`; 0 if the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration):
        lines = (_PROCESS / "status").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return 0


class MeasureCosts(pl.Callback):
    """Times every training step and measures memory and optimizer state.

    A step is forward and backward of its batches (several with `--accumulate`), and update, without
    waiting for a batch. Peak memory is measured since the last change of the trained parameters, so
    that it shows the effect of freezing.
    """

    def __init__(self, run: Path, network: nn.Module) -> None:
        self.run, self.network = run, network
        self.lines: list[tuple[int, float, int]] = []
        self._started = self._seconds = 0.0
        self._peak: int | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Starts the clock; resets the peak of memory if the trained parameters have changed."""
        new_step = not self._seconds
        if new_step and (not self.lines or self.lines[-1][2] != trainable(self.network)):
            self._peak = None
            start_anew(pl_module.device)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Stops the clock, before a callback freezes parameters after this step."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        elif pl_module.device.type == "mps":
            torch.mps.synchronize()
        self._seconds += time.perf_counter() - self._started
        finished_steps = self.lines[-1][0] if self.lines else 0
        if trainer.global_step > finished_steps:  # not after a batch that only adds its gradient
            self.lines.append((trainer.global_step, self._seconds, trainable(self.network)))
            self._seconds = 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads the peak of memory before validation, which is not counted."""
        self._peak = max(self._peak or 0, peak_resident(pl_module.device))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See `on_validation_start`."""
        start_anew(pl_module.device)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the measurements before the checkpoint of the last epoch, in the first process.

        A training that is killed after this checkpoint is not continued, only evaluated.
        """
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not (is_last and trainer.is_global_zero):
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
        """The step times and the peak of memory so far."""
        return {"lines": list(self.lines), "peak": self._peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.lines = [(i, s, n) for i, s, n in state_dict["lines"]]
        self._peak = state_dict["peak"]


def trainable(network: nn.Module) -> int:
    """Number of trainable elements."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Bytes of the state tensors of `optimizer`."""
    values = (v for state in optimizer.state.values() for v in state.values())
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


RANK, ALPHA = 8, 16
"""Rank and scale of LoRA on the projections of state-space blocks, through peft. The heads are new
in the target task and trained fully; all other parameters are frozen. Source: Hu et al.,
"LoRA" (arXiv 2106.09685)."""
_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."


def projections(network: nn.Module, layers: Collection[str]) -> list[str]:
    """Paths of the linear layers called `layers` inside state-space blocks.

    Blocks are found by module type. The suffix `_b` (the backward scan direction) is ignored in the
    comparison. VMamba's `x_proj` is one tensor for four directions, not a layer, and is never
    included.
    """
    return [path for path, layer in _linear_layers(network) if layer in layers]


def _linear_layers(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Path and name within the block of each linear layer inside a state-space block."""
    for path, module in network.named_modules():
        if isinstance(module, SCAN_MODULES):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    yield (f"{path}.{name}" if path else name), name.removesuffix("_b")


def adapt(
    network: nn.Module, heads: Sequence[str], layers: Sequence[str], *, name: str, seed: int
) -> None:
    """Inserts LoRA adapters into `network`; only the adapters and the heads stay trainable.

    Args:
        network: Changed in place; its output stays the same until the first step.
        heads: Name prefixes of the layers that are trained fully.
        layers: Names of projections, see `projections`.
        name: Name of the network, for messages.
        seed: Seed of the run, for the random initialisation of the adapters.

    Raises:
        UsageError: The network has no such projections.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    targets = adapted_layers(network, layers, name)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed("lora", name, seed, bits=63))
        inject_adapter_in_model(settings, network)
    for tensor, parameter in network.named_parameters():
        parameter.requires_grad_(
            tensor.startswith(tuple(heads)) or _DOWN in tensor or _UP in tensor
        )


def adapted_layers(network: nn.Module, layers: Sequence[str], name: str) -> list[str]:
    """Paths of the layers of `network` that get adapters in mode `lora`.

    For the arguments, see `adapt`.

    Raises:
        UsageError: The network has no such projections.
    """
    linear = list(dict.fromkeys(layer for _, layer in _linear_layers(network)))
    available = ", ".join(f"`{layer}`" for layer in linear)
    if linear and not layers:
        raise UsageError(
            "`--lora-layers` names no layer.",
            f"The state-space blocks of `{name}` have {available}.",
            "Use some of these, separated by commas.",
        )
    unknown = [layer for layer in layers if layer not in linear]
    if linear and unknown and tuple(layers) != LORA_LAYERS:
        raise UsageError(
            f"`--lora-layers {','.join(layers)}`: the state-space blocks of `{name}` have no "
            f"linear layer `{unknown[0]}`.",
            f"They have {available}.",
            "Use some of these, separated by commas.",
        )
    targets = projections(network, layers)
    if not targets:
        raise UsageError(
            f"`--mode lora` cannot be used with `{name}`.",
            "Adapters are added to the projections of state-space blocks, and this network has "
            "none.",
            "Use `--mode freeze --freeze-scope all`.",
        )
    return targets


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the network without adapters, from the `state` of a network with adapters.

    Each adapted weight becomes W + (ALPHA / RANK) B A.
    """
    # peft can merge only a live network; here the state is read from the best checkpoint.
    plain = {}
    for name, tensor in state.items():
        if _DOWN in name or _UP in name:
            continue
        down = state.get(name.replace(_BASE, _DOWN)) if _BASE in name else None
        if down is not None:
            tensor = tensor + ALPHA / RANK * state[name.replace(_BASE, _UP)] @ down
        plain[name.replace(_BASE, ".")] = tensor
    return plain


def tested_network(plan: FinetunePlan) -> nn.Module:
    """The network of `plan` after a test with a generated image, before any file is written.

    Raises:
        UsageError: The network cannot process images of the plan, or cannot get its adapters.
    """
    network = plan.trial_network()
    try_out(plan.training, network)
    if "lora" in plan.config.modes:
        adapted_layers(network, plan.config.lora_layers, plan.entry.name)
    return network


@dataclass(frozen=True)
class Modes:
    """Creates the initial network and callbacks of each mode's training.

    Args:
        decisions: Freezing decisions; None if a profile makes them during training.
        on_profile: Called with the rows of a complete profile.
        waiting: Number of steps before `decisions` are applied.
    """

    plan: FinetunePlan
    decisions: Sequence[Decision] | None
    on_profile: Callable[[pd.DataFrame], None] = lambda rows: None
    on_decisions: Callable[[list[Decision]], None] = lambda decisions: None
    waiting: int = 0

    def start(self, mode: Mode, out: Path) -> TrainStart:
        """Initial network and callbacks of the training of `mode` into the folder `out`."""
        plan = self.plan
        network, origin = plan.network(mode)
        if mode == "lora":
            seed, layers = plan.config.training.seed, plan.config.lora_layers
            adapt(network, plan.heads, layers, name=plan.entry.name, seed=seed)
        callbacks = [MeasureCosts(out, network), *self._freezing(mode, network)]
        return TrainStart(network, origin, callbacks, merged if mode == "lora" else dict)

    def profiling(self) -> TrainStart:
        """The start of full fine-tuning; raises `EndTraining` when the profile is complete."""

        def decided_and_enough(decisions: list[Decision]) -> None:
            self.on_decisions(decisions)
            raise EndTraining

        network, origin = self.plan.network("full")
        return TrainStart(network, origin, self._after_profile(network, decided_and_enough))

    def _freezing(self, mode: Mode, network: nn.Module) -> list[pl.Callback]:
        if mode == "lora":
            frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
            return [KeepFrozen(network, frozen)]
        if mode != "freeze":
            return []
        if self.decisions is not None:
            names = [d.name for d in self.decisions if d.frozen]
            if self.waiting:
                return [FreezeAfterSteps(network, names, self.waiting)]
            return [KeepFrozen(network, names)]
        return self._after_profile(network, self.on_decisions)

    def _after_profile(
        self, network: nn.Module, on_decisions: Callable[[list[Decision]], None]
    ) -> list[pl.Callback]:
        profiler = ProfileGradients(network, self.plan.profile_iterations, self.on_profile)
        return [profiler, FreezeAfterProfile(network, profiler, self.plan.decide, on_decisions)]
