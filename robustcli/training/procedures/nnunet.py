"""Training as nnU-Net does it: loss, schedule, patches, and the batch and window of its plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.training_run import read_header, weights_in
from robustcli.core.errors import RunError, UsageError
from robustcli.data import dataset
from robustcli.data.decode import UnreadableImage, image_size
from robustcli.data.mask_values import IGNORED
from robustcli.models.architectures import changed, everything_decays, parameter_groups
from robustcli.models.umamba import VARIANTS, Pair, UMamba, UMambaConfig
from robustcli.nnunet.normalisation import Channel
from robustcli.nnunet.patches import Patches, Phase, Sampling
from robustcli.nnunet.plans_json import SMALLEST_EDGE, Topology, batch_size, topology
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BaseDataModule, DecodedPairs
from robustcli.training.lit_segmenter import SegmentationModule
from robustcli.training.losses import DeepSupervision
from robustcli.training.procedures.base import BatchSettings, Procedure
from robustcli.training.recipes import OWN, Patchwise, Recipe
from robustcli.training.record import AVERAGED
from robustcli.training.samples import Sample, collate
from robustcli.training.trainer import Machine

# When nnU-Net's training does what: its learning rate, and by what an epoch is best.
#
# Source: nnU-Net v2.1.1, `PolyLRScheduler` and `nnUNetLogger`.


def poly_lr(epoch: int, epochs: int, lr: float, exponent: float = 0.9) -> float:
    """The learning rate of `epoch`, the first being 0: lr * (1 - epoch / epochs) ** exponent.

    Constant within an epoch; 0 from the schedule's end on.
    """
    left = max(0.0, 1 - epoch / epochs)
    return float(lr * left**exponent)


def moving_average(before: float | None, dice: float, weight: float = 0.9) -> float | None:
    """The moving average of the dice after an epoch; the highest yet makes its weights the best.

    Deviation: an epoch without any foreground (NaN) leaves the average as it was. Upstream's
    average would stay NaN from then on and no epoch could be best any more.

    Args:
        before: The average before; None before the first epoch.
        dice: Of the epoch.
        weight: The share of `before`.
    """
    if math.isnan(dice):
        return before
    return dice if before is None else weight * before + (1 - weight) * dice


# nnU-Net's loss of one output: cross-entropy minus the soft dice of the foreground.
#
# It is `CE - dice`, not `CE + 1 - dice`: a good network has a negative loss, down to -1.
#
# Source: nnU-Net v2.1.1, `DC_and_CE_loss` and `MemoryEfficientSoftDiceLoss`; written anew from the
# published formulas. Region-based labels (sigmoid, overlapping classes) are left out.
# Shapes: N batch, C classes with the background as class 0, H and W.


SMOOTH = 1e-5


@dataclass(frozen=True)
class LossParts:
    """The two terms, scalars: `cross_entropy` and `dice`, which is the dice itself, in 0..1."""

    cross_entropy: Tensor
    dice: Tensor

    @property
    def total(self) -> Tensor:
        """The loss, from -1 (perfect) upwards."""
        return self.cross_entropy - self.dice


class DiceCrossEntropy(nn.Module):
    """The loss of one output.

    Args:
        batch_dice: Whether the dice pools its sums over the batch, as 2D plans do; else the mean of
            each image's own.
        ignore_label: Target pixels of this value count nowhere.
    """

    def __init__(self, *, batch_dice: bool = True, ignore_label: int | None = None) -> None:
        super().__init__()
        self.batch_dice, self.ignore_label = batch_dice, ignore_label

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: (N, C, H, W), before softmax.
            target: (N, H, W) or (N, 1, H, W), classes 0..C-1 and the ignore label; any integers.
        """
        return self.parts(logits, target).total

    def parts(self, logits: Tensor, target: Tensor) -> LossParts:
        """Both terms; arguments as of `forward`."""
        labels = (target[:, 0] if target.ndim == logits.ndim else target).long()  # (N, H, W)
        counted = torch.ones_like(labels, dtype=torch.bool)
        if self.ignore_label is not None:
            counted = labels != self.ignore_label
            labels = labels.masked_fill(~counted, 0)
        pixels = F.cross_entropy(logits, labels, reduction="none") * counted
        return LossParts(
            pixels.sum() / counted.sum().clamp_min(1),
            soft_dice(logits.softmax(1), labels, counted, batch_dice=self.batch_dice),
        )


