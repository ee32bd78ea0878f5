"""The training itself: prepare, train what is missing, choose weights, measure them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
from torch import nn

from robustcli.adapters.start import start_weights
from robustcli.core.errors import UsageError
from robustcli.data.pairs import PairIndex
from robustcli.evaluation.device import DeviceMonitor
from robustcli.evaluation.listener import Listener, Silent
from robustcli.training.accounts import count_costs, count_splits
from robustcli.training.assembly import make_data, make_module
from robustcli.training.batches.cache import Decoded, decoded_once
from robustcli.training.batches.loaders import Part
from robustcli.training.config import TrainConfig
from robustcli.training.describe import train_record
from robustcli.training.finish import (
    chosen_weights,
    evaluate_held_out,
    save_weights,
    score_as_the_paper,
)
from robustcli.training.fit import fit, is_trained
from robustcli.training.module import SegmentationModule
from robustcli.training.opening import alone, closing, open_training, update
from robustcli.training.prepare import Selection, select
from robustcli.training.processes import (
    await_first,
    end_of_others,
    is_first,
    leave_group,
    release_others,
)
from robustcli.training.record import read_train_record
from robustcli.training.trainer import make_trainer
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
    network, origin = _start(config) if tuning is None else tuning.start()
    callbacks = () if tuning is None else tuning.callbacks(network)
    run = selection.run
    if not is_first():
        await_first(run)
        _train(config, selection, network, listener, callbacks)
        end_of_others()
    new = train_record(config, selection, network, origin)
    with alone(run):
        if open_training(run, new, fresh=config.fresh):
            with closing(run):
                module = _train(config, selection, network, listener, callbacks)
                leave_group()
                _finish(config, selection, module, listener, tuning)
        else:
            listener.say(f"`{run}` is finished: nothing is left to do.")
    return run


def _start(config: TrainConfig) -> tuple[nn.Module, str]:
    return start_weights(
        config.model, config.weights, config.untrained, config.offline, config.seed,
        config.model_args,
    )  # fmt: skip


def _train(
    config: TrainConfig, selection: Selection, network: nn.Module, listener: Listener,
    callbacks: Sequence[pl.Callback],
) -> SegmentationModule:  # fmt: skip
    """The trained network; every process of the run does this."""
    splits, recipe, run = selection.splits, selection.recipe, selection.run
    held = (*splits.train.pairs, *splits.val.pairs)
    count = len(splits.train.pairs)
    with (
        decoded_once(held, run / "cache", processes=selection.on.devices) as decoded,
        DeviceMonitor(selection.on.device) as monitor,
    ):
        train, val = _part(splits.train, decoded[:count]), _part(splits.val, decoded[count:])
        _check_foreground(splits.train, train.decoded)
        if is_first():
            count_splits(selection, train, val)
            release_others(run)
        data = make_data(config, selection, train, val)
        module = make_module(selection, network, data)
        if not is_trained(run, recipe.epochs):
            fit(_trainer(config, selection, listener, callbacks), module, data, run)
        if is_first():
            count_costs(run, monitor)
    return module


def _trainer(
    config: TrainConfig, selection: Selection, listener: Listener, callbacks: Sequence[pl.Callback]
) -> pl.Trainer:
    return make_trainer(
        selection.run, selection.recipe, selection.on, seed=config.seed, best=not selection.whole,
        per_epoch=selection.per_epoch, listener=listener, extra=callbacks,
    )  # fmt: skip


def _part(index: PairIndex, decoded: Sequence[Decoded]) -> Part:
    return Part([pair.image_id for pair in index.pairs], decoded)


def _check_foreground(train: PairIndex, decoded: Sequence[Decoded]) -> None:
    if not any(one.mask.any() for one in decoded):
        raise UsageError(
            f"None of the {len(decoded)} training images of `{train.name}` has any foreground.",
            "From empty masks a network learns to find nothing.",
            "Name other data, a larger `--limit`, or another `--seed`.",
        )


def _finish(
    config: TrainConfig, selection: Selection, module: SegmentationModule, listener: Listener,
    tuning: Tuning | None,
) -> None:  # fmt: skip
    """Chooses the weights and measures them on the held-out images."""
    chosen = chosen_weights(selection.run, best=not selection.whole)
    plain = chosen if tuning is None else replace(chosen, state=tuning.export(chosen.state))
    digest = save_weights(config, selection, module, plain)
    if read_train_record(selection.run).weights_sha256 not in (None, digest):
        shutil.rmtree(selection.run / "test", ignore_errors=True)  # of the weights before
    update(
        selection.run,
        chosen_epoch=chosen.epoch,
        chosen_why=chosen.why,
        weights_sha256=digest,
    )
    if selection.whole:
        module.network.load_state_dict(chosen.state)
        score_as_the_paper(selection, module)
    evaluate_held_out(config, selection, listener)
