"""From settings to what a training needs, cheapest checks first: no pixels, no folder made yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.load import names_run, resolve
from robustcli.adapters.seg_builders import SEG_BUILDERS
from robustcli.core.errors import UsageError
from robustcli.data.open_pairs import open_pairs
from robustcli.data.pair_subset import take_pairs
from robustcli.data.pairs import PairIndex
from robustcli.data.splits import Splits, paper_splits, patient_splits
from robustcli.evaluation.device import choose_device
from robustcli.evaluation.listener import Listener
from robustcli.evaluation.record import FILE_NAME
from robustcli.models.registry import architecture
from robustcli.models.weight_decay import Decays, everything_decays
from robustcli.training.config import TrainConfig
from robustcli.training.nnunet.planned import planned
from robustcli.training.recipes import OWN, Recipe, describe
from robustcli.training.settings import recipe_of
from robustcli.training.trainer import Machine, machine


@dataclass(frozen=True)
class Selection:
    """What was asked for, looked up: network, data, splits, recipe, devices and folder."""

    entry: ModelEntry
    index: PairIndex
    splits: Splits
    recipe: Recipe
    on: Machine
    run: Path

    @property
    def per_epoch(self) -> int:
        """Training images of an epoch, or patches of them."""
        if self.recipe.patches is not None:
            return self.recipe.patches.iterations * self.recipe.batch_size
        most = self.recipe.images_per_epoch or len(self.splits.train.pairs)
        return min(most, len(self.splits.train.pairs))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        batches = math.ceil(self.per_epoch / self.recipe.batch_size)
        return math.ceil(batches / self.recipe.accumulate)

    @property
    def val_batches(self) -> float:
        """Batches of a validation pass, about: an image may be several windows."""
        if self.recipe.patches is not None:
            return self.recipe.patches.validation_iterations
        return len(self.splits.val.pairs) / self.recipe.batch_size

    @property
    def whole(self) -> bool:
        """Whether images are resized whole: the paper's way."""
        return self.recipe.paper_batch is not None

    @property
    def channels(self) -> Literal["rgb", "bgr"]:
        """The order of colours that the network gets; the paper's is OpenCV's."""
        return "bgr" if self.whole else "rgb"


def select(config: TrainConfig, listener: Listener) -> Selection:
    """What `config` names.

    Raises:
        UsageError: Something named does not exist or does not fit together.
    """
    entry = resolve(config.model)
    _check_trainable(entry, config)
    on = machine(choose_device(config.device), config.devices)
    _check_precision(config, on)
    index = take_pairs(open_pairs(config.data), limit=config.limit, seed=config.seed)
    recipe = recipe_of(config, entry.name, index.name)
    if config.protocol == "paper":
        splits = paper_splits(index)
    else:
        splits = patient_splits(index, seed=config.seed)
    if recipe.patches is not None:
        _check_alone(recipe, on)
        recipe = planned(recipe, config, entry, splits.train)
    run = config.directory(recipe, index.digest)
    check_folder(run)
    _announce(config, index, splits, recipe, listener)
    return Selection(entry, index, splits, recipe, on, run)


def decays_of(entry: ModelEntry) -> Decays:
    """Which parameters of the network weight decay touches."""
    if entry.builder == "zoo":
        return architecture(entry.variant).decays()
    return everything_decays


def _check_trainable(entry: ModelEntry, config: TrainConfig) -> None:
    if entry.task != "seg":
        raise UsageError(
            f"`{entry.name}` is a classifier.",
            "`robust train seg` trains segmenters, which say where something is.",
            "`robust list models` shows which models are segmenters.",
        )
    if names_run(config.model):
        raise UsageError(
            f"`--model {config.model}` is a folder.",
            "The network is named, and where it starts from is said apart.",
            f"Use `--model NETWORK --weights {config.model}/weights.safetensors`.",
        )
    if SEG_BUILDERS[entry.builder].load is None:
        raise UsageError(
            f"`{entry.name}` has nothing to train.",
            "It is a baseline without parameters.",
            f"Measure it with `robust eval --model {entry.name} --transform identity`.",
        )


def _check_precision(config: TrainConfig, on: Machine) -> None:
    if config.precision == "fp16" and on.device.type != "cuda":
        raise UsageError(
            "`--precision fp16` needs a CUDA device.",
            f"Training would run on {on.device.type}, where gradients cannot be scaled.",
            "Use `--precision bf16` or `fp32`.",
        )


def _check_alone(recipe: Recipe, on: Machine) -> None:
    if on.world > 1:
        raise UsageError(
            f"`--recipe {recipe.name}` trains on one device.",
            f"Its dice is that of a whole batch, which {on.world} processes would share.",
            f"Leave out `--devices` and torchrun, or use `--recipe {OWN}`.",
        )


def check_folder(run: Path) -> None:
    """Raises UsageError where files would be written among somebody's own."""
    if run.is_file():
        raise UsageError(f"`{run}` is a file.", "", "Name a folder with `--out`.")
    is_run = (run / FILE_NAME).is_file()
    if not is_run and run.is_dir() and any(p.name[0] != "." for p in run.iterdir()):
        raise UsageError(
            f"`{run}` is not empty and holds no run.", "", "Choose another folder with `--out`."
        )


def _announce(
    config: TrainConfig, index: PairIndex, splits: Splits, recipe: Recipe, listener: Listener
) -> None:
    if config.data is None:
        kind = " (a demonstration set)" if index.demonstration else ""
        listener.say(
            f"No --data: using {index.name}{kind}, {len(index.pairs)} images, {index.location}."
        )
    counts = ", ".join(
        f"{name} {_counted(part)}"
        for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test))
    )
    listener.say(f"Protocol `{config.protocol}`: {counts} ({splits.train.subset}).")
    listener.say(describe(recipe))


def _counted(part: PairIndex) -> str:
    images = f"{len(part.pairs)} images"
    return (
        images if part.grouping == "image" else f"{images} of {len(part.groups)} {part.grouping}s"
    )
