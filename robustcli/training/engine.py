"""Runs a training: trains the missing epochs, selects the weights, scores the held-out images."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from robustcli import __version__
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.training_run import WEIGHTS, write_weights
from robustcli.core.errors import RunError, UsageError
from robustcli.core.io import remove_folder
from robustcli.core.listener import Listener, Silent
from robustcli.core.names import counted
from robustcli.core.ranks import Ranks, as_single_process, environment, ranks
from robustcli.core.watchdog import watching_threads
from robustcli.data.mask_values import UNSCORED
from robustcli.data.splits import EARLIER_SPLITS, write_earlier_splits, write_splits
from robustcli.evaluation.device import DeviceMonitor
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import Decoded, DecodedSubset, decoded_once
from robustcli.training.lit_module import LitModule
from robustcli.training.procedures.base import Procedure
from robustcli.training.processes import Peers, connected_processes, end_of_others, launched
from robustcli.training.record import AVERAGED, TRAINING, VALIDATIONS, TrainRecord
from robustcli.training.train_plan import plan_training, train_record, try_out
from robustcli.training.trainer import (
    BEST,
    CHECKPOINT_FOLDER,
    LAST,
    DurableCheckpoints,
    KeepLastAndBest,
    MetricsLog,
    SeededSteps,
    TrainProgress,
    WaitingTime,
    described_checkpoint,
    fit_run,
    is_trained,
    without_chatter,
)
from robustcli.training.training_task import TrainPlan, TrainStart

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_DDP = "ddp_find_unused_parameters_true"  # UMambaBot has 451 parameters that no output depends on
_PREFIX, _AVERAGED_PREFIX = "network.", "averaged.module."
_BY_DICE = VALIDATIONS["seg"].score
_WHY = {
    validation.score: f"the best {validation.word} {{}}" for validation in VALIDATIONS.values()
} | {AVERAGED: "the best moving average of the dice on validation patches"}
_NOTHING, _TRAIN = "no network is left to train", "train"  # sent by the first process


@dataclass(frozen=True)
class _Prepared:
    """A checked training: its plan, its initial network and callbacks, and its `run.json`."""

    plan: TrainPlan
    start: TrainStart
    record: TrainRecord

    @property
    def facts(self) -> dict[str, str]:
        """Values that must be equal in all processes, by their name in messages."""
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
    """Trains the missing epochs of the training `config`; returns the run folder.

    Raises:
        UsageError: A named model, data set or recipe does not exist, or options contradict each
            other.
        RunError: Training failed; the checkpoints of the last finished epoch are kept.
        SystemExit: In every process but the first, after its part of the training.
    """
    process = ranks()
    listener = (listener if process.first else None) or Silent()

    def prepare() -> _Prepared:
        plan = plan_training(config, listener)
        return _prepare(plan, plan.task.start(plan))

    with connected_processes(process) as peers:
        return _run(peers.together(prepare, lambda prepared: prepared.facts), listener, peers)


def run_plan(
    plan: TrainPlan, start: TrainStart, listener: Listener | None = None,
    peers: Peers | None = None,
) -> Path:  # fmt: skip
    """Trains by `plan` from `start`; see `run_training`."""
    process = ranks()
    listener = (listener if process.first else None) or Silent()
    with (
        nullcontext(peers)
        if peers is not None and not peers.alone
        else connected_processes(process) as group
    ):
        prepared = group.together(lambda: _prepare(plan, start), lambda prepared: prepared.facts)
        return _run(prepared, listener, group)


def _prepare(plan: TrainPlan, start: TrainStart) -> _Prepared:
    """Tests a training step of the network, before any file is written."""
    try_out(plan, start.network)
    return _Prepared(plan, start, train_record(plan, start.network, start.origin))


def _run(prepared: _Prepared, listener: Listener, peers: Peers) -> Path:
    """Opens the run folder, trains, selects and scores the weights, in the first process."""
    if not peers.process.first:
        _help(peers, prepared)
    run = prepared.plan.run
    with TRAINING.held(run):
        record = TRAINING.open(run, prepared.record, fresh=prepared.plan.config.fresh)
        if record.status == "complete":
            peers.send(_NOTHING)
            listener.say(f"`{run}` is already finished.")
            return run
        with TRAINING.closing(run):
            lit_module = _trained(peers, prepared, listener)
            peers.stop_monitoring()
            with as_single_process():
                _finish(prepared, lit_module, listener)
    return run


def _help(peers: Peers, prepared: _Prepared) -> NoReturn:
    """Trains if the first process requests it, then exits this process."""
    if peers.receive() == _TRAIN:
        _train(peers, prepared, Silent(), fitted=False)
    end_of_others()


def _trained(peers: Peers, prepared: _Prepared, listener: Listener) -> LitModule:
    """Trains in the first process; returns the trained network."""
    plan = prepared.plan
    if is_trained(plan.run, plan.recipe.epochs):
        peers.send(_NOTHING)
        return _train(Peers(Ranks()), prepared, listener, fitted=True)
    if peers.alone and plan.machine.world > 1:
        with launched(plan.machine.devices, plan.run) as peers:
            peers.together(lambda: prepared, lambda prepared: prepared.facts)
            peers.send(_TRAIN)
            return _train(peers, prepared, listener, fitted=False)
    peers.send(_TRAIN)
    return _train(peers, prepared, listener, fitted=False)


def _train(peers: Peers, prepared: _Prepared, listener: Listener, *, fitted: bool) -> LitModule:
    """Fits in every process of the run, unless it is `fitted`; returns the module."""
    plan = prepared.plan
    task, splits, run, machine = plan.task, plan.splits, plan.run, plan.machine
    samples = (*splits.train.samples, *splits.val.samples)
    train_images = len(splits.train.samples)
    first = peers.process.first
    with (
        watching_threads(listener.say),
        decoded_once(samples, run / "cache", processes=machine.devices) as decoded,
        DeviceMonitor(machine.device) as monitor,
    ):
        train, val = decoded[:train_images], decoded[train_images:]

        def count() -> list[Decoded]:
            if first:
                count_splits(plan, train, val, listener)
            return decoded

        # A process that does not find the checkpoint would train from the first epoch.
        peers.together(
            count,
            lambda decoded: {"pixels": _digest(decoded), "checkpoint": described_checkpoint(run)},
        )
        data = task.batches(
            plan,
            DecodedSubset.of(splits.train.samples, train),
            DecodedSubset.of(splits.val.samples, val),
        )
        lit_module = task.lit_module(plan, prepared.start.network, data)
        if not fitted:
            with peers.in_group(machine.device):
                trainer = make_trainer(plan, peers.process, listener, prepared.start.callbacks)
                fit_run(trainer, lit_module, data, run)
        if first:
            count_costs(run, monitor)
    return lit_module


def _digest(decoded: Sequence[Decoded]) -> str:
    """Hash of the decoded images, to compare the data of several machines."""
    digest = hashlib.sha256()
    for pixels in decoded:
        for array in pixels:
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
    return f"images {digest.hexdigest()[:16]}"


@without_chatter()
def make_trainer(
    plan: TrainPlan, process: Ranks, listener: Listener, extra: Sequence[pl.Callback] = ()
) -> pl.Trainer:
    """The Lightning Trainer of a run, with our checkpoints, logs and progress bar."""
    run, recipe, machine, validation = plan.run, plan.recipe, plan.machine, plan.task.validation
    waiting = WaitingTime()
    callbacks: list[pl.Callback] = [
        SeededSteps(plan.config.seed),
        *extra,
        *plan.procedure.callbacks(run, listener),
        TrainProgress(listener, plan.per_epoch),
        MetricsLog(run, waiting, listener, validation),
        KeepLastAndBest(run, best=plan.procedure.keeps_best, monitor=plan.monitor),
    ]
    if recipe.patience is not None:
        callbacks.append(
            EarlyStopping(validation.score, mode="max", patience=recipe.patience, verbose=False,
                          check_on_train_epoch_end=True)
        )  # fmt: skip
    cuda = machine.device.type == "cuda"
    return pl.Trainer(
        accelerator="gpu" if cuda else machine.device.type,
        devices=[machine.device.index or 0] if cuda and machine.world == 1 else machine.devices,
        num_nodes=machine.nodes,
        strategy=_DDP if machine.world > 1 else "auto",
        precision=PRECISIONS[recipe.precision],  # type: ignore[arg-type]
        max_epochs=recipe.epochs,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip,
        callbacks=callbacks,
        plugins=[DurableCheckpoints(), environment(process)],
        logger=TensorBoardLogger(run, name=None, version="tensorboard"),
        profiler=waiting,
        default_root_dir=run,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@dataclass(frozen=True)
class Chosen:
    """The selected weights of a training.

    Args:
        epoch: The epoch that produced them, counted from 1.
    """

    epoch: int
    why: str
    state: dict[str, Tensor]


def chosen_weights(run: Path, procedure: Procedure) -> Chosen:
    """The weights of the best epoch by the validation score, or of the last epoch.

    If the recipe averages weights during training, the average is returned.
    """
    folder, best = run / CHECKPOINT_FOLDER, procedure.keeps_best
    checkpoint = DurableCheckpoints().load_checkpoint(folder / (BEST if best else LAST))
    tensors = checkpoint["state_dict"]
    averaged = any(key.startswith(_AVERAGED_PREFIX) for key in tensors)
    prefix = _AVERAGED_PREFIX if averaged else _PREFIX
    state = {
        key.removeprefix(prefix): tensor for key, tensor in tensors.items()
        if key.startswith(prefix)
    }  # fmt: skip
    epoch = int(checkpoint["epoch"]) + 1
    if not best:
        return Chosen(epoch, f"the last epoch, as defined by {procedure.why_chosen}", state)
    callback_state = checkpoint["callbacks"][KeepLastAndBest.__qualname__]
    why = _WHY[callback_state.get("monitor", _BY_DICE)].format(procedure.why_chosen)
    return Chosen(epoch, f"{why}, {callback_state['best_dice']:.4f}", state)


def _finish(prepared: _Prepared, lit_module: LitModule, listener: Listener) -> None:
    """Selects the weights, writes them and scores them on the held-out images."""
    plan = prepared.plan
    chosen = chosen_weights(plan.run, plan.procedure)
    _check_trained(plan, lit_module.network, chosen)
    state = prepared.start.export(chosen.state)
    write_weights(plan.run / WEIGHTS, state, plan.task.header(plan, lit_module.network))
    digest = state_digest(state)
    if TRAINING.read(plan.run).weights_sha256 not in (None, digest):
        remove_folder(plan.run / "test")  # results of earlier weights
    TRAINING.update(
        plan.run, chosen_epoch=chosen.epoch, chosen_why=chosen.why, weights_sha256=digest
    )
    plan.task.measure(plan, lit_module, chosen.state, listener)


def _check_trained(plan: TrainPlan, network: nn.Module, chosen: Chosen) -> None:
    """Loads the `chosen` weights into `network`, which must return numbers.

    The losses of the training do not show what its last step did to the weights.

    Raises:
        RunError: The network returns NaN.
    """
    network.load_state_dict(chosen.state)
    try:
        try_out(plan, network)
    except UsageError as error:
        raise RunError(
            f"The training diverged: `{plan.entry.name}` returns NaN (not a number) after epoch "
            f"{chosen.epoch}.",
            error.why,
            "Use a smaller `--lr`, `--clip 1` or `--precision fp32`, with `--fresh` or another "
            "`--out`.",
        ) from error


def peak_bytes() -> int:
    """Peak resident memory of this process in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def count_splits(
    plan: TrainPlan, train: Sequence[Decoded], val: Sequence[Decoded], listener: Listener
) -> None:
    """Writes the split of the images, and counts its parts in the record.

    Announces classes that have no image in a part, and images without a pixel to score.
    """
    counts = plan.task.counts(plan, train, val)
    for part, split in counts.items():
        if split.absent:
            listener.say(
                f"No image of the {part} split contains {', '.join(split.absent)}, so that it has "
                f"no score for {'these classes' if len(split.absent) > 1 else 'this class'}."
            )
        if split.unscored:
            listener.say(
                f"{split.unscored} of {counted(split.images, 'image')} of the {part} split "
                f"{'has' if split.unscored == 1 else 'have'} no pixel to learn from or to score: "
                f"{UNSCORED}."
            )
    write_splits(plan.run / "splits.csv", plan.splits)
    earlier = [training.parts for training in plan.trainings_before]
    if any(earlier):
        write_earlier_splits(plan.run / EARLIER_SPLITS, earlier)
    TRAINING.update(plan.run, splits=counts)


def count_costs(run: Path, monitor: DeviceMonitor) -> None:
    """Adds peak memory and energy of this process to those of earlier processes of the run."""
    before, use = TRAINING.read(run), monitor.use()
    peak = peak_bytes() if use is None else use.peak_memory_bytes
    energy = None if use is None else use.energy_joules
    if before.energy_joules is not None:
        energy = before.energy_joules + (energy or 0.0)
    TRAINING.update(
        run,
        peak_memory_bytes=max(peak, before.peak_memory_bytes or 0),
        energy_joules=energy,
    )
