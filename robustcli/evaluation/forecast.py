"""Forecast of an evaluation: work, downloads, time, and the sampling error of a quick look.

`--dry-run` prints the forecast and stops; `--quick` prints sampling error and time and continues.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.fetching import is_here
from robustcli.adapters.foreign import foreign_kind
from robustcli.adapters.load import names_run, resolve
from robustcli.adapters.model import Model
from robustcli.core.errors import RobustError
from robustcli.core.listener import Listener
from robustcli.core.machine import usable_cores
from robustcli.core.rundir import has_record
from robustcli.data.splits import QUICK_SPREAD
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.engines import Engine, deal, engine_of, leading
from robustcli.evaluation.loader import Notice, Source
from robustcli.evaluation.look_up import Evaluation, look_up, new_record
from robustcli.evaluation.plan import EvaluationPlan, Piece, parts_of
from robustcli.evaluation.record import EVALUATION, read_record
from robustcli.evaluation.store import Store
from robustcli.metrics.intervals import wilson_interval
from robustcli.tasks.base import ORIGINAL, Batch, Predictor

_TRIAL_IMAGES = 4
_NO_RUN = "no such run"
_BYTES_PER_PARAMETER = 4
_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class EngineForecast:
    """The tasks of an evaluation with `--engine`.

    Args:
        name: The engine.
        where: Description of the workers.
        tasks: Number of tasks that would be started.
        largest_task: Largest number of predictions of a task.
    """

    name: str
    where: str
    tasks: int
    largest_task: int

    def as_lines(self) -> list[str]:
        """The forecast as lines of text."""
        most = f", each of at most {self.largest_task:,} predictions" if self.tasks else ""
        return [
            f"Engine:      {self.name}: {self.where}",
            f"Tasks:       {self.tasks:,}{most}",
        ]


@dataclass(frozen=True)
class Forecast:
    """Forecast of the work of an evaluation.

    `download_bytes` assumes four bytes per parameter; `seconds` is extrapolated from a trial.
    `engine` is None if this machine computes; with an engine, `seconds` is for this machine alone.
    `precision` describes the sampling error of a quick look; None without `--quick`. `pool_images`
    and `pool_seconds` refer to all images from which a subset was drawn.
    """

    out: str
    images: int
    cells: list[str]
    models: list[str]
    predictions: int
    predictions_there: int
    download_bytes: int
    seconds: float
    precision: str | None
    pool_images: int
    pool_seconds: float
    engine: EngineForecast | None = None

    def as_json(self) -> str:
        """The forecast as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """The forecast as text of several lines."""
        pool = self.pool_images
        subset = f" of {pool:,} ({self.precision})" if self.precision else ""
        engine = self.engine
        alone = "" if engine is None else " alone"
        duration = f"about {duration_in_words(self.seconds)} on this machine{alone} "
        duration += "(estimated from a short test)"
        if engine is not None:
            duration += "; the workers share the work"
        if self.precision:
            duration += f"; about {duration_in_words(self.pool_seconds)} for all {pool:,} images"
        lines = [] if engine is None else engine.as_lines()
        return "\n".join(
            [
                f"Run:         {self.out}",
                f"Images:      {self.images:,}{subset}",
                f"Transforms:  {len(self.cells)} ({', '.join(self.cells)})",
                f"Models:      {', '.join(self.models)}",
                f"Predictions: {self.predictions - self.predictions_there:,} to compute, "
                f"{self.predictions_there:,} already exist",
                f"Download:    about {self.download_bytes / 1e6:,.0f} MB",
                *lines,
                f"Time:        {duration}",
            ]
        )


