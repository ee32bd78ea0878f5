"""Runs a training: fits what is missing, chooses the weights, measures them on held-out images."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import numpy as np
from torch import nn

from robustcli import __version__
from robustcli.core.listener import Listener, Silent
from robustcli.core.ranks import Ranks, as_single_process, ranks
from robustcli.data.splits import write_splits
from robustcli.evaluation.device import DeviceMonitor
from robustcli.training.cache import Stored, decoded_once
from robustcli.training.config import TrainConfig
from robustcli.training.finish import chosen_weights, save_weights
from robustcli.training.lit_module import LitModule
from robustcli.training.processes import Peers, end_of_others, launched, meeting
from robustcli.training.record import TRAINING, TrainRecord
from robustcli.training.run_record import train_record
from robustcli.training.train_plan import plan_training
from robustcli.training.trainer import fit, is_trained, make_trainer
from robustcli.training.training_task import TrainPlan, Tuning
from robustcli.training.trial import try_out

# How much memory a training took.


def peak_bytes() -> int:
    """The most that this process has had in memory so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# What the record counts during a training: images of each subset, memory and energy.


def count_splits(plan: TrainPlan, train: Sequence[Any], val: Sequence[Any]) -> None:
    """Writes which image is in which part, and counts them in the record.

    Args:
        plan: With the subsets.
        train: The decoded images of the training part.
        val: Those of the validation part.
    """
    counts = plan.task.counts(plan, train, val)
    write_splits(plan.run / "splits.csv", plan.splits)
    TRAINING.update(plan.run, splits=counts)


def count_costs(run: Path, monitor: DeviceMonitor) -> None:
    """Adds what this process used to what those before it did: peak memory and energy."""
    before, use = TRAINING.read(run), monitor.use()
    peak = peak_bytes() if use is None else use.peak_memory_bytes
    energy = None if use is None else use.energy_joules
    TRAINING.update(
        run,
        peak_memory_bytes=max(peak, before.peak_memory_bytes or 0),
        energy_joules=_sum(before.energy_joules, energy),
    )


def _sum(before: float | None, now: float | None) -> float | None:
    return now if before is None else before + (now or 0.0)


_NOTHING, _TRAIN = "nothing is left to train", "train"  # what the first process tells the others


@dataclass(frozen=True)
class _Prepared:
    """A training that may begin.

    Args:
        plan: What was asked for, looked up.
        tuning: What a fine-tuning changes.
        network: With the weights that it starts from.
        callbacks: Of fine-tuning.
        record: What `run.json` says of it.
    """

    plan: TrainPlan
    tuning: Tuning
    network: nn.Module
    callbacks: Sequence[pl.Callback]
    record: TrainRecord

    @property
    def facts(self) -> dict[str, str]:
        """What has to be the same in all processes, by what a user calls it."""
        record = self.record
        recipe = record.recipe.model_dump_json() + json.dumps(record.arguments)
        return {
            "version of `robustcli`": __version__,
            "version of Python": platform.python_version(),
            **{f"version of `{name}`": text for name, text in record.versions.items()},
            "model": record.model,
            "settings": f"settings {hashlib.sha256(recipe.encode()).hexdigest()[:16]}",
            "seed": str(record.seed),
            "list of images": f"{record.dataset.images} images, {record.dataset.digest[:16]}",
            "weights to start from": f"weights {record.initial_weights_sha256[:16]}",
        }


def run_training(config: TrainConfig, listener: Listener | None = None) -> Path:
    """Trains what `config` asks for, as far as it is not there yet; returns the run's folder.

    Args:
        config: The settings.
        listener: Who hears of the progress.

    Raises:
        UsageError: Something named does not exist or does not fit together.
        RunError: Training failed; the checkpoints of the last finished epoch are kept.
        SystemExit: In a process that is not the first, which has nothing else to do.
    """
    place = ranks()
    listener = (listener if place.first else None) or Silent()
    with meeting(place) as peers:
        prepared = peers.together(
            lambda: _prepare(plan_training(config, listener), Tuning()), lambda one: one.facts
        )
        return _run(prepared, listener, peers)


def train(
    plan: TrainPlan, tuning: Tuning, listener: Listener | None = None, peers: Peers | None = None
) -> Path:
    """Trains as `plan` and `tuning` say; see `run_training`.

    Args:
        plan: The training.
        tuning: What a fine-tuning changes.
        listener: Who hears of the progress.
        peers: The processes of this job, where they have met already.
    """
    place = ranks()
    listener = (listener if place.first else None) or Silent()
    with nullcontext(peers) if peers is not None else meeting(place) as met:
        prepared = met.together(lambda: _prepare(plan, tuning), lambda one: one.facts)
        return _run(prepared, listener, met)


