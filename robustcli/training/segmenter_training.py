"""Training of segmenters: images with masks, split by group, scored by dice and IoU.

With several mask classes, the network has one output per class and one for the background, and its
loss is one of `losses.CLASS_LOSSES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.model import Trial, check_finite
from robustcli.adapters.networks import is_trainable
from robustcli.adapters.segmenter import is_probability
from robustcli.adapters.trainable import for_classes, start_segmenter
from robustcli.adapters.training_run import WeightsHeader
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.names import counted
from robustcli.data.dataset import Dataset
from robustcli.data.mask_classes import ShownClasses
from robustcli.data.mask_values import is_foreground, is_unscored
from robustcli.data.masks import decode_mask
from robustcli.data.sources import Masks, open_dataset
from robustcli.data.splits import Split, Splits, paper_splits, split_dataset
from robustcli.nnunet.normalisation import NnUNetInference
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, Decoded, DecodedSubset, PixelArray
from robustcli.training.lit_module import LitModule, SegmenterModule, outputs
from robustcli.training.losses import COUNTERPARTS, loss_name
from robustcli.training.mask_samples import augmentation_name
from robustcli.training.procedures import procedure_of
from robustcli.training.recipes import Recipe, recipe_for, recipe_named, shortened_recipe
from robustcli.training.record import SplitRecord
from robustcli.training.training_task import (
    RecordedFacts,
    TrainingTask,
    TrainPlan,
    common_header,
    evaluate_test_images,
    overridden_fields,
    run_as_model,
    typed_options,
)

BASELINE = "otsu"
MOST_PROBABLE = "the most probable class"
LOGIT_HALF = 0.6224593312018546  # the probability at logit 0.5
_OVERLAP = 0.5  # of nnU-Net's prediction windows


class SegmenterTraining(TrainingTask):
    """Training of segmenters."""

    name: ClassVar[Literal["cls", "seg"]] = "seg"

    def check(self, entry: ModelEntry, config: TrainConfig) -> None:
        """See `TrainingTask.check`."""
        if not is_trainable(entry):
            raise UsageError(
                f"`{entry.name}` cannot be trained.",
                "It is a baseline without parameters.",
                f"Evaluate it with `robust eval --model {entry.name} --transform identity`.",
            )
        if config.ignore is not None and config.protocol == "paper":
            raise _ignores_in_paper(f"`--ignore {config.ignore}`")

    def open(self, config: TrainConfig, entry: ModelEntry) -> Dataset:
        """See `TrainingTask.open`; a class table can also define values to ignore."""
        masks = Masks(config.foreground, config.ignore, config.mask_classes, offline=config.offline)
        dataset = open_dataset(config.data, masks)
        if config.protocol == "paper" and dataset.reading is not None and dataset.reading.ignored:
            raise _ignores_in_paper(f"A value to ignore ({dataset.reading.words()})")
        return dataset

    def built_for(self, config: TrainConfig, index: Dataset) -> TrainConfig:
        """See `TrainingTask.built_for`: one output per class and one for the background."""
        arguments = for_classes(config.model_args, index.mask_classes)
        return replace(config, model_args=arguments) if index.mask_classes else config

    def split(self, index: Dataset, config: TrainConfig) -> Splits:
        """See `TrainingTask.split`."""
        if config.protocol == "paper" and index.mask_classes:
            raise UsageError(
                f"`--protocol paper` cannot be used with masks of {len(index.mask_classes)} "
                "classes.",
                "The paper has one class and background; its losses, soft masks and dice are not "
                "defined for more classes.",
                "Omit it, or select one class with `--foreground`.",
            )
        if config.protocol == "paper":
            return paper_splits(index)
        return split_dataset(index, seed=config.parts_seed)

    def recipe(self, config: TrainConfig, entry: ModelEntry, splits: Splits) -> Recipe:
        """See `TrainingTask.recipe`."""
        classes = len(splits.train.mask_classes)
        recipe = mask_recipe(config, entry.name, splits.train.name, classes)
        if config.ablation is not None:
            recipe = replace(recipe, expected_dice=None)  # published for the network with its scan
        return procedure_of(recipe).planned(config, entry, splits.train)

    def protocol_words(self, config: TrainConfig) -> str:
        """See `TrainingTask.protocol_words`."""
        return f"Protocol `{config.protocol}`"

    def counted(self, part: Dataset) -> str:
        """See `TrainingTask.counted`."""
        images, kind = counted(len(part.samples), "image"), part.grouping
        return images if kind == "image" else f"{images} of {counted(len(part.groups), kind)}"

    def network(
        self, config: TrainConfig, entry: ModelEntry, index: Dataset
    ) -> tuple[nn.Module, str]:
        """See `TrainingTask.network`."""
        return start_segmenter(
            entry, config.model_args, seed=config.seed, weights=config.weights,
            untrained=config.untrained, offline=config.offline, classes=index.mask_classes,
        )  # fmt: skip

    def answer(self, network: nn.Module, images: Tensor) -> object:
        """See `TrainingTask.answer`: the output of the highest resolution."""
        return outputs(network, images)[0]

    def check_answer(self, answer: object, network: nn.Module, tried: Trial) -> None:
        """See `TrainingTask.check_answer`."""
        assert isinstance(answer, Tensor)
        check_finite(answer.float(), tried)

    def counts(
        self, plan: TrainPlan, train: Sequence[Decoded], val: Sequence[Decoded]
    ) -> dict[Split, SplitRecord]:
        """See `TrainingTask.counts`: includes the number of images without foreground."""
        splits = plan.splits
        _check_foreground(splits.train, train)
        _check_classes(splits.train, train)
        test_masks = (decode_mask(pair.mask, pair.reading) for pair in splits.test.samples)
        counts: dict[Split, SplitRecord] = {
            "train": split_record(splits.train, (decoded.mask for decoded in train)),
            "val": split_record(splits.val, (decoded.mask for decoded in val)),
            "test": split_record(splits.test, test_masks),
        }
        _check_scored(splits, counts)
        return counts

    def batches(self, plan: TrainPlan, train: DecodedSubset, val: DecodedSubset) -> BaseDataModule:
        """See `TrainingTask.batches`."""
        return plan.procedure.data(train, val, plan.batch_settings(ignores=_ignores(plan)))

    def lit_module(
        self, plan: TrainPlan, network: nn.Module, data: BaseDataModule | None = None
    ) -> SegmenterModule:
        """See `TrainingTask.lit_module`."""
        return plan.procedure.module(
            network, plan.entry, plan.splits.val, data, grey=plan.grey, ignores=_ignores(plan)
        )

    def facts(self, plan: TrainPlan, network: nn.Module) -> RecordedFacts:
        """See `TrainingTask.facts`."""
        probability = foreground_threshold(plan.recipe, probabilities=is_probability(network))
        several = bool(plan.index.mask_classes)
        decision = MOST_PROBABLE if several else decision_words(probability)
        return RecordedFacts(plan.config.protocol, decision)

    def header(self, plan: TrainPlan, network: nn.Module) -> WeightsHeader:
        """See `TrainingTask.header`."""
        normalised = plan.procedure.normalised
        return WeightsHeader(
            model=plan.entry.name,
            arguments=dict(plan.config.model_args),
            window=plan.recipe.window,
            channels=plan.channels,
            threshold=foreground_threshold(plan.recipe, probabilities=is_probability(network)),
            protocol=plan.config.protocol,
            **common_header(plan),
            overlap=_OVERLAP if normalised else None,
            nnunet=NnUNetInference(normalised) if normalised else None,
            mask_classes=plan.index.mask_classes,
        )

    def measure(
        self, plan: TrainPlan, lit_module: LitModule, chosen: Mapping[str, Any], listener: Listener
    ) -> None:
        """See `TrainingTask.measure`: writes `RUN/test`, and Otsu's threshold to `RUN/baseline`.

        There is no baseline for several classes, because Otsu's threshold separates two values.
        """
        run, test = plan.run, plan.splits.test.samples
        module = cast("SegmenterModule", lit_module)
        plan.procedure.score(run, module, chosen, test, plan.machine.device)
        listener.say(f"Evaluating on {counted(len(test), 'held-out image')}.")
        evaluate_test_images(plan, run_as_model(run), run / "test")
        if not plan.index.mask_classes:
            evaluate_test_images(plan, BASELINE, run / "baseline")


def mask_recipe(config: TrainConfig, model: str, data: str, classes: int = 0) -> Recipe:
    """The recipe for the network `model` and the data set `data`, with the overrides of `config`.

    `classes` is the number of mask classes without background; 0 for foreground and background.

    Raises:
        UsageError: An override is unknown, out of range, or excluded by the protocol.
    """
    if config.recipe is None:
        recipe = recipe_for(model, config.protocol, data, quick=config.quick)
    elif config.protocol == "paper":
        raise UsageError(
            f"`--recipe {config.recipe}` cannot be used with `--protocol paper`.",
            "This protocol uses the published recipe of each network.",
            "Omit one of the two.",
        )
    else:
        recipe = recipe_named(config.recipe, model)
        if config.quick:
            recipe = shortened_recipe(recipe)
    procedure_of(recipe).check_options(config, typed_options(config))
    changes = overridden_fields(config)
    if "loss" in changes:
        changes["loss"] = loss_name(changes["loss"], classes)
    elif classes and recipe.loss in COUNTERPARTS:
        changes["loss"] = COUNTERPARTS[recipe.loss]
    if "augmentation" in changes:
        changes["augmentation"] = augmentation_name(changes["augmentation"])
    return replace(recipe, **changes, precision=config.precision or recipe.precision)


def foreground_threshold(recipe: Recipe, *, probabilities: bool) -> float:
    """The probability threshold of foreground pixels.

    Args:
        recipe: Gives the decision rule.
        probabilities: Whether the network returns probabilities, for which no logit rule applies.
    """
    return LOGIT_HALF if recipe.decision == "logit" and not probabilities else 0.5


def decision_words(probability: float) -> str:
    """The decision rule in words, for reports."""
    if probability == LOGIT_HALF:
        return "logit >= 0.5 (probability >= 0.622)"
    return f"probability >= {probability:g}"


def split_record(part: Dataset, masks: Iterable[PixelArray]) -> SplitRecord:
    """Counts the images, groups, and images without foreground or without scores of a part."""
    shown = ShownClasses(part.reading)
    empty = unscored = 0
    for mask in shown.noting(masks):
        empty += not is_foreground(mask).any()
        unscored += is_unscored(mask)
    return SplitRecord(
        images=len(part.samples), groups=len(part.groups), empty=empty,
        absent=shown.absent() or None, unscored=unscored or None,
    )  # fmt: skip


def _ignores_in_paper(what: str) -> UsageError:
    return UsageError(
        f"{what} cannot be used with `--protocol paper`.",
        "The paper resizes masks, which mixes ignored pixels with their neighbours, and "
        "scores every pixel.",
        "Omit one of the two.",
    )


def _ignores(plan: TrainPlan) -> bool:
    """Whether the masks of the data contain pixels to ignore."""
    reading = plan.index.reading
    return reading is not None and bool(reading.ignored)


def _check_foreground(train: Dataset, decoded: Sequence[Decoded]) -> None:
    if not any(is_foreground(pixels.mask).any() for pixels in decoded):
        raise UsageError(
            f"None of the {len(decoded)} training images of `{train.name}` has any foreground.",
            "A network cannot learn foreground from empty masks.",
            "Use other data, a larger `--limit`, or another `--seed`.",
        )


def _check_scored(splits: Splits, counts: Mapping[Split, SplitRecord]) -> None:
    """Raises UsageError if no validation image, or no test image, can be scored."""
    parts: tuple[tuple[Split, str, str], ...] = (
        ("val", "validation", "The validation images select the best epoch."),
        ("test", "held-out", "The held-out images measure the trained network."),
    )
    for name, words, purpose in parts:
        if counts[name].unscored == counts[name].images:
            raise UsageError(
                f"None of the {counts[name].images} {words} images of `{splits.train.name}` has a "
                "pixel to score.",
                f"{purpose} Every pixel of their masks is ignored.",
                "Ignore fewer values, or use other data, a larger `--limit`, or another "
                "`--split-seed`.",
            )


def _check_classes(train: Dataset, decoded: Sequence[Decoded]) -> None:
    """Raises UsageError if a mask class is in no training image."""
    names = train.mask_classes
    shown = (
        {int(number) for pixels in decoded for number in np.unique(pixels.mask)} if names else ()
    )
    missing = [name for number, name in enumerate(names, 1) if number not in shown]
    if missing:
        raise UsageError(
            f"None of the {len(decoded)} training images of `{train.name}` contains "
            f"{', '.join(f'`{name}`' for name in missing)}.",
            "A network cannot learn a class without training images.",
            "Remove it from the classes (`--classes`), or use other data, a larger `--limit`, or "
            "another `--seed`.",
        )
