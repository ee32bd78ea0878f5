"""The evaluation of classifiers: how images become inputs, and answers become rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustcli.adapters.classifier import Classifier, Predictions
from robustcli.adapters.load import ModelRequest, answers_in, header_for, load, names_run
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import RunError, UsageError
from robustcli.core.listener import Listener
from robustcli.core.names import TaskName
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.decode import decode
from robustcli.data.labels import LabelSpace
from robustcli.data.mask_values import check_no_masks
from robustcli.data.sources import Classes, open_dataset
from robustcli.data.subsets import take
from robustcli.metrics.columns import PREDICTION_SCHEMA
from robustcli.tasks.base import (
    ORIGINAL,
    Batch,
    Data,
    Preparation,
    Prepared,
    Row,
    Task,
    facts_record,
    measure,
)
from robustcli.tasks.config import TaskConfig
from robustcli.tasks.forward import Forward
from robustcli.tasks.heldout import choose_part, trainings_of
from robustcli.tasks.pictures import Pixels, SamplePicture, first_readable
from robustcli.tasks.record import (
    DatasetRecord,
    ModelCost,
    ModelRecord,
    PreprocessingRecord,
    dataset_record,
)
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import TransformCell, image_seed

# A classifier's inputs: images transformed, then resized and cropped as each model does it.


@dataclass(frozen=True)
class Views:
    """True classes, and per view uint8 (n, channels, crop, crop)."""

    targets: list[int]
    views: dict[str, Tensor]


@dataclass(frozen=True)
class ViewPreparation(Preparation[Sample, Pixels, Views]):
    """Images to views.

    Args:
        transforms: By cell.
        preprocessing: By the name of its view.
        model_views: The view of each model.
        seed: The run's.
        at_crop: Whether transforms act on the views instead of the decoded image.
    """

    transforms: Mapping[Cell, TransformCell]
    preprocessing: Mapping[str, Preprocessing]
    model_views: Mapping[str, str]
    seed: int
    at_crop: bool

    def decode(self, item: Sample) -> Pixels:
        """The pixels of the image, (H, W, 3)."""
        return decode(item.image)

    def prepare(
        self,
        items: Sequence[Sample],
        decoded: Sequence[Pixels],
        *,
        models: Mapping[Cell, Sequence[str]],
        views: Mapping[Cell, Sequence[str]],
    ) -> Iterator[Prepared[Views]]:
        """The views of the models that lack rows, and the measures of the views that lack them."""
        ids, targets = [item.image_id for item in items], [item.target for item in items]
        clean = {ORIGINAL: list(decoded)}
        if self.at_crop:
            clean = {v: self._fit_all(v, clean[ORIGINAL]) for v in self.preprocessing}
        for cell in models:
            needed = {self.model_views[model] for model in models[cell]}
            bases = needed | set(views[cell]) if self.at_crop else {ORIGINAL}
            made = {v: self._apply_all(cell, ids, clean[v]) for v in bases}
            seen = made if self.at_crop else {v: self._fit_all(v, made[ORIGINAL]) for v in needed}
            measures = {v: list(map(measure, clean[v], made[v])) for v in views[cell]}
            stacked = {v: _stack(seen[v], self.preprocessing[v]) for v in needed}
            yield Prepared(cell, Views(targets, stacked), measures)

    def _apply_all(self, cell: Cell, ids: list[str], images: list[Pixels]) -> list[Pixels]:
        made = [self._apply(cell, name, image) for name, image in zip(ids, images, strict=True)]
        for before, after in zip(images, made, strict=True):
            if self.at_crop and before.shape != after.shape:
                raise RunError(
                    f"`{cell.transform}` changed the size of a crop.",
                    f"It made {after.shape[:2]} of {before.shape[:2]} pixels.",
                    "With `--apply-at crop` it must keep the size; use `--apply-at original`.",
                )
        return made

    def _apply(self, cell: Cell, image_id: str, pixels: Pixels) -> Pixels:
        seed = image_seed(self.seed, cell.transform, cell.severity, image_id)
        transform = self.transforms[cell].transform
        return transform.apply(pixels, seed=seed, severity=cell.severity)

    def _fit_all(self, view: str, images: list[Pixels]) -> list[Pixels]:
        return [self.preprocessing[view].apply(image) for image in images]


def _stack(images: list[Pixels], own: Preprocessing) -> Tensor:
    """(n, channels, crop, crop) uint8; the copy also puts the channels first."""
    stacked = np.empty((len(images), own.channels, own.crop, own.crop), np.uint8)
    for place, image in enumerate(images):
        stacked[place] = own.coloured(image).transpose(2, 0, 1)
    return torch.from_numpy(stacked)


# A classifier's answers as rows.


class ClassRows:
    """One classifier answering batches of views."""

    def __init__(self, classifier: Classifier) -> None:
        self.view = classifier.preprocessing.view
        self.forward = Forward(classifier)

    @property
    def cost(self) -> ModelCost:
        """What its forward passes took."""
        return self.forward.cost

    def rows(self, batch: Batch[Views]) -> list[Row]:
        """One row an image (columns: `PREDICTION_SCHEMA`)."""
        targets = batch.inputs.targets
        pieces = self.forward(batch.inputs.views[self.view], torch.tensor(targets))
        answers = [answer for piece in pieces for answer in _rows(piece)]
        named = zip(batch.image_ids, targets, answers, strict=True)
        return [{"image_id": name, "target": target, **answer} for name, target, answer in named]


def _rows(piece: Predictions) -> list[Row]:
    return [
        {
            "prediction": int(top5[0]),
            "top5": top5.tolist(),
            "probability": float(probability),
            "target_probability": float(of_target),
        }
        for top5, probability, of_target in zip(
            piece.top5, piece.probability, piece.target_probability, strict=True
        )
    ]


# Classifiers: one class an image, top-1 and top-5.


class ClassificationTask(Task[Classifier]):
    """Which class an image shows."""

    name: ClassVar[TaskName] = "cls"
    batch_sizes: ClassVar[Mapping[str, int]] = {"cuda": 128, "mps": 64, "cpu": 32}

    def check(self, config: TaskConfig) -> None:
        """See `Task.check`."""
        check_no_masks(config.foreground, config.ignore)
        if config.split != "auto" and not _were_trained_here(config):
            raise UsageError(
                f"`--split {config.split}` does not go with classifiers.",
                "Their data has no parts: all images of `--data` are used.",
                "Name the folder of the part with `--data`.",
            )

    def open(self, config: TaskConfig, listener: Listener) -> Data:
        """See `Task.open`; the models must tell the same classes apart.

        Images that a model was trained on here are left out.
        """
        whole = config.dataset or _opened(config)
        for note in whole.notes:
            listener.say(note)
        part = choose_part(whole, config.split, trainings_of(config), listener).index
        index = take(part, per_class=config.per_class, limit=config.limit, seed=config.seed)
        if config.data is None:
            kind = " (a demonstration set)" if index.demonstration else ""
            listener.say(
                f"No --data: using {index.name}{kind}, {len(index.samples)} images, "
                f"{index.location}."
            )
        return Data(index.samples, dataset_record(index))

    def load(self, request: ModelRequest, *, seed: int, offline: bool) -> Classifier:
        """See `Task.load`."""
        return load(request, "cls", seed=seed, offline=offline)

    def trial_model(self, request: ModelRequest) -> Classifier:
        """A freshly initialised network: it costs what the trained one costs.

        Weights that the user names are here, and say how many classes there are: they are read.
        """
        if request.weights is not None or names_run(request.name):
            return load(request, "cls", offline=True)
        return load(replace(request, untrained=True), "cls")

    def model_record(self, model: Classifier, config: TaskConfig) -> ModelRecord:
        """See `Task.model_record`."""
        own = model.preprocessing
        return ModelRecord(
            **facts_record(model.facts, model.device),
            preprocessing=PreprocessingRecord(**asdict(own)),
            view=own.view if config.apply_at == "crop" else ORIGINAL,
        )

    def preparation(
        self,
        models: Mapping[str, Classifier],
        cells: Mapping[Cell, TransformCell],
        config: TaskConfig,
    ) -> ViewPreparation:
        """See `Task.preparation`."""
        return ViewPreparation(
            cells,
            {model.preprocessing.view: model.preprocessing for model in models.values()},
            {name: model.preprocessing.view for name, model in models.items()},
            config.seed,
            config.apply_at == "crop",
        )

    def schema(self, dataset: DatasetRecord) -> pa.Schema:
        """See `Task.schema`."""
        return PREDICTION_SCHEMA

    def predictor(self, model: Classifier, dataset: DatasetRecord) -> ClassRows:
        """See `Task.predictor`."""
        return ClassRows(model)

    def sample(
        self, data: Data, models: Mapping[str, Classifier], config: TaskConfig
    ) -> SamplePicture | None:
        """The first readable photo, or the first model's crop of it."""
        found = first_readable(data.items, lambda item: decode(item.image))
        if found is None or config.apply_at == "original":
            return found
        return replace(found, pixels=next(iter(models.values())).preprocessing.apply(found.pixels))


