"""`robust finetune --sweep`: trains with further freezing rules and compares savings and scores.

Each rule uses the profile of the run, and freezes at the same step as mode `freeze` would: rules
that need gradients freeze after the profiled steps, name patterns before the first step. Initial
weights, data order and number of steps are those of the modes.

OUT/sweep/RULE/  a training run for each rule that freezes a tensor; the name ends with -after-N if
                 all tensors are trained in the first N steps
OUT/sweep.csv    one line per rule: the columns of SWEEPS
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from robustcli.core.errors import UsageError
from robustcli.core.io import read_csv, write_text
from robustcli.core.listener import NamedListener, Silent
from robustcli.evaluation.cell_table import table
from robustcli.finetuning.finetune_plan import FinetunePlan
from robustcli.finetuning.freezing import freeze, hold_statistics
from robustcli.finetuning.gradients import Statistic, read_profile, statistics
from robustcli.finetuning.modes import Modes
from robustcli.finetuning.record import (
    AFTER_STEPS,
    CHOSEN_EPOCH,
    PROFILE,
    SWEEP_FILE,
    SWEEPS,
    SWEPT,
)
from robustcli.finetuning.selection import Decision, FreezeRule, freeze_decisions
from robustcli.training.engine import run_plan
from robustcli.training.lit_module import LitModule
from robustcli.training.record import read_train_record
from robustcli.training.train_plan import make_step

_WARM = 2
"""Untimed rounds at the start, which compile kernels and create the optimizer's state."""
_RESAMPLES = 2_000
_RATIOS = ("seconds_ratio", "seconds_ratio_low", "seconds_ratio_high")


@dataclass(frozen=True)
class Ratio:
    """Time of a step relative to a step without freezing.

    Args:
        median: Median over the rounds.
        low: Lower end of the 95 % bootstrap interval of the median over the rounds.
        high: Upper end of that interval.
    """

    median: float
    low: float
    high: float


def seconds_ratios(
    lit_module: LitModule, frozen: Sequence[Collection[str]], size: int,
    device: torch.device, rounds: int = 15,
) -> list[Ratio]:  # fmt: skip
    """The time ratio for each set of frozen parameters, interleaved with steps without freezing.

    All steps run in turn in one process with a rotating order, so that other load on the machine
    affects all of them equally.

    Args:
        lit_module: The network with its recipe; works on copies and does not change it.
        frozen: Sets of names of the network's parameters.
        size: Batch size in images.
        device: Device of the steps.
        rounds: Number of repetitions of each step.
    """
    steps = [make_step(_frozen(lit_module, names), size, device) for names in ((), *frozen)]
    seconds = np.zeros((_WARM + rounds, len(steps)))
    for number, row in enumerate(seconds):
        for turn in range(len(steps)):
            index = (turn + number) % len(steps)
            row[index] = steps[index]()
    counted = seconds[_WARM:]
    return [_ratio(counted[:, index] / counted[:, 0]) for index in range(1, len(steps))]


def _frozen(lit_module: LitModule, names: Collection[str]) -> LitModule:
    copied = copy.deepcopy(lit_module)
    copied.network.train()
    freeze(copied.network, names)
    hold_statistics(copied.network)
    return copied


def _ratio(ratios: NDArray[np.float64]) -> Ratio:
    drawn = np.random.default_rng(0).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high))


@dataclass(frozen=True)
class Candidate:
    """A freezing rule and its decisions."""

    rule: FreezeRule
    decisions: Sequence[Decision]

    @property
    def frozen(self) -> list[str]:
        """Names of the frozen tensors."""
        return [d.name for d in self.decisions if d.frozen]

    @property
    def share(self) -> float:
        """Share of frozen elements, in [0, 1]."""
        total = sum(d.count for d in self.decisions)
        return sum(d.count for d in self.decisions if d.frozen) / total


def candidates(
    measured: Mapping[str, Statistic], chosen: FreezeRule, heads: Sequence[str],
    rules: Sequence[FreezeRule],
) -> Iterator[Candidate]:  # fmt: skip
    """`chosen` and the `rules` that freeze different sets of tensors, each set once.

    Leaves out rules that match no tensor of the network or leave only its heads to train.
    """
    tried: set[frozenset[str]] = set()
    for rule in dict.fromkeys((chosen, *rules)):
        try:
            candidate = Candidate(rule, freeze_decisions(measured, rule, heads))
        except UsageError:  # the rule matches no tensor, or leaves none to train
            continue
        if frozenset(candidate.frozen) not in tried:
            tried.add(frozenset(candidate.frozen))
            yield candidate