def forecast(config: EvalConfig, listener: Listener) -> Forecast:
    """Computes the forecast for `config`, without downloads and without writing files.

    The trial computes a few images; classifiers have random weights. With an engine, its cluster
    is asked for its machines.

    Raises:
        UsageError: A named model, transform or data set does not exist, or settings do not match.
        MachineError: The package of the engine is not installed, or its cluster does not answer.
    """
    engine = engine_of(config)
    if engine is not None:
        config = leading(config, listener.say)
    evaluation = look_up(replace(config, offline=True), listener)
    plan = _plan(evaluation)
    pieces = plan.missing()
    missing = sum(piece.forwards for piece in pieces)
    continues = has_record(evaluation.run) and not config.fresh
    models = _trial_models(evaluation) if missing or continues else {}
    if continues:
        _check_continues(evaluation, models)
    per_image = _seconds_per_image(evaluation, models) if missing else 0.0
    pool = evaluation.data.pool.images
    return Forecast(
        out=str(evaluation.run),
        images=len(plan.images),
        cells=[
            c.transform if c.severity == 0 else f"{c.transform}:{c.severity}" for c in plan.cells
        ],
        models=list(plan.models),
        predictions=plan.forwards,
        predictions_there=plan.forwards - missing,
        download_bytes=_download(evaluation, models),
        seconds=per_image * len(plan.images) * missing / max(1, plan.forwards),
        precision=precision_of(evaluation) if config.quick else None,
        pool_images=pool,
        pool_seconds=per_image * pool,
        engine=None if engine is None else _engine_forecast(engine, pieces),
    )


def _engine_forecast(engine: Engine, pieces: Sequence[Piece]) -> EngineForecast:
    """The tasks into which the run itself would divide the missing `pieces`."""
    pool = engine.forecast()
    tasks = deal(pieces, pool.tasks)
    largest = max((sum(p.forwards for p in task.pieces) for task in tasks), default=0)
    return EngineForecast(engine.name, pool.workers, len(tasks), largest)


def announce_quick(evaluation: Evaluation, listener: Listener) -> None:
    """Announces number of images, sampling error and estimated time of a quick look.

    Without remaining work, the time is omitted.
    """
    images, pool = len(evaluation.data.items), evaluation.data.pool.images
    listener.say(f"Quick look at {images:,} of {pool:,} images: {precision_of(evaluation)}.")
    plan = _plan(evaluation)
    missing = sum(piece.forwards for piece in plan.missing())
    if missing:
        per_image = _seconds_per_image(evaluation, _trial_models(evaluation))
        quick = per_image * images * missing / max(1, plan.forwards)
        listener.say(
            f"The evaluation will take about {duration_in_words(quick)} on this machine (estimated "
            f"from a short test); all {pool:,} images would take about "
            f"{duration_in_words(per_image * pool)}."
        )


def precision_of(evaluation: Evaluation) -> str:
    """Expected sampling error for the selected images, as text.

    For classifiers: half of the width of the Wilson interval at a share of one half, where it is
    widest. For segmenters, whose spread is unknown: half of the width of the normal interval of a
    mean over groups, for a standard deviation of dice between groups of QUICK_SPREAD and of 0.5
    (the largest possible).
    """
    data = evaluation.data
    if evaluation.task.name == "cls":
        n = len(data.items)
        interval = wilson_interval(n // 2, n)
        points = 50 * (interval.high - interval.low)
        return f"the error of top-1 will be at most +-{points:.1f} percentage points (95 %)"
    groups, grouping = len({item.group for item in data.items}), data.grouping or "image"
    typical, worst = (_Z95 * spread / math.sqrt(groups) for spread in (QUICK_SPREAD, 0.5))
    return (
        f"the error of the mean dice over {groups} of {data.pool.groups} {grouping}s will be "
        f"about +-{typical:.2f} (95 %) if its standard deviation over {grouping}s is "
        f"{QUICK_SPREAD}, and at most +-{worst:.2f}"
    )


def duration_in_words(seconds: float) -> str:
    """`seconds` in the unit that suits them, such as `5 min`."""
    if seconds < 100:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:,.1f} h"


def _plan(evaluation: Evaluation) -> EvaluationPlan:
    """The plan of the run; the rows of a run that will be discarded do not count as finished.

    Raises:
        UsageError: The folder contains a run of other images or settings; `_check_continues`
            compares the settings of models.
    """
    run, items, cells = evaluation.run, evaluation.data.items, tuple(evaluation.cells)
    size, views = evaluation.block_size, dict[str, str]()
    if has_record(run) and not evaluation.config.fresh:
        EVALUATION.check_continues(run, new_record(evaluation, {}))
        record = read_record(run)
        size, views = record.block_size, {model.name: model.view for model in record.models}
    else:
        run = run / _NO_RUN
    measured = sorted({views.get(name, ORIGINAL) for name in evaluation.names})
    return EvaluationPlan(Store(run), items, cells, evaluation.names, tuple(measured), size)


