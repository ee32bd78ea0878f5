"""Steps of an evaluation: look up, load, plan, compute the missing rows, close the run.

Path of an image: `look_up` lists it, `plan_work` assigns it to a block (`plan`), a loader worker
decodes and transforms it (`loader`), and `Runner` passes it to the models and writes their rows
(`store`). At the end the folder is compared with the plan.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from robustcli.adapters.model import Model
from robustcli.core.errors import RobustError, RunError, located
from robustcli.core.listener import Listener, Silent
from robustcli.core.machine import (
    may_start_processes,
    usable_cores,
    versions,
    versions_with_earlier,
    with_earlier,
)  # fmt: skip
from robustcli.core.names import counted
from robustcli.core.ranks import Ranks, share_of_cores
from robustcli.core.rundir import BaseRunRecord, RunKind, has_record
from robustcli.core.watchdog import Watchdog
from robustcli.core.working_copy import helping, take_in
from robustcli.data.dataset import reasons_in_lines
from robustcli.data.decode import UnreadableImage
from robustcli.data.mask_values import UNSCORED
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.device import DeviceMonitor, as_current, device_name
from robustcli.evaluation.distributed import (
    Group,
    check_ranks_agree,
    check_same_inputs,
    group_of,
    in_words,
)
from robustcli.evaluation.engines import (
    Engine,
    StartWork,
    WorkerAssignment,
    engine_of,
    engine_workers,
    leading,
)
from robustcli.evaluation.forecast import announce_quick
from robustcli.evaluation.gates import GATES_FILE, gate_error, judge
from robustcli.evaluation.loader import Notice, Source, batch_stream
from robustcli.evaluation.look_up import Evaluation, look_up, new_record
from robustcli.evaluation.plan import EvaluationPlan, Piece, parts_of, share_of, shared
from robustcli.evaluation.published_corruptions import compare_with_published
from robustcli.evaluation.record import (
    EVALUATION,
    PARITY,
    RunRecord,
    Session,
    read_record,
    read_sessions,
    write_session,
)
from robustcli.evaluation.store import INPUT_SCHEMA, SKIPPED_SCHEMA, Store, write_rows
from robustcli.tasks.base import Batch, FinishedRows, Predictor, Row
from robustcli.tasks.pictures import write_samples
from robustcli.transforms.base import CLEAN, Cell


class IncompleteRun(RunError):  # noqa: N818  named after the state of the run
    """The run in the folder `run` lacks rows that this command requested."""

    def __init__(self, run: Path, what: str, why: str, todo: str) -> None:
        super().__init__(what, why, todo)
        self.run = run


def evaluate(config: EvalConfig, listener: Listener | None = None) -> Path:
    """Calls `run_evaluation` in all processes that `config` or a launcher (torchrun) requests."""
    engine = engine_of(config)
    if engine is not None:
        config = leading(config, (listener or Silent()).say)
        return run_evaluation(config, listener, engine=engine)
    with group_of(config, "robustcli.evaluation.evaluate:run_evaluation") as group:
        return run_evaluation(config, listener, group)


def run_evaluation(
    config: EvalConfig, listener: Listener | None = None, group: Group | None = None, *,
    engine: Engine | None = None,
) -> Path:  # fmt: skip
    """Computes the missing rows of the run that `config` describes; returns the run's folder.

    Each process of `group` calls this function; None for a single process. With an `engine`, its
    workers compute the rows.

    Raises:
        UsageError: A named model, transform or data set does not exist, settings do not match, or
            the inputs of the processes differ.
        IncompleteRun: Requested rows are missing at the end.
        RunError: The computation failed, or another process works in the folder; finished blocks
            are kept.
        GateError: All rows are computed, and a metric breaks a limit of `config`.
    """
    group = group or Group()
    with group.alive(listener or Silent()) as shared_listener:
        evaluation = look_up(config, shared_listener, group.place)
        if config.quick and group.first and listener is not None:
            announce_quick(evaluation, shared_listener)
        models = load_models(evaluation)
        for note in (note for model in models.values() for note in model.notes):
            shared_listener.say(note)
        record = new_record(evaluation, models)
        facts = group.gather("facts", _facts(config, record))
        if not group.first:
            _follow(evaluation, models, shared_listener, group)
            return evaluation.run
        check_ranks_agree(facts)
        with EVALUATION.held(evaluation.run, shared_listener.say) as ownership:
            record = EVALUATION.open(evaluation.run, record, fresh=config.fresh)
            group.check_shared(evaluation.run)
            if engine is None:
                workers = _ranks(
                    evaluation, models, record, shared_listener, group, ownership.check
                )
            else:
                assignment = _assignment(config, evaluation.run, record, facts[0])
                workers = engine_workers(engine, assignment, PieceWorker, shared_listener)
            _lead(evaluation, models, record, shared_listener, workers)
            if engine is not None:
                _take_devices(evaluation.run)
            _check_gates(evaluation)
    return evaluation.run


def _check_gates(evaluation: Evaluation) -> None:
    """Raises GateError if the finished run breaks a limit; without gates, removes old results."""
    if not evaluation.gates:
        (evaluation.run / GATES_FILE).unlink(missing_ok=True)
        return
    record = judge(evaluation.run, evaluation.gates, evaluation.scope)
    if not record.passed:
        raise gate_error(evaluation.run, record)


def load_models(evaluation: Evaluation) -> dict[str, Model]:
    """The models by name, on their device."""
    config = evaluation.config
    return evaluation.ready(
        evaluation.task.load(request, seed=config.seed, offline=config.offline)
        for request in config.models
    )


def plan_work(record: RunRecord, evaluation: Evaluation) -> EvaluationPlan:
    """The plan for the models and transforms of this command, without others of the run."""
    views = {m.name: m.view for m in record.models}
    return EvaluationPlan(
        Store(evaluation.run),
        evaluation.data.items,
        tuple(evaluation.cells),
        evaluation.names,
        tuple(sorted({views[name] for name in evaluation.names})),
        record.block_size,
    )


def _lead(
    evaluation: Evaluation, models: Mapping[str, Model], record: RunRecord, listener: Listener,
    workers: AbstractContextManager[StartWork],
) -> None:  # fmt: skip
    """Plans the work, starts it on `workers`, and closes the run."""
    config, run, plan = evaluation.config, evaluation.run, plan_work(record, evaluation)
    with EVALUATION.closing(run) as ending:
        with workers as start:
            missing = plan.missing()
            if missing:
                _add_machine(run, record, evaluation.device)
            for path in plan.damaged(missing):
                listener.say(f"`{path}` is damaged: its rows are computed again.")
            await_end = start(plan, missing)
            finished = plan.forwards - sum(piece.forwards for piece in missing)
            listener.start(plan.forwards, finished)
            write_samples(
                run, evaluation.cells.values(), config.seed, evaluation.data.items,
                lambda items: evaluation.task.sample(items, models, config),
            )  # fmt: skip
            lost = await_end()
        still_missing = plan.missing()
        if not still_missing:
            _finish(evaluation, models, plan.store)
        # The sum over all workers may be too large, although each worker is below the limit.
        unreadable = plan.store.reasons()
        check_unreadable(unreadable, config.most_unreadable(len(plan.images)))
        if len(unreadable) == len(plan.images):
            raise RunError(
                f"None of the {len(plan.images):,} images can be evaluated.",
                reasons_in_lines(unreadable, f"; all are in `{run / 'skipped'}`"),
                "Check that `--data` names photos, then repeat the command.",
            )
        if unreadable:
            listener.say(
                f"{len(unreadable):,} of {len(plan.images):,} images are left out of every "
                "number:\n" + reasons_in_lines(unreadable, f"; all are in `{run / 'skipped'}`")
            )
        if still_missing or _plan_of_run(plan, read_record(run)).missing():
            ending.status = "partial"
    if still_missing:
        raise _incomplete(run, plan, still_missing, lost)


def _add_machine(run: Path, record: RunRecord, device: torch.device) -> None:
    """Adds versions and device of this process, which computes rows, to those of earlier ones."""
    found = {
        "versions": versions_with_earlier(record.versions, versions()),
        "device": with_earlier(record.device, device_name(device)),
    }
    if any(getattr(record, name) != value for name, value in found.items()):
        EVALUATION.update(run, **found)


@contextmanager
def _ranks(
    evaluation: Evaluation, models: Mapping[str, Model], record: RunRecord, listener: Listener,
    group: Group, check: Callable[[], None],
) -> Iterator[StartWork]:  # fmt: skip
    """Yields a function that distributes work to the ranks of `group`; rank 0 computes a share."""

    def start(plan: EvaluationPlan, missing: Sequence[Piece]) -> Callable[[], str]:
        pieces = shared(missing, group.place.world)
        plain = [piece.as_plain() for piece in pieces]
        group.send("work", {"record": record.model_dump_json(), "pieces": plain})

        def await_end() -> str:
            _compute(evaluation, models, record, pieces, listener, group, check)
            dead_ranks = group.finish()
            if group.place.nodes > 1:
                take_in(evaluation.run)
            if not dead_ranks:
                return ""
            return f"{in_words(dead_ranks, group.place.world)} ended without an error message."

        return await_end

    yield start


def _assignment(
    config: EvalConfig, run: Path, record: RunRecord, facts: Mapping[str, Any]
) -> WorkerAssignment:
    """Data for the workers of an engine."""
    config = replace(
        config, out=run.absolute(), engine=None, slurm={}, address=None, devices=None, fresh=False
    )
    return WorkerAssignment(config, record.model_dump_json(), facts)


class PieceWorker:
    """Computes pieces of a run in a worker of an engine.

    Raises:
        UsageError: The inputs differ from those of the planning process.
        MachineError: The run's folder does not exist on this machine.
    """

    def __init__(self, assignment: WorkerAssignment) -> None:
        assignment.enter()
        config = assignment.config
        self._evaluation = look_up(config, Silent())
        self._models = load_models(self._evaluation)
        self._record = RunRecord.model_validate_json(assignment.record)
        facts = _facts(config, new_record(self._evaluation, self._models))
        check_same_inputs(assignment.facts, facts, "It")
        self._plan = plan_work(self._record, self._evaluation)
        self._group = Group(Ranks(0, 1, 0, assignment.processes))

    def compute(self, pieces: Sequence[Any]) -> None:
        """See `engines.Worker`.

        Raises:
            RunError: The run was restarted by another command, or the computation failed.
        """
        missing = self._plan.still_missing([self._plan.piece_of(plain) for plain in pieces])
        _compute(
            self._evaluation, self._models, self._record, missing, Silent(), self._group,
            partial(check_not_restarted, EVALUATION, self._evaluation.run, self._record),
        )  # fmt: skip


def check_not_restarted(kind: RunKind[Any], run: Path, record: BaseRunRecord) -> None:
    """Raises RunError if another command has started `run` again since `record` was written.

    The process that plans may be dead, so that the others do not hear of it.
    """
    if kind.read(run).created != record.created:
        raise RunError(
            f"`{run}` was started again by another command.",
            "The results of this process have the settings of the earlier command and must not be "
            "mixed with the new results.",
            "No action is needed: this process ends.",
        )


def _take_devices(run: Path) -> None:
    """Writes the devices of the workers to the record, which the planning process lacks."""
    devices = dict.fromkeys(session.device for session in read_sessions(run))
    if devices:
        EVALUATION.update(run, device=" and ".join(devices))


def _follow(
    evaluation: Evaluation, models: Mapping[str, Model], listener: Listener, group: Group
) -> None:
    """At a rank other than 0: computes its share of the work that rank 0 distributes."""
    group.check_shared(evaluation.run)
    work = group.receive("work")
    record = RunRecord.model_validate_json(work["record"])
    plan = plan_work(record, evaluation)
    pieces = [plan.piece_of(plain) for plain in work["pieces"]]
    run = evaluation.run

    def check() -> None:
        if has_record(run):  # not on a machine that only uploads rows to an object store
            check_not_restarted(EVALUATION, run, record)

    with helping(run):
        _compute(evaluation, models, record, pieces, listener, group, check)
    group.finish()


def _compute(
    evaluation: Evaluation, models: Mapping[str, Model], record: RunRecord,
    pieces: Sequence[Piece], listener: Listener, group: Group, check: Callable[[], None],
) -> None:  # fmt: skip
    """Computes this rank's share of `pieces`: the loader makes batches, `Runner` writes rows."""
    config, task, device = evaluation.config, evaluation.task, evaluation.device
    place = group.place
    share = share_of(pieces, place.rank, place.world)
    if not share:
        return
    batch_size = min(config.batch_size or task.batch_sizes[device.type], record.block_size)
    preparation = task.preparation(models, evaluation.cells, config)
    source = Source(parts_of(share, batch_size), preparation)
    announce = partial(group.announce, listener=listener)
    predictors = {
        name: task.predictor(model, record.dataset, announce) for name, model in models.items()
    }
    store, schema = Store(evaluation.run), task.schema(record.dataset)
    tolerated = config.most_unreadable(record.dataset.images)
    runner = Runner(store, source, predictors, schema, listener, tolerated, check, announce)
    started, clock = datetime.now(UTC), time.perf_counter()
    with as_current(device), DeviceMonitor(device) as monitor:
        try:
            runner.run(loader_workers(config, device, place.local_world), pin=device.type == "cuda")
        finally:
            session = Session(
                started=started,
                seconds=time.perf_counter() - clock,
                waiting_seconds=runner.waiting_seconds,
                device=device_name(device),
                threads=torch.get_num_threads(),
                batch_size=batch_size,
                models={name: model.cost for name, model in predictors.items()},
                device_use=monitor.use(),
            )
            name = f"{started:%Y%m%dT%H%M%S%f}-{socket.gethostname()}-{os.getpid()}"
            write_session(evaluation.run, name, session)


