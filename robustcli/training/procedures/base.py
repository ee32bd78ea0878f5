"""Base class of training procedures, and ours: epochs over windows, best epoch by validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from torch import nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.core.listener import Listener
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.splits import Splits
from robustcli.nnunet.normalisation import Channel
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, BatchSettings, DecodedSubset, ImageData
from robustcli.training.lit_module import SegmenterModule, decays_of
from robustcli.training.recipes import Recipe
from robustcli.training.samples import AllWindows, RandomWindows, collate_masks
from robustcli.training.trainer import Machine


@dataclass(frozen=True)
class Procedure:
    """A way to train with a recipe. This class is our procedure; the others derive from it.

    Epoch lengths, the monitored value and refused options apply to every network. Data module,
    LitModule and scores apply to segmenters; those of classifiers are in `classifier_training`.
    """

    recipe: Recipe

    channels: ClassVar[Literal["rgb", "bgr"]] = "rgb"
    """Channel order of the input of a network with three channels."""
    keeps_best: ClassVar[bool] = True
    """Whether the best epoch by the monitored value is selected; else the last epoch."""
    why_chosen: ClassVar[str] = "on the validation images"
    """In words: the images of the monitored value; if the last epoch is selected, the reason."""
    finetunes: ClassVar[bool] = True
    """Whether a pretrained network can be fine-tuned with this procedure."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Options that the procedure does not use, with the reason as a clause or sentence."""

    def check_options(self, config: TrainConfig, options: Mapping[str, Any]) -> None:
        """Validates the overrides `options` by name; raises UsageError for those in `refused`."""
        return

    def check(self, machine: Machine, *, grey: bool) -> None:
        """Raises UsageError if the procedure does not support the devices or channels."""
        return

    def planned(self, config: TrainConfig, entry: ModelEntry, train: Dataset) -> Recipe:
        """The recipe with the unset values that depend on network and images."""
        return self.recipe

    def images_per_epoch(self, available: int) -> int:
        """Number of training images or patches per epoch, for `available` images."""
        return min(self.recipe.images_per_epoch or available, available)

    def val_batches(self, images: int) -> float:
        """Approximate number of validation batches; one image can need several batches."""
        return images / self.recipe.batch_size

    def monitor(self, score: str) -> str:
        """Name of the logged value that selects the best epoch, for a task's `score`."""
        return score

    @property
    def normalised(self) -> tuple[Channel, ...]:
        """Normalisation of each channel after division by 255; empty for none."""
        return ()

    def data(
        self, train: DecodedSubset, val: DecodedSubset, settings: BatchSettings
    ) -> BaseDataModule:
        """The data module of a segmenter.

        Raises:
            UsageError: The procedure needs foreground in both subsets, and a subset has none.
        """
        window, augmentation = self.recipe.window, self.recipe.augmentation
        windows = RandomWindows(train, window, augmentation, settings.seed)
        return ImageData(
            train.ids, windows, AllWindows(val, window), collate_masks, self.recipe, settings
        )

    def module(
        self, network: nn.Module, entry: ModelEntry, val: Dataset, data: BaseDataModule | None, *,
        grey: bool, ignores: bool,
    ) -> SegmenterModule:  # fmt: skip
        """The LitModule of a segmenter; dice and IoU are pooled by the groups of `val`.

        Args:
            network: The network; put into training mode.
            entry: Catalogue entry of the network.
            val: The validation pairs.
            data: Their batches; None without validation.
            grey: Whether the network takes greyscale images.
            ignores: Whether masks contain pixels to ignore.
        """
        indices = data.val_samples.places if isinstance(data, ImageData) else []
        classes = len(val.mask_classes)
        return SegmenterModule(
            network.train(), self.recipe, channels="grey" if grey else self.channels,
            decays=decays_of(entry), val_groups=[val.samples[index].group for index in indices],
            ignores=ignores, classes=classes,
        )  # fmt: skip

    def callbacks(self, run: Path, listener: Listener) -> list[pl.Callback]:
        """Additional Lightning callbacks."""
        return []

    def splits(self, splits: Splits) -> Splits:
        """The training, validation and test parts of a classifier's data in this procedure."""
        return splits

    def faults(self, model: str) -> list[str]:
        """Known faults of the procedure, kept for comparability with the paper."""
        return []

    def score(
        self, run: Path, module: SegmenterModule, chosen: Mapping[str, Any],
        test: Sequence[Sample], device: torch.device,
    ) -> None:  # fmt: skip
        """Writes additional scores of the held-out images into `run`; by default none."""
        return
