"""The evaluation itself: prepare, compute what is missing, hold the plan against the folder."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from robustcli.core.errors import RunError
from robustcli.core.listener import Listener, Silent
from robustcli.core.machine import usable_cores
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.device import DeviceMonitor, describe
from robustcli.evaluation.distributed import Group, check_same, group_of, in_words
from robustcli.evaluation.loader import Source
from robustcli.evaluation.pictures import write_samples
from robustcli.evaluation.plan import Piece, Plan, parts_of, share_of, shared
from robustcli.evaluation.prepare import (
    Selection,
    load_models,
    make_plan,
    new_record,
    select,
)
from robustcli.evaluation.record import EVALUATION, RunRecord, read_record
from robustcli.evaluation.runner import Runner, too_many_unreadable
from robustcli.evaluation.sessions import Session, write_session
from robustcli.evaluation.store import Cell, Store


class IncompleteRun(RunError):  # noqa: N818  it says what the run is
    """A run that lacks rows that this command asked for.

    Args:
        run: Its folder.
    """

    def __init__(self, run: Path, what: str, why: str, todo: str) -> None:
        super().__init__(what, why, todo)
        self.run = run


def evaluate(config: EvalConfig, listener: Listener | None = None) -> Path:
    """`run_evaluation` in as many processes as `config` or a launcher such as torchrun says."""
    with group_of(config) as group:
        return run_evaluation(config, listener, group)


def run_evaluation(
    config: EvalConfig, listener: Listener | None = None, group: Group | None = None
) -> Path:
    """Computes what `config` asks for and is not there yet; returns the run's folder.

    Args:
        config: The settings.
        listener: Who hears of the progress.
        group: The processes that share the work, each of which calls this; None for this one alone.

    Raises:
        UsageError: Something named does not exist or does not fit together, or a process of the
            group would compute with something else.
        IncompleteRun: Rows that were asked for are missing at the end.
        RunError: Computing failed, or another process works in the folder; finished blocks are
            kept.
    """
    group = group or Group()
    with group.alive(listener or Silent()) as heard:
        selection = select(config, heard, group.place)
        models = load_models(config, selection)
        for note in (note for model in models.values() for note in model.notes):
            heard.say(note)
        record = new_record(config, selection, models)
        facts = group.gather("facts", _facts(config, record))
        if not group.first:
            _help(config, selection, models, heard, group)
            return selection.run
        check_same(facts)
        with EVALUATION.held(selection.run, heard.say) as ownership:
            record = EVALUATION.open(selection.run, record, fresh=config.fresh)
            _lead(config, selection, models, record, heard, group, ownership.check)
    return selection.run


def _lead(
    config: EvalConfig, selection: Selection, models: dict[str, Any], record: RunRecord,
    listener: Listener, group: Group, check: Callable[[], None],
) -> None:  # fmt: skip
    """Rank 0: deals the work, computes its share, waits for the others, closes the books."""
    run, plan = selection.run, make_plan(record, selection, models)
    with EVALUATION.closing(run) as ending:
        missing = plan.missing()
        pieces = shared(missing, group.place.world)
        group.tell("work", {"record": record.model_dump_json(), "pieces": [*map(_plain, pieces)]})
        done = plan.forwards - sum(piece.forwards for piece in missing)
        listener.start(plan.forwards, done)
        _write_samples(config, selection, models)
        _compute(config, selection, models, record, pieces, listener, group, check)
        gone = group.finish()
        lacking = plan.missing()
        if not lacking:
            selection.task.finish(run, selection.data, models)
        _check_readable(config, plan)
        if lacking or _whole(plan, read_record(run)).missing():
            ending.status = "partial"
    if lacking:
        raise _incomplete(run, plan, lacking, gone, group.place.world)


def _help(
    config: EvalConfig, selection: Selection, models: dict[str, Any], listener: Listener,
    group: Group,
) -> None:  # fmt: skip
    """Another rank: computes its share of the work that rank 0 deals."""
    work = group.hear("work")
    record = RunRecord.model_validate_json(work["record"])
    plan = make_plan(record, selection, models)
    pieces = [_piece(plan, plain) for plain in work["pieces"]]
    _compute(config, selection, models, record, pieces, listener, group, lambda: None)
    group.finish()


def _facts(config: EvalConfig, record: RunRecord) -> dict[str, Any]:
    """What all ranks must have in common, and the host, for messages."""
    told = record.model_dump(mode="json")
    models = {
        model["name"]: {k: v for k, v in model.items() if k != "scan_backend"}
        for model in told["models"]
    }
    return {
        "host": socket.gethostname(),
        "package versions": told["versions"],
        "images": {k: told["dataset"][k] for k in ("digest", "images", "label_space")},
        "models or weights": models,
        "transforms": {f"{t['name']}:{t['severity']}": t["parameters"] for t in told["transforms"]},
        "plugins": [hashlib.sha256(path.read_bytes()).hexdigest() for path in config.plugins],
        "settings": {
            **{name: told[name] for name in ("task", "seed", "apply_at", "precision")},
            "batch_size": config.batch_size,
            "allow_unreadable": config.allow_unreadable,
        },
    }


def _plain(piece: Piece) -> list[Any]:
    """A piece as JSON: block, and per cell the transform, severity, models and views."""
    return [
        piece.block,
        [[c.transform, c.severity, piece.models[c], piece.inputs[c]] for c in piece.cells],
    ]


def _piece(plan: Plan, plain: Sequence[Any]) -> Piece:
    block, cells = plain
    models = {Cell(name, severity): tuple(those) for name, severity, those, _ in cells}
    inputs = {Cell(name, severity): tuple(those) for name, severity, _, those in cells}
    return Piece(block, plan.images_of(block), models, inputs)


def _write_samples(config: EvalConfig, selection: Selection, models: dict[str, Any]) -> None:
    task, cells = selection.task, selection.cells.values()
    write_samples(
        selection.run, cells, config.seed, lambda: task.sample(selection.data, models, config)
    )


def _compute(
    config: EvalConfig, selection: Selection, models: dict[str, Any], record: RunRecord,
    pieces: Sequence[Piece], listener: Listener, group: Group, check: Callable[[], None],
) -> None:  # fmt: skip
    """Computes this rank's share of `pieces`."""
    place = group.place
    share = share_of(pieces, place.rank, place.world)
    if not share:
        return
    task, device = selection.task, selection.device
    batch_size = min(config.batch_size or task.batch_sizes[device.type], record.block_size)
    source = Source(parts_of(share, batch_size), task.preparation(models, selection.cells, config))
    answering = {name: task.answering(model, record.dataset) for name, model in models.items()}
    store, schema = Store(selection.run), task.schema(record.dataset)
    runner = Runner(store, source, answering, schema, listener, _tolerated(config, record), check)
    started, clock = datetime.now(UTC), time.perf_counter()
    with DeviceMonitor(device) as monitor:
        try:
            runner.run(_workers(config, device, place.local_world), pin=device.type == "cuda")
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


