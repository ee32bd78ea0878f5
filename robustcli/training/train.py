"""The training itself: prepare, train what is missing, choose weights, measure them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
from torch import nn

from robustcli.core.errors import errors_of
from robustcli.evaluation.device import DeviceMonitor
from robustcli.evaluation.listener import Listener, Silent
from robustcli.training.accounts import count_costs, count_splits
from robustcli.training.batches.cache import decoded_once
from robustcli.training.config import TrainConfig
from robustcli.training.describe import train_record
from robustcli.training.finish import chosen_weights, save_weights
from robustcli.training.fit import fit, is_trained
from robustcli.training.learning import Learner
from robustcli.training.opening import alone, closing, open_training, update
from robustcli.training.prepare import select
from robustcli.training.processes import (
    await_first,
    end_of_others,
    is_first,
    leave_group,
    release_others,
)
from robustcli.training.record import read_train_record
from robustcli.training.task import Selection
from robustcli.training.trainer import make_trainer
from robustcli.training.trial import try_out
from robustcli.training.tuning import Tuning


def run_training(
    config: TrainConfig, listener: Listener | None = None, tuning: Tuning | None = None
) -> Path:
    """Trains what `config` asks for, as far as it is not there yet; returns the run's folder.

    Args:
        config: The settings.
        listener: Who hears of the progress.
        tuning: What fine-tuning does otherwise; None for a plain training.

    Raises:
        UsageError: Something named does not exist or does not fit together.
        RunError: Training failed; the checkpoints of the last finished epoch are kept.
    """
    listener = (listener if is_first() else None) or Silent()
    selection = select(config, listener)
    network, origin = _start(config, selection) if tuning is None else tuning.start()
    try_out(selection, network, config.model_args)
    callbacks = () if tuning is None else tuning.callbacks(network)
    run = selection.run
    if not is_first():
        await_first(run)
        with errors_of(run):
            _train(config, selection, network, listener, callbacks)
        end_of_others()
    new = train_record(config, selection, network, origin)
    with alone(run):
        if open_training(run, new, fresh=config.fresh):
            with closing(run):
                learner = _train(config, selection, network, listener, callbacks)
                leave_group()
                _finish(config, selection, learner, listener, tuning)
        else:
            listener.say(f"`{run}` is finished: nothing is left to do.")
    return run


def _start(config: TrainConfig, selection: Selection) -> tuple[nn.Module, str]:
    return selection.task.network(config, selection.index)


def _train(
    config: TrainConfig, selection: Selection, network: nn.Module, listener: Listener,
    callbacks: Sequence[pl.Callback],
) -> Learner:  # fmt: skip
    """The trained network; every process of the run does this."""
    task, splits, run = selection.task, selection.splits, selection.run
    held = (*splits.train.members, *splits.val.members)
    count = len(splits.train.members)
    with (
        decoded_once(held, run / "cache", task.decode, processes=selection.on.devices) as decoded,
        DeviceMonitor(selection.on.device) as monitor,
    ):
        train, val = decoded[:count], decoded[count:]
        if is_first():
            count_splits(selection, train, val)
            release_others(run)
        data = task.batches(config, selection, train, val)
        learner = task.learner(selection, network, data)
        if not is_trained(run, selection.recipe.epochs):
            fit(_trainer(config, selection, listener, callbacks), learner, data, run)
        if is_first():
            count_costs(run, monitor)
    return learner


def _trainer(
    config: TrainConfig, selection: Selection, listener: Listener, callbacks: Sequence[pl.Callback]
) -> pl.Trainer:
    return make_trainer(
        selection.run, selection.recipe, selection.on, seed=config.seed, best=not selection.whole,
        per_epoch=selection.per_epoch, listener=listener, validation=selection.task.validation,
        monitor=selection.monitor, extra=callbacks,
    )  # fmt: skip


def _finish(
    config: TrainConfig, selection: Selection, learner: Learner, listener: Listener,
    tuning: Tuning | None,
) -> None:  # fmt: skip
    """Chooses the weights and measures them on the held-out images."""
    chosen = chosen_weights(selection.run, best=not selection.whole)
    plain = chosen if tuning is None else replace(chosen, state=tuning.export(chosen.state))
    digest = save_weights(config, selection, learner, plain)
    if read_train_record(selection.run).weights_sha256 not in (None, digest):
        shutil.rmtree(selection.run / "test", ignore_errors=True)  # of the weights before
    update(
        selection.run,
        chosen_epoch=chosen.epoch,
        chosen_why=chosen.why,
        weights_sha256=digest,
    )
    selection.task.measure(config, selection, learner, chosen.state, listener)
