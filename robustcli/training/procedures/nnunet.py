"""nnU-Net's training procedure: loss, schedule, patches, and the plan's batch and window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.training_run import read_header, weights_in
from robustcli.core.errors import RunError, UsageError
from robustcli.core.watchdog import switch_to, working_on
from robustcli.data import dataset
from robustcli.data.decode import UnreadableImage, image_size
from robustcli.data.mask_values import IGNORED, is_foreground
from robustcli.models import resenc, umamba
from robustcli.models.architectures import changed, everything_decays
from robustcli.models.blocks import Pair, StagedConfig, SupervisedSegmenter
from robustcli.nnunet.normalisation import Channel
from robustcli.nnunet.patches import Patches, Phase, Sampling
from robustcli.nnunet.plans_json import SMALLEST_EDGE, Topology, batch_size, topology
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, BatchSettings, DecodedSubset, PixelArray
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.losses import DeepSupervision, NnUNetLoss
from robustcli.training.mask_samples import MaskSample, collate_masks
from robustcli.training.procedures.base import Procedure
from robustcli.training.recipes import OWN_RECIPE, Patchwise, Recipe
from robustcli.training.record import AVERAGED
from robustcli.training.trainer import Machine


def poly_lr(epoch: int, epochs: int, lr: float, exponent: float = 0.9) -> float:
    """The learning rate of `epoch`, counted from 0: lr * (1 - epoch / epochs) ** exponent.

    It is constant within an epoch, and 0 after the end of the schedule. Source: nnU-Net v2.1.1,
    `PolyLRScheduler`.
    """
    left = max(0.0, 1 - epoch / epochs)
    return float(lr * left**exponent)


def moving_average(before: float | None, dice: float, weight: float = 0.9) -> float | None:
    """The moving average of the dice after an epoch; the epoch with the highest one is the best.

    Deviation: an epoch without foreground (NaN) does not change the average. Upstream's average
    stays NaN from then on, so that no later epoch can be the best.

    Args:
        before: The previous average; None before the first epoch.
        dice: Dice of the epoch.
        weight: Weight of `before`.
    """
    if math.isnan(dice):
        return before
    return dice if before is None else weight * before + (1 - weight) * dice


class NnUNetModule(SegmenterModule):
    """A network in nnU-Net's training; enables deep supervision of networks that have it.

    Validation computes nnU-Net's pseudo dice: pooled over the pixels of patches. It selects the
    best epoch and is not reported; the complete held-out images are scored after training.
    Source: nnU-Net v2.1.1, `nnUNetTrainer`, `nnUNetLogger`.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, *, ignores: bool = False, classes: int = 0
    ) -> None:
        assert recipe.patches is not None
        self.patches = recipe.patches
        samples = recipe.patches.validation_iterations * recipe.batch_size
        super().__init__(
            network, recipe, channels="rgb", decays=everything_decays,
            val_groups=("all",) * samples, ignores=ignores, classes=classes,
        )  # fmt: skip
        if isinstance(network, SupervisedSegmenter):
            network.supervise_deeply()
        self.average: float | None = None

    def make_loss(self) -> nn.Module:
        """Cross-entropy minus soft dice."""
        loss = NnUNetLoss(
            probabilities=self.probabilities, batch_dice=self.patches.batch_dice,
            ignore_label=IGNORED if self.ignores else None,
        )  # fmt: skip
        return DeepSupervision(loss)

    def configure_optimizers(self) -> Optimizer:
        """The optimizer; `on_train_epoch_start` sets its learning rate, as upstream does."""
        return self.make_optimizer()

    def on_train_epoch_start(self) -> None:
        """Sets the learning rate, which depends only on the number of the epoch."""
        recipe = self.recipe
        rate = poly_lr(self.current_epoch, recipe.epochs, recipe.lr, self.patches.exponent)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def log_scores(self, dice: float, iou: float) -> None:
        """Logs both scores, and the moving average that selects the best epoch."""
        super().log_scores(dice, iou)
        self.average = moving_average(self.average, dice, self.patches.ema)
        value = math.nan if self.average is None else self.average
        self._log(AVERAGED, Tensor([value])[0].to(self.device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores the average for a resumed training."""
        checkpoint[AVERAGED] = self.average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        self.average = checkpoint[AVERAGED]


class PatchOrder(Sampler[tuple[int, int]]):
    """Pairs (epoch, patch number) of an epoch."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the `epoch`, counted from 0; called by Lightning."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from ((self.epoch, number) for number in range(self.count))

    def __len__(self) -> int:
        return self.count


class PatchSamples(Dataset[MaskSample]):
    """Patches by (epoch, number); patch `number` is in batch `number // batch_size`.

    Raises:
        UsageError: No image has foreground.
    """

    def __init__(self, subset: DecodedSubset, sampling: Sampling, phase: Phase) -> None:
        self.subset, self.batch_size = subset, sampling.batch_size
        masks = [decoded.mask for decoded in subset.decoded]
        shown = [index for index, mask in enumerate(masks) if is_foreground(mask).any()]
        self.patches = Patches(self.load, len(masks), shown, sampling, phase)

    def load(self, index: int) -> tuple[PixelArray, PixelArray]:
        """Image and mask at `index`."""
        switch_to(f"augmenting a patch of `{self.subset.ids[index]}`")
        return self.subset.decoded[index]

    def __getitem__(self, drawn: tuple[int, int]) -> MaskSample:
        epoch, number = drawn
        iteration, position = divmod(number, self.batch_size)
        with working_on("choosing a patch"):
            patch = self.patches.patch(epoch, iteration, position)
        mask = patch.labels[None].to(torch.uint8)
        return MaskSample(patch.image, mask, self.subset.ids[patch.index], number, mask != IGNORED)


class PatchData(BaseDataModule):
    """Data module of a recipe with `patches`; see `Procedure.data`."""

    def __init__(
        self, train: DecodedSubset, val: DecodedSubset, recipe: Recipe, settings: BatchSettings
    ) -> None:
        super().__init__(collate_masks, settings)
        assert recipe.patches is not None
        self.recipe, self.patches = recipe, recipe.patches
        sampling = Sampling(
            (recipe.window, recipe.window), recipe.batch_size, recipe.patches.oversampling,
            recipe.patches.channels, settings.seed, IGNORED if settings.ignores else None,
        )  # fmt: skip
        self.train = PatchSamples(train, sampling, "train")
        self.val = PatchSamples(val, sampling, "val")

    def train_dataloader(self) -> DataLoader[MaskSample]:
        """Training batches of an epoch."""
        return self._batches(self.train, self.patches.iterations)

    def val_dataloader(self) -> DataLoader[MaskSample]:
        """Validation batches of an epoch; each epoch has other patches, as upstream."""
        return self._batches(self.val, self.patches.validation_iterations)

    def _batches(self, samples: PatchSamples, batches: int) -> DataLoader[MaskSample]:
        size = self.recipe.batch_size
        order = PatchOrder(batches * size)
        order.set_epoch(self.first_epoch)
        return self.loader(samples, batch_size=size, sampler=order)


PLANNED: Mapping[str, Mapping[str, StagedConfig]] = {
    "umamba": umamba.VARIANTS, "resenc": resenc.VARIANTS
}  # fmt: skip
"""Networks of each family that are built from an nnU-Net plan."""
_FEATURES = (32, 512)  # in nnU-Net's plans: features of the first stage, and their maximum


def _planned_config(config: TrainConfig, entry: ModelEntry) -> StagedConfig | None:
    variants = PLANNED.get(entry.family)
    if variants is None:
        return None
    header = None
    if config.weights is not None and not config.untrained:
        header = read_header(weights_in(config.weights))
    options = {**(header.arguments if header else {}), **config.model_args}
    return changed(variants[entry.variant], options, model=entry.variant)


def _window(recipe: Recipe, network: StagedConfig | None) -> int:
    """The plan's patch size; the recipe's window if it is smaller and the network supports it."""
    assert recipe.patches is not None
    if network is None:
        return recipe.window
    patch, most = network.square, recipe.patches.most_patch
    if most is None or most >= patch or network.bound_to_patch:
        return patch
    step = math.lcm(*network.reductions[-1])
    return min(patch, max(SMALLEST_EDGE * step, most // step * step))


def _batch(window: int, network: StagedConfig | None, train: dataset.Dataset) -> int:
    patch: Pair = (window, window)
    halvings, features = topology(patch), _FEATURES
    if network is not None:
        halvings = Topology(patch, network.stage_strides)
        features = (network.features[0], max(network.features))
    sizes = [_size(pair) for pair in train.samples]
    shape = (round(median(h for h, _ in sizes)), round(median(w for _, w in sizes)))
    outputs = max(2, len(train.mask_classes) + 1)
    return batch_size(halvings, shape, len(sizes), classes=outputs, features=features)


def _size(pair: dataset.Sample) -> Pair:
    try:
        return image_size(pair.image)
    except UnreadableImage as error:
        raise RunError(
            f"The image `{pair.image_id}` cannot be read.",
            f"{pair.image.path}: {error.reason}.",
            "Repair or remove it and its mask, then repeat the command.",
        ) from error


class NNUNet(Procedure):
    """Epochs of random patches; the best epoch by a moving average of the dice on patches."""

    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("loss", "aug", "accumulate", "patience"),
        "It trains with nnU-Net's loss and augmentation, one step per batch, for all epochs.",
    )

    @property
    def patches(self) -> Patchwise:
        """Settings of the patches of an epoch."""
        assert self.recipe.patches is not None, "`procedure_of` checks it"
        return self.recipe.patches

    def images_per_epoch(self, available: int) -> int:
        """See `Procedure.images_per_epoch`."""
        return self.patches.iterations * self.recipe.batch_size

    def val_batches(self, images: int) -> float:
        """See `Procedure.val_batches`."""
        return self.patches.validation_iterations

    def monitor(self, score: str) -> str:
        """See `Procedure.monitor`: the moving average of the dice on validation patches."""
        return AVERAGED

    @property
    def normalised(self) -> tuple[Channel, ...]:
        """See `Procedure.normalised`."""
        return self.patches.channels

    def check(self, machine: Machine, *, grey: bool) -> None:
        """See `Procedure.check`."""
        if machine.world > 1:
            raise UsageError(
                f"`--recipe {self.recipe.name}` trains on one device.",
                "Its dice is computed over a complete batch, which cannot be divided among "
                f"{machine.world} processes.",
                f"Omit `--devices` and torchrun, or use `--recipe {OWN_RECIPE}`.",
            )
        if grey:
            raise UsageError(
                f"`--recipe {self.recipe.name}` needs colour images.",
                "It normalises three channels as in nnU-Net, but the network has one input "
                "channel.",
                f"Omit `--model-arg` for its channels, or use `--recipe {OWN_RECIPE}`.",
            )

    def planned(self, config: TrainConfig, entry: ModelEntry, train: dataset.Dataset) -> Recipe:
        """See `Procedure.planned`: those of nnU-Net's plan, unless the user has set them.

        The plan of pretrained weights is used if they come from nnU-Net. Else nnU-Net's planner
        computes the batch from the network's patch (256 pixels if it has none) and strides.
        Deviation: windows are squares within the plan's patch.

        Raises:
            UsageError: The network has no such option, or the plan is incomplete.
            RunError: An image cannot be read.
        """
        patches, plan, batch = self.patches, config.plan, config.batch_size
        network = _planned_config(config, entry)
        window = config.window or _window(self.recipe, network)
        if plan is not None:
            pools = bool(plan.settings.get("batch_dice", True))
            patches = replace(patches, channels=plan.channels, batch_dice=pools)
        if batch is None:
            batch = plan.batch_size if plan else _batch(window, network, train)
            batch = min(batch, patches.most_batch or batch)
        return replace(self.recipe, window=window, batch_size=batch, patches=patches)

    def data(self, train: DecodedSubset, val: DecodedSubset, settings: BatchSettings) -> PatchData:
        """See `Procedure.data`."""
        return PatchData(train, val, self.recipe, settings)

    def module(
        self, network: nn.Module, entry: ModelEntry, val: dataset.Dataset,
        data: BaseDataModule | None, *, grey: bool, ignores: bool,
    ) -> NnUNetModule:  # fmt: skip
        """See `Procedure.module`."""
        classes = len(val.mask_classes)
        return NnUNetModule(network.train(), self.recipe, ignores=ignores, classes=classes)