def _prepare(plan: TrainPlan, tuning: Tuning) -> _Prepared:
    """The network with its weights, tried out; nothing is written yet."""
    network, origin = tuning.start(plan)
    try_out(plan, network)
    record = train_record(plan, network, origin)
    return _Prepared(plan, tuning, network, tuning.callbacks(network), record)


def _run(prepared: _Prepared, listener: Listener, peers: Peers) -> Path:
    """Opens the run's folder, trains, chooses weights and measures them, in the first process."""
    if not peers.place.first:
        _help(peers, prepared)
    run = prepared.plan.run
    with TRAINING.held(run):
        record = TRAINING.open(run, prepared.record, fresh=prepared.plan.config.fresh)
        if record.status == "complete":
            peers.tell(_NOTHING)
            listener.say(f"`{run}` is finished: nothing is left to do.")
            return run
        with TRAINING.closing(run):
            lit_module = _trained(peers, prepared, listener)
            peers.leave()
            with as_single_process():
                _finish(prepared, lit_module, listener)
    return run


def _help(peers: Peers, prepared: _Prepared) -> NoReturn:
    """Computes what the first process tells, and ends this one."""
    if peers.hear() == _TRAIN:
        _train(peers, prepared, Silent(), fitted=False)
    end_of_others()


def _trained(peers: Peers, prepared: _Prepared, listener: Listener) -> LitModule:
    """The trained network, in the first process."""
    plan = prepared.plan
    if is_trained(plan.run, plan.recipe.epochs):
        peers.tell(_NOTHING)
        return _train(Peers(Ranks()), prepared, listener, fitted=True)
    if peers.alone and plan.machine.world > 1:
        with launched(plan.machine.devices, plan.run) as peers:
            peers.together(lambda: prepared, lambda prepared: prepared.facts)
            peers.tell(_TRAIN)
            return _train(peers, prepared, listener, fitted=False)
    peers.tell(_TRAIN)
    return _train(peers, prepared, listener, fitted=False)


def _train(peers: Peers, prepared: _Prepared, listener: Listener, *, fitted: bool) -> LitModule:
    """The trained network; every process of the run does this, unless it is `fitted` already."""
    plan = prepared.plan
    task, splits, run, machine = plan.task, plan.splits, plan.run, plan.machine
    members = (*splits.train.samples, *splits.val.samples)
    count = len(splits.train.samples)
    first = peers.place.first
    with (
        decoded_once(members, run / "cache", task.decode, processes=machine.devices) as decoded,
        DeviceMonitor(machine.device) as monitor,
    ):
        train, val = decoded[:count], decoded[count:]

        def look_at() -> list[Any]:
            if first:
                count_splits(plan, train, val)
            return decoded

        peers.together(look_at, lambda decoded: {"pixels": _digest(decoded)})
        data = task.batches(plan, train, val)
        lit_module = task.lit_module(plan, prepared.network, data)
        if not fitted:
            with peers.in_group(machine.device):
                fit(_trainer(prepared, peers.place, listener), lit_module, data, run)
        if first:
            count_costs(run, monitor)
    return lit_module


def _digest(decoded: Sequence[Stored]) -> str:
    """Hash of the decoded images, by which several machines know that theirs are the same."""
    found = hashlib.sha256()
    for one in decoded:
        for array in one.arrays:
            found.update(repr(array.shape).encode())
            found.update(np.ascontiguousarray(array).data)
    return f"images {found.hexdigest()[:16]}"


def _trainer(prepared: _Prepared, place: Ranks, listener: Listener) -> pl.Trainer:
    plan = prepared.plan
    return make_trainer(
        plan.run, plan.recipe, plan.machine, place, seed=plan.config.seed,
        best=plan.procedure.keeps_best, per_epoch=plan.per_epoch, listener=listener,
        validation=plan.task.validation, monitor=plan.monitor, extra=prepared.callbacks,
    )  # fmt: skip


def _finish(prepared: _Prepared, lit_module: LitModule, listener: Listener) -> None:
    """Chooses the weights and measures them on the held-out images."""
    plan = prepared.plan
    chosen = chosen_weights(plan.run, best=plan.procedure.keeps_best)
    plain = replace(chosen, state=prepared.tuning.export(chosen.state))
    digest = save_weights(plan, lit_module, plain)
    if TRAINING.read(plan.run).weights_sha256 not in (None, digest):
        shutil.rmtree(plan.run / "test", ignore_errors=True)  # of the weights before
    TRAINING.update(
        plan.run, chosen_epoch=chosen.epoch, chosen_why=chosen.why, weights_sha256=digest
    )
    plan.task.measure(plan, lit_module, chosen.state, listener)
