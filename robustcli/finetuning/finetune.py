"""Fine-tuning: one training per mode, from the same start and over the same data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from robustcli.evaluation.listener import Listener, Silent
from robustcli.evaluation.record import FILE_NAME
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.decide import (
    frozen_names,
    keep_known,
    known_decisions,
    saving_of,
    tell,
)
from robustcli.finetuning.decisions_file import write_decisions
from robustcli.finetuning.mode_listener import ModeListener
from robustcli.finetuning.mode_tuning import Enough, Modes
from robustcli.finetuning.opening import (
    PROFILING,
    amend,
    closing,
    finetune_record,
    open_finetuning,
)
from robustcli.finetuning.profile_file import write_profile
from robustcli.finetuning.record import DECISIONS, PROFILE, Mode, SavingRecord
from robustcli.finetuning.selection import Decision
from robustcli.finetuning.setup import Setup, set_up, started
from robustcli.finetuning.sweep import run_sweep
from robustcli.training.opening import alone
from robustcli.training.processes import (
    end_of_others,
    environment_kept,
    is_first,
    leave_group,
)
from robustcli.training.record import read_train_record
from robustcli.training.train import run_training
from robustcli.training.trial import try_out

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
    heard = ModeListener((listener if is_first() else None) or Silent())
    setup = set_up(config, heard)
    network, _ = setup.network(started(setup))
    try_out(setup.selection, network, setup.config.training.model_args)
    decisions = known_decisions(setup, network)
    modes = Modes(
        setup, decisions, partial(_profiled, setup), partial(_decided, setup, network, heard)
    )
    if not is_first():
        _help(setup, modes)
    new = finetune_record(setup, network)
    with alone(setup.run):
        open_finetuning(setup, new)
        with closing(setup.run):
            if config.profile_only:
                _profile(setup, modes, heard)
            elif decisions is not None and "freeze" in config.modes:
                keep_known(setup, decisions, network)
                tell(decisions, setup, network, heard.say)
            for mode in _in_order(config):
                heard.begin(mode)
                _train(setup, modes, mode, heard)
            _count_saving(setup, network)
            if config.sweep:
                run_sweep(setup, network, heard)
    return setup.run


def _in_order(config: FinetuneConfig) -> list[Mode]:
    return [mode for mode in _ORDER if mode in config.modes]


def _profiled(setup: Setup, rows: pd.DataFrame) -> None:
    if is_first():
        write_profile(setup.run / PROFILE, rows, setup.entry.name)


def _decided(
    setup: Setup, network: nn.Module, heard: ModeListener, decisions: Sequence[Decision]
) -> None:
    if is_first():
        write_decisions(setup.run / DECISIONS, decisions, network)
        tell(decisions, setup, network, heard.say)


def _train(setup: Setup, modes: Modes, mode: Mode, heard: Listener) -> None:
    out = setup.run / mode
    with environment_kept():
        run_training(setup.training(mode, out), heard, modes.tuning(mode, out))
    setup.kind.export(setup.config.training, setup.selection, out)


def _profile(setup: Setup, modes: Modes, heard: ModeListener) -> None:
    """Leaves the profile of the first steps of full fine-tuning, and what it decides."""
    if (setup.run / PROFILE).is_file() and (setup.run / DECISIONS).is_file():
        heard.say(f"The profile is there: `{setup.run / PROFILE}`.")
        return
    heard.begin("profile")
    out = setup.run / PROFILING
    try:
        run_training(setup.training("full", out), heard, modes.profiling())
    except Enough:
        leave_group()
    shutil.rmtree(out, ignore_errors=True)
    heard.begin("")


def _count_saving(setup: Setup, network: nn.Module) -> None:
    """Adds to the record what the frozen tensors save by count."""
    if (setup.run / DECISIONS).is_file():
        saved = saving_of(setup, frozen_names(setup.run), network)
        amend(setup.run, saving=SavingRecord(**asdict(saved)))


def _help(setup: Setup, modes: Modes) -> None:
    """Computes in a process that is not the first, which started it for one training; it ends."""
    config = setup.config
    if config.profile_only:
        try:
            run_training(setup.training("full", setup.run / PROFILING), None, modes.profiling())
        except Enough:
            end_of_others()
    _train(setup, modes, next(m for m in _in_order(config) if _is_left(setup, m)), Silent())


def _is_left(setup: Setup, mode: Mode) -> bool:
    record = setup.run / mode / FILE_NAME
    return not record.is_file() or read_train_record(record.parent).status != "complete"
