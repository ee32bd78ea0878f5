"""What each mode of a fine-tuning changes in a training, and what training in it costs."""

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
from robustcli.training.processes import Enough
from robustcli.training.training_task import TrainStart

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # Source: Linux, Documentation/filesystems/proc.rst, clear_refs


def start_anew(device: torch.device) -> None:
    """Counts the peak from now on: torch's on CUDA, else the process's, where the system tells."""
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


class MeasureCosts(pl.Callback):
    """Times every training step; memory and the optimizer's state as they are at the end.

    A step is forward, backward and update, without the wait for its batch. The peak of memory is
    that since the last change of what is trained, so a freeze shows.
    """

    def __init__(self, run: Path, network: nn.Module) -> None:
        self.run, self.network = run, network
        self.lines: list[tuple[int, float, int]] = []
        self._started = 0.0
        self._peak: int | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Starts the clock; counts memory anew if the set of trained parameters has changed."""
        if not self.lines or self.lines[-1][2] != trainable(self.network):
            self._peak = None
            start_anew(pl_module.device)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Stops the clock, before any freeze that this step leads to."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        elif pl_module.device.type == "mps":
            torch.mps.synchronize()
        seconds = time.perf_counter() - self._started
        self.lines.append((trainer.global_step, seconds, trainable(self.network)))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the peak before validation, whose memory does not count."""
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
        """The lines and the peak so far."""
        return {"lines": list(self.lines), "peak": self._peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.lines = [(i, s, n) for i, s, n in state_dict["lines"]]
        self._peak = state_dict["peak"]


def trainable(network: nn.Module) -> int:
    """Elements of the parameters that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Bytes of the tensors that `optimizer` keeps between steps."""
    values = (v for state in optimizer.state.values() for v in state.values())
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


RANK, ALPHA = 8, 16
"""Of LoRA on the projections of state-space blocks, through peft. The heads are new in the target
task and train whole; all else stands still. Source: Hu et al., "LoRA" (arXiv 2106.09685)."""
_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."


def projections(network: nn.Module, layers: Collection[str]) -> list[str]:
    """The names of the linear projections called `layers` inside state-space blocks.

    The blocks are found by type of module. A `_b` at the end of a name, of the direction that reads
    backwards, is left out of the comparison. VMamba's `x_proj` is a bare tensor for four
    directions, not a layer: it is not among them.
    """
    return [path for path, layer in _linear_layers(network) if layer in layers]


def _linear_layers(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Each linear layer inside a state-space block: its path, and its name in the block."""
    for path, module in network.named_modules():
        if isinstance(module, SCAN_MODULES):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    yield (f"{path}.{name}" if path else name), name.removesuffix("_b")


def adapt(
    network: nn.Module, heads: Sequence[str], layers: Sequence[str], *, name: str, seed: int
) -> None:
    """Puts adapters into `network`; only they and its heads still train.

    Args:
        network: Changed in place; its output stays the same until a first step.
        heads: Beginnings of the names of the layers that train whole.
        layers: Names of projections, see `projections`.
        name: Of the network, for messages.
        seed: Of the run; the adapters begin with random numbers.

    Raises:
        UsageError: The network has no such projections.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    linear = list(dict.fromkeys(layer for _, layer in _linear_layers(network)))
    unknown = [layer for layer in layers if layer not in linear]
    if linear and unknown and tuple(layers) != LORA_LAYERS:
        raise UsageError(
            f"`--lora-layers {','.join(layers)}`: the state-space blocks of `{name}` have no "
            f"linear layer `{unknown[0]}`.",
            f"They have {', '.join(f'`{layer}`' for layer in linear)}.",
            "Name some of these, separated by commas.",
        )
    targets = projections(network, layers)
    if not targets:
        raise UsageError(
            f"`--mode lora` finds nothing to adapt in `{name}`.",
            "Adapters go onto the projections of state-space blocks, and it has none.",
            "Use `--mode freeze --freeze-scope all`.",
        )
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed("lora", name, seed, bits=63))
        inject_adapter_in_model(settings, network)
    for tensor, parameter in network.named_parameters():
        parameter.requires_grad_(
            tensor.startswith(tuple(heads)) or _DOWN in tensor or _UP in tensor
        )


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain network's state, from that of a network with adapters.

    Each adapted weight is W + (ALPHA / RANK) B A.
    """
    # peft merges the modules of a live network; this is the state of the epoch that was best.
    plain = {}
    for name, tensor in state.items():
        if _DOWN in name or _UP in name:
            continue
        down = state.get(name.replace(_BASE, _DOWN)) if _BASE in name else None
        if down is not None:
            tensor = tensor + ALPHA / RANK * state[name.replace(_BASE, _UP)] @ down
        plain[name.replace(_BASE, ".")] = tensor
    return plain


@dataclass(frozen=True)
class Modes:
    """What the trainings of a fine-tuning begin with.

    Args:
        decisions: What is frozen; None where a profile decides it.
        on_profile: Receives the rows of a full profile.
        waiting: How many steps are taken before `decisions` are frozen.
    """

    plan: FinetunePlan
    decisions: Sequence[Decision] | None
    on_profile: Callable[[pd.DataFrame], None] = lambda rows: None
    on_decisions: Callable[[list[Decision]], None] = lambda decisions: None
    waiting: int = 0

    def start(self, mode: Mode, out: Path) -> TrainStart:
        """What `mode` begins with, when it is trained into the folder `out`."""
        plan = self.plan
        network, origin = plan.network(mode)
        if mode == "lora":
            seed, layers = plan.config.training.seed, plan.config.lora_layers
            adapt(network, plan.heads, layers, name=plan.entry.name, seed=seed)
        callbacks = [MeasureCosts(out, network), *self._freezing(mode, network)]
        return TrainStart(network, origin, callbacks, merged if mode == "lora" else dict)

    def profiling(self) -> TrainStart:
        """The beginning of full fine-tuning, which ends with `Enough` when the profile is full."""

        def decided_and_enough(decisions: list[Decision]) -> None:
            self.on_decisions(decisions)
            raise Enough

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
        plan = self.plan
        profiler = ProfileGradients(network, plan.profile_iterations, self.on_profile)
        rule, heads = plan.config.rule, plan.heads
        return [profiler, FreezeAfterProfile(network, profiler, rule, heads, on_decisions)]
