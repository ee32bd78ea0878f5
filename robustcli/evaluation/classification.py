"""Classifiers: one class an image, top-1 and top-5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import pyarrow as pa

from robustcli.adapters.classifier import Classifier
from robustcli.adapters.load import (
    ModelRequest,
    TrainedClassifier,
    answers_in,
    load_classifier,
    names_run,
    trained_classifier,
)
from robustcli.core.errors import UsageError
from robustcli.data.decode import decode
from robustcli.data.index import ImageIndex
from robustcli.data.labels import LabelSpace
from robustcli.data.mask_values import check_no_masks
from robustcli.data.open import open_index
from robustcli.data.subset import take
from robustcli.evaluation.class_rows import ClassRows
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.describe import dataset_record, model_record
from robustcli.evaluation.listener import Listener
from robustcli.evaluation.record import DatasetRecord, ModelRecord
from robustcli.evaluation.samples import Sample, first_readable
from robustcli.evaluation.split_choice import choose_part
from robustcli.evaluation.store import PREDICTION_SCHEMA, Cell
from robustcli.evaluation.task import Data, Task
from robustcli.evaluation.training_data import TrainingData, parts_of, training_data
from robustcli.evaluation.views import ViewPreparation
from robustcli.transforms.registry import TransformCell


class Classification(Task[Classifier]):
    """Which class an image shows."""

    name: ClassVar[Literal["cls", "seg"]] = "cls"
    batch_sizes: ClassVar[Mapping[str, int]] = {"cuda": 128, "mps": 64, "cpu": 32}

    def check(self, config: EvalConfig) -> None:
        """See `Task.check`."""
        check_no_masks(config.foreground, config.ignore)
        if config.split != "auto" and not any(_trained(config)):
            raise UsageError(
                f"`--split {config.split}` does not go with classifiers.",
                "Their data has no parts: all images of `--data` are used.",
                "Name the folder of the part with `--data`.",
            )

    def open(self, config: EvalConfig, listener: Listener) -> Data:
        """See `Task.open`; the models must tell the same classes apart.

        Images that a model was trained on here are left out.
        """
        whole = _opened(config)
        for note in whole.notes:
            listener.say(note)
        part = choose_part(whole, config.split, _trainings(config), listener).index
        index = take(part, per_class=config.per_class, limit=config.limit, seed=config.seed)
        if config.data is None:
            kind = " (a demonstration set)" if index.demonstration else ""
            listener.say(
                f"No --data: using {index.name}{kind}, {len(index.images)} images, "
                f"{index.location}."
            )
        return Data(index.images, dataset_record(index))

    def load(self, request: ModelRequest, *, seed: int, offline: bool) -> Classifier:
        """See `Task.load`."""
        return load_classifier(request, seed=seed, offline=offline)

    def trial_model(self, request: ModelRequest) -> Classifier:
        """A freshly initialised network: it costs what the trained one costs.

        Weights that the user names are here, and say how many classes there are: they are read.
        """
        if request.weights is not None or names_run(request.name):
            return load_classifier(request, offline=True)
        return load_classifier(replace(request, untrained=True))

    def model_record(self, model: Classifier, config: EvalConfig) -> ModelRecord:
        """See `Task.model_record`."""
        return model_record(model, at_crop=config.apply_at == "crop")

    def preparation(
        self,
        models: Mapping[str, Classifier],
        cells: Mapping[Cell, TransformCell],
        config: EvalConfig,
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

    def answering(self, model: Classifier, dataset: DatasetRecord) -> ClassRows:
        """See `Task.answering`."""
        return ClassRows(model)

    def sample(
        self, data: Data, models: Mapping[str, Classifier], config: EvalConfig
    ) -> Sample | None:
        """The first readable photo, or the first model's crop of it."""
        found = first_readable(data.items, decode)
        if found is None or config.apply_at == "original":
            return found
        return replace(found, pixels=next(iter(models.values())).preprocessing.apply(found.pixels))


def _opened(config: EvalConfig) -> ImageIndex:
    """The data, in the classes of the models.

    Raises:
        UsageError: The models answer in different classes, or the data has others.
    """
    space = _classes(config)
    trained = any(_trained(config))
    given = trained or config.label_space is not None
    try:
        return open_index(
            config.data, model_label_space=space.name, label_space=space if given else None,
            labels=config.labels, parts=trained,
        )  # fmt: skip
    except UsageError:
        _check_heads(config)
        raise


def _check_heads(config: EvalConfig) -> None:
    """Raises UsageError where weights from a file are for another number of classes than named.

    That explains more than what does not fit between the classes and the data.
    """
    for request, trained in _with_trained(config):
        if request.weights is not None and trained is None:
            load_classifier(request, offline=True)


def _classes(config: EvalConfig) -> LabelSpace:
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


def _with_trained(config: EvalConfig) -> list[tuple[ModelRequest, TrainedClassifier | None]]:
    return [(request, trained_classifier(request)) for request in config.models]


def _trained(config: EvalConfig) -> list[TrainedClassifier | None]:
    return [trained for _, trained in _with_trained(config)]


def _trainings(config: EvalConfig) -> list[TrainingData]:
    """What the models were trained on here; of weights from elsewhere nothing is known."""
    found = [training_data(request) for request, t in _with_trained(config) if t is not None]
    if config.splits_of is not None:
        found.append(TrainingData(str(config.splits_of), None, parts_of(config.splits_of)))
    return [training for training in found if training is not None]
