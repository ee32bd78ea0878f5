"""What a procedure decides; ours: passes over cut windows, the best epoch by validation."""

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
from robustcli.training.cache import DecodedSubset
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, BatchSettings, ImageData
from robustcli.training.lit_module import SegmenterModule, decays_of
from robustcli.training.recipes import Recipe
from robustcli.training.samples import AllWindows, RandomWindows, collate_masks
from robustcli.training.trainer import Machine


@dataclass(frozen=True)
class Procedure:
    """One way to train with a recipe. This one is ours; the others derive from it.

    Lengths, the monitored value and what is refused hold for every network; data module, LitModule
    and scores are those of segmenters. Classifiers bring their own (`classifier_training`).
    """

    recipe: Recipe

    channels: ClassVar[Literal["rgb", "bgr"]] = "rgb"
    """The order of colours that a network of three channels gets."""
    keeps_best: ClassVar[bool] = True
    """Whether the best epoch by the monitored value is taken; else the last one."""
    why_chosen: ClassVar[str] = "on the validation images"
    """Of which images the monitored value is, or for the last epoch, what has it so."""
    finetunes: ClassVar[bool] = True
    """Whether a pretrained network may be fine-tuned so."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Options that have no meaning here, and why: a sentence, or part of one."""

    def check_options(self, config: TrainConfig, options: Mapping[str, Any]) -> None:
        """Validates the overrides `options` by name; those in `refused` raise UsageError."""
        return

    def check(self, machine: Machine, *, grey: bool) -> None:
        """Validates devices and channels; raises UsageError where the procedure lacks them."""
        return

    def planned(self, config: TrainConfig, entry: ModelEntry, train: Dataset) -> Recipe:
        """The recipe with what depends on network and images and the user has not set."""
        return self.recipe

    def images_per_epoch(self, available: int) -> int:
        """Training images of an epoch, or patches of them, of `available` images."""
        return min(self.recipe.images_per_epoch or available, available)

    def val_batches(self, images: int) -> float:
        """Batches of a validation pass over so many images, about: an image may be several."""
        return images / self.recipe.batch_size

    def monitor(self, score: str) -> str:
        """The logged value that the best epoch has the highest of, for a task's `score`."""
        return score

    @property
    def normalised(self) -> tuple[Channel, ...]:
        """How each channel is normalised beyond division by 255; empty where it is not."""
        return ()

    def data(
        self, train: DecodedSubset, val: DecodedSubset, settings: BatchSettings
    ) -> BaseDataModule:
        """The data module of a segmenter.

        Raises:
            UsageError: The procedure needs foreground in both subsets, and one has none.
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
            entry: What is known of it.
            val: The pairs that are validated on.
            data: Their batches; None where nothing is validated.
            grey: Whether the network gets greyscale images.
            ignores: Whether masks hold pixels to ignore.
        """
        indices = data.val_samples.places if isinstance(data, ImageData) else []
        classes = len(val.mask_classes)
        return SegmenterModule(
            network.train(), self.recipe, channels="grey" if grey else self.channels,
            decays=decays_of(entry), val_groups=[val.samples[index].group for index in indices],
            ignores=ignores, classes=classes,
        )  # fmt: skip

    def callbacks(self, run: Path, listener: Listener) -> list[pl.Callback]:
        """What Lightning calls besides the usual."""
        return []

    def splits(self, splits: Splits) -> Splits:
        """The parts of a classifier's data as they are trained on and validated on."""
        return splits

    def faults(self, model: str) -> list[str]:
        """Known faults of the procedure, which it keeps to stay comparable."""
        return []

    def score(
        self, run: Path, module: SegmenterModule, chosen: Mapping[str, Any],
        test: Sequence[Sample], device: torch.device,
    ) -> None:  # fmt: skip
        """Writes the procedure's own scores of the held-out images into `run`: here none."""
        return
