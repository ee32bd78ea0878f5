"""What each mode of a fine-tuning changes in a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
from torch import nn

from robustcli.finetuning.freeze_callbacks import FreezeAfterProfile, KeepFrozen
from robustcli.finetuning.lora import adapt, merged
from robustcli.finetuning.mode_costs import MeasureCosts
from robustcli.finetuning.profiling import ProfileGradients
from robustcli.finetuning.record import Mode
from robustcli.finetuning.selection import Decision
from robustcli.finetuning.setup import Setup
from robustcli.training.tuning import Enough, Tuning

Profiled = Callable[[pd.DataFrame], None]
"""Receives the rows of a full profile."""
Decided = Callable[[list[Decision]], None]
"""Receives what follows from it."""


@dataclass(frozen=True)
class Modes:
    """The tunings of a fine-tuning.

    Args:
        setup: What is to be done.
        decisions: What is frozen from the first step on; None where a profile decides it.
        profiled: Is told when a profile is full.
        decided: Is told when it has decided.
    """

    setup: Setup
    decisions: Sequence[Decision] | None
    profiled: Profiled
    decided: Decided

    def tuning(self, mode: Mode, out: Path) -> Tuning:
        """What `mode`, trained into the folder `out`, does otherwise than a plain training."""
        return Tuning(
            start=lambda: self._start(mode),
            callbacks=lambda network: [
                MeasureCosts(out, network),
                *self._freezing(mode, network),
            ],
            export=merged if mode == "lora" else dict,
        )

    def profiling(self) -> Tuning:
        """The beginning of full fine-tuning, which ends with `Enough` when the profile is full."""
        return Tuning(
            start=lambda: self._start("full"),
            callbacks=lambda network: self._after_profile(network, self._decided_and_enough),
        )

    def _decided_and_enough(self, decisions: list[Decision]) -> None:
        self.decided(decisions)
        raise Enough

    def _start(self, mode: Mode) -> tuple[nn.Module, str]:
        network, origin = self.setup.network(mode)
        if mode == "lora":
            setup = self.setup
            adapt(network, setup.heads, name=setup.entry.name, seed=setup.config.training.seed)
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
        setup = self.setup
        profiler = ProfileGradients(network, setup.profile_iterations, self.profiled)
        freezing = FreezeAfterProfile(network, profiler, setup.config.rule, setup.heads, decided)
        return [profiler, freezing]


def _standing(network: nn.Module) -> list[str]:
    return [name for name, p in network.named_parameters() if not p.requires_grad]
