"""Predicts labels of photos or masks of images, without true ones; implements `robust predict`.

A classifier labels photos, see `photo_labels`; a segmenter writes masks, see `mask_files`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.classifier import Classifier
from robustcli.adapters.load import check_has_weights, entry_of, load
from robustcli.adapters.model import Precision
from robustcli.adapters.segmenter import Segmenter
from robustcli.core.arguments import Positive
from robustcli.core.errors import UsageError, UsageErrors
from robustcli.core.listener import Listener, Silent
from robustcli.core.machine import check_opencv, versions
from robustcli.core.names import TaskName, counted, file_name
from robustcli.core.ranks import Ranks
from robustcli.data.archives import existing_path
from robustcli.data.dataset import FileRef
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.mask_classes import network_class_names
from robustcli.data.splits import subset_in_words, take_ids
from robustcli.evaluation.device import choose_device, device_name, unused_gpu
from robustcli.evaluation.distributed import Group, count_devices, group_of, incomplete
from robustcli.evaluation.forecast import download_bytes, duration_in_words, needs_download
from robustcli.evaluation.look_up import EVALUATION_TASKS
from robustcli.evaluation.mask_files import (
    PredictedMasks,
    check_labels_file,
    has_mask,
    list_jobs,
    mask_tag,
    predict_masks,
    selected_jobs,
)
from robustcli.evaluation.photo_labels import (
    CSV_FILE,
    SETTINGS_FILE,
    Labelling,
    LabelParts,
    check_labels_kept,
    classes_of,
    label_batches,
    label_parts,
    label_settings,
    list_photos,
    view_of_photo,
    write_labels,
)
from robustcli.tasks.classification import ClassificationTask

_TOP = 5
_TRIAL_PHOTOS = 4


@dataclass(frozen=True)
class PredictConfig:
    """All settings of a prediction; `robust predict --help` describes them."""

    model: ModelRequest
    data: tuple[Path, ...]
    out: Path | None = None
    _: KW_ONLY
    top: Positive | None = None
    csv: bool = False
    overlays: bool = False
    limit: Positive | None = None
    seed: int = 0
    batch_size: Positive | None = None
    mask_classes: str | None = None
    device: str = "auto"
    devices: Positive | Literal["all"] | None = None
    precision: Precision = "fp32"
    fresh: bool = False
    offline: bool = False

    @property
    def models(self) -> tuple[ModelRequest, ...]:
        """The model, see `DevicesConfig`."""
        return (self.model,)

    @property
    def labels(self) -> int:
        """Number of classes per photo."""
        return self.top or _TOP

    def directory(self, settings: Mapping[str, Any]) -> Path | None:
        """Folder of the labels: `out`, or one named after the `settings`; None without files."""
        if self.out is not None or not self.csv:
            return self.out
        named: list[Any] = [settings, list(map(str, self.data)), self.limit]
        named += [self.seed] if self.limit is not None and self.seed else []
        short = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / f"predict-{file_name(settings['model'])}-{short}"


@dataclass(frozen=True)
class PredictedLabels:
    """The labels of photos.

    Args:
        labelling: The labels, and the photos that cannot be read.
        document: The labels with the model and its settings, for JSON.
        csv: The file with the labels; None if none was requested.
    """

    labelling: Labelling
    document: Mapping[str, Any]
    csv: Path | None

    def table(self) -> pd.DataFrame:
        """One row per readable photo; columns as in `labels.csv`."""
        return self.labelling.table()


def predict(
    config: PredictConfig, listener: Listener | None = None
) -> PredictedLabels | PredictedMasks:
    """Calls `run_prediction` in all processes that `config` or a launcher (torchrun) requests."""
    with group_of(config, "robustcli.evaluation.prediction:run_prediction") as group:
        return run_prediction(config, listener or Silent(), group)


def run_prediction(
    config: PredictConfig, listener: Listener, group: Group
) -> PredictedLabels | PredictedMasks:
    """Labels the photos of `config`, or writes masks of its images, depending on the model.

    Each process of `group` calls this function; the result of all of them is that of rank 0.

    Raises:
        UsageError: A name or a file does not exist, an option does not apply to the model, files of
            other settings exist, or the inputs of the processes differ.
        RunError: A process died, or images of a segmenter cannot be read; results of all others are
            kept.
    """
    with group.alive(listener) as shared_listener:
        task, device = _task_and_device(config, group.place)
        load_model = partial(load, config.model, task)
        if task == "cls":
            return _predict_labels(config, load_model, device, shared_listener, group)
        assert config.out is not None, "checked for segmenters"
        segmenter = _loaded(config, load_model, device, shared_listener)
        return predict_masks(
            segmenter, config.data, config.out, overlays=config.overlays, limit=config.limit,
            seed=config.seed, batch_size=config.batch_size, fresh=config.fresh,
            listener=shared_listener, group=group,
        )  # fmt: skip


def _task_and_device(
    config: PredictConfig, place: Ranks | None = None
) -> tuple[TaskName, torch.device]:
    """The task of the model and the device of this process, after a check of the settings.

    Raises:
        UsageError: The model does not exist or has no weights, there are no images, or an option
            belongs to the other task; the message shows all wrong settings that can be found
            without reading the data.
    """
    errors, task = UsageErrors(), None
    with errors:
        entry = entry_of(config.model, offline=config.offline)
        task = entry.task
        check_has_weights(config.model, entry)
    if not config.data:
        with errors:
            raise UsageError(
                "No images were given.", "",
                "Pass folders or files: `robust predict --model M photos/`.",
            )  # fmt: skip
    for images in config.data:
        with errors:
            existing_path(images)
    of_labels = {
        "--top": config.top is not None, "--csv": config.csv,
        "--label-space": config.model.label_space is not None,
    }  # fmt: skip
    of_masks = {"--overlays": config.overlays, "--classes": config.mask_classes is not None}
    for flag, is_set in {"cls": of_masks, "seg": of_labels}.get(task or "", {}).items():
        if is_set:
            kind = "a classifier" if task == "cls" else "a segmenter"
            with errors:
                raise UsageError(
                    f"`{flag}` cannot be used with `{config.model.name}`.",
                    f"It is {kind}.",
                    "Omit it.",
                )
    if task == "seg":
        with errors:
            network_class_names(config.mask_classes)
        if config.out is None:
            with errors:
                raise UsageError(
                    "`--out` is missing.",
                    f"`{config.model.name}` is a segmenter, which writes a mask for every image.",
                    "Specify the folder for the masks with `--out`.",
                )
    with errors:
        device = choose_device(config.device, place)
    check_opencv()
    errors.check()
    assert task is not None, "otherwise an error is raised above"
    return task, device


def _loaded(
    config: PredictConfig, load_model: Callable[..., Any], device: torch.device, listener: Listener
) -> Any:
    """The model on its device, tested with a generated image; announces notes on it."""
    if note := unused_gpu(config.device, device):
        listener.say(note)
    model: Classifier | Segmenter = load_model(seed=config.seed, offline=config.offline)
    model.to(device, config.precision)
    if isinstance(model, Segmenter) and (classes := network_class_names(config.mask_classes)):
        model.for_classes(classes)
    model.try_out()
    for note in model.notes:
        listener.say(note)
    if model.facts.untrained:
        results = "labels" if isinstance(model, Classifier) else "masks"
        listener.say(f"`{model.facts.name}` is not trained: its {results} are meaningless.")
    return model


# Labels of photos.


def _predict_labels(
    config: PredictConfig, load_model: Callable[..., Any], device: torch.device, listener: Listener,
    group: Group,
) -> PredictedLabels:  # fmt: skip
    all_photos = list_photos(config.data, listener.say)
    photos = _selected_photos(all_photos, config, listener)
    model: Classifier = _loaded(config, load_model, device, listener)
    space = classes_of(model, config.model, listener.say)
    settings, top = label_settings(model, space, config.labels), config.labels
    size = config.batch_size or ClassificationTask.batch_sizes[model.device.type]
    batches = [photos[at : at + size] for at in range(0, len(photos), size)]
    ids = hashlib.sha256(json.dumps([photo.relative for photo in photos]).encode()).hexdigest()
    group.check_inputs({"images": [len(photos), ids], "settings": {**settings, "batch size": size}})
    folder = config.directory(settings)
    announce = partial(group.announce, listener=listener)

    def label(parts: LabelParts, numbers: Sequence[int]) -> list[int]:
        """Labels the batches `numbers`; returns the ranks that died."""
        share = {number: batches[number] for number in numbers}
        labelled = label_batches(model, share, top=top, listener=listener, announce=announce)
        for number, batch in labelled:
            parts.put(number, batch)
        return group.finish()

    if not group.first:
        parts_folder = Path(group.receive("parts"))
        group.check_shared(folder or parts_folder)
        parts = LabelParts(parts_folder)
        label(parts, group.share_out(()))
        return PredictedLabels(Labelling(space, top, (), ()), {}, None)
    if folder is not None and not config.fresh:
        check_labels_kept(folder, settings, photos)
    if folder is None and group.place.world > group.place.local_world:
        raise UsageError(
            "`--out` is missing.",
            f"{group.place.world} processes on several machines pass their labels to the first in "
            "a folder.",
            "Specify a folder that all machines share with `--out`.",
        )
    with label_parts(
        folder, [settings, size], photos, shared=group.place.world > 1, fresh=config.fresh
    ) as parts:
        missing = parts.missing(range(len(batches)))
        left = sum(len(batches[number]) for number in missing)
        listener.start(len(photos), len(photos) - left, "photos")
        group.send("parts", None if parts.folder is None else str(parts.folder))
        if parts.folder is not None:  # of several processes
            group.check_shared(folder or parts.folder)
        dead_ranks = label(parts, group.share_out(missing))
        lost = sum(len(batches[number]) for number in parts.missing(missing))
        if lost:
            todo = "The same command labels only these photos."
            if folder is None:
                todo = "Repeat the command; with `--out`, it continues after an interruption."
            raise incomplete(
                dead_ranks, group.place.world,
                f"{counted(lost, 'photo')} of {len(photos)} are not labelled.", todo,
            )  # fmt: skip
        labelling = parts.labelling(space, top, range(len(batches)))
        subset = {"images": len(photos), "of": len(all_photos), "seed": config.seed}
        document = {
            **settings, "subset": subset if len(photos) < len(all_photos) else None,
            **labelling.document(), "device": str(model.device), "versions": versions(),
        }  # fmt: skip
        csv = None if folder is None else write_labels(folder, labelling, document)
    return PredictedLabels(labelling, document, csv)


def _selected_photos(
    photos: Sequence[FileRef], config: PredictConfig, listener: Listener
) -> tuple[FileRef, ...]:
    """The photos that `--limit` and `--seed` select; announces a subset."""
    ids = take_ids((photo.relative for photo in photos), limit=config.limit, seed=config.seed)
    if len(ids) < len(photos):
        listener.say(subset_in_words(len(ids), len(photos), "photo", config.seed))
    return tuple(photo for photo in photos if photo.relative in ids)


# The forecast of `--dry-run`.


@dataclass(frozen=True)
class PredictionForecast:
    """The forecast of `--dry-run`.

    `images` are the images to predict, of `pool_images` in the data; `existing` of their masks, or
    of the files with labels, exist. `files` are the kinds of files that would be written into
    `out`, None without files. `download_bytes` assumes four bytes per parameter; `seconds` is
    extrapolated from a trial, and 0 without missing masks.
    """

    model: str
    task: TaskName
    device: str
    processes: int
    images: int
    pool_images: int
    existing: int
    out: str | None
    files: list[str]
    download_bytes: int
    seconds: float

    def as_json(self) -> str:
        """The forecast as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """The forecast as text of several lines."""
        shared = "" if self.processes == 1 else f", {self.processes} processes"
        noun = "photo" if self.task == "cls" else "image"
        of = "" if self.images == self.pool_images else f" of {self.pool_images:,}"
        if self.out is None:
            written = "no files (`--csv` and `--out` write the labels)"
        else:
            written = f"{', '.join(self.files)} in `{self.out}`"
            if self.task == "cls" and self.existing:
                written += ", in place of the existing files"
        lines = [
            f"Model:       {self.model}",
            f"Device:      {self.device}{shared}",
            f"{noun.title()}s:      {self.images:,}{of}",
            f"Writes:      {written}",
        ]
        if self.task == "seg":
            missing = self.images - self.existing
            lines.append(f"Masks:       {missing:,} to compute, {self.existing:,} already exist")
        return "\n".join(
            [
                *lines,
                f"Download:    about {self.download_bytes / 1e6:,.0f} MB",
                f"Time:        about {duration_in_words(self.seconds)} on this machine (estimated "
                "from a short test)",
            ]
        )


