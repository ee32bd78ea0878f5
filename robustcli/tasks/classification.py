"""The evaluation of classifiers: prepares inputs from images, and rows from predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.classifier import Classifier, Predictions
from robustcli.adapters.foreign import foreign_kind, names_classes
from robustcli.adapters.load import answers_in, header_for, load, names_run
from robustcli.adapters.memory import Announce
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.segmenter import Pixels
from robustcli.core.errors import RunError, UsageError
from robustcli.core.listener import Listener
from robustcli.core.names import TaskName
from robustcli.core.watchdog import working_on
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.decode import decode
from robustcli.data.labels import LabelSpace
from robustcli.data.mask_values import check_no_masks
from robustcli.data.sources import Classes, open_dataset
from robustcli.metrics.columns import PREDICTION_SCHEMA
from robustcli.tasks.base import (
    ORIGINAL,
    Batch,
    ConfigT,
    Data,
    Forward,
    Preparation,
    Prepared,
    Row,
    Task,
    TaskConfig,
    announce_default,
    facts_record,
    measure,
    pool_of,
    select_subset,
)
from robustcli.tasks.heldout import choose_part, trainings_of, with_data_of_trainings
from robustcli.tasks.pictures import SamplePicture, first_readable
from robustcli.tasks.record import (
    DatasetRecord,
    ModelCost,
    ModelRecord,
    PreprocessingRecord,
    dataset_record,
)
from robustcli.transforms.base import CLEAN, Cell
from robustcli.transforms.registry import TransformCell, image_seed


@dataclass(frozen=True)
class Views:
    """True classes, further true classes, and images by view: uint8 (n, channels, crop, crop)."""

    targets: list[int]
    also: list[tuple[int, ...]]
    views: dict[str, Tensor]

    def pin_memory(self) -> Views:
        """These inputs with the images in page-locked memory, for fast copies to a GPU."""
        return replace(self, views={name: view.pin_memory() for name, view in self.views.items()})


@dataclass(frozen=True)
class ViewPreparation(Preparation[Pixels, Views]):
    """Transforms images, then resizes and crops them for each model.

    `preprocessing` is keyed by the name of the view. With `at_crop`, transforms are applied to the
    views instead of the decoded image.
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
        """The views for models without rows, and the measures for views without them."""
        ids, targets = [item.image_id for item in items], [item.target for item in items]
        also = [item.also for item in items]
        clean = {ORIGINAL: list(decoded)}
        if self.at_crop:
            clean = {v: self._fit_all(v, clean[ORIGINAL]) for v in self.preprocessing}
        for cell in models:
            needed = {self.model_views[model] for model in models[cell]}
            bases = needed | set(views[cell]) if self.at_crop else {ORIGINAL}
            transformed = {v: self._apply_all(cell, ids, clean[v], v) for v in bases}
            inputs = transformed
            if not self.at_crop:
                inputs = {v: self._fit_all(v, transformed[ORIGINAL], cell) for v in needed}
            measures = {v: list(map(measure, clean[v], transformed[v])) for v in views[cell]}
            stacked = {v: _stack(inputs[v], self.preprocessing[v]) for v in needed}
            del transformed, inputs  # before those of the next cell take as much memory
            yield Prepared(cell, Views(targets, also, stacked), measures)

    def _apply_all(
        self, cell: Cell, ids: list[str], images: list[Pixels], view: str
    ) -> list[Pixels]:
        transform, transformed = self.transforms[cell].transform, []
        for image_id, image in zip(ids, images, strict=True):
            seed = image_seed(self.seed, cell.transform, cell.severity, image_id)
            with working_on(f"applying `{cell.transform}` to `{image_id}`"):
                transformed.append(
                    transform.for_image(image, image_id=image_id, seed=seed, severity=cell.severity)
                )
        if self.at_crop and transform.replaces:
            return self._fit_all(view, transformed, cell)
        for before, after in zip(images, transformed, strict=True):
            if self.at_crop and before.shape != after.shape:
                raise RunError(
                    f"`{cell.transform}` changed the size of a crop.",
                    f"The crop had {before.shape[:2]} pixels, the result has {after.shape[:2]}.",
                    "With `--apply-at crop` it must keep the size; use `--apply-at original`.",
                )
        return transformed

    def _fit_all(self, view: str, images: list[Pixels], cell: Cell = CLEAN) -> list[Pixels]:
        preprocessing, transform_cell = self.preprocessing[view], self.transforms.get(cell)
        precropped = transform_cell is not None and transform_cell.transform.precropped
        fit = preprocessing.apply_to_crop if precropped else preprocessing.apply
        return [fit(image) for image in images]