def run_sweep(plan: FinetunePlan, network: nn.Module, listener: NamedListener) -> None:
    """Trains with each rule that is not finished yet, and writes `OUT/sweep.csv`.

    The steps of rules that this file contains are not timed again.
    """
    rules = _candidates(plan, network)
    runs = [_trained(plan, candidate, listener) for candidate in rules]
    lines = pd.DataFrame(
        [_line(plan, candidate, run) for candidate, run in zip(rules, runs, strict=True)],
        columns=list(SWEEPS[plan.entry.task]),
    )
    listener.begin("sweep")
    if _is_timed(plan.run / SWEEP_FILE, lines):
        listener.say(f"`{plan.run / SWEEP_FILE}` is already finished.")
        listener.begin("")
        return
    listener.say(
        f"Timing steps with {len(rules)} rules, alternating with steps without frozen tensors."
    )
    lit_module = plan.training.task.lit_module(plan.training, network)
    size, device = plan.training.recipe.batch_size, plan.training.machine.device
    ratios = seconds_ratios(lit_module, [candidate.frozen for candidate in rules], size, device)
    lines[list(_RATIOS)] = [[ratio.median, ratio.low, ratio.high] for ratio in ratios]
    write_text(plan.run / SWEEP_FILE, _as_text(lines))
    listener.begin("")


def _as_text(lines: pd.DataFrame) -> str:
    return lines.to_csv(index=False, lineterminator="\n")


def _is_timed(file: Path, lines: pd.DataFrame) -> bool:
    """Whether `file` contains `lines`, with the time of each."""
    if not file.is_file():
        return False
    times = read_csv(file).reindex(columns=list(_RATIOS))
    known = lines.assign(**times) if len(times) == len(lines) else lines
    return not times.isna().any(axis=None) and _as_text(known) == file.read_text(encoding="utf-8")


def help_sweep(plan: FinetunePlan, network: nn.Module, helped: Path) -> None:
    """Takes part in the training of `helped` with one rule, in a process started by `launched`."""
    for candidate in _candidates(plan, network):
        if helped == _folder(plan, candidate.rule).absolute():
            _trained(plan, candidate, NamedListener(Silent()))


def _candidates(plan: FinetunePlan, network: nn.Module) -> list[Candidate]:
    rows = read_profile(plan.run / PROFILE, network, plan.entry.name)
    return list(candidates(statistics(rows), plan.config.rule, plan.heads, plan.task.rules))


def _trained(plan: FinetunePlan, candidate: Candidate, listener: NamedListener) -> Path:
    """The training run of the rule; the run of mode `full` if the rule freezes no tensor."""
    if not candidate.frozen:
        return plan.run / "full"
    out = _folder(plan, candidate.rule)
    listener.begin(name_of(candidate.rule))
    waiting = steps_before(plan, candidate.rule)
    start = Modes(plan, candidate.decisions, waiting=waiting).start("freeze", out)
    return run_plan(plan.mode_plan("freeze", out), start, listener)


def steps_before(plan: FinetunePlan, rule: FreezeRule) -> int:
    """Number of steps in mode `freeze` before `rule` is applied."""
    config = plan.config
    by_name = rule.pattern is not None and config.profile_iterations is None
    return 0 if config.profile is not None or by_name else plan.profile_iterations


def _folder(plan: FinetunePlan, rule: FreezeRule) -> Path:
    waiting = steps_before(plan, rule)
    return plan.run / SWEPT / f"{name_of(rule)}{f'-after-{waiting}' if waiting else ''}"


def name_of(rule: FreezeRule) -> str:
    """`rule` as a part of its folder name."""
    if rule.pattern is not None:
        characters = (c if c.isalnum() or c in "._-" else "_" for c in rule.pattern)
        return "name-" + "".join(characters)
    if rule.change is not None:
        return f"{rule.scope}-change-below-{rule.change:g}"
    value = f"q{rule.quantile:g}" if rule.quantile is not None else f"{rule.threshold:g}"
    relative = "-relative" if rule.relative else ""
    return f"{rule.scope}-{rule.kind}{relative}-{value}"


def _line(plan: FinetunePlan, candidate: Candidate, run: Path) -> dict[str, object]:
    """The columns of SWEEPS except for `_RATIOS`."""
    rule, scores = candidate.rule, table(run / "test").iloc[0]
    names = SWEEPS[plan.entry.task][-3:]
    return {
        "scope": rule.scope if rule.pattern is None else "all",
        "threshold": rule.threshold,
        "quantile": rule.quantile,
        "change": rule.change,
        "pattern": rule.pattern,
        "frozen_share": candidate.share,
        AFTER_STEPS: steps_before(plan, rule),
        "statistic": None if rule.pattern is not None else rule.kind,
        "relative": int(rule.relative),
        CHOSEN_EPOCH: read_train_record(run).chosen_epoch,
        **{name: scores[name] for name in names},
    }
