"""The training of segmenters: images with masks, split by group, measured by dice and IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

from torch import nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.networks import learns
from robustcli.adapters.segmenter import is_probability
from robustcli.adapters.trainable import start_weights
from robustcli.adapters.training_run import WeightsHeader
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.masks import decode_mask
from robustcli.data.sources import Masks, open_dataset
from robustcli.data.splits import Split, Splits, paper_splits, split_dataset
from robustcli.data.subsets import take
from robustcli.nnunet.normalisation import NnUNetInference
from robustcli.tasks.record import pairs_record
from robustcli.training.cache import Decoded, decode_masked
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, DecodedPairs
from robustcli.training.finish import evaluate_test_images, hash_ids
from robustcli.training.lit_module import LitModule
from robustcli.training.lit_segmenter import SegmentationModule
from robustcli.training.overrides import recipe_of
from robustcli.training.procedures import procedure_of
from robustcli.training.recipes import Recipe
from robustcli.training.record import SplitRecord
from robustcli.training.run_record import decision_words, split_record, threshold
from robustcli.training.training_task import RecordedFacts, TrainingTask, TrainPlan


def ignores(plan: TrainPlan) -> bool:
    """Whether the masks of the data hold pixels that count nowhere."""
    index = plan.index
    reading = index.reading
    return reading is not None and bool(reading.ignored)


def with_pixels(index: Dataset, decoded: Sequence[Decoded]) -> DecodedPairs:
    """The pairs of `index` with their pixels."""
    return DecodedPairs([pair.image_id for pair in index.samples], decoded)


BASELINE = "otsu"
_OVERLAP = 0.5  # of nnU-Net's windows


class Segmentation(TrainingTask):
    """Foreground and background of every pixel."""

    name: ClassVar[Literal["cls", "seg"]] = "seg"

    def check(self, entry: ModelEntry, config: TrainConfig) -> None:
        """See `TrainingTask.check`."""
        if not learns(entry):
            raise UsageError(
                f"`{entry.name}` has nothing to train.",
                "It is a baseline without parameters.",
                f"Measure it with `robust eval --model {entry.name} --transform identity`.",
            )
        if config.ignore is not None and config.protocol == "paper":
            raise UsageError(
                f"`--ignore {config.ignore}` does not go with `--protocol paper`.",
                "The paper resizes whole masks, which mixes ignored pixels with their neighbours, "
                "and scores every pixel.",
                "Leave out one of the two.",
            )

    def open(self, config: TrainConfig) -> Dataset:
        """See `TrainingTask.open`."""
        return open_dataset(config.data, Masks(config.foreground, config.ignore))

    def limited(self, index: Dataset, config: TrainConfig) -> Dataset:
        """See `TrainingTask.limited`."""
        return take(index, limit=config.limit, seed=config.seed)

    def split(self, index: Dataset, config: TrainConfig) -> Splits:
        """See `TrainingTask.split`."""
        if config.protocol == "paper":
            return paper_splits(index)
        return split_dataset(index, seed=config.seed)

    def recipe(self, config: TrainConfig, entry: ModelEntry, splits: Splits) -> Recipe:
        """See `TrainingTask.recipe`."""
        recipe = recipe_of(config, entry.name, splits.train.name)
        return procedure_of(recipe).planned(config, entry, splits.train)

    def way(self, config: TrainConfig) -> str:
        """See `TrainingTask.way`."""
        return f"Protocol `{config.protocol}`"

    def counted(self, part: Dataset) -> str:
        """See `TrainingTask.counted`."""
        images, kind = f"{len(part.samples)} images", part.grouping
        return images if kind == "image" else f"{images} of {len(part.groups)} {kind}s"

    def network(self, config: TrainConfig, index: Dataset) -> tuple[nn.Module, str]:
        """See `TrainingTask.network`."""
        return start_weights(
            config.model, config.weights, config.untrained, config.offline, config.seed,
            config.model_args,
        )  # fmt: skip

    def decode(self, member: Sample) -> Decoded:
        """See `TrainingTask.decode`."""
        return decode_masked(member)

    def counts(
        self, plan: TrainPlan, train: Sequence[Decoded], val: Sequence[Decoded]
    ) -> dict[Split, SplitRecord]:
        """See `TrainingTask.counts`: with the images that hold no foreground."""
        splits = plan.splits
        _check_foreground(splits.train, train)
        masks = (decode_mask(pair.mask, pair.reading) for pair in splits.test.samples)
        empty = sum(not (mask == 1).any() for mask in masks)
        test = SplitRecord(
            images=len(splits.test.samples), groups=len(splits.test.groups), empty=empty
        )
        return {
            "train": split_record(splits.train, train),
            "val": split_record(splits.val, val),
            "test": test,
        }

    def batches(
        self, plan: TrainPlan, train: Sequence[Decoded], val: Sequence[Decoded]
    ) -> BaseDataModule:
        """See `TrainingTask.batches`."""
        splits = plan.splits
        return plan.procedure.data(
            with_pixels(splits.train, train), with_pixels(splits.val, val),
            plan.batch_settings(ignores=ignores(plan)),
        )  # fmt: skip

    def lit_module(
        self, plan: TrainPlan, network: nn.Module, data: Any = None
    ) -> SegmentationModule:
        """See `TrainingTask.lit_module`."""
        return plan.procedure.module(
            network, plan.entry, plan.splits.val, data, grey=plan.grey, ignores=ignores(plan)
        )

    def facts(self, plan: TrainPlan, network: nn.Module) -> RecordedFacts:
        """See `TrainingTask.facts`."""
        probability = threshold(plan.recipe, probabilities=is_probability(network))
        return RecordedFacts(
            pairs_record(plan.index),
            plan.config.protocol,
            decision_words(probability),
            plan.procedure.faults(plan.entry.name),
        )

    def header(self, plan: TrainPlan, network: nn.Module) -> WeightsHeader:
        """See `TrainingTask.header`."""
        normalised = plan.procedure.normalised
        return WeightsHeader(
            model=plan.entry.name,
            arguments=dict(plan.config.model_args),
            window=plan.recipe.window,
            channels=plan.channels,
            threshold=threshold(plan.recipe, probabilities=is_probability(network)),
            protocol=plan.config.protocol,
            trained_on=plan.index.digest,
            images_sha256=hash_ids(plan.splits.train),
            overlap=_OVERLAP if normalised else None,
            nnunet=NnUNetInference(normalised) if normalised else None,
        )

    def measure(
        self, plan: TrainPlan, lit_module: LitModule, chosen: Mapping[str, Any], listener: Listener
    ) -> None:
        """See `TrainingTask.measure`: into `RUN/test`, and Otsu's threshold into `RUN/baseline`."""
        run, test = plan.run, plan.splits.test.samples
        module = cast("SegmentationModule", lit_module)
        plan.procedure.score(run, module, chosen, test, self.decode, plan.machine.device)
        listener.say(f"Measuring on the {len(test)} held-out images.")
        evaluate_test_images(plan, str(run), run / "test")
        evaluate_test_images(plan, BASELINE, run / "baseline")


def _check_foreground(train: Dataset, decoded: Sequence[Decoded]) -> None:
    if not any((one.mask == 1).any() for one in decoded):
        raise UsageError(
            f"None of the {len(decoded)} training images of `{train.name}` has any foreground.",
            "From empty masks a network learns to find nothing.",
            "Name other data, a larger `--limit`, or another `--seed`.",
        )
