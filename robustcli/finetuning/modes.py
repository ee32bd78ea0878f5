"""What each mode of a fine-tuning changes in a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import torch
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.seeds import identity_seed
from robustcli.finetuning.finetune_plan import FinetunePlan
from robustcli.finetuning.gradients import SCANS
from robustcli.finetuning.mode_costs import MeasureCosts
from robustcli.finetuning.profiler import FreezeAfterProfile, KeepFrozen, ProfileGradients
from robustcli.finetuning.record import Mode
from robustcli.finetuning.selection import Decision
from robustcli.training.training_task import Enough, Tuning

# LoRA on the projections of state-space blocks, through peft.
#
# Source: Hu et al., "LoRA" (arXiv 2106.09685). The heads are new in the target task and train
# whole; all else stands still. What is written is the plain network with the adapters merged.


RANK, ALPHA = 8, 16
_PROJECTIONS = ("in_proj", "x_proj", "x_proj_b", "out_proj")
_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."


def projections(network: nn.Module) -> list[str]:
    """The names of the linear projections inside state-space blocks, found by type of module.

    VMamba's `x_proj` is a bare tensor for four directions, not a layer: it is not among them.
    """
    return [
        f"{place}.{name}" if place else name
        for place, module in network.named_modules()
        if isinstance(module, SCANS)
        for name, child in module.named_children()
        if name in _PROJECTIONS and isinstance(child, nn.Linear)
    ]


def adapt(network: nn.Module, heads: Sequence[str], *, name: str, seed: int) -> None:
    """Puts adapters into `network`; only they and its heads still train.

    Args:
        network: Changed in place; its output stays the same until a first step.
        heads: Beginnings of the names of the layers that train whole.
        name: Of the network, for messages.
        seed: Of the run; the adapters begin with random numbers.

    Raises:
        UsageError: The network has no such projections.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    targets = projections(network)
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


# A listener for several trainings one after the other.


class ModeListener:
    """Passes on what a mode's training says, with the mode's name before it.

    Args:
        listener: Who hears it.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener, self.mode = listener, ""

    def begin(self, mode: str) -> None:
        """The training of `mode` follows."""
        self.mode = mode

    def say(self, text: str) -> None:
        """A line."""
        self.listener.say(f"{self.mode}: {text}" if self.mode else text)

    def start(self, total: int, done: int) -> None:
        """The training itself begins."""
        self.listener.start(total, done)

    def advance(self, count: int) -> None:
        """See `Listener`."""
        self.listener.advance(count)


Profiled = Callable[[pd.DataFrame], None]
"""Receives the rows of a full profile."""
Decided = Callable[[list[Decision]], None]
"""Receives what follows from it."""


@dataclass(frozen=True)
class Modes:
    """The tunings of a fine-tuning.

    Args:
        plan: The fine-tuning.
        decisions: What is frozen from the first step on; None where a profile decides it.
        profiled: Is told when a profile is full.
        decided: Is told when it has decided.
    """

    plan: FinetunePlan
    decisions: Sequence[Decision] | None
    profiled: Profiled
    decided: Decided

    def tuning(self, mode: Mode, out: Path) -> Tuning:
        """What `mode`, trained into the folder `out`, does otherwise than a plain training."""
        return Tuning(
            start=lambda _: self._start(mode),
            callbacks=lambda network: [
                MeasureCosts(out, network),
                *self._freezing(mode, network),
            ],
            export=merged if mode == "lora" else dict,
        )

    def profiling(self) -> Tuning:
        """The beginning of full fine-tuning, which ends with `Enough` when the profile is full."""
        return Tuning(
            start=lambda _: self._start("full"),
            callbacks=lambda network: self._after_profile(network, self._decided_and_enough),
        )

    def _decided_and_enough(self, decisions: list[Decision]) -> None:
        self.decided(decisions)
        raise Enough

    def _start(self, mode: Mode) -> tuple[nn.Module, str]:
        network, origin = self.plan.network(mode)
        if mode == "lora":
            plan = self.plan
            adapt(network, plan.heads, name=plan.entry.name, seed=plan.config.training.seed)
        return network, origin

    def _freezing(self, mode: Mode, network: nn.Module) -> list[pl.Callback]:
        if mode == "lora":
            return [KeepFrozen(network, _standing(network))]
        if mode != "freeze":
            return []
        if self.decisions is not None:
            return [KeepFrozen(network, [d.name for d in self.decisions if d.frozen])]
        return self._after_profile(network, self.decided)

    def _after_profile(self, network: nn.Module, decided: Decided) -> list[pl.Callback]:
        plan = self.plan
        profiler = ProfileGradients(network, plan.profile_iterations, self.profiled)
        freezing = FreezeAfterProfile(network, profiler, plan.config.rule, plan.heads, decided)
        return [profiler, freezing]


def _standing(network: nn.Module) -> list[str]:
    return [name for name, p in network.named_parameters() if not p.requires_grad]
