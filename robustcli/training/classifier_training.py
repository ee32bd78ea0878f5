"""The training of classifiers: photos with classes, split class by class, measured by top-1."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

from torch import nn
from torch.utils.data import DataLoader

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.load import resolve
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.trainable import CLASSES, sized_preprocessing, start_classifier
from robustcli.adapters.training_run import ClassifierHeader
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.seeds import identity_seed
from robustcli.data import dataset
from robustcli.data.sources import Classes, open_dataset
from robustcli.data.splits import SPLITS, Split, Splits, split_dataset
from robustcli.data.subsets import take
from robustcli.tasks.record import dataset_record
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, EpochOrder
from robustcli.training.finish import evaluate_test_images, hash_ids
from robustcli.training.lit_classifier import ClassificationModule
from robustcli.training.lit_module import LitModule, decays_of
from robustcli.training.overrides import check_protocol, class_recipe
from robustcli.training.photos import (
    DecodedPhotos,
    Photo,
    Sample,
    TrainingSamples,
    ValidationSamples,
    collate,
    decode_photo,
)
from robustcli.training.procedures.base import BatchSettings
from robustcli.training.recipes import Recipe
from robustcli.training.record import SplitRecord
from robustcli.training.training_task import RecordedFacts, TrainingTask, TrainPlan

# The batches of a classifier's training and validation, as Lightning asks for them.


class ClassificationData(BaseDataModule):
    """Training and validation batches.

    Args:
        train: What is trained on.
        val: What is validated on.
        recipe: With batch size and augmentation.
        preprocessing: The network's own.
        settings: How batches are made.
    """

    def __init__(
        self, train: DecodedPhotos, val: DecodedPhotos, recipe: Recipe,
        preprocessing: Preprocessing, settings: BatchSettings,
    ) -> None:  # fmt: skip
        super().__init__(collate, workers=settings.workers, pin=settings.pin, least=settings.least)
        self.train, self.val, self.recipe, self.preprocessing = train, val, recipe, preprocessing
        self.seed = settings.seed

    def train_dataloader(self) -> DataLoader[Sample]:
        """The batches of an epoch; of each step, this process's share."""
        recipe = self.recipe
        samples = TrainingSamples(self.train, self.preprocessing, recipe.augmentation, self.seed)
        rank, world = self.place()
        order = EpochOrder(
            self.train.ids, self.seed, most=recipe.images_per_epoch, rank=rank, world=world
        )
        return self.loader(samples, order, recipe.batch_size // world, least=self.least)

    def val_dataloader(self) -> DataLoader[Sample]:
        """The validation images; of them, this process's share."""
        samples = ValidationSamples(self.val, self.preprocessing)
        return self.shared(samples, len(samples), self.recipe.batch_size)


_SEEN = 16  # images by which the data of a training is known again


class Classification(TrainingTask):
    """Which class an image shows."""

    name: ClassVar[Literal["cls", "seg"]] = "cls"

    def check(self, entry: ModelEntry, config: TrainConfig) -> None:
        """See `TrainingTask.check`."""
        check_protocol(config)
        if CLASSES in config.model_args:
            raise UsageError(
                f"`--model-arg {CLASSES}` does not go with training.",
                "The network gets a new last layer, for the classes of the data.",
                "Leave it out.",
            )
        if config.data is None:
            raise no_data(entry)

    def open(self, config: TrainConfig) -> dataset.Dataset:
        """See `TrainingTask.open`: whatever classes the data has."""
        assert config.data is not None, "`check` has seen to it"
        return open_dataset(config.data, Classes())

    def limited(self, index: dataset.Dataset, config: TrainConfig) -> dataset.Dataset:
        """See `TrainingTask.limited`."""
        return take(index, limit=config.limit, seed=config.seed)

    def split(self, index: dataset.Dataset, config: TrainConfig) -> Splits:
        """See `TrainingTask.split`."""
        return split_dataset(index, seed=config.seed)

    def recipe(self, config: TrainConfig, entry: ModelEntry, splits: Splits) -> Recipe:
        """See `TrainingTask.recipe`; the window is the network's own."""
        return class_recipe(
            config, sized_preprocessing(entry, config.model_args, config.window).crop
        )

    def way(self, config: TrainConfig) -> str:
        """See `TrainingTask.way`."""
        return "Parts"

    def counted(self, part: dataset.Dataset) -> str:
        """See `TrainingTask.counted`."""
        return f"{len(part.samples)} images"

    def network(self, config: TrainConfig, index: dataset.Dataset) -> tuple[nn.Module, str]:
        """See `TrainingTask.network`: its last layer is new, whatever it starts from."""
        classes = len(index.classes.ids)
        weights = None if config.untrained else config.weights
        return start_classifier(
            resolve(config.model), classes, config.model_args, seed=config.seed, weights=weights
        )

    def decode(self, member: dataset.Sample) -> Photo:
        """See `TrainingTask.decode`."""
        return decode_photo(member.image)

    def counts(
        self, plan: TrainPlan, train: Sequence[Photo], val: Sequence[Photo]
    ) -> dict[Split, SplitRecord]:
        """See `TrainingTask.counts`."""
        sizes = {name: len(getattr(plan.splits, name).samples) for name in SPLITS}
        return {name: SplitRecord(images=size, groups=size) for name, size in sizes.items()}

    def batches(
        self, plan: TrainPlan, train: Sequence[Photo], val: Sequence[Photo]
    ) -> ClassificationData:
        """See `TrainingTask.batches`."""
        splits = plan.splits
        return ClassificationData(
            _with_pixels(splits.train, train), _with_pixels(splits.val, val), plan.recipe,
            preprocessing_of(plan), plan.batch_settings(),
        )  # fmt: skip

    def lit_module(
        self, plan: TrainPlan, network: nn.Module, data: Any = None
    ) -> ClassificationModule:
        """See `TrainingTask.lit_module`."""
        return ClassificationModule(
            network.train(), plan.recipe, decays_of(plan.entry, network),
            preprocessing=data.preprocessing if data
            else Preprocessing(None, 1).of_channels(plan.input_shape[0]),
            val_images=len(plan.splits.val.samples),
        )  # fmt: skip

    def facts(self, plan: TrainPlan, network: nn.Module) -> RecordedFacts:
        """See `TrainingTask.facts`."""
        index = plan.index
        return RecordedFacts(dataset_record(index), None, "the class with the highest score")

    def header(self, plan: TrainPlan, network: nn.Module) -> ClassifierHeader:
        """See `TrainingTask.header`."""
        space = plan.index.classes
        return ClassifierHeader(
            model=plan.entry.network,
            arguments=dict(plan.config.model_args),
            window=plan.recipe.window,
            trained_on=plan.index.digest,
            images_sha256=hash_ids(plan.splits.train),
            label_space=space.name,
            classes=space.ids,
            class_names=space.names,
            preprocessing=asdict(preprocessing_of(plan)),
            seen=_seen(plan.splits.train, plan.config.seed),
        )

    def measure(
        self, plan: TrainPlan, lit_module: LitModule, chosen: Mapping[str, Any], listener: Listener
    ) -> None:
        """See `TrainingTask.measure`: into `RUN/test`."""
        listener.say(f"Measuring on the {len(plan.splits.test.samples)} held-out images.")
        evaluate_test_images(plan, str(plan.run), plan.run / "test")


def no_data(entry: ModelEntry) -> UsageError:
    """The error where nobody says what a classifier shall tell apart."""
    return UsageError(
        f"No `--data`: there is nothing to train `{entry.name}` on.",
        "No set of photos with other classes comes with this program.",
        "Name one with `--data DIR` (a folder per class, perhaps below `train`, `val` and `test`; "
        "or a manifest with the columns `path` and `label`), or try `--data cifar10-mini`.",
    )


def preprocessing_of(plan: TrainPlan) -> Preprocessing:
    """How photos become the network's input, in training, validation and evaluation."""
    return sized_preprocessing(plan.entry, plan.config.model_args, plan.recipe.window)


def _with_pixels(index: dataset.Dataset, photos: Sequence[Photo]) -> DecodedPhotos:
    images = index.samples
    return DecodedPhotos([i.image_id for i in images], photos, [i.target for i in images])


def _seen(train: dataset.Dataset, seed: int) -> dict[str, str]:
    """Some training images, by id, with the hash of their files."""
    drawn = sorted(train.samples, key=lambda image: identity_seed("seen", seed, image.image_id))
    return {i.image_id: hashlib.sha256(i.image.read()).hexdigest() for i in drawn[:_SEEN]}
