"""The training of classifiers: photos with classes, split class by class, measured by top-1."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.model import Trial, check_scores
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.trainable import NUM_CLASSES, sized_preprocessing, start_classifier
from robustcli.adapters.training_run import ClassifierHeader
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.names import find
from robustcli.core.seeds import identity_seed
from robustcli.data.dataset import Dataset
from robustcli.data.mask_values import check_no_masks
from robustcli.data.sources import Classes, open_dataset
from robustcli.data.splits import SPLITS, Split, Splits, split_dataset
from robustcli.tasks.record import dataset_record
from robustcli.training.cache import Decoded, DecodedSubset
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, ImageData
from robustcli.training.lit_module import ClassifierModule, LitModule, decays_of
from robustcli.training.recipes import CLASS_RECIPES, SMOOTHINGS, Recipe, shortened_recipe
from robustcli.training.record import SplitRecord
from robustcli.training.samples import RandomCrops, WholePhotos, collate_photos, crop_name
from robustcli.training.training_task import (
    RecordedFacts,
    TrainingTask,
    TrainPlan,
    evaluate_test_images,
    hash_ids,
    overridden_fields,
)

_SEEN = 16  # images by which the data of a training is known again


class ClassifierTraining(TrainingTask):
    """Which class an image shows."""

    name: ClassVar[Literal["cls", "seg"]] = "cls"

    def check(self, entry: ModelEntry, config: TrainConfig) -> None:
        """See `TrainingTask.check`."""
        check_protocol(config)
        if NUM_CLASSES in config.model_args:
            raise UsageError(
                f"`--model-arg {NUM_CLASSES}` does not go with training.",
                "The network gets a new last layer, for the classes of the data.",
                "Leave it out.",
            )
        if config.data is None:
            raise no_data(entry)

    def open(self, config: TrainConfig) -> Dataset:
        """See `TrainingTask.open`: whatever classes the data has."""
        assert config.data is not None, "see `check`"
        return open_dataset(config.data, Classes(offline=config.offline))

    def split(self, index: Dataset, config: TrainConfig) -> Splits:
        """See `TrainingTask.split`."""
        return split_dataset(index, seed=config.seed)

    def recipe(self, config: TrainConfig, entry: ModelEntry, splits: Splits) -> Recipe:
        """See `TrainingTask.recipe`; the window is the network's own."""
        window = sized_preprocessing(entry, config.model_args, config.window).crop
        return class_recipe(config, window)

    def way(self, config: TrainConfig) -> str:
        """See `TrainingTask.way`."""
        return "Parts"

    def counted(self, part: Dataset) -> str:
        """See `TrainingTask.counted`."""
        return f"{len(part.samples)} images"

    def network(
        self, config: TrainConfig, entry: ModelEntry, index: Dataset
    ) -> tuple[nn.Module, str]:
        """See `TrainingTask.network`: its last layer is new, whatever it starts from."""
        classes = len(index.classes.ids)
        weights = None if config.untrained else config.weights
        return start_classifier(
            entry, classes, config.model_args, seed=config.seed, weights=weights
        )

    def answer(self, network: nn.Module, images: Tensor) -> object:
        """See `TrainingTask.answer`."""
        return network(images)

    def check_answer(self, answer: object, network: nn.Module, tried: Trial) -> None:
        """See `TrainingTask.check_answer`."""
        check_scores(answer, getattr(network, "num_classes", None), tried)

    def counts(
        self, plan: TrainPlan, train: Sequence[Decoded], val: Sequence[Decoded]
    ) -> dict[Split, SplitRecord]:
        """See `TrainingTask.counts`."""
        sizes = {name: len(getattr(plan.splits, name).samples) for name in SPLITS}
        return {name: SplitRecord(images=size, groups=size) for name, size in sizes.items()}

    def batches(
        self, plan: TrainPlan, train: Sequence[Decoded], val: Sequence[Decoded]
    ) -> ImageData:
        """See `TrainingTask.batches`."""
        settings, preprocessing = plan.batch_settings(), _preprocessing(plan)
        photos = DecodedSubset.of(plan.splits.train.samples, train)
        crops = RandomCrops(photos, preprocessing, plan.recipe.augmentation, settings.seed)
        validation = WholePhotos(DecodedSubset.of(plan.splits.val.samples, val), preprocessing)
        return ImageData(photos.ids, crops, validation, collate_photos, plan.recipe, settings)

    def lit_module(
        self, plan: TrainPlan, network: nn.Module, data: BaseDataModule | None = None
    ) -> ClassifierModule:
        """See `TrainingTask.lit_module`."""
        return ClassifierModule(
            network.train(), plan.recipe, decays_of(plan.entry, network),
            preprocessing=_preprocessing(plan), val_images=len(plan.splits.val.samples),
        )  # fmt: skip

    def facts(self, plan: TrainPlan, network: nn.Module) -> RecordedFacts:
        """See `TrainingTask.facts`."""
        return RecordedFacts(dataset_record(plan.index), None, "the class with the highest score")

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
            preprocessing=asdict(_preprocessing(plan)),
            seen=_sampled_digests(plan.splits.train, plan.config.seed),
        )

    def measure(
        self, plan: TrainPlan, lit_module: LitModule, chosen: Mapping[str, Any], listener: Listener
    ) -> None:
        """See `TrainingTask.measure`: into `RUN/test`."""
        listener.say(f"Measuring on the {len(plan.splits.test.samples)} held-out images.")
        evaluate_test_images(plan, str(plan.run), plan.run / "test")