def soft_dice(
    probabilities: Tensor, labels: Tensor, counted: Tensor, *, batch_dice: bool
) -> Tensor:
    """The mean soft dice of the foreground classes, a scalar in 0..1.

    Args:
        probabilities: (N, C, H, W).
        labels: (N, H, W), int64 in 0..C-1.
        counted: (N, H, W), the pixels that count.
        batch_dice: Whether the sums run over the batch too.

    Source: dice_c = (2 sum(p g) + 1e-5) / max(sum(g) + sum(p) + 1e-5, 1e-8).
    """
    truth = F.one_hot(labels, probabilities.shape[1]).movedim(-1, 1)[:, 1:]  # (N, C-1, H, W)
    truth = truth * counted[:, None]
    guess = probabilities[:, 1:] * counted[:, None]
    axes = (0, 2, 3) if batch_dice else (2, 3)
    both, true, guessed = (x.sum(axes) for x in (guess * truth, truth, guess))
    return ((2 * both + SMOOTH) / (true + guessed + SMOOTH).clamp_min(1e-8)).mean()


# nnU-Net's loss for networks that tell foreground from background, whatever they return.
#
# A network of two classes gets nnU-Net's own loss: softmax and cross-entropy depend on the
# difference of the scores alone, which is the logit of the foreground. A network with one output
# gets the same, with 0 as the score of the background; of several foreground classes the scores are
# joined.


_SMALLEST = 1e-7  # under a probability of 0 or 1, whose logarithm is infinite