def _check_continues(evaluation: Evaluation, trial_models: Mapping[str, Model]) -> None:
    """Raises UsageError if the run in the folder has other settings of the models.

    Official weights are not compared: trial models have random weights instead.
    """
    recorded = {model.name: model for model in read_record(evaluation.run).models}
    new, requests = new_record(evaluation, trial_models), evaluation.config.models
    models = []
    for model, request in zip(new.models, requests, strict=True):
        old = recorded.get(model.name)
        if model.untrained and old is not None:
            untrained = request.untrained if foreign_kind(request) is None else old.untrained
            changes = {"untrained": untrained, "weights_sha256": old.weights_sha256}
            model = model.model_copy(update=changes)
        models.append(model)
    EVALUATION.check_continues(evaluation.run, new.model_copy(update={"models": models}))


def _trial_models(evaluation: Evaluation) -> dict[str, Model]:
    """Models with the costs of those of the run, in the same order, without downloads."""
    task = evaluation.task
    return evaluation.ready(task.trial_model(request) for request in evaluation.config.models)


def _download(evaluation: Evaluation, trial_models: Mapping[str, Model]) -> int:
    """Number of bytes of the official weights that are not on this machine.

    The catalogue lacks the sizes of most networks of timm: those of `trial_models` are counted.
    """
    size = 0
    for request, name in zip(evaluation.config.models, evaluation.names, strict=True):
        if needs_download(request):
            trial = trial_models.get(name)
            size += download_bytes(request, None if trial is None else trial.facts.parameters)
    return size


def needs_download(request: ModelRequest) -> bool:
    """Whether the official weights of a model have to be downloaded."""
    no_official = request.weights or request.untrained or names_run(request.name)
    if no_official or foreign_kind(request) is not None:
        return False
    entry = resolve(request.name)
    return (entry.on_timms_hub or entry.weights_url is not None) and not is_here(entry)


def download_bytes(request: ModelRequest, parameters: int | None) -> int:
    """Size of the official weights of a network with `parameters`; None: that of the catalogue."""
    if parameters is None:
        parameters = resolve(request.name).parameters
    return _BYTES_PER_PARAMETER * parameters


def _seconds_per_image(evaluation: Evaluation, models: Mapping[str, Model]) -> float:
    """Estimated seconds per image for all cells and `models`, from a trial."""
    task, dataset = evaluation.task, evaluation.data.record
    preparing, batch = _trial(evaluation, models)
    predicting = len(evaluation.cells) * sum(
        _prediction_seconds(task.predictor(m, dataset), batch) for m in models.values()
    )
    sequential = max(preparing, predicting)
    if evaluation.device.type == "cpu":
        sequential = preparing + predicting
    return sequential if usable_cores() == 1 else max(sequential / 2, preparing, predicting)


def _trial(evaluation: Evaluation, models: Mapping[str, Model]) -> tuple[float, Batch[Any] | None]:
    """Times the inputs of a few images, evenly spaced over the data, for every transform.

    Returns:
        Seconds per image for decoding and the inputs of all cells, and one of the batches.
    """
    items, cells = evaluation.data.items, evaluation.cells
    images = items[:: max(1, len(items) // _TRIAL_IMAGES)][:_TRIAL_IMAGES]
    no_rows = Store(evaluation.run / _NO_RUN)
    plan = EvaluationPlan(no_rows, images, tuple(cells), tuple(models), (), len(images))
    preparation = evaluation.task.preparation(models, cells, evaluation.config)
    parts, first_batch, seconds = parts_of(plan.missing(), len(images)), None, 0.0
    for _ in range(2):  # the first pass also imports libraries and builds the transforms
        started = time.perf_counter()
        for batch in Source(parts, preparation):
            if isinstance(batch, RobustError):
                raise batch
            if isinstance(batch, Notice):
                continue
            first_batch = first_batch or (batch if batch.image_ids else None)
        seconds = time.perf_counter() - started
    return seconds / len(images), first_batch


def _prediction_seconds(model: Predictor, batch: Batch[Any] | None) -> float:
    """Seconds per image for a prediction; the second of two calls is timed."""
    if batch is None:
        return 0.0
    model.rows(batch)
    started = time.perf_counter()
    model.rows(batch)
    return (time.perf_counter() - started) / len(batch.image_ids)
