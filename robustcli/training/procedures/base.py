"""A procedure: what is trained on, how, which epoch is taken, what is scored, what is refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.data.dataset import Dataset, Sample
from robustcli.nnunet.normalisation import Channel
from robustcli.training.cache import Decoded
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, DecodedPairs
from robustcli.training.lit_segmenter import SegmentationModule
from robustcli.training.recipes import Recipe
from robustcli.training.trainer import Machine


@dataclass(frozen=True)
class BatchSettings:
    """How batches are made, whatever is in them.

    Args:
        seed: Of the run.
        workers: Loader processes; 0 for none.
        pin: Whether batches go through pinned memory, for CUDA.
        least: Fewest images of a training batch.
        ignores: Whether masks hold pixels to ignore (`mask_values.IGNORED`).
    """

    seed: int
    workers: int
    pin: bool = False
    least: int = 1
    ignores: bool = False


@dataclass(frozen=True)
class Procedure(ABC):
    """One way to train with a recipe.

    Lengths, the monitored value and what is refused hold for every network; data module, LitModule
    and scores are those of segmenters. Classifiers bring their own (`classifier_training`).

    Args:
        recipe: With all overrides.
    """

    recipe: Recipe

    channels: ClassVar[Literal["rgb", "bgr"]] = "rgb"
    """The order of colours that a network of three channels gets."""
    keeps_best: ClassVar[bool] = True
    """Whether the best epoch by the monitored value is taken; else the last one."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Options that have no meaning here, and why: a sentence, or part of one."""

    @abstractmethod
    def images_per_epoch(self, available: int) -> int:
        """Training images of an epoch, or patches of them, where so many images are there."""

    @abstractmethod
    def val_batches(self, images: int) -> float:
        """Batches of a validation pass over so many images, about: an image may be several."""

    @abstractmethod
    def data(
        self, train: DecodedPairs, val: DecodedPairs, settings: BatchSettings
    ) -> BaseDataModule:
        """The data module of a segmenter.

        Raises:
            UsageError: The procedure needs foreground in both subsets, and one has none.
        """

    @abstractmethod
    def module(
        self, network: nn.Module, entry: ModelEntry, val: Dataset, data: BaseDataModule | None, *,
        grey: bool, ignores: bool,
    ) -> SegmentationModule:  # fmt: skip
        """The LitModule of a segmenter.

        Args:
            network: The network; put into training mode.
            entry: What is known of it.
            val: The pairs that are validated on.
            data: Their batches; None where nothing is validated.
            grey: Whether the network gets greyscale images.
            ignores: Whether masks hold pixels to ignore.
        """

    def monitor(self, score: str) -> str:
        """The logged value that the best epoch has the highest of, for a task's `score`."""
        return score

    @property
    def normalised(self) -> tuple[Channel, ...]:
        """How each channel is normalised beyond division by 255; empty where it is not."""
        return ()

    def check(self, machine: Machine, *, grey: bool) -> None:
        """Validates devices and channels; raises UsageError where they do not go together."""
        return

    def check_options(self, config: TrainConfig, given: Mapping[str, Any]) -> None:
        """Validates the overrides `given`, by option; those in `refused` raise UsageError."""
        return

    def planned(self, config: TrainConfig, entry: ModelEntry, train: Dataset) -> Recipe:
        """The recipe with what depends on network and images and the user has not set."""
        return self.recipe

    def faults(self, model: str) -> list[str]:
        """What is known to be wrong with the procedure, and is done all the same."""
        return []

    def score(
        self, run: Path, module: SegmentationModule, chosen: Mapping[str, Any],
        test: Sequence[Sample], decode: Callable[[Sample], Decoded], device: torch.device,
    ) -> None:  # fmt: skip
        """Writes the procedure's own scores of the held-out images into `run`: none.

        Args:
            run: The folder.
            module: What was trained.
            chosen: The state of its network in the chosen epoch.
            test: The held-out pairs.
            decode: Reads one of them.
            device: Where the network runs.
        """
        return
