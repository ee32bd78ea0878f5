"""What a command would compute, download and take, without computing it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace

import torch

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.classifier import Classifier
from robustcli.adapters.load import load_classifier
from robustcli.adapters.places import is_here
from robustcli.data.decode import UnreadableImage, decode
from robustcli.evaluation.config import BLOCK_SIZE, EvalConfig
from robustcli.evaluation.listener import Listener
from robustcli.evaluation.loader import ORIGINAL
from robustcli.evaluation.plan import Plan
from robustcli.evaluation.prepare import Selection, select
from robustcli.evaluation.record import FILE_NAME, read_record
from robustcli.evaluation.store import Store
from robustcli.transforms.registry import image_seed

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

    The trial runs freshly initialised networks, which cost what the trained ones cost.
    """
    selection = select(config, listener)
    plan = _plan(config, selection)
    missing = plan.forwards
    if (selection.run / FILE_NAME).is_file() and not config.fresh:
        missing = sum(block.forwards for block in plan.missing())
    return Forecast(
        out=str(selection.run),
        images=len(plan.images),
        cells=[
            c.transform if c.severity == 0 else f"{c.transform}:{c.severity}" for c in plan.cells
        ],
        models=list(plan.models),
        predictions=plan.forwards,
        predictions_there=plan.forwards - missing,
        download_bytes=_download(config),
        seconds=_seconds(config, selection, missing / max(1, plan.forwards)) if missing else 0.0,
    )


def _plan(config: EvalConfig, selection: Selection) -> Plan:
    run = selection.run
    is_run = (run / FILE_NAME).is_file()
    size = read_record(run).block_size if is_run else max(BLOCK_SIZE, config.batch_size or 0)
    images, cells = selection.index.images, tuple(selection.cells)
    return Plan(Store(run), images, cells, selection.names, (ORIGINAL,), size)


def _download(config: EvalConfig) -> int:
    entries = [CATALOGUE.get(request.name) for request in config.models if not request.weights]
    absent = [entry for entry in entries if entry is not None and not is_here(entry)]
    return sum(_BYTES_PER_PARAMETER * entry.parameters for entry in absent)


def _seconds(config: EvalConfig, selection: Selection, share: float) -> float:
    """Seconds for `share` of the run: images are made by workers, models run on the device."""
    requests = [replace(request, weights=None, untrained=True) for request in config.models]
    models = [
        load_classifier(request).to(selection.device, config.precision) for request in requests
    ]
    loading = _loading_seconds(config, selection, models)
    forward = sum(_forward_seconds(model) for model in models) * len(selection.cells)
    cores = os.cpu_count() or 1
    both = loading + forward if selection.device.type == "cpu" else max(loading, forward)
    per_image = both if cores == 1 else max(both / 2, loading, forward)
    return share * per_image * len(selection.index.images)


def _loading_seconds(config: EvalConfig, selection: Selection, models: list[Classifier]) -> float:
    """Seconds an image to decode, transform and resize it for every cell and model."""
    images = selection.index.images[:: max(1, len(selection.index.images) // _TRIAL_IMAGES)]
    started = time.perf_counter()
    for ref in images:
        try:
            pixels = decode(ref)
        except UnreadableImage:
            continue
        for cell in selection.cells.values():
            name = cell.transform.name
            seed = image_seed(config.seed, name, cell.severity, ref.image_id)
            changed = cell.transform.apply(pixels, seed=seed, severity=cell.severity)
            for model in models:
                model.preprocessing.apply(changed)
    return (time.perf_counter() - started) / len(images)


def _forward_seconds(model: Classifier) -> float:
    """Seconds an image, from the second of two batches."""
    side = model.preprocessing.crop
    views = torch.randint(0, 256, (_TRIAL_IMAGES, 3, side, side), dtype=torch.uint8)
    model.logits(views)
    started = time.perf_counter()
    model.logits(views).cpu()
    return (time.perf_counter() - started) / _TRIAL_IMAGES
