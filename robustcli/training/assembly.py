"""Module and batches of a segmenter's training, of the kind that its recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robustcli.adapters.decays import decays_of
from robustcli.data.pairs import PairIndex
from robustcli.training.batches.cache import Decoded
from robustcli.training.batches.loaders import Part, SegmentationData
from robustcli.training.config import TrainConfig
from robustcli.training.fit import default_workers
from robustcli.training.module import SegmentationModule
from robustcli.training.nnunet.data import PatchData
from robustcli.training.nnunet.module import NnUNetModule
from robustcli.training.task import Selection


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
    groups = [pair.group for pair in selection.splits.val.pairs]
    places = data.val_images() if isinstance(data, SegmentationData) else []
    return SegmentationModule(
        network.train(), selection.recipe, channels=selection.channels,
        decays=decays_of(selection.entry), val_groups=[groups[place] for place in places],
        ignores=ignores(selection),
    )  # fmt: skip


def ignores(selection: Selection) -> bool:
    """Whether the masks of the data hold pixels that count nowhere."""
    index = selection.index
    reading = index.reading if isinstance(index, PairIndex) else None
    return reading is not None and bool(reading.ignored)


def part_of(index: PairIndex, decoded: Sequence[Decoded]) -> Part:
    """The pairs of `index` with their pixels."""
    return Part([pair.image_id for pair in index.pairs], decoded)
