"""Fine-tuning: one training per mode, from the same start and over the same data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NoReturn

import pandas as pd
from torch import nn

from robustcli.core.listener import Listener, Silent
from robustcli.core.ranks import Ranks, ranks
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.decide import (
    frozen_names,
    keep_known,
    known_decisions,
    saving_of,
    tell,
    write_decisions,
)
from robustcli.finetuning.gradients import write_profile
from robustcli.finetuning.modes import ModeListener, Modes
from robustcli.finetuning.record import (
    DECISIONS,
    FINETUNING,
    PROFILE,
    PROFILING,
    FinetuneRecord,
    Mode,
    SavingRecord,
)
from robustcli.finetuning.selection import Decision
from robustcli.finetuning.setup import Setup, finetune_record, mode_differences, set_up, started
from robustcli.finetuning.sweep import help_sweep, run_sweep
from robustcli.training.engine import run_training
from robustcli.training.processes import Peers, end_of_others, helped_run, meeting
from robustcli.training.task import Enough
from robustcli.training.trial import try_out

_THERE = "the profile is there"
_ORDER: tuple[Mode, ...] = ("freeze", "scratch", "full", "lora")
"""What may be refused, once its profile is there, comes before hours of what is not."""


def run_finetuning(config: FinetuneConfig, listener: Listener | None = None) -> Path:
    """Does what `config` asks for, as far as it is not there yet; returns the run's folder.

    Args:
        config: The settings.
        listener: Who hears of the progress.

    Raises:
        UsageError: Something named does not exist or does not fit together, or nothing would be
            left to train.
        RunError: Training failed; the checkpoints of the last finished epoch are kept.
    """
    place = ranks()
    heard = ModeListener((listener if place.first else None) or Silent())
    helped = helped_run()
    # A process that the first one started comes for one training, and meets the others there.
    with meeting(Ranks() if helped is not None else place) as peers:
        setup, network, decisions, new = peers.together(
            lambda: _prepare(config, heard), lambda prepared: {}
        )
        modes = Modes(
            setup, decisions, partial(_profiled, setup), partial(_decided, setup, network, heard)
        )
        if helped is not None:
            _help_launched(setup, modes, network, helped)
        if not place.first:
            peers.hear()
            _help(setup, modes, peers)
        with FINETUNING.held(setup.run):
            FINETUNING.open(
                setup.run, new, fresh=config.training.fresh, more=partial(mode_differences, setup)
            )
            with FINETUNING.closing(setup.run):
                _lead(setup, modes, network, heard, peers)
    return setup.run


def _prepare(
    config: FinetuneConfig, heard: ModeListener
) -> tuple[Setup, nn.Module, list[Decision] | None, FinetuneRecord]:
    """Everything looked up, and nothing written yet."""
    setup = set_up(config, heard)
    network, _ = setup.network(started(setup))
    try_out(setup.selection, network, setup.config.training.model_args)
    decisions = known_decisions(setup, network)
    return setup, network, decisions, finetune_record(setup, network)


def _lead(
    setup: Setup, modes: Modes, network: nn.Module, heard: ModeListener, peers: Peers
) -> None:
    """All that was asked for, in the first process."""
    config, decisions = setup.config, modes.decisions
    if decisions is not None and "freeze" in config.modes:
        keep_known(setup, decisions, network)
        tell(decisions, setup, network, heard.say)
    peers.tell("train")
    if config.profile_only:
        _profile(setup, modes, heard, peers)
    for mode in _in_order(config):
        heard.begin(mode)
        _train(setup, modes, mode, heard, peers)
    _count_saving(setup, network)
    if config.sweep:
        run_sweep(setup, network, heard)


def _in_order(config: FinetuneConfig) -> list[Mode]:
    return [mode for mode in _ORDER if mode in config.modes]


def _profiled(setup: Setup, rows: pd.DataFrame) -> None:
    if ranks().first:
        write_profile(setup.run / PROFILE, rows, setup.entry.name)


def _decided(
    setup: Setup, network: nn.Module, heard: ModeListener, decisions: Sequence[Decision]
) -> None:
    if ranks().first:
        write_decisions(setup.run / DECISIONS, decisions, network)
        tell(decisions, setup, network, heard.say)


def _train(setup: Setup, modes: Modes, mode: Mode, heard: Listener, peers: Peers) -> None:
    out = setup.run / mode
    shared = None if peers.alone else peers
    run_training(setup.training(mode, out), heard, modes.tuning(mode, out), shared)
    setup.kind.export(setup.config.training, setup.selection, out)


def _profile(setup: Setup, modes: Modes, heard: ModeListener, peers: Peers) -> None:
    """Leaves the profile of the first steps of full fine-tuning, and what it decides."""
    if (setup.run / PROFILE).is_file() and (setup.run / DECISIONS).is_file():
        heard.say(f"The profile is there: `{setup.run / PROFILE}`.")
        peers.tell(_THERE)
        return
    peers.tell("profile")
    heard.begin("profile")
    out = setup.run / PROFILING
    shared = None if peers.alone else peers
    with suppress(Enough):
        run_training(setup.training("full", out), heard, modes.profiling(), shared)
    shutil.rmtree(out, ignore_errors=True)
    heard.begin("")


def _count_saving(setup: Setup, network: nn.Module) -> None:
    """Adds to the record what the frozen tensors save by count."""
    if (setup.run / DECISIONS).is_file():
        saved = saving_of(setup, frozen_names(setup.run), network)
        FINETUNING.update(setup.run, saving=SavingRecord(**asdict(saved)))


def _help(setup: Setup, modes: Modes, peers: Peers) -> NoReturn:
    """Computes in a process of torchrun that is not the first; it ends with its one training."""
    if setup.config.profile_only:
        if peers.hear() != _THERE:
            _help_profiling(setup, modes, peers)
        end_of_others()
    (mode,) = setup.config.modes
    _train(setup, modes, mode, Silent(), peers)
    end_of_others()


def _help_launched(setup: Setup, modes: Modes, network: nn.Module, helped: Path) -> NoReturn:
    """Computes in a process that the first one started for the training into `helped`."""
    run = setup.run.absolute()
    if helped == run / PROFILING:
        _help_profiling(setup, modes, None)
        end_of_others()
    for mode in _in_order(setup.config):
        if helped == run / mode:
            out = setup.run / mode
            run_training(setup.training(mode, out), None, modes.tuning(mode, out))
    if setup.config.sweep:
        help_sweep(setup, network, helped)
    end_of_others()


def _help_profiling(setup: Setup, modes: Modes, peers: Peers | None) -> None:
    with suppress(Enough):
        run_training(setup.training("full", setup.run / PROFILING), None, modes.profiling(), peers)