def class_recipe(config: TrainConfig, window: int) -> Recipe:
    """The recipe with the overrides of `config`.

    Raises:
        UsageError: An override is unknown or out of range.
    """
    changes = {**overridden_fields(config), "window": window}
    if "loss" in changes:
        changes["loss"] = find(
            changes["loss"], SMOOTHINGS, kind="loss", listing="docs/train-cls.md"
        )
    if "augmentation" in changes:
        changes["augmentation"] = crop_name(changes["augmentation"])
    name = find(
        config.recipe or next(iter(CLASS_RECIPES)), CLASS_RECIPES,
        kind="recipe of classifiers", listing="robust list recipes",
    )  # fmt: skip
    recipe = shortened_recipe(CLASS_RECIPES[name]) if config.quick else CLASS_RECIPES[name]
    return replace(recipe, **changes, precision=config.precision)


def check_protocol(config: TrainConfig) -> None:
    """Raises UsageError where a way of splitting, reading and scoring masks is asked for."""
    if config.protocol != "patient":
        raise UsageError(
            f"`--protocol {config.protocol}` does not go with classifiers.",
            "It is a way of splitting and scoring images with masks.",
            "Leave it out: classifiers are split by image, class by class.",
        )
    check_no_masks(config.foreground, config.ignore, config.mask_classes)


def no_data(entry: ModelEntry) -> UsageError:
    """The error where no data set says which classes to tell apart."""
    return UsageError(
        f"No `--data`: there is nothing to train `{entry.name}` on.",
        "No set of photos with other classes comes with this program.",
        "Name one with `--data DIR` (a folder per class, perhaps below `train`, `val` and `test`; "
        "or a manifest with the columns `path` and `label`), or try `--data cifar10-mini`.",
    )


def _preprocessing(plan: TrainPlan) -> Preprocessing:
    """How photos become the network's input, in training, validation and evaluation."""
    return sized_preprocessing(plan.entry, plan.config.model_args, plan.recipe.window)


def _sampled_digests(train: Dataset, seed: int) -> dict[str, str]:
    """Some training images, by id, with the hash of their files."""
    drawn = sorted(train.samples, key=lambda image: identity_seed("seen", seed, image.image_id))
    return {i.image_id: hashlib.sha256(i.image.read()).hexdigest() for i in drawn[:_SEEN]}