@dataclass
class _Part:
    """The rows of one batch of a block by target file; `images` is the number of images."""

    images: int
    predictions: dict[str, list[Row]]
    inputs: dict[str, list[Row]]
    unreadable: list[Row]


@dataclass
class Runner:
    """Computes and writes the rows of one process.

    `source` yields the missing batches, `schema` defines the columns of the rows, `most_unreadable`
    is the tolerated number of unreadable images. `check` is called before rows are written and
    raises if this process must not write any more. `announce` receives messages that the user
    should get once.
    """

    store: Store
    source: Source
    models: Mapping[str, Predictor]
    schema: pa.Schema
    listener: Listener
    most_unreadable: int
    check: Callable[[], None] = lambda: None
    announce: Callable[[str], None] = lambda _: None
    waiting_seconds: float = 0.0
    _parts: dict[tuple[int, Cell], dict[int, _Part]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def run(self, workers: int, *, pin: bool) -> None:
        """Computes every batch of the source.

        Raises:
            RunError: Too many images are unreadable, a disk is full, or one image does not fit into
                memory. Finished blocks are kept.
        """
        unreadable, notices = self.store.reasons(), set[str]()
        with Watchdog(self.announce) as watchdog:
            stream = iter(batch_stream(self.source, workers, pin=pin, watchdog=watchdog))
            watchdog.start()
            while True:
                started = time.perf_counter()
                batch = next(stream, None)
                self.waiting_seconds += time.perf_counter() - started
                if batch is None:
                    return
                if isinstance(batch, RobustError):
                    raise batch
                if isinstance(batch, Notice):
                    if batch.text not in notices:
                        self.announce(batch.text)
                    notices.add(batch.text)
                    continue
                unreadable |= dict(batch.unreadable)
                self._take(batch)
                check_unreadable(unreadable, self.most_unreadable)

    def _take(self, batch: Batch[Any]) -> None:
        parts, images = self._parts[batch.block, batch.cell], len(batch.image_ids)
        images += len(batch.unreadable)
        parts[batch.first] = _Part(
            images,
            {model: self._answer(model, batch) for model in batch.models},
            {view: _input_rows(batch, view) for view in batch.measures},
            [{"image_id": name, "reason": reason} for name, reason in batch.unreadable],
        )
        self.listener.advance(images * len(batch.models))
        if sum(part.images for part in parts.values()) == batch.block_images:
            self.check()
            self._write(batch, [parts[first] for first in sorted(parts)])
            del self._parts[batch.block, batch.cell]

    def _answer(self, model: str, batch: Batch[Any]) -> list[Row]:
        if not batch.image_ids:
            return []
        first, last = batch.image_ids[0], batch.image_ids[-1]
        with located(f"It was `{model}` under `{batch.cell.transform}`, `{first}` to `{last}`."):
            return self.models[model].rows(batch)

    def _write(self, batch: Batch[Any], parts: list[_Part]) -> None:
        """Writes the list of unreadable images first, so that missing rows can be explained."""
        unreadable = [row for part in parts for row in part.unreadable]
        skipped = self.store.skipped_path(batch.block)
        if unreadable:
            write_rows(skipped, unreadable, SKIPPED_SCHEMA)
        else:
            skipped.unlink(missing_ok=True)  # the images were repaired after an earlier command
        for view in batch.measures:
            rows = [row for part in parts for row in part.inputs[view]]
            write_rows(self.store.input_path(view, batch.cell, batch.block), rows, INPUT_SCHEMA)
        for model in batch.models:
            rows = [row for part in parts for row in part.predictions[model]]
            path = self.store.prediction_path(model, batch.cell, batch.block)
            write_rows(path, rows, self.schema)


def _input_rows(batch: Batch[Any], view: str) -> list[Row]:
    return [
        {"image_id": name, "digest": m.digest, "psnr_db": m.psnr_db, "changed": m.changed}
        for name, m in zip(batch.image_ids, batch.measures[view], strict=True)
    ]


def check_unreadable(unreadable: Mapping[str, str], most: int) -> None:
    """Raises RunError if more than `most` images are unreadable; `unreadable` maps ids to reasons.

    The message is about the images that were read until then. Images that only cannot be scored are
    not faults of the data, such as slices of a volume that is annotated in part.
    """
    unreadable = {name: reason for name, reason in unreadable.items() if reason != UNSCORED}
    if len(unreadable) > most:
        raise RunError(
            f"{counted(len(unreadable), 'image')} cannot be read; the limit is {most}.",
            reasons_in_lines(dict(sorted(unreadable.items()))),
            "Repair the data, or raise the limit with `--allow-unreadable 0.05` (a fraction); the "
            "same command continues the run.",
        )


def loader_workers(config: EvalConfig, device: torch.device, processes: int) -> int:
    """Number of loader workers per process; few on the CPU, where models need most cores."""
    if config.workers is not None:
        return config.workers
    if not may_start_processes():
        return 0
    cores = share_of_cores(usable_cores(), processes)
    return max(1, cores // 4) if device.type == "cpu" else max(1, min(8, cores - 1))


def _finish(evaluation: Evaluation, models: Mapping[str, Model], store: Store) -> None:
    task = evaluation.task
    finished = FinishedRows(
        evaluation.run, evaluation.data, models, lambda name: store.rows(name, CLEAN, task.name),
        evaluation.cells.values(), evaluation.config.seed,
    )  # fmt: skip
    task.finish(finished)
    known = PARITY.read(evaluation.run)
    added = compare_with_published(
        evaluation.cells, evaluation.data.items, known,
        lambda samples, cells: _inputs_of(evaluation, models, samples, cells),
    )  # fmt: skip
    if added:
        PARITY.write(evaluation.run, [*known, *added])


def _inputs_of(
    evaluation: Evaluation, models: Mapping[str, Model], samples: Sequence[Any],
    cells: Sequence[Cell],
) -> dict[Cell, Mapping[str, Any]]:  # fmt: skip
    """Preprocessed inputs of the readable samples, by cell and model."""
    preparation: Any = evaluation.task.preparation(models, evaluation.cells, evaluation.config)
    items, decoded = [], []
    for item in samples:
        with suppress(UnreadableImage):
            decoded.append(preparation.decode(item))
            items.append(item)
    prepared = preparation.prepare(
        items, decoded, models=dict.fromkeys(cells, tuple(models)), views=dict.fromkeys(cells, ())
    )
    return {
        cell_inputs.cell: {
            name: cell_inputs.inputs.views[preparation.model_views[name]] for name in models
        }
        for cell_inputs in prepared
    }


def _plan_of_run(plan: EvaluationPlan, record: RunRecord) -> EvaluationPlan:
    """The plan of all models and transforms in the run's record."""
    return replace(
        plan,
        models=tuple(model.name for model in record.models),
        cells=tuple(Cell(t.name, t.severity) for t in record.transforms),
        views=tuple(sorted({model.view for model in record.models})),
    )


def _incomplete(
    run: Path, plan: EvaluationPlan, missing: Sequence[Piece], why_lost: str
) -> IncompleteRun:
    """The error that counts the missing rows, with the reason if it is known."""
    count = Counter[str]()
    for piece in missing:
        for cell, models in piece.models.items():
            for model in models:
                count[f"`{model}` under {cell.transform}"] += len(piece.images)
    first = ", ".join(f"{n:,} of {what}" for what, n in count.most_common(3))
    suffix = f" and {len(count) - 3} more" if len(count) > 3 else ""
    lost = sum(piece.forwards for piece in missing)
    why = f"Missing: {first}{suffix}." if lost else "Statistics of transformed images are missing."
    if why_lost:
        why = f"{why_lost} {why}"
    return IncompleteRun(
        run,
        f"The run in `{run}` is partial: {lost:,} of {plan.forwards:,} predictions are missing.",
        why,
        "The same command computes only the missing predictions.",
    )


def _facts(config: EvalConfig, record: RunRecord) -> dict[str, Any]:
    """The inputs that must be equal in all ranks, and the name of the host for messages."""
    facts = record.model_dump(mode="json")
    models = {
        model["name"]: {k: v for k, v in model.items() if k != "scan_backend"}
        for model in facts["models"]
    }
    return {
        "host": socket.gethostname(),
        "package versions": facts["versions"],
        "images": {k: facts["dataset"][k] for k in ("digest", "contents", "images", "label_space")},
        "models or weights": models,
        "transforms": {
            f"{t['name']}:{t['severity']}": t["parameters"] for t in facts["transforms"]
        },
        "plugins": [hashlib.sha256(path.read_bytes()).hexdigest() for path in config.plugins],
        "settings": {
            **{name: facts[name] for name in ("task", "seed", "apply_at", "precision")},
            "batch_size": config.batch_size,
            "allow_unreadable": config.allow_unreadable,
        },
    }
