"""Freezes parameters so that they stay constant and their cost in a training step is saved.

A frozen tensor is removed from the autograd graph, the optimizer and its checkpointed state:
`requires_grad` is off before the optimizer is built and its gradient is None. With zero gradients
instead, momentum and weight decay would still change it. Normalisation layers stop updating their
running statistics if all their parameters are frozen. Autograd then records no operation before
the first trainable layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from robustcli.core.io import read_csv, write_text
from robustcli.finetuning.gradients import GradientProfile, Statistic, statistics
from robustcli.finetuning.record import DECISION_COLUMNS, SavingRecord
from robustcli.finetuning.selection import Decision

_Norms = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def freeze(network: nn.Module, names: Collection[str]) -> None:
    """Freezes the parameters `names`; a shared tensor can be given by any of its names.

    Raises:
        KeyError: The network has no parameter with this name.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name in names:
        parameters[name].requires_grad_(False)
        parameters[name].grad = None


def hold_statistics(network: nn.Module) -> None:
    """Puts normalisation layers whose parameters are all frozen into eval mode.

    Must be called again after every `network.train()`, which resets the mode.
    """
    for _, module in _held_norms(network):
        module.eval()


def _held_norms(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The normalisation layers with running statistics whose parameters are all frozen, by path."""
    for path, module in network.named_modules():
        if isinstance(module, _Norms) and module.track_running_stats:
            parameters = list(module.parameters(recurse=False))
            if parameters and not any(p.requires_grad for p in parameters):
                yield path, module


@torch.no_grad()
def hold_average(
    lit_module: pl.LightningModule, network: nn.Module, names: Collection[str]
) -> None:
    """Sets frozen tensors of the weight average to their frozen values, if weights are averaged.

    Otherwise the average, which is saved, would move towards these values after the freeze.
    """
    averaged = getattr(lit_module, "averaged", None)
    if averaged is None:
        return
    held = [f"{path}.{name}" for path, norm in _held_norms(network) for name in norm.state_dict()]
    frozen, average = network.state_dict(), averaged.module.state_dict()
    for name in (*names, *held):
        average[name].copy_(frozen[name])


def saving(
    network: nn.Module, names: Collection[str], sample: Tensor, *, moments: int
) -> SavingRecord:
    """Memory and operations saved in a training step by freezing `names`; restores the network.

    The operations of the loss are negligible compared with the network, and are not counted.

    Args:
        network: In training mode; its gradients are cleared.
        names: Parameters to freeze.
        sample: A batch of inputs.
        moments: Number of state tensors per parameter in the optimizer (SGD with momentum 1,
            Adam 2).
    """
    parameters = dict(network.named_parameters())
    before = {name: p.requires_grad for name, p in parameters.items()}
    full = _flops(network, sample)
    freeze(network, names)
    try:
        frozen_flops = _flops(network, sample)
    finally:
        for name, p in parameters.items():
            p.requires_grad_(before[name])
    counts = {name: p.numel() for name, p in parameters.items()}
    total, gone = sum(counts.values()), sum(counts[name] for name in set(names) & set(counts))
    return SavingRecord(
        parameters=total, frozen=gone, optimizer_bytes=4 * moments * total,
        optimizer_bytes_saved=4 * moments * gone, flops=full, flops_saved=full - frozen_flops,
    )  # fmt: skip


def _flops(network: nn.Module, sample: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        output = network(sample)
        levels = [output] if isinstance(output, Tensor) else output
        # A stand-in for the loss that gives every trainable parameter a gradient.
        torch.stack([level.square().mean() for level in levels]).sum().backward()
    network.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


class ProfileGradients(pl.Callback):
    """Profiles the gradients of every optimizer step, before clipping and without the loss scale.

    Args:
        iterations: Number of steps to profile; None for all.
        on_full: Called with the rows of the profile after the last profiled step.
    """

    def __init__(
        self, network: nn.Module, iterations: int | None = None,
        on_full: Callable[[pd.DataFrame], None] = lambda rows: None,
    ) -> None:  # fmt: skip
        self.profile, self.iterations, self.on_full = GradientProfile(network), iterations, on_full

    @property
    def full(self) -> bool:
        """Whether all requested iterations are profiled."""
        return self.iterations is not None and len(self.profile) >= self.iterations

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Adds the current gradients to the profile."""
        if self.full:
            return
        self.profile.add()
        if self.full:
            self.profile.last = {}
            self.on_full(self.profile.rows())

    def state_dict(self) -> dict[str, Any]:
        """The profile so far and the last gradients, for the same profile in a resumed run."""
        last = {} if self.full else self.profile.last
        return {"measured": self.profile.measured, "last": last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the profile."""
        self.profile.measured = list(state_dict["measured"])
        self.profile.last = dict(state_dict.get("last", {}))


class KeepFrozen(pl.Callback):
    """Keeps the parameters `names` frozen, also in a resumed training."""

    def __init__(self, network: nn.Module, names: Sequence[str] = ()) -> None:
        self.network, self.names = network, list(names)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Freezes `names` before the optimizer is built."""
        freeze(self.network, self.names)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freezes the names read from a checkpoint, before the optimizer's state is restored."""
        self.leave_out(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Calls `hold_statistics` again, because Lightning puts all modules into training mode."""
        hold_statistics(self.network)

    def leave_out(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freezes `names`, also in a weight average, and removes them from the optimizers."""
        freeze(self.network, self.names)
        hold_average(pl_module, self.network, self.names)
        for optimizer in trainer.optimizers:
            forget_frozen(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The frozen names, for a resumed run."""
        return {"frozen": self.names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.names = list(state_dict["frozen"])


class FreezeAfterSteps(KeepFrozen):
    """Freezes the parameters `names` after `steps` steps that train all parameters.

    Steps are counted as in `ProfileGradients`.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], steps: int) -> None:
        super().__init__(network)
        self.pending, self.steps, self.taken = list(names), steps, 0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Counts the step."""
        self.taken += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Freezes after the last of the steps; later steps train the remaining parameters."""
        if self.pending and self.taken >= self.steps:
            self.names, self.pending = self.pending, []
            self.leave_out(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The frozen names, the names to freeze later, and the number of finished steps."""
        return {**super().state_dict(), "pending": self.pending, "taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        super().load_state_dict(state_dict)
        self.pending, self.taken = list(state_dict["pending"]), int(state_dict["taken"])


class FreezeAfterProfile(KeepFrozen):
    """Freezes parameters after the last profiled step.

    Args:
        decide: Returns the decisions for the gradient statistics of all parameters.
        on_decisions: Called with the decisions.
    """

    def __init__(
        self, network: nn.Module, profiler: ProfileGradients,
        decide: Callable[[Mapping[str, Statistic]], list[Decision]],
        on_decisions: Callable[[list[Decision]], None],
    ) -> None:  # fmt: skip
        super().__init__(network)
        self.profiler, self.decide, self.on_decisions = profiler, decide, on_decisions
        self.done = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Decides after the last profiled step; later steps train the remaining parameters."""
        if self.done or not self.profiler.full:
            return
        self.done = True
        decisions = self.decide(statistics(self.profiler.profile.rows()))
        self.names = [d.name for d in decisions if d.frozen]
        self.leave_out(trainer, pl_module)
        self.on_decisions(decisions)

    def state_dict(self) -> dict[str, Any]:
        """The frozen names, and whether the rule has been applied."""
        return {**super().state_dict(), "done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        super().load_state_dict(state_dict)
        self.done = bool(state_dict["done"])


def forget_frozen(optimizer: Optimizer) -> None:
    """Removes frozen tensors and their state from `optimizer`.

    Empty parameter groups stay, because the learning-rate schedule has one rate per group.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not parameter.requires_grad:
                optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if p.requires_grad]


def write_decisions(path: Path, decisions: Sequence[Decision], network: nn.Module) -> None:
    """Writes the `decisions` for the tensors of `network` durably to `path` (`OUT/frozen.csv`)."""
    shapes = {n: "x".join(map(str, p.shape)) or "1" for n, p in network.named_parameters()}
    rows = [
        (d.name, shapes[d.name], d.count, int(d.mamba), d.statistic, int(d.frozen), d.why)
        for d in decisions
    ]
    table = pd.DataFrame(rows, columns=list(DECISION_COLUMNS))
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_frozen(path: Path) -> list[str]:
    """Names of the frozen tensors in the file `path` of `write_decisions`."""
    rows = read_csv(path, dtype={"shape": str})
    return [str(name) for name in rows["name"][rows["frozen"] == 1]]
