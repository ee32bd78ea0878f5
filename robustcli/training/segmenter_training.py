"""The training of segmenters: images with masks, split by group, measured by dice and IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

from torch import nn

from robustcli.adapters.builders import learns
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.segmenter import is_probability
from robustcli.adapters.start import start_weights
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
from robustcli.training.datamodule import Part, SegmentationData
from robustcli.training.finish import evaluate, hash_ids
from robustcli.training.learning import Learner, decays_of
from robustcli.training.lit_segmenter import SegmentationModule
from robustcli.training.overrides import recipe_of
from robustcli.training.procedures.nnunet import NnUNetModule, PatchData, planned
from robustcli.training.procedures.paper import faults, score_as_the_paper
from robustcli.training.recipes import Recipe
from robustcli.training.record import SplitRecord
from robustcli.training.run_record import decision_words, split_record, threshold
from robustcli.training.task import Facts, Selection, TrainingTask
from robustcli.training.trainer import default_workers

# Module and batches of a segmenter's training, of the kind that its recipe asks for.


def make_data(
    config: TrainConfig, selection: Selection, train: Part, val: Part
) -> SegmentationData | PatchData:
    """The batches of training and validation.

    Raises:
        UsageError: The recipe needs foreground in both parts, and one has none.
    """
    recipe, device = selection.recipe, selection.on.device
    workers = default_workers(device) if config.workers is None else config.workers
    pin = device.type == "cuda"
    if recipe.patches is not None:
        return PatchData(
            train, val, recipe, seed=config.seed, workers=workers, pin=pin,
            ignores=ignores(selection),
        )  # fmt: skip
    return SegmentationData(
        train, val, recipe, seed=config.seed, whole=selection.whole, workers=workers, pin=pin,
        least=selection.least,
    )  # fmt: skip


def make_module(
    selection: Selection, network: nn.Module, data: SegmentationData | PatchData | None = None
) -> SegmentationModule:
    """What Lightning trains.

    Args:
        selection: With the recipe.
        network: The network; put into training mode.
        data: What it is validated on; None where it is not.
    """
    if selection.recipe.patches is not None:
        return NnUNetModule(network.train(), selection.recipe, ignores=ignores(selection))
    groups = [pair.group for pair in selection.splits.val.samples]
    places = data.val_images() if isinstance(data, SegmentationData) else []
    return SegmentationModule(
        network.train(), selection.recipe, channels=selection.channels,
        decays=decays_of(selection.entry), val_groups=[groups[place] for place in places],
        ignores=ignores(selection),
    )  # fmt: skip


def ignores(selection: Selection) -> bool:
    """Whether the masks of the data hold pixels that count nowhere."""
    reading = selection.index.reading
    return reading is not None and bool(reading.ignored)


def part_of(index: Dataset, decoded: Sequence[Decoded]) -> Part:
    """The pairs of `index` with their pixels."""
    return Part([pair.image_id for pair in index.samples], decoded)


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
        whole = open_dataset(config.data, Masks(config.foreground, config.ignore))
        return take(whole, limit=config.limit, seed=config.seed)

    def split(self, index: Dataset, config: TrainConfig) -> Splits:
        """See `TrainingTask.split`."""
        if config.protocol == "paper":
            return paper_splits(index)
        return split_dataset(index, seed=config.seed)

    def recipe(self, config: TrainConfig, entry: ModelEntry, splits: Splits) -> Recipe:
        """See `TrainingTask.recipe`."""
        recipe = recipe_of(config, entry.name, splits.train.name)
        return recipe if recipe.patches is None else planned(recipe, config, entry, splits.train)

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
        self, selection: Selection, train: Sequence[Decoded], val: Sequence[Decoded]
    ) -> dict[Split, SplitRecord]:
        """See `TrainingTask.counts`: with the images that hold no foreground."""
        splits = selection.splits
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
        self, config: TrainConfig, selection: Selection, train: Sequence[Decoded],
        val: Sequence[Decoded],
    ) -> SegmentationData | PatchData:  # fmt: skip
        """See `TrainingTask.batches`."""
        splits = selection.splits
        return make_data(config, selection, part_of(splits.train, train), part_of(splits.val, val))

    def learner(
        self, selection: Selection, network: nn.Module, data: Any = None
    ) -> SegmentationModule:
        """See `TrainingTask.learner`."""
        return make_module(selection, network, data)

    def facts(self, config: TrainConfig, selection: Selection, network: nn.Module) -> Facts:
        """See `TrainingTask.facts`."""
        probability = threshold(selection, probabilities=is_probability(network))
        return Facts(
            pairs_record(selection.index),
            config.protocol,
            decision_words(probability),
            faults(selection.entry.name, selection.recipe) if selection.whole else [],
        )

    def header(
        self, config: TrainConfig, selection: Selection, network: nn.Module
    ) -> WeightsHeader:
        """See `TrainingTask.header`."""
        patches = selection.recipe.patches
        return WeightsHeader(
            model=selection.entry.name,
            arguments=dict(config.model_args),
            window=selection.recipe.window,
            channels=selection.channels,
            threshold=threshold(selection, probabilities=is_probability(network)),
            protocol=config.protocol,
            trained_on=selection.index.digest,
            images_sha256=hash_ids(selection.splits.train),
            overlap=None if patches is None else _OVERLAP,
            nnunet=None if patches is None else NnUNetInference(patches.channels),
        )

    def measure(
        self, config: TrainConfig, selection: Selection, learner: Learner,
        chosen: Mapping[str, Any], listener: Listener,
    ) -> None:  # fmt: skip
        """See `TrainingTask.measure`: into `RUN/test`, and Otsu's threshold into `RUN/baseline`."""
        run = selection.run
        if selection.whole:
            learner.network.load_state_dict(chosen)
            score_as_the_paper(selection, cast("SegmentationModule", learner), self.decode)
        listener.say(f"Measuring on the {len(selection.splits.test.samples)} held-out images.")
        evaluate(config, run, str(run), run / "test")
        evaluate(config, run, BASELINE, run / "baseline")


def _check_foreground(train: Dataset, decoded: Sequence[Decoded]) -> None:
    if not any((one.mask == 1).any() for one in decoded):
        raise UsageError(
            f"None of the {len(decoded)} training images of `{train.name}` has any foreground.",
            "From empty masks a network learns to find nothing.",
            "Name other data, a larger `--limit`, or another `--seed`.",
        )