def _stack(images: list[Pixels], preprocessing: Preprocessing) -> Tensor:
    """Stacks images to uint8 (n, channels, crop, crop), with channels first."""
    side = preprocessing.crop
    stacked = np.empty((len(images), preprocessing.channels, side, side), np.uint8)
    for number, image in enumerate(images):
        stacked[number] = preprocessing.coloured(image).transpose(2, 0, 1)
    return torch.from_numpy(stacked)


class ClassRows:
    """Predicts batches of views with a classifier.

    Args:
        classifier: The classifier.
        answers: The classes that it may predict; None for all.
        members: The classes of each superclass, if it predicts superclasses; else None.
        announce: Receives a line if memory runs out.
    """

    def __init__(
        self,
        classifier: Classifier,
        answers: Sequence[int] | None = None,
        members: Sequence[Sequence[int]] | None = None,
        announce: Announce | None = None,
    ) -> None:
        self.view = classifier.preprocessing.view
        predict = partial(classifier.predict, answers=answers, members=members)
        self.forward = Forward(classifier, predict, announce)

    @property
    def cost(self) -> ModelCost:
        """The cost of its forward passes."""
        return self.forward.cost

    def rows(self, batch: Batch[Views]) -> list[Row]:
        """One row per image (columns: `PREDICTION_SCHEMA`).

        For several true classes, the target is the class that the model ranks highest.
        """
        inputs = batch.inputs
        pieces = self.forward(inputs.views[self.view], _truths(inputs))
        rows = [row for piece in pieces for row in _rows(piece)]
        answers = zip(batch.image_ids, rows, strict=True)
        return [{"image_id": image_id, **row} for image_id, row in answers]


def _truths(inputs: Views) -> torch.Tensor:
    """The true classes (n, maximum number per image), padded with the first class of an image."""
    width = 1 + max(map(len, inputs.also), default=0)
    rows = zip(inputs.targets, inputs.also, strict=True)
    return torch.tensor([[t, *also, *[t] * (width - 1 - len(also))] for t, also in rows])


def _rows(piece: Predictions) -> list[Row]:
    return [
        {
            "target": int(target),
            "prediction": int(top5[0]),
            "top5": top5.tolist(),
            "probability": float(probability),
            "target_probability": float(target_probability),
        }
        for top5, probability, target, target_probability in zip(
            piece.top5, piece.probability, piece.target, piece.target_probability, strict=True
        )
    ]