def _workers(config: EvalConfig, device: torch.device, processes: int) -> int:
    """Loader workers of one of `processes`: on the CPU the models need the cores themselves."""
    if config.workers is not None:
        return config.workers
    cores = usable_cores() // processes
    return max(1, cores // 4) if device.type == "cpu" else max(1, min(8, cores - 1))


def _tolerated(config: EvalConfig, record: RunRecord) -> int:
    """How many images may be unreadable."""
    return int(config.allow_unreadable * record.dataset.images)


def _check_readable(config: EvalConfig, plan: Plan) -> None:
    """Raises RunError where the ranks together met too many unreadable images."""
    unreadable = set(plan.store.skipped()["image_id"])
    most = int(config.allow_unreadable * len(plan.images))
    if len(unreadable) > most:
        raise too_many_unreadable(unreadable, most)


def _whole(plan: Plan, record: RunRecord) -> Plan:
    """The plan of every model and transform of the run's record, not only of this command's."""
    return replace(
        plan,
        models=tuple(model.name for model in record.models),
        cells=tuple(Cell(t.name, t.severity) for t in record.transforms),
        views=tuple(sorted({model.view for model in record.models})),
    )


def _incomplete(
    run: Path, plan: Plan, lacking: Sequence[Piece], gone: Sequence[int], world: int
) -> IncompleteRun:
    """Says how many rows of what are missing, and why where that is known."""
    count = Counter[str]()
    for piece in lacking:
        for cell, models in piece.models.items():
            for model in models:
                count[f"`{model}` under {cell.transform}"] += len(piece.images)
    first = ", ".join(f"{n:,} of {what}" for what, n in count.most_common(3))
    more = f" and {len(count) - 3} more" if len(count) > 3 else ""
    lost = sum(piece.forwards for piece in lacking)
    why = f"Missing: {first}{more}." if lost else "Measures of transformed images are missing."
    if gone:
        why = f"{in_words(gone, world)} ended without a word. {why}"
    return IncompleteRun(
        run,
        f"The run in `{run}` is partial: {lost:,} of {plan.forwards:,} predictions are missing.",
        why,
        "The same command computes what is missing and nothing else.",
    )
