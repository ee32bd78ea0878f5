"""Procedures of classifiers other than ours: the paper's, and `speedrun`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.data.splits import Splits
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import (
    BaseDataModule,
    Batches,
    BatchSettings,
    DecodedSubset,
    EpochOrder,
    ShareOfBatches,
)
from robustcli.training.photo_samples import (
    SHIFTS,
    PhotoBatch,
    ResidentPhotos,
)
from robustcli.training.procedures.base import Procedure
from robustcli.training.recipes import Photowise, Recipe
from robustcli.training.record import TRAINING, SpeedRecord
from robustcli.training.trainer import Machine

_FAULTS = (
    "Images are normalised with the mean and standard deviation of CIFAR-100, for all data sets.",
    "The test images are the validation images: the best epoch is selected on the images that it "
    "is scored on, so that the score is too high.",
    "The learning rate is constant and there is no weight decay, warm-up or label smoothing, "
    "which suits some networks better than others.",
    "The published figure compares Vim with patches of 4 pixels with a ViT with patches of 8.",
    "Neither weights nor order nor augmentation were seeded; here all of them are.",
)
_OUTPUTS = (
    "The head has {outputs:,} outputs during training; those without a class are removed "
    "afterwards."
)
_NOT_PUBLISHED = "This network is not in the paper; it is trained like those of the paper."
_PUBLISHED = ("vim", "vit")
_FAIR = "--recipe fair"


class PaperPhotos(Procedure):
    """CIFAR-100 normalisation; the test images select the best epoch."""

    why_chosen: ClassVar[str] = "on the test images, as in the paper"
    finetunes: ClassVar[bool] = False
    refused: ClassVar[Mapping[str, str]] = {
        "loss": "This recipe follows the paper: its loss is cross-entropy.",
        "aug": "This recipe follows the paper: it uses crops, mirroring and RandAugment.",
        "patience": "This recipe follows the paper: it trains all of its epochs.",
    }
    alternative: ClassVar[str] = _FAIR

    def splits(self, splits: Splits) -> Splits:
        """Trains on all images except the test images, and validates on the test images."""
        ids = {sample.image_id for part in (splits.train, splits.val) for sample in part.samples}
        train = replace(
            splits.train,
            samples=tuple(sorted(
                (*splits.train.samples, *splits.val.samples), key=lambda sample: sample.image_id
            )),
        )  # fmt: skip
        assert len(ids) == len(train.samples)
        return Splits(train, splits.test, splits.test)

    def faults(self, model: str) -> list[str]:
        """See `Procedure.faults`."""
        faults, photos = list(_FAULTS), _photos(self.recipe)
        if photos.outputs is not None:
            faults.append(_OUTPUTS.format(outputs=photos.outputs))
        if model not in _PUBLISHED:
            faults.append(_NOT_PUBLISHED)
        return faults


class Speedrun(Procedure):
    """All images on one device; the last epoch; measures the time to a validation top-1."""

    keeps_best: ClassVar[bool] = False
    why_chosen: ClassVar[str] = "recipe `speedrun`"
    finetunes: ClassVar[bool] = False
    refused: ClassVar[Mapping[str, str]] = {
        "patience": "This recipe measures time: it trains all of its epochs.",
    }
    alternative: ClassVar[str] = _FAIR

    def check_options(self, config: TrainConfig, options: Mapping[str, Any]) -> None:
        """See `Procedure.check_options`; images on the device need no loader."""
        super().check_options(config, options)
        if config.workers:
            raise UsageError(
                f"`--workers {config.workers}` cannot be used with `--recipe speedrun`.",
                "All images are stored on the device, which also crops and augments the batches.",
                "Omit `--workers`, or use `--recipe fair`.",
            )
        if self.recipe.augmentation in SHIFTS and not SHIFTS[self.recipe.augmentation].operations:
            return
        if self.recipe.augmentation != "none":
            raise UsageError(
                f"`--aug {self.recipe.augmentation}` cannot be used with `--recipe speedrun`.",
                "Batches are augmented on the device, which supports shifts and mirroring.",
                "Use `--aug shift`, `shift-reflect` or `none`; or `--recipe fair`.",
            )

    def check(self, machine: Machine, *, grey: bool) -> None:
        """See `Procedure.check`: supports one device, whose time is measured."""
        if machine.world > 1:
            raise UsageError(
                f"`--recipe speedrun` trains on one device, not in {machine.world} processes.",
                "All images are stored on this device, whose time is measured.",
                "Omit `--devices`, or use `--recipe fair`.",
            )

    def photo_data(
        self, train: DecodedSubset, val: DecodedSubset, preprocessing: Preprocessing,
        settings: BatchSettings,
    ) -> ResidentData:  # fmt: skip
        """See `Procedure.photo_data`: all images are stored on the device."""
        return ResidentData(train, val, preprocessing, self.recipe, settings)

    def callbacks(self, run: Path, listener: Listener) -> list[pl.Callback]:
        """See `Procedure.callbacks`: `SpeedClock`."""
        target = _photos(self.recipe).target
        assert target is not None
        return [SpeedClock(run, target, listener)]


class ResidentData(BaseDataModule):
    """Data module of images stored on the device; see `ResidentPhotos`."""

    def __init__(
        self, train: DecodedSubset, val: DecodedSubset, preprocessing: Preprocessing,
        recipe: Recipe, settings: BatchSettings,
    ) -> None:  # fmt: skip
        super().__init__(None, replace(settings, workers=0, pin=False))
        self.train, self.val, self.preprocessing, self.recipe = train, val, preprocessing, recipe

    def train_dataloader(self) -> DataLoader[PhotoBatch]:
        """The batches of an epoch."""
        shifts, seed = SHIFTS.get(self.recipe.augmentation), self.settings.seed
        photos = ResidentPhotos(self.train, self.preprocessing, shifts, seed, self._device())
        order = EpochOrder(self.train.ids, seed, most=self.recipe.images_per_epoch)
        order.set_epoch(self.first_epoch)
        return self._batches(photos, Batches(order, self.recipe.batch_size, self.settings.least))

    def val_dataloader(self) -> DataLoader[PhotoBatch]:
        """The validation photos."""
        photos = ResidentPhotos(
            self.val, self.preprocessing, None, self.settings.seed, self._device()
        )
        return self._batches(photos, ShareOfBatches(len(self.val.ids), self.recipe.batch_size))

    def _batches(self, photos: ResidentPhotos, lists: Sampler[list[Any]]) -> DataLoader[PhotoBatch]:
        """A loader whose items are batches of `photos`."""
        return self.loader(photos, batch_size=None, sampler=lists)

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device


class SpeedClock(pl.Callback):
    """Measures the time of training steps until a validation top-1 is reached.

    Excludes validation and checkpoints. The first batch of each process is also recorded
    separately, because the device allocates memory and selects kernels in it. The times are part of
    the checkpoint.

    Args:
        run: Run folder, whose record gets the times.
        target: The top-1 to reach, a fraction.
        listener: Receives the announcement.
    """

    def __init__(self, run: Path, target: float, listener: Listener) -> None:
        self.run, self.target, self.listener = run, target, listener
        self.seconds = self.warm_up = 0.0
        self.images = self.warm_up_images = 0
        self.reached: dict[str, float] | None = None
        self._first, self._started = True, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of the epoch."""
        self._started = _now(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Records the time of the first batch of this process."""
        self.images += len(batch.ids)
        if self._first:
            self._first = False
            self.warm_up += _now(pl_module.device) - self._started
            self.warm_up_images += len(batch.ids)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock of the epoch."""
        self.seconds += _now(pl_module.device) - self._started

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks whether the target is reached."""
        if self.reached is None and _top1(trainer) >= self.target:
            self.reached = {
                "epoch": trainer.current_epoch + 1, "seconds": self.seconds,
                "warm": self.seconds - self.warm_up,
            }  # fmt: skip

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the times so far."""
        if trainer.is_global_zero:
            TRAINING.update(self.run, speed=self.record())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Announces the result."""
        self.listener.say(speed_in_words(self.record()))

    def record(self) -> SpeedRecord:
        """The times as a record."""
        reached, warm = self.reached, self.seconds - self.warm_up
        images = self.images - self.warm_up_images
        return SpeedRecord(
            target=self.target,
            reached_epoch=None if reached is None else int(reached["epoch"]),
            seconds_to_target=None if reached is None else reached["seconds"],
            seconds_to_target_warm=None if reached is None else reached["warm"],
            seconds=self.seconds,
            warm_up_seconds=self.warm_up,
            images=self.images,
            images_per_second=images / warm if images and warm > 0 else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """The times so far."""
        names = ("seconds", "warm_up", "images", "warm_up_images", "reached")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        for name, value in state_dict.items():
            setattr(self, name, value)


def speed_in_words(speed: SpeedRecord) -> str:
    """The result of a speedrun, in one or two sentences."""
    goal = f"{100 * speed.target:g} % of the validation images"
    if speed.reached_epoch is None:
        reached = f"{goal} were not correct after {speed.seconds:.1f} s of training steps."
    else:
        reached = (
            f"{goal} were correct after epoch {speed.reached_epoch}: "
            f"{speed.seconds_to_target:.1f} s of training steps, "
            f"{speed.seconds_to_target_warm:.1f} s without the first batch."
        )
    rate = speed.images_per_second
    return reached if rate is None else f"{reached} {rate:,.0f} images per second."


def _photos(recipe: Recipe) -> Photowise:
    return recipe.photos or Photowise()


def _top1(trainer: pl.Trainer) -> float:
    value = trainer.callback_metrics["val_top1"]
    return float(value) if isinstance(value, Tensor) else value


def _now(device: torch.device) -> float:
    """The current time after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
