"""What fine-tuning one kind of model does otherwise than another: where it starts from.

`segmenters` and `classifiers` are the members; the rest of this room does not know which it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from torch import nn

from robustcli.adapters.entry import ModelEntry
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.pretrained import Pretrained
from robustcli.finetuning.rules import FreezeRule
from robustcli.training.config import TrainConfig
from robustcli.training.task import Selection


class Kind(ABC):
    """One kind of model."""

    rules: ClassVar[Sequence[FreezeRule]]
    """What a sweep tries."""

    @abstractmethod
    def with_defaults(self, config: FinetuneConfig, say: Callable[[str], None]) -> FinetuneConfig:
        """`config` with what is taken where nothing is named, which `say` hears.

        Raises:
            UsageError: There is nothing to take.
        """

    @abstractmethod
    def pretrained(self, config: FinetuneConfig, entry: ModelEntry) -> Pretrained | None:
        """The weights to start from; None where the recipe gives them or none are needed.

        Raises:
            UsageError: They are not here, or of another network.
        """

    @abstractmethod
    def heads(self, entry: ModelEntry, network: Callable[[], nn.Module]) -> tuple[str, ...]:
        """Beginnings of the names of the layers that are new in the target task.

        Args:
            entry: What is known of the network.
            network: Makes it.
        """

    @abstractmethod
    def fill(
        self, network: nn.Module, given: Pretrained, entry: ModelEntry, heads: tuple[str, ...]
    ) -> None:
        """Copies the weights into `network` but for its heads.

        Raises:
            UsageError: A tensor is missing or of another shape; nothing was copied.
        """

    def sized(self, training: TrainConfig, entry: ModelEntry) -> TrainConfig:
        """`training` with the window that the network's weights demand."""
        return training

    def usual_recipe(
        self, training: TrainConfig, entry: ModelEntry, data: str, say: Callable[[str], None]
    ) -> TrainConfig:
        """`training` with the recipe that serves on `data` where none is named; `say` hears it."""
        return training

    def usual_steps(self, typed: TrainConfig, training: TrainConfig, data: str) -> int | None:
        """Steps of each mode on `data` where none are named; None where the recipe's epochs hold.

        Args:
            typed: The settings as typed.
            training: What `usual_recipe` made of them.
            data: Name of the data set.
        """
        return None

    def export(self, training: TrainConfig, selection: Selection, out: Path) -> None:
        """Writes what the finished mode in `out` leaves beside its training run: nothing."""
        return