def predict_forecast(config: PredictConfig, listener: Listener) -> PredictionForecast:
    """Forecasts what `predict` would compute, without downloads and without writing files.

    The trial computes a few images; a classifier that has to be downloaded has random weights.

    Raises:
        UsageError: As in `predict`.
    """
    task, device = _task_and_device(config)
    downloads, request = needs_download(config.model), config.model
    config = replace(config, offline=True)
    load_model: Callable[..., Any] = partial(load, request, task)
    if downloads:
        load_model = lambda **_: EVALUATION_TASKS[task]().trial_model(request)  # noqa: E731
    existing = 0
    if task == "cls":
        photos = list_photos(config.data, listener.say)
        pool, images = len(photos), _selected_photos(photos, config, listener)
        model = _loaded(config, load_model, device, listener)
        settings = label_settings(model, classes_of(model, request, listener.say), config.labels)
        folder = config.directory(settings)
        if folder is not None and not downloads:
            existing = int((folder / CSV_FILE).exists())
            if not config.fresh:
                check_labels_kept(folder, settings, images)
        out = None if folder is None else str(folder)
        if downloads and folder is not None and config.out is None:
            out = f"{str(folder).rpartition('-')[0]}-HASH"  # of the weights that are not here
        files = [] if folder is None else [CSV_FILE, SETTINGS_FILE]
        seconds = len(images) * _seconds_per_photo(model, images)
    else:
        assert config.out is not None, "checked for segmenters"
        model = _loaded(config, load_model, device, listener)
        grey = model.preprocessing.channels == "grey"
        jobs = list_jobs(
            config.data, config.out, overlays=config.overlays, grey=grey, say=listener.say
        )
        pool = len(jobs)
        jobs = selected_jobs(jobs, limit=config.limit, seed=config.seed, say=listener.say)
        tag, images = mask_tag(model), tuple(job.image for job in jobs)
        missing = [job.image for job in jobs if not has_mask(job, tag, fresh=config.fresh)]
        check_labels_file(config.out, model.classes)
        existing = len(jobs) - len(missing)
        out, files = str(config.out), [counted(len(missing), "mask")]
        files += [counted(len(missing), "overlay")] if config.overlays else []
        files += [SETTINGS_FILE] if model.classes else []
        seconds = len(missing) * _seconds_per_mask(model, missing)
    processes = count_devices(config.devices, config.device)
    return PredictionForecast(
        model.facts.name, task, device_name(model.device), processes, len(images), pool, existing,
        out, files,
        download_bytes(request, model.facts.parameters) if downloads else 0,
        seconds / processes,
    )  # fmt: skip


def _seconds_per_photo(model: Classifier, photos: Sequence[FileRef]) -> float:
    """Seconds for a photo, from a trial of a few; 0 if none of them can be read."""
    started = time.perf_counter()
    views = [view_of_photo(photo, model.preprocessing) for photo in photos[:_TRIAL_PHOTOS]]
    readable = [view for view in views if not isinstance(view, str)]
    if readable:
        model.ranked(torch.from_numpy(np.stack(readable)), most=1)
    return (time.perf_counter() - started) / len(views)


def _seconds_per_mask(model: Segmenter, images: Sequence[FileRef]) -> float:
    """Seconds for the first readable image; 0 if there is none."""
    for image in images:
        with suppress(UnreadableImage):
            started = time.perf_counter()
            model.predict([decode(image)])
            return time.perf_counter() - started
    return 0.0
