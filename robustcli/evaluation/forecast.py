"""`--dry-run`: what a command would compute, download and take, without computing it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from robustcli.adapters.catalogue import CATALOGUE, ModelEntry
from robustcli.adapters.fetching import is_here
from robustcli.adapters.model import Model
from robustcli.core.errors import RobustError
from robustcli.core.listener import Listener
from robustcli.core.machine import usable_cores
from robustcli.core.rundir import has_record
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.evaluate import Evaluation, look_up
from robustcli.evaluation.loader import Source
from robustcli.evaluation.plan import Plan, parts_of
from robustcli.evaluation.record import read_record
from robustcli.evaluation.store import Store
from robustcli.tasks.base import ORIGINAL, Batch, Predictor

_TRIAL_IMAGES = 4
_BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class Forecast:
    """What is to be done; `download_bytes` is four a parameter, `seconds` comes from a trial."""

    out: str
    images: int
    cells: list[str]
    models: list[str]
    predictions: int
    predictions_there: int
    download_bytes: int
    seconds: float

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """The same in lines."""
        return "\n".join(
            [
                f"Run:         {self.out}",
                f"Images:      {self.images:,}",
                f"Transforms:  {len(self.cells)} ({', '.join(self.cells)})",
                f"Models:      {', '.join(self.models)}",
                f"Predictions: {self.predictions - self.predictions_there:,} to compute, "
                f"{self.predictions_there:,} there",
                f"Download:    about {self.download_bytes / 1e6:,.0f} MB",
                f"Time:        about {self.seconds:,.0f} s on this machine, by a short trial",
            ]
        )


def forecast(config: EvalConfig, listener: Listener) -> Forecast:
    """The forecast for `config`. Nothing is downloaded and nothing is written.

    The trial runs the real work on a few images, classifiers with freshly initialised networks.
    """
    evaluation = look_up(replace(config, offline=True), listener)
    plan = _plan(evaluation)
    missing = plan.forwards
    if has_record(evaluation.run) and not config.fresh:
        missing = sum(piece.forwards for piece in plan.missing())
    return Forecast(
        out=str(evaluation.run),
        images=len(plan.images),
        cells=[
            c.transform if c.severity == 0 else f"{c.transform}:{c.severity}" for c in plan.cells
        ],
        models=list(plan.models),
        predictions=plan.forwards,
        predictions_there=plan.forwards - missing,
        download_bytes=_download(config),
        seconds=_seconds(evaluation, missing / max(1, plan.forwards)) if missing else 0.0,
    )


def _plan(evaluation: Evaluation) -> Plan:
    run, items, cells = evaluation.run, evaluation.data.items, tuple(evaluation.cells)
    is_run = has_record(run)
    size = read_record(run).block_size if is_run else evaluation.block_size
    return Plan(Store(run), items, cells, evaluation.names, (ORIGINAL,), size)


def _download(config: EvalConfig) -> int:
    entries = [CATALOGUE.get(request.name) for request in config.models if not request.weights]
    absent = [e for e in entries if e is not None and _is_downloaded(e) and not is_here(e)]
    return sum(_BYTES_PER_PARAMETER * entry.parameters for entry in absent)


def _is_downloaded(entry: ModelEntry) -> bool:
    """Whether the weights come from somewhere: those of a segmenter are the user's own."""
    return entry.builder == "timm" or entry.weights_url is not None


def _seconds(evaluation: Evaluation, share: float) -> float:
    """Seconds for `share` of the run: images are made by workers, models run on the device."""
    task, images = evaluation.task, len(evaluation.data.items)
    dataset = evaluation.data.record
    models = evaluation.ready(task.trial_model(request) for request in evaluation.config.models)
    trial = _trial(evaluation, models)
    answering = len(evaluation.cells) * sum(
        _seconds_an_image(task.predictor(m, dataset), trial) for m in models.values()
    )
    cores = usable_cores()
    on_cpu = evaluation.device.type == "cpu"
    both = trial.seconds + answering if on_cpu else max(trial.seconds, answering)
    per_image = both if cores == 1 else max(both / 2, trial.seconds, answering)
    return share * per_image * images


@dataclass(frozen=True)
class _Trial:
    """Seconds an image to decode it and make the inputs of all cells; one of these batches."""

    seconds: float
    batch: Batch[Any] | None


def _trial(evaluation: Evaluation, models: Mapping[str, Model]) -> _Trial:
    """A few images, spread over the data, under every transform of a run without any rows."""
    items, cells = evaluation.data.items, evaluation.cells
    few = items[:: max(1, len(items) // _TRIAL_IMAGES)][:_TRIAL_IMAGES]
    nowhere = Store(evaluation.run / "no such run")
    plan = Plan(nowhere, few, tuple(cells), tuple(models), (), len(few))
    preparation = evaluation.task.preparation(models, cells, evaluation.config)
    started, kept = time.perf_counter(), None
    for batch in Source(parts_of(plan.missing(), len(few)), preparation):
        if isinstance(batch, RobustError):
            raise batch
        kept = kept or (batch if batch.image_ids else None)
    return _Trial((time.perf_counter() - started) / len(few), kept)


def _seconds_an_image(model: Predictor, trial: _Trial) -> float:
    """Seconds an image to answer, from the second of two times."""
    if trial.batch is None:
        return 0.0
    model.rows(trial.batch)
    started = time.perf_counter()
    model.rows(trial.batch)
    return (time.perf_counter() - started) / len(trial.batch.image_ids)
