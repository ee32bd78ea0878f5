"""`robust finetune --dry-run`: the steps and the freezing decisions, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from robustcli.core.listener import Listener
from robustcli.core.rundir import has_record
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.finetune_plan import (
    FinetunePlan,
    finetune_record,
    mode_differences,
    plan_finetuning,
)
from robustcli.finetuning.mode_trainings import check_scores, devices_begun, modes_beside
from robustcli.finetuning.modes import tested_network
from robustcli.finetuning.record import FINETUNING, PROFILING, SavingRecord
from robustcli.finetuning.selection import Decision
from robustcli.training.record import seed_folder
from robustcli.training.seed_runs import SeedsForecast, seeds_beside, seeds_in
from robustcli.training.train_plan import TrainForecast, forecast_plan


@dataclass(frozen=True)
class FinetuneForecast:
    """The planned steps and freezing decisions of a fine-tuning.

    Args:
        training: Forecast of the training of one mode, with the time of all its steps.
        profile_iterations: Steps to profile; 0 if no mode needs a profile.
        decisions: One per tensor; None if a profile decides during training.
        saving: Memory and operations saved by the frozen tensors; None if `decisions` is None.
        sweep: Largest number of further rules, each trained as long as a mode; 0 without `--sweep`.
    """

    training: TrainForecast
    modes: Sequence[str]
    profile_iterations: int
    decisions: Sequence[Decision] | None
    saving: SavingRecord | None
    sweep: int = 0

    def as_json(self) -> str:
        """The forecast as one JSON object."""
        saving = self.saving and self.saving.model_dump()
        fields = {**asdict(self), "training": self.training.as_dict(), "saving": saving}
        return json.dumps(fields, indent=2)

    def as_text(self) -> str:
        """The forecast as lines of text, the tensors last."""
        times = len(self.modes) or 1
        lines = [
            self.training.as_text(),
            f"Modes:      {', '.join(self.modes) or 'none (only the profile)'}"
            + (f"; the time is for each of {times}" if times > 1 else ""),
        ]
        if self.sweep:
            lines.append(
                f"Sweep:      up to {self.sweep} further rules, each with the same number of steps"
            )
        lines += self._frozen() if self.decisions is not None else [self._later()]
        return "\n".join(lines)

    def _later(self) -> str:
        if not self.profile_iterations:
            return "Freezing:   none in these modes"
        return (
            f"Freezing:   decided by a profile of the first {self.profile_iterations} steps; "
            "`--profile FILE` or `--freeze PATTERN` decide it in advance"
        )

    def _frozen(self) -> list[str]:
        decisions, saved = self.decisions or (), self.saving
        lines = []
        if saved is not None:
            lines = [
                f"Frozen:     {_of(saved.frozen, saved.parameters)} parameters",
                f"Optimizer:  {_of(saved.optimizer_bytes_saved, saved.optimizer_bytes)} bytes less",
                f"Work:       {_of(saved.flops_saved, saved.flops)} operations of a step less "
                "(convolutions and matrix products; the scan is not counted)",
            ]
        width = max((len(d.name) for d in decisions), default=0)
        return lines + [
            f"  {d.name:<{width}}  {_value(d)}  {'frozen' if d.frozen else 'trained'}: {d.why}"
            for d in decisions
        ]


def _of(part: int, total: int) -> str:
    return f"{part:,} of {total:,} ({part / max(total, 1):.1%})"


def _value(decision: Decision) -> str:
    return f"{decision.statistic:9.2e}" if decision.statistic is not None else " " * 9


def forecast_finetuning(config: FinetuneConfig, listener: Listener) -> FinetuneForecast:
    """The forecast for `config`. Downloads nothing and writes nothing.

    Raises:
        UsageError: A named model, data set or file does not exist, options contradict each other,
            or no parameter would be left to train.
    """
    return _forecast(_plan_offline(config, listener), listener)


def forecast_finetune_seeds(config: FinetuneConfig, listener: Listener) -> SeedsForecast:
    """The forecast for several seeds; see `forecast_finetuning`."""
    check_scores(config)
    parallel_seeds = seeds_beside(config.training, devices_begun)
    if parallel_seeds:
        config = config.with_training(devices=1)
    plan, seed = _plan_offline(config, listener), config.training.seed
    seeds, finished = seeds_in("finetune", plan.training, plan.run, FINETUNING)
    first = plan.for_seed(seed, seed_folder(plan.run, seed))
    return SeedsForecast(str(plan.run), seeds, finished, _forecast(first, listener), parallel_seeds)


def _plan_offline(config: FinetuneConfig, listener: Listener) -> FinetunePlan:
    modes = modes_beside(config)
    if modes is not None:
        listener.say(
            f"{len(config.modes)} modes on {modes.count} devices: each mode runs on one device."
        )
        config = modes.config
    return plan_finetuning(config.with_training(offline=True), listener)


def _forecast(plan: FinetunePlan, listener: Listener) -> FinetuneForecast:
    config = plan.config
    network = tested_network(plan)
    started = has_record(plan.run) and not config.training.fresh
    if started:
        FINETUNING.check_continues(
            plan.run, finetune_record(plan, network), partial(mode_differences, plan)
        )
    decisions = plan.known_decisions(network) or plan.named_decisions(network)
    start = replace(plan.training.config, weights=None, untrained=True)
    saving = None
    if decisions is not None:
        plan.announce(decisions, listener.say)
        saving = plan.saving([d.name for d in decisions if d.frozen], network)
    # The folder of the profile contains no training with which this one could be compared.
    of_mode = forecast_plan(replace(plan.training, config=start, run=plan.run / PROFILING))
    return FinetuneForecast(
        training=replace(
            of_mode,
            out=str(plan.run),
            disk_bytes=of_mode.disk_bytes * len(config.modes),
            started=started,
        ),
        modes=config.modes,
        profile_iterations=_profiled(plan, decisions),
        decisions=decisions,
        saving=saving,
        sweep=len(plan.task.rules) if config.sweep else 0,
    )


def _profiled(plan: FinetunePlan, decisions: Sequence[Decision] | None) -> int:
    profiles = plan.config.profile_only or "freeze" in plan.config.modes
    return plan.profile_iterations if profiles and decisions is None else 0
