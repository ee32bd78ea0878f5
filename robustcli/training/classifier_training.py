"""Training of classifiers: images split per class, scored by top-1 accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.model import Trial, check_class_scores
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.strict_loading import heads_in
from robustcli.adapters.trainable import NUM_CLASSES, sized_preprocessing, start_classifier
from robustcli.adapters.training_run import ClassifierHeader
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.names import counted, find
from robustcli.data.advice import quoted
from robustcli.data.dataset import Dataset
from robustcli.data.mask_values import check_no_masks
from robustcli.data.sources import Classes, default_data, find_default, open_dataset
from robustcli.data.splits import SPLITS, Split, Splits, split_dataset
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, Decoded, DecodedSubset
from robustcli.training.lit_module import ClassifierModule, LitModule, decays_of
from robustcli.training.photo_samples import photo_augmentation_name
from robustcli.training.procedures import procedure_of
from robustcli.training.recipes import (
    CLASS_RECIPES,
    NAMED_RECIPES,
    OWN_RECIPE,
    SMOOTHINGS,
    Photowise,
    Recipe,
    class_recipe_for,
    shortened_recipe,
    usual_class_recipe,
)
from robustcli.training.record import SplitRecord
from robustcli.training.training_task import (
    RecordedFacts,
    TrainingTask,
    TrainPlan,
    TrainStart,
    common_header,
    evaluate_test_images,
    overridden_fields,
    run_as_model,
    typed_options,
)


class ClassifierTraining(TrainingTask):
    """Training of classifiers."""

    name: ClassVar[Literal["cls", "seg"]] = "cls"

    def check(self, entry: ModelEntry, config: TrainConfig) -> None:
        """See `TrainingTask.check`."""
        check_protocol(config)
        if NUM_CLASSES in config.model_args:
            raise UsageError(
                f"`--model-arg {NUM_CLASSES}` cannot be used for training.",
                "The last layer is replaced by one for the classes of the data.",
                "Omit it.",
            )
        check_data(entry, config)

    def open(self, config: TrainConfig, entry: ModelEntry) -> Dataset:
        """See `TrainingTask.open`: accepts any classes.

        Without `--data`, opens the default data of the network's label space.
        """
        data = config.data or default_data(entry.label_space).data
        return open_dataset(data, Classes(offline=config.offline))

    def split(self, index: Dataset, config: TrainConfig) -> Splits:
        """See `TrainingTask.split`: recipe `paper` joins parts."""
        recipe = class_recipe(config, 0, index.name)
        return procedure_of(recipe).splits(split_dataset(index, seed=config.parts_seed))

    def recipe(self, config: TrainConfig, entry: ModelEntry, splits: Splits) -> Recipe:
        """See `TrainingTask.recipe`; the window is the network's input size."""
        window = sized_preprocessing(entry, config.model_args, config.window).crop
        recipe = class_recipe(config, window, splits.train.name, entry)
        procedure_of(recipe).check_options(config, typed_options(config))
        return recipe

    def protocol_words(self, config: TrainConfig) -> str:
        """See `TrainingTask.protocol_words`."""
        return "Parts"

    def counted(self, part: Dataset) -> str:
        """See `TrainingTask.counted`: names the classes without an image."""
        present = {sample.target for sample in part.samples}
        absent = [name for target, name in enumerate(part.classes.ids) if target not in present]
        lacks = f" (none of {quoted(absent)})" if absent else ""
        return f"{counted(len(part.samples), 'image')}{lacks}"

    def network(
        self, config: TrainConfig, entry: ModelEntry, index: Dataset
    ) -> tuple[nn.Module, str]:
        """See `TrainingTask.network`: the last layer is always new."""
        classes = len(index.classes.ids)
        photos = class_recipe(config, 0, index.name, entry).photos
        if photos is not None and photos.outputs is not None:
            classes = max(classes, photos.outputs)
        weights = None if config.untrained else config.weights
        return start_classifier(
            entry, classes, config.model_args, seed=config.seed, weights=weights
        )

    def start_faults(self, plan: TrainPlan) -> Sequence[str]:
        """See `TrainingTask.start_faults`."""
        return plan.procedure.faults(plan.entry.name)

    def start(self, plan: TrainPlan) -> TrainStart:
        """See `TrainingTask.start`: removes outputs without a class from the trained network."""
        start = super().start(plan)
        classes, outputs = len(plan.index.classes.ids), _outputs(start.network)
        if outputs is None or outputs == classes:
            return start
        heads = heads_in(start.network)

        def cut(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: tensor[:classes] if name.startswith(heads) else tensor
                for name, tensor in state.items()
            }

        return replace(start, export=cut)

    def answer(self, network: nn.Module, images: Tensor) -> object:
        """See `TrainingTask.answer`."""
        return network(images)

    def check_answer(self, answer: object, network: nn.Module, tried: Trial) -> None:
        """See `TrainingTask.check_answer`."""
        check_class_scores(answer, getattr(network, "num_classes", None), tried)

    def counts(
        self, plan: TrainPlan, train: Sequence[Decoded], val: Sequence[Decoded]
    ) -> dict[Split, SplitRecord]:
        """See `TrainingTask.counts`."""
        sizes = {name: len(getattr(plan.splits, name).samples) for name in SPLITS}
        return {name: SplitRecord(images=size, groups=size) for name, size in sizes.items()}

    def batches(self, plan: TrainPlan, train: DecodedSubset, val: DecodedSubset) -> BaseDataModule:
        """See `TrainingTask.batches`."""
        settings = plan.batch_settings()
        return plan.procedure.photo_data(train, val, _preprocessing(plan), settings)

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
        return RecordedFacts(None, "the class with the highest score")

    def header(self, plan: TrainPlan, network: nn.Module) -> ClassifierHeader:
        """See `TrainingTask.header`."""
        space = plan.index.classes
        return ClassifierHeader(
            model=plan.entry.network,
            arguments=dict(plan.config.model_args),
            window=plan.recipe.window,
            **common_header(plan),
            label_space=space.name,
            classes=space.ids,
            class_names=space.names,
            preprocessing=asdict(_preprocessing(plan)),
        )

    def measure(
        self, plan: TrainPlan, lit_module: LitModule, chosen: Mapping[str, Any], listener: Listener
    ) -> None:
        """See `TrainingTask.measure`: writes `RUN/test`."""
        listener.say(f"Evaluating on {counted(len(plan.splits.test.samples), 'held-out image')}.")
        evaluate_test_images(plan, run_as_model(plan.run), plan.run / "test")


