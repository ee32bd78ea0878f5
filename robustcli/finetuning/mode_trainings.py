"""Runs a fine-tuning: one training per mode, from the same initial weights on the same data.

`--seeds N` runs all modes with every seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import pandas as pd
from torch import nn

from robustcli.core.errors import MachineError, RunError, UsageError
from robustcli.core.io import write_bytes
from robustcli.core.listener import Listener, NamedListener, Silent
from robustcli.core.ranks import Ranks, ranks
from robustcli.core.rundir import has_record
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.finetune_plan import (
    FinetunePlan,
    finetune_record,
    mode_differences,
    plan_finetuning,
)
from robustcli.finetuning.freezing import read_frozen, write_decisions
from robustcli.finetuning.gradients import write_profile
from robustcli.finetuning.modes import Modes, tested_network
from robustcli.finetuning.record import (
    DECISIONS,
    FINETUNING,
    PROFILE,
    PROFILING,
    FinetuneRecord,
    Mode,
)
from robustcli.finetuning.selection import Decision
from robustcli.finetuning.sweep import help_sweep, run_sweep
from robustcli.training.engine import run_plan
from robustcli.training.processes import (
    EndTraining,
    Peers,
    connected_processes,
    end_of_others,
    helped_run,
)
from robustcli.training.record import read_train_record
from robustcli.training.seed_runs import (
    OnFailure,
    SeedRuns,
    listener_of_first,
    run_seeds,
    seeds_beside,
)
from robustcli.training.side_by_side import (
    SeparateRun,
    announce_beside,
    devices_beside,
    run_beside,
)

_THERE = "the profile is there"
_ORDER: tuple[Mode, ...] = ("freeze", "scratch", "full", "lora")
"""Order of training. Modes that a rule can refuse after the profile come first, before modes that
train for hours."""


def run_finetuning(config: FinetuneConfig, listener: Listener | None = None) -> Path:
    """Runs the missing parts of the fine-tuning `config`; returns the run folder.

    Raises:
        UsageError: A named model, data set or file does not exist, options contradict each other,
            or no parameter would be left to train.
        RunError: Training failed; the checkpoints of the last finished epoch are kept.
    """
    parallel_modes = modes_beside(config)
    config = config if parallel_modes is None else parallel_modes.config
    return _run(lambda heard: plan_finetuning(config, heard), listener, parallel_modes)


@dataclass(frozen=True)
class ModesBeside:
    """Settings to train the modes in parallel, each in a separate process on one device.

    Args:
        count: Number of devices.
        config: The settings as typed, changed to one device; the process of a mode makes its plan
            from them.
    """

    count: int
    config: FinetuneConfig

    def for_seed(self, seed: int, out: Path) -> ModesBeside:
        """The settings for another seed, with the folder `out`."""
        return replace(self, config=self.config.for_seed(seed, out))


def modes_beside(config: FinetuneConfig) -> ModesBeside | None:
    """Settings to train the modes in parallel; None if there are fewer modes than devices.

    None also for one device, and for modes that an earlier version started on several devices
    each: these are resumed in the same way.
    """
    training = config.training
    count = devices_beside(training.device, training.devices, len(config.modes))
    begun = training.out is not None and not training.fresh and devices_begun(training.out) > 1
    if not count or begun:
        return None
    return ModesBeside(count, config.with_training(devices=1))


def devices_begun(run: Path) -> int:
    """Number of devices of each started mode of the fine-tuning in `run`; 1 without any."""
    begun = [run / mode for mode in _ORDER if has_record(run / mode)]
    return read_train_record(begun[0]).devices if begun else 1


def _run(
    make_plan: Callable[[Listener], FinetunePlan], listener: Listener | None,
    parallel_modes: ModesBeside | None,
) -> Path:  # fmt: skip
    process = ranks()
    of_modes = NamedListener((listener if process.first else None) or Silent())
    helped = helped_run()
    # A process started by the first one runs a single training and joins its process group.
    with connected_processes(Ranks() if helped is not None else process) as peers:
        plan, network, decisions, new = peers.together(
            lambda: _prepare(make_plan(of_modes)), lambda prepared: {}
        )
        modes = _modes(plan, network, decisions, of_modes)
        if helped is not None:
            _help_launched(plan, modes, network, helped)
        if not process.first:
            peers.receive()
            _help(plan, modes, peers)
        with FINETUNING.held(plan.run):
            FINETUNING.open(
                plan.run,
                new,
                fresh=plan.config.training.fresh,
                further_differences=partial(mode_differences, plan),
            )
            with FINETUNING.closing(plan.run):
                _lead(plan, modes, network, of_modes, peers, parallel_modes)
    return plan.run


def _prepare(
    plan: FinetunePlan,
) -> tuple[FinetunePlan, nn.Module, list[Decision] | None, FinetuneRecord]:
    """Tests the network, and makes the known decisions and the record, before writing any file."""
    network = tested_network(plan)
    decisions = plan.known_decisions(network)
    return plan, network, decisions, finetune_record(plan, network)


def _lead(
    plan: FinetunePlan, modes: Modes, network: nn.Module, listener: NamedListener, peers: Peers,
    parallel_modes: ModesBeside | None,
) -> None:  # fmt: skip
    """Runs all requested trainings, in the first process."""
    config, decisions = plan.config, modes.decisions
    if decisions is not None and "freeze" in config.modes:
        if plan.profile is not None:
            write_bytes(plan.run / PROFILE, plan.profile)
        write_decisions(plan.run / DECISIONS, decisions, network)
        plan.announce(decisions, listener.say)
    peers.send("train")
    if config.profile_only:
        _profile(plan, modes, listener, peers)
    if parallel_modes is not None:
        _train_beside(plan, listener, parallel_modes)
    else:
        for mode in _in_order(config):
            listener.begin(mode)
            _train(plan, modes, mode, listener, peers)
    if (plan.run / DECISIONS).is_file():
        frozen = read_frozen(plan.run / DECISIONS)
        FINETUNING.update(plan.run, saving=plan.saving(frozen, network))
    if config.sweep:
        run_sweep(plan, network, listener)


def _train_beside(plan: FinetunePlan, listener: NamedListener, parallel_modes: ModesBeside) -> None:
    """Trains the modes in parallel on several devices, each in a separate process.

    Raises:
        RunError: Some modes failed; the others are finished.
    """
    config = parallel_modes.config.with_training(out=plan.run, fresh=False)
    runs = [SeparateRun(f"mode {mode}", _train_mode, (config, mode)) for mode in _in_order(config)]
    announce_beside(parallel_modes.count, [run.name for run in runs], listener.say)
    failures: dict[str, Exception] = {}

    def failed(run: SeparateRun, error: Exception) -> None:
        if isinstance(error, UsageError | MachineError):  # these errors concern all modes
            raise error
        failures[run.name] = error
        listener.say(f"{run.name} failed; the other modes continue.")

    run_beside(runs, parallel_modes.count, config.training.device, listener, failed)
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        raise RunError(
            f"`{plan.run}` is incomplete: it lacks {', '.join(failures)}.",
            "\n".join(f"{name}: {error}" for name, error in failures.items()),
            "The same command continues the missing modes, each from its last finished epoch.",
        )


def _train_mode(config: FinetuneConfig, mode: Mode, device: str, listener: Listener) -> None:
    """Trains one mode on `device`; called in a separate process."""
    plan = plan_finetuning(config.with_training(device=device), Silent())
    _, network, decisions, _ = _prepare(plan)
    _train(plan, _modes(plan, network, decisions, listener), mode, listener, Peers(Ranks()))


def _in_order(config: FinetuneConfig) -> list[Mode]:
    return [mode for mode in _ORDER if mode in config.modes]


def _modes(
    plan: FinetunePlan, network: nn.Module, decisions: list[Decision] | None, listener: Listener
) -> Modes:
    """The modes of `plan`; the first process writes the profile and the decisions of a training."""

    def write_rows(rows: pd.DataFrame) -> None:
        if ranks().first:
            write_profile(plan.run / PROFILE, rows, plan.entry.name)

    def decided(decisions: Sequence[Decision]) -> None:
        if ranks().first:
            write_decisions(plan.run / DECISIONS, decisions, network)
            plan.announce(decisions, listener.say)

    return Modes(plan, decisions, write_rows, decided)


def _train(plan: FinetunePlan, modes: Modes, mode: Mode, listener: Listener, peers: Peers) -> None:
    out = plan.run / mode
    training = plan.mode_plan(mode, out)
    run_plan(training, modes.start(mode, out), listener, peers)
    if mode == "freeze" and not (plan.run / DECISIONS).is_file():
        listener.say(
            "Mode `freeze` froze no tensor: its training ended early (`--patience`), before the "
            f"end of the {plan.profile_iterations} profiled steps."
        )
    plan.task.export(training, listener.say)


def _profile(plan: FinetunePlan, modes: Modes, listener: NamedListener, peers: Peers) -> None:
    """Writes the profile of the first steps of full fine-tuning, and its freezing decisions."""
    if (plan.run / PROFILE).is_file() and (plan.run / DECISIONS).is_file():
        listener.say(f"The profile exists already: `{plan.run / PROFILE}`.")
        peers.send(_THERE)
        return
    peers.send("profile")
    listener.begin("profile")
    _train_until_profiled(plan, modes, listener, peers)
    shutil.rmtree(plan.run / PROFILING, ignore_errors=True)
    if not (plan.run / PROFILE).is_file():
        raise RunError(
            "No profile was written.",
            "The training ended early (`--patience`), before the end of the "
            f"{plan.profile_iterations} profiled steps.",
            "Omit `--patience`, or use fewer `--profile-iterations`.",
        )
    listener.begin("")


def _train_until_profiled(
    plan: FinetunePlan, modes: Modes, listener: Listener, peers: Peers | None
) -> None:
    with suppress(EndTraining):
        run_plan(plan.mode_plan("full", plan.run / PROFILING), modes.profiling(), listener, peers)


def _help(plan: FinetunePlan, modes: Modes, peers: Peers) -> NoReturn:
    """Takes part in the training in a torchrun process other than the first, then exits."""
    if not plan.config.profile_only:
        (mode,) = plan.config.modes
        _train(plan, modes, mode, Silent(), peers)
    elif peers.receive() != _THERE:
        _train_until_profiled(plan, modes, Silent(), peers)
    end_of_others()


def _help_launched(plan: FinetunePlan, modes: Modes, network: nn.Module, helped: Path) -> NoReturn:
    """Takes part in the training of `helped`, in a process started by `launched`; then exits."""
    run = plan.run.absolute()
    if helped == run / PROFILING:
        _train_until_profiled(plan, modes, Silent(), None)
        end_of_others()
    for mode in _in_order(plan.config):
        if helped == run / mode:
            out = plan.run / mode
            run_plan(plan.mode_plan(mode, out), modes.start(mode, out))
    if plan.config.sweep:
        help_sweep(plan, network, helped)
    end_of_others()


def finetune_seeds(
    config: FinetuneConfig, listener: Listener | None = None, on_failure: OnFailure | None = None
) -> Path:
    """Fine-tunes with `config.training.seeds` seeds, counted from `config.training.seed`.

    Returns:
        The common folder, with the runs RUN/seed-0/MODE, RUN/seed-1/MODE, ...

    Raises:
        UsageError: A named model, data set or file does not exist, or options contradict each
            other.
        SeedsError: Some seeds failed; all others are finished.
    """
    check_scores(config)
    parallel_seeds = seeds_beside(config.training, devices_begun)
    modes = None if parallel_seeds else modes_beside(config)
    if parallel_seeds or modes is not None:
        config = config.with_training(devices=1)
    plan = plan_finetuning(config, listener_of_first(listener))

    def start(seed: int, out: Path, heard: Listener) -> None:
        of_seed = None if modes is None else modes.for_seed(seed, out)
        _run(lambda _: plan.for_seed(seed, out), heard, of_seed)

    def separately(seed: int, out: Path) -> SeparateRun:
        return SeparateRun(f"seed {seed}", _tune_seed, (config, seed, out))

    def differences(seed: int, out: Path) -> Iterator[str]:
        seed_plan = plan.for_seed(seed, out)
        old, new = FINETUNING.read(out), finetune_record(seed_plan, seed_plan.trial_network())
        yield from FINETUNING.differences(old, new)
        yield from mode_differences(seed_plan, old)

    fresh = config.training.fresh
    runs = SeedRuns(
        plan.run, "finetune", FINETUNING, plan.training, fresh, start, differences, separately,
        parallel_seeds,
    )  # fmt: skip
    return run_seeds(runs, listener, on_failure)


def _tune_seed(
    config: FinetuneConfig, seed: int, out: Path, device: str, listener: Listener
) -> None:
    """Fine-tunes with one seed on `device`; called in a separate process."""
    plan = plan_finetuning(config.with_training(device=device), Silent()).for_seed(seed, out)
    _run(lambda _: plan, listener, None)


def check_scores(config: FinetuneConfig) -> None:
    """Raises UsageError if no mode is trained, because the seeds would have no scores."""
    if config.profile_only:
        raise UsageError(
            "`--seeds` and `--profile-only` exclude each other.",
            "A profile has no score to average over seeds.",
            "Omit one of them.",
        )