class TwoClasses(nn.Module):
    """Cross-entropy minus soft dice over all resolutions, in float32.

    Args:
        probabilities: Whether the network says probabilities; else logits.
        batch_dice: Whether the dice pools its sums over the batch.
        ignore_label: Target pixels of this value count nowhere.
    """

    def __init__(
        self, *, probabilities: bool, batch_dice: bool = True, ignore_label: int | None = None
    ) -> None:
        super().__init__()
        self.probabilities = probabilities
        self.loss = DeepSupervision(
            DiceCrossEntropy(batch_dice=batch_dice, ignore_label=ignore_label)
        )

    def forward(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss, a scalar, from -1 (perfect) upwards.

        Args:
            outputs: Of the foreground, (B, 1, H, W), highest resolution first.
            target: (B, 1, H, W), 0, 1 or the ignore label.
        """
        with torch.autocast(target.device.type, enabled=False):
            scores = [class_scores(o.float(), probabilities=self.probabilities) for o in outputs]
            loss: Tensor = self.loss(scores, target.long())
            return loss


def class_scores(output: Tensor, *, probabilities: bool) -> Tensor:
    """Scores (B, 2, H, W) before softmax of foreground logits or probabilities (B, 1, H, W)."""
    if not probabilities:
        return torch.cat([torch.zeros_like(output), output], 1)
    both = torch.cat([1 - output, output], 1)
    return both.clamp_min(_SMALLEST).log()


# A segmenter as nnU-Net trains it: its loss, optimizer, learning rate and best epoch.
#
# The dice of its validation is nnU-Net's pseudo dice: of patches, their pixels pooled. It says
# which epoch is best, and is no score to report; the held-out images are measured whole afterwards.
#
# Source: nnU-Net v2.1.1, `nnUNetTrainer`.


class NnUNetModule(SegmentationModule):
    """A network in nnU-Net's training; a U-Mamba answers at every resolution from now on.

    Args:
        network: The network.
        recipe: How it is trained; one with `patches`.
        ignores: Whether masks hold pixels to ignore.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, *, ignores: bool = False) -> None:
        assert recipe.patches is not None
        self.patches = recipe.patches
        samples = recipe.patches.validation_iterations * recipe.batch_size
        super().__init__(
            network, recipe, channels="rgb", decays=everything_decays,
            val_groups=("all",) * samples, ignores=ignores,
        )  # fmt: skip
        if isinstance(network, UMamba):
            network.decoder.deep_supervision = True
        self.average: float | None = None

    def make_loss(self) -> nn.Module:
        """Cross-entropy minus soft dice."""
        return TwoClasses(
            probabilities=self.probabilities,
            batch_dice=self.patches.batch_dice,
            ignore_label=IGNORED if self.ignores else None,
        )

    def make_optimizer(self) -> Optimizer:
        """SGD with Nesterov's momentum; weight decay on everything that trains."""
        recipe = self.recipe
        groups = parameter_groups(self.network, recipe.weight_decay, self.decays)
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=self.patches.momentum, nesterov=True)

    def configure_optimizers(self) -> Optimizer:
        """The optimizer alone: `on_train_epoch_start` sets its learning rate, as upstream does."""
        return self.make_optimizer()

    def on_train_epoch_start(self) -> None:
        """The learning rate of the epoch, a function of its number alone."""
        recipe = self.recipe
        rate = poly_lr(self.current_epoch, recipe.epochs, recipe.lr, self.patches.exponent)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def log_scores(self, dice: float, iou: float) -> None:
        """Logs both, and the moving average by which an epoch is best."""
        super().log_scores(dice, iou)
        self.average = moving_average(self.average, dice, self.patches.ema)
        value = math.nan if self.average is None else self.average
        self._log(AVERAGED, Tensor([value])[0].to(self.device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The average goes on after an interruption."""
        checkpoint[AVERAGED] = self.average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        self.average = checkpoint[AVERAGED]


# Batches of patches, as Lightning asks for them.


class PatchOrder(Sampler[tuple[int, int]]):
    """The numbers of an epoch's patches, each with the epoch."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        """Makes this the order of `epoch`, counted from 0; Lightning calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from ((self.epoch, number) for number in range(self.count))

    def __len__(self) -> int:
        return self.count


class PatchSamples(Dataset[Sample]):
    """Patches by epoch and number; batch `number // batch size` has it.

    Args:
        part: The images.
        sampling: How patches are drawn.
        phase: `train` augments; `val` does not.

    Raises:
        UsageError: No image has foreground.
    """

    def __init__(self, part: DecodedPairs, sampling: Sampling, phase: Phase) -> None:
        self.part, self.batch_size = part, sampling.batch_size
        shown = [place for place, one in enumerate(part.decoded) if (one.mask == 1).any()]
        self.patches = Patches(self.load, len(part.decoded), shown, sampling, phase)

    def load(self, place: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image and mask number `place`."""
        return self.part.decoded[place].image, self.part.decoded[place].mask

    def __getitem__(self, drawn: tuple[int, int]) -> Sample:
        epoch, number = drawn
        iteration, place = divmod(number, self.batch_size)
        patch = self.patches.patch(epoch, iteration, place)
        mask = patch.labels[None].to(torch.uint8)
        return Sample(patch.image, mask, self.part.ids[patch.index], number, mask != IGNORED)


class PatchData(BaseDataModule):
    """Training and validation batches of a recipe with `patches`.

    Args:
        train: What is trained on.
        val: What is validated on.
        recipe: With batch size and window.
        seed: Of the run.
        workers: Loader processes; 0 for none.
        pin: Whether batches go through pinned memory, for CUDA.
        ignores: Whether masks hold pixels to ignore.
    """

    def __init__(
        self, train: DecodedPairs, val: DecodedPairs, recipe: Recipe, *, seed: int, workers: int,
        pin: bool = False, ignores: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(collate, workers=workers, pin=pin)
        assert recipe.patches is not None
        self.recipe, self.patches = recipe, recipe.patches
        sampling = Sampling(
            (recipe.window, recipe.window), recipe.batch_size, recipe.patches.oversampling,
            recipe.patches.channels, seed, IGNORED if ignores else None,
        )  # fmt: skip
        self.train, self.val = (
            PatchSamples(train, sampling, "train"), PatchSamples(val, sampling, "val"),
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader[Sample]:
        """The batches of an epoch."""
        return self._batches(self.train, self.patches.iterations)

    def val_dataloader(self) -> DataLoader[Sample]:
        """The batches of an epoch's validation, other patches in every epoch, as upstream."""
        return self._batches(self.val, self.patches.validation_iterations)

    def _batches(self, samples: PatchSamples, batches: int) -> DataLoader[Sample]:
        size = self.recipe.batch_size
        return self.loader(samples, PatchOrder(batches * size), size)


# Batch, window and normalisation of a training, as nnU-Net's plan has them.
#
# The plan is that of the pretrained weights where they come from nnU-Net. Else nnU-Net's planner is
# asked for the batch, with the patch and the halvings of the network itself: a patch of 256 pixels
# where it has none.
# Deviation: windows are squares, of the shorter side of a plan's patch.


_FEATURES = (32, 512)  # of nnU-Net's plans: of the first stage, and the most of any
_CLASSES = 2


def planned(
    recipe: Recipe, config: TrainConfig, entry: ModelEntry, train: dataset.Dataset
) -> Recipe:
    """`recipe`, which has `patches`, with what the plan says and the user does not.

    Args:
        recipe: With all overrides.
        config: As typed.
        entry: The network.
        train: What is trained on; the sizes of its images are read.

    Raises:
        UsageError: The network has no such option, or the plan is not complete.
        RunError: An image cannot be read.
    """
    assert recipe.patches is not None
    network = _umamba(config, entry)
    window = config.window or _window(recipe, network)
    patches = recipe.patches
    if config.plan is not None:
        pools = bool(config.plan.settings.get("batch_dice", True))
        patches = replace(patches, channels=config.plan.channels, batch_dice=pools)
    batch = config.batch_size
    if batch is None:
        found = config.plan.batch_size if config.plan else _batch(window, network, train)
        batch = min(found, patches.most_batch or found)
    return replace(recipe, window=window, batch_size=batch, patches=patches)


def _umamba(config: TrainConfig, entry: ModelEntry) -> UMambaConfig | None:
    """What the network is built from, where that is a plan."""
    if entry.family != "umamba":
        return None
    header = None
    if config.weights is not None and not config.untrained:
        header = read_header(weights_in(config.weights))
    options = {**(header.arguments if header else {}), **config.model_args}
    return changed(VARIANTS[entry.variant], options, model=entry.variant)


def _window(recipe: Recipe, network: UMambaConfig | None) -> int:
    """The plan's patch, or less where the recipe has less and the network bears it."""
    assert recipe.patches is not None
    if network is None:
        return recipe.window
    patch, most = min(network.patch), recipe.patches.most_patch
    bound = any(network.tokens(stage)[1] for stage in range(len(network.features)))
    if most is None or most >= patch or bound:
        return patch
    step = max(network.reductions[-1])
    return min(patch, max(SMALLEST_EDGE * step, most // step * step))


def _batch(window: int, network: UMambaConfig | None, train: dataset.Dataset) -> int:
    """By the rule of nnU-Net's planner."""
    patch: Pair = (window, window)
    halvings, features = topology(patch), _FEATURES
    if network is not None:
        halvings = Topology(patch, network.stage_strides)
        features = (network.features[0], max(network.features))
    sizes = [_size(train, number) for number in range(len(train.samples))]
    shape = (round(median(h for h, _ in sizes)), round(median(w for _, w in sizes)))
    return batch_size(halvings, shape, len(sizes), classes=_CLASSES, features=features)


def _size(train: dataset.Dataset, number: int) -> Pair:
    pair = train.samples[number]
    try:
        return image_size(pair.image)
    except UnreadableImage as error:
        raise RunError(
            f"The image `{pair.image_id}` cannot be read.",
            f"{pair.image.path}: {error.reason}.",
            "Repair or remove it and its mask, then repeat the command.",
        ) from error


# The procedure itself.


class NNUNet(Procedure):
    """Epochs of so many random patches, scored on patches; the best epoch by a moving average."""

    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("loss", "aug", "accumulate", "patience"),
        "It trains as nnU-Net does, with its own loss and augmentation, a step per batch, to the "
        "last epoch.",
    )

    def check_options(self, config: TrainConfig, given: Mapping[str, Any]) -> None:
        """See `Procedure.check_options`: no value of a refused option is as nnU-Net's."""
        for name, why in self.refused.items():
            if name in given:
                raise UsageError(
                    f"`--{name} {given[name]}` does not go with `--recipe {config.recipe}`.",
                    why,
                    f"Leave out `--{name}`, or use `--recipe {OWN}`.",
                )

    @property
    def patches(self) -> Patchwise:
        """How epochs are made of patches."""
        assert self.recipe.patches is not None, "`procedure_of` has seen to it"
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
                f"Its dice is that of a whole batch, which {machine.world} processes would share.",
                f"Leave out `--devices` and torchrun, or use `--recipe {OWN}`.",
            )
        if grey:
            raise UsageError(
                f"`--recipe {self.recipe.name}` takes colour images.",
                "It normalises three channels as nnU-Net does; the network reads one.",
                f"Leave out `--model-arg` for its channels, or use `--recipe {OWN}`.",
            )

    def planned(self, config: TrainConfig, entry: ModelEntry, train: dataset.Dataset) -> Recipe:
        """See `Procedure.planned`: batch, window and normalisation of nnU-Net's plan."""
        return planned(self.recipe, config, entry, train)

    def data(self, train: DecodedPairs, val: DecodedPairs, settings: BatchSettings) -> PatchData:
        """See `Procedure.data`."""
        return PatchData(
            train, val, self.recipe, seed=settings.seed, workers=settings.workers,
            pin=settings.pin, ignores=settings.ignores,
        )  # fmt: skip

    def module(
        self, network: nn.Module, entry: ModelEntry, val: dataset.Dataset,
        data: BaseDataModule | None, *, grey: bool, ignores: bool,
    ) -> NnUNetModule:  # fmt: skip
        """See `Procedure.module`."""
        return NnUNetModule(network.train(), self.recipe, ignores=ignores)