def _opened(config: TaskConfig) -> Dataset:
    """The data, in the classes of the models.

    Raises:
        UsageError: The models answer in different classes, or the data has others.
    """
    space = _classes(config)
    trained = _were_trained_here(config)
    given = trained or config.label_space is not None
    try:
        return open_dataset(
            config.data,
            Classes(space.name, space if given else None, config.labels, splits=trained),
        )
    except UsageError:
        _check_heads(config)
        raise


def _check_heads(config: TaskConfig) -> None:
    """Raises UsageError where weights from a file are for another number of classes than named.

    That explains more than what does not fit between the classes and the data.
    """
    for request in config.models:
        if request.weights is not None and header_for(request) is None:
            load(request, "cls", offline=True)


def _classes(config: TaskConfig) -> LabelSpace:
    """The classes that all models tell apart.

    Raises:
        UsageError: They do not tell the same classes apart, in the same order.
    """
    spaces = [answers_in(request) for request in config.models]
    for request, space in zip(config.models, spaces, strict=True):
        if space.ids != spaces[0].ids:
            raise UsageError(
                "The models do not tell the same classes apart.",
                f"`{config.models[0].name}` is made for {spaces[0].name} ({len(spaces[0].ids)} "
                f"classes), `{request.name}` for {space.name} ({len(space.ids)} classes).",
                "Evaluate them in separate runs.",
            )
    return spaces[0]


def _were_trained_here(config: TaskConfig) -> bool:
    return any(header_for(request) is not None for request in config.models)