def class_recipe(
    config: TrainConfig, window: int, data: str = "", entry: ModelEntry | None = None
) -> Recipe:
    """The recipe for the data set `data`, with the overrides of `config`.

    Args:
        config: The settings as typed.
        window: Side of the network's square input in pixels.
        data: Name of the data set, which determines the default recipe.
        entry: The network, for recipes that depend on it; None for any.

    Raises:
        UsageError: An override is unknown, out of range, or not used by the recipe.
    """
    changes = {**overridden_fields(config), "window": window}
    if "loss" in changes:
        changes["loss"] = find(
            changes["loss"], SMOOTHINGS, kind="loss", listing="docs/train-cls.md"
        )
    if "augmentation" in changes:
        changes["augmentation"] = photo_augmentation_name(changes["augmentation"])
    if config.recipe in (*NAMED_RECIPES, OWN_RECIPE):
        raise UsageError(
            f"`--recipe {config.recipe}` is for segmenters.",
            f"`{config.model}` is a classifier.",
            f"Use one of {', '.join(f'`{known}`' for known in CLASS_RECIPES)}.",
        )
    name = find(
        config.recipe or usual_class_recipe(data), CLASS_RECIPES,
        kind="recipe of classifiers", listing="robust list recipes",
    )  # fmt: skip
    model, family = ("", "") if entry is None else (entry.network, entry.family)
    recipe = class_recipe_for(name, model, family)
    if config.quick:
        recipe = shortened_recipe(recipe)
    if config.target is not None:
        changes["photos"] = _with_target(recipe, config.target)
    return replace(recipe, **changes, precision=config.precision or recipe.precision)


def _with_target(recipe: Recipe, target: float) -> Photowise:
    if recipe.photos is None or recipe.photos.target is None:
        raise UsageError(
            f"`--target {target:g}` cannot be used with `--recipe {recipe.name.split()[0]}`.",
            "Only recipe `speedrun` measures the time to a target accuracy.",
            "Omit `--target`, or use `--recipe speedrun`.",
        )
    if not 0 < target <= 1:
        raise UsageError(
            f"`--target {target:g}` is out of range.", "It must be a fraction above 0."
        )
    return replace(recipe.photos, target=target)


def _outputs(network: nn.Module) -> int | None:
    outputs = getattr(network, "num_classes", None)
    return outputs if isinstance(outputs, int) else None


def check_finetunes(config: TrainConfig) -> None:
    """Raises UsageError if the recipe is only for networks with random initial weights."""
    recipe = class_recipe(config, 0, "")
    if not procedure_of(recipe).finetunes:
        name = recipe.name.split()[0]
        raise UsageError(
            f"`--recipe {name}` cannot be used with `robust finetune`.",
            "It trains networks from random weights, with a special split or storage of the "
            "images.",
            f"Use `--recipe fair`, or `robust train cls --recipe {name}`.",
        )


def check_protocol(config: TrainConfig) -> None:
    """Raises UsageError if `--protocol` is given, which is for segmenters."""
    if config.protocol != "patient":
        raise UsageError(
            f"`--protocol {config.protocol}` cannot be used with classifiers.",
            "It defines the split and the scores of images with masks.",
            "Omit it: images for classifiers are split per class.",
        )
    check_no_masks(config.foreground, config.ignore, config.mask_classes)


def check_data(entry: ModelEntry, config: TrainConfig) -> None:
    """Raises UsageError if there is no data set to train on."""
    if config.data is not None or find_default(entry.label_space) is not None:
        return
    raise UsageError(
        f"`--data` is not set, and `{entry.name}` has no default training data.",
        f"No data set with the classes of {entry.label_space} is bundled, and none is set as the "
        "default.",
        "Specify one with `--data DIR` (a folder per class, optionally below `train`, `val` and "
        "`test`; or a manifest with the columns `path` and `label`), or try `--data cifar10-mini`.",
    )


def _preprocessing(plan: TrainPlan) -> Preprocessing:
    """Preprocessing of images in training, validation and evaluation."""
    base = sized_preprocessing(plan.entry, plan.config.model_args, plan.recipe.window)
    photos = plan.recipe.photos
    if photos is None or photos.mean is None or photos.std is None:
        return base
    channels, normalised = base.channels, replace(base, mean=photos.mean, std=photos.std)
    return normalised.of_channels(channels)
