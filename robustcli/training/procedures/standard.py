"""Our procedure: passes over the images in cut windows; the best epoch by validation is taken."""

from __future__ import annotations

from torch import nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.data.dataset import Dataset
from robustcli.training.datamodule import BaseDataModule, DecodedPairs, SegmentationData
from robustcli.training.lit_module import decays_of
from robustcli.training.lit_segmenter import SegmentationModule
from robustcli.training.procedures.base import BatchSettings, Procedure


class Standard(Procedure):
    """An epoch is a pass over all training images, or over as many as the recipe says."""

    def images_per_epoch(self, available: int) -> int:
        """See `Procedure.images_per_epoch`."""
        return min(self.recipe.images_per_epoch or available, available)

    def val_batches(self, images: int) -> float:
        """See `Procedure.val_batches`."""
        return images / self.recipe.batch_size

    def data(
        self, train: DecodedPairs, val: DecodedPairs, settings: BatchSettings
    ) -> SegmentationData:
        """See `Procedure.data`."""
        return SegmentationData(
            train, val, self.recipe, seed=settings.seed, workers=settings.workers,
            pin=settings.pin, least=settings.least,
        )  # fmt: skip

    def module(
        self, network: nn.Module, entry: ModelEntry, val: Dataset, data: BaseDataModule | None, *,
        grey: bool, ignores: bool,
    ) -> SegmentationModule:  # fmt: skip
        """See `Procedure.module`: dice and IoU are pooled by the groups of `val`."""
        shown = data.val_images() if isinstance(data, SegmentationData) else []
        return SegmentationModule(
            network.train(), self.recipe, channels="grey" if grey else self.channels,
            decays=decays_of(entry), val_groups=[val.samples[place].group for place in shown],
            ignores=ignores,
        )  # fmt: skip
