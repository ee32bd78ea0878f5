"""The evaluation itself: prepare, compute what is missing, close the books."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from robustcli.core.atomic import refused
from robustcli.core.errors import errors_of
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.device import DeviceMonitor, describe
from robustcli.evaluation.listener import Listener, Silent
from robustcli.evaluation.loader import Source
from robustcli.evaluation.plan import Plan, starting_block
from robustcli.evaluation.prepare import Selection, load_models, make_plan, open_run, select
from robustcli.evaluation.record import DatasetRecord, read_record, write_record
from robustcli.evaluation.runner import Runner
from robustcli.evaluation.samples import write_samples
from robustcli.evaluation.sessions import Session, write_session
from robustcli.evaluation.slots import taken_slot
from robustcli.evaluation.store import Cell


def run_evaluation(config: EvalConfig, listener: Listener | None = None) -> Path:
    """Computes what `config` asks for and is not there yet; returns the run's folder.

    Raises:
        UsageError: Something named does not exist or does not fit together.
        RunError: Computing failed; finished blocks are kept.
    """
    listener = listener or Silent()
    selection = select(config, listener)
    models = load_models(config, selection)
    for note in (note for model in models.values() for note in model.notes):
        listener.say(note)
    with _lock(selection.run):
        record = open_run(config, selection, models)
    plan = make_plan(record, selection, models)
    status: Literal["complete", "partial", "failed"] = "partial"
    try:
        with errors_of(selection.run), taken_slot(selection.run) as slot:
            _write_samples(config, selection, models)
            _compute(config, selection, models, record.dataset, plan, slot, listener)
        with _lock(selection.run):
            selection.task.finish(selection.run, selection.data, models)
        status = "complete" if _is_complete(selection.run, plan) else "partial"
    except Exception:
        status = "failed"
        raise
    finally:
        _close(selection.run, status)
    return selection.run


def _write_samples(config: EvalConfig, selection: Selection, models: dict[str, Any]) -> None:
    task, cells = selection.task, selection.cells.values()
    write_samples(
        selection.run, cells, config.seed, lambda: task.sample(selection.data, models, config)
    )


def _compute(
    config: EvalConfig, selection: Selection, models: dict[str, Any], dataset: DatasetRecord,
    plan: Plan, slot: int, listener: Listener,
) -> None:  # fmt: skip
    missing = list(plan.missing(starting_block(slot, plan.block_count)))
    listener.start(plan.forwards, plan.forwards - sum(block.forwards for block in missing))
    if not missing:
        return
    task, device = selection.task, selection.device
    batch_size = min(config.batch_size or task.batch_sizes[device.type], plan.block_size)
    preparation = task.preparation(models, selection.cells, config)
    source = Source(plan, preparation, tuple(block.block for block in missing), batch_size)
    answering = {name: task.answering(model, dataset) for name, model in models.items()}
    most = int(config.allow_unreadable * len(plan.images))
    runner = Runner(plan.store, source, answering, task.schema(dataset), listener, most)
    started, clock = datetime.now(UTC), time.perf_counter()
    with DeviceMonitor(device) as monitor:
        try:
            runner.run(_workers(config, device), pin=device.type == "cuda")
        finally:
            session = Session(
                started=started,
                seconds=time.perf_counter() - clock,
                waiting_seconds=runner.waiting_seconds,
                device=describe(device),
                threads=torch.get_num_threads(),
                batch_size=batch_size,
                models={name: model.cost for name, model in answering.items()},
                device_use=monitor.use(),
            )
            name = f"{started:%Y%m%dT%H%M%S%f}-{socket.gethostname()}-{os.getpid()}"
            write_session(selection.run, name, session)


def _workers(config: EvalConfig, device: torch.device) -> int:
    """Loader processes: on the CPU the model needs the cores itself."""
    if config.workers is not None:
        return config.workers
    cores = os.cpu_count() or 1
    return max(1, cores // 4) if device.type == "cpu" else max(1, min(8, cores - 1))


def _is_complete(run: Path, plan: Plan) -> bool:
    """Whether every model and transform of the run's record, not only this command's, is there."""
    record = read_record(run)
    whole = replace(
        plan,
        models=tuple(model.name for model in record.models),
        cells=tuple(Cell(t.name, t.severity) for t in record.transforms),
        views=tuple(sorted({model.view for model in record.models})),
    )
    return next(whole.missing(), None) is None


def _close(run: Path, status: Literal["complete", "partial", "failed"]) -> None:
    with _lock(run):
        record = read_record(run)
        write_record(
            run, record.model_copy(update={"status": status, "updated": datetime.now(UTC)})
        )


def _lock(run: Path) -> FileLock:
    """Held while `run.json` is read, changed and written."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(run, error) from error
    return FileLock(run / ".lock")