class ClassificationTask(Task[Classifier]):
    """Classification: one class per image."""

    name: ClassVar[TaskName] = "cls"
    batch_sizes: ClassVar[Mapping[str, int]] = {"cuda": 128, "mps": 64, "cpu": 32}

    def check(self, config: TaskConfig) -> None:
        """See `Task.check`."""
        check_no_masks(config.foreground, config.ignore, config.mask_classes)

    def with_defaults(self, config: ConfigT, listener: Listener) -> ConfigT:
        """Uses the data of the models' training, unless the user sets the data."""
        if config.data is not None or not trainings_of(config):
            return config
        return with_data_of_trainings(config, _classes(config).name, listener, masks=False)

    def open(self, config: TaskConfig, listener: Listener) -> Data:
        """See `Task.open`; all models must have the same classes.

        Images that a model was trained on are excluded.
        """
        opened = config.dataset or _open_data(config)
        _check_split(config, opened)
        for note in opened.notes:
            listener.say(note)
        part = choose_part(opened, config.split, trainings_of(config), listener)
        dataset = select_subset(part.dataset, config)
        announce_default(dataset, config.data, listener)
        split = part.split if opened.evaluated else None
        record, pool = dataset_record(dataset), pool_of(part.dataset)
        return Data(dataset.samples, record, pool, split=split, dataset=dataset)

    def load(self, request: ModelRequest, *, seed: int, offline: bool) -> Classifier:
        """See `Task.load`."""
        return load(request, "cls", seed=seed, offline=offline)

    def trial_model(self, request: ModelRequest) -> Classifier:
        """A randomly initialised network, which has the same cost as the trained network.

        Weights that the user names are loaded: they exist locally and define the number of classes.
        """
        foreign = foreign_kind(request) is not None
        if foreign or request.weights is not None or names_run(request.name):
            return load(request, "cls", offline=True)
        return load(replace(request, untrained=True), "cls")

    def model_record(self, model: Classifier, config: TaskConfig) -> ModelRecord:
        """See `Task.model_record`."""
        preprocessing = model.preprocessing
        return ModelRecord(
            **facts_record(model.facts, model.device),
            preprocessing=PreprocessingRecord(**asdict(preprocessing)),
            view=preprocessing.view if config.apply_at == "crop" else ORIGINAL,
            notes=list(model.notes),
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

    def predictor(
        self, model: Classifier, dataset: DatasetRecord, announce: Announce | None = None
    ) -> ClassRows:
        """See `Task.predictor`."""
        return ClassRows(model, dataset.answers, dataset.members, announce)

    def sample(
        self, items: Sequence[Sample], models: Mapping[str, Classifier], config: TaskConfig
    ) -> SamplePicture | None:
        """The first readable image, or with `--apply-at crop` the first model's crop of it."""
        picture = first_readable(items, lambda item: decode(item.image))
        if picture is None or config.apply_at == "original":
            return picture
        preprocessing = next(iter(models.values())).preprocessing
        return replace(picture, pixels=preprocessing.apply(picture.pixels))


def _open_data(config: TaskConfig) -> Dataset:
    """Opens the data with the classes of the models.

    Raises:
        UsageError: The models differ in their classes, or the data has different classes.
    """
    space = _classes(config)
    trained = _were_trained_here(config)
    is_named = trained or config.label_space is not None or any(map(names_classes, config.models))
    try:
        return open_dataset(
            config.data,
            Classes(
                space.name,
                space if is_named else None,
                config.labels,
                splits=trained,
                answers=config.answers,
                offline=config.offline,
            ),
        )
    except UsageError:
        _check_heads(config)
        raise


def _check_split(config: TaskConfig, dataset: Dataset) -> None:
    """Refuses `--split` if neither a training nor the data define splits."""
    if (
        config.split in ("auto", "all")
        or any(sample.split is not None for sample in dataset.samples)
        or _were_trained_here(config)
    ):
        return
    raise UsageError(
        f"`--split {config.split}` cannot be used with `{dataset.name}`.",
        "It has no splits, and none of the models was trained on it by this program, so that all "
        "of its images are used.",
        "Pass the folder of the split with `--data`.",
    )


def _check_heads(config: TaskConfig) -> None:
    """Raises UsageError if weights from a file have another number of classes than the model.

    This message is more helpful than one about the mismatch of classes and data.
    """
    for request in config.models:
        if request.weights is not None and header_for(request) is None:
            load(request, "cls", offline=True)


def _classes(config: TaskConfig) -> LabelSpace:
    """The classes of all models; raises UsageError if they differ in classes or order."""
    spaces = [answers_in(request) for request in config.models]
    for request, space in zip(config.models, spaces, strict=True):
        if space.ids != spaces[0].ids:
            raise UsageError(
                "The models have different classes.",
                f"`{config.models[0].name}` predicts {spaces[0].name} ({len(spaces[0].ids)} "
                f"classes), and `{request.name}` predicts {space.name} ({len(space.ids)} classes).",
                "Evaluate them in separate runs.",
            )
    return spaces[0]


def _were_trained_here(config: TaskConfig) -> bool:
    return any(header_for(request) is not None for request in config.models)
