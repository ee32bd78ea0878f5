"""What a training would be, take and leave on the disk, without doing it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from robustcli.adapters.start import start_weights
from robustcli.data.masks import decode_pair
from robustcli.evaluation.listener import Listener
from robustcli.training.assembly import make_module
from robustcli.training.config import TrainConfig
from robustcli.training.describe import decision_words, threshold
from robustcli.training.keeping import FOLDER, LAST
from robustcli.training.module import SegmentationModule
from robustcli.training.prepare import Selection, select
from robustcli.training.recipes import Recipe
from robustcli.training.trial import step_seconds

_BYTES = 4
_TENSORS_KEPT = 7  # two checkpoints of weights and two moments, and the weights alone
_FORWARD_SHARE = 1 / 3  # of a step; the backward pass computes two products for the forward's one


@dataclass(frozen=True)
class TrainForecast:
    """What is to be done; seconds come from the second of two steps on made-up images.

    Args:
        out: The run's folder.
        protocol: How it is split and scored.
        images: Of each part.
        groups: Of each part.
        grouping: What a group is.
        model: The network.
        parameters: How many it has.
        decision: What makes a pixel foreground.
        recipe: With all overrides.
        steps: Of the optimizer, in all.
        seconds: For all epochs with their validation; the held-out images come on top.
        pixels_bytes: Of the decoded images, by the first of them.
        disk_bytes: Of checkpoints and weights.
        started: Whether the folder holds a training to go on with.
    """

    out: str
    protocol: str
    images: dict[str, int]
    groups: dict[str, int]
    grouping: str
    model: str
    parameters: int
    decision: str
    recipe: Recipe
    steps: int
    seconds: float
    pixels_bytes: int
    disk_bytes: int
    started: bool

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """The same in lines."""
        parts = ", ".join(
            f"{name} {count:,} images of {self.groups[name]:,} {self.grouping}s"
            for name, count in self.images.items()
        )
        goes_on = " (there: it would go on)" if self.started else ""
        recipe = f"{self.recipe.name}: {self.recipe.epochs} epochs, {self.steps:,} steps"
        return "\n".join(
            [
                f"Run:        {self.out}{goes_on}",
                f"Protocol:   {self.protocol}, {self.decision}",
                f"Data:       {parts}",
                f"Model:      {self.model}, {self.parameters:,} parameters",
                f"Recipe:     {recipe}",
                f"Memory:     {self.pixels_bytes / 1e6:,.0f} MB of decoded images",
                f"Disk:       {self.disk_bytes / 1e6:,.0f} MB",
                f"Time:       about {self.seconds:,.0f} s on this machine, by two trial steps",
            ]
        )


def forecast_training(config: TrainConfig, listener: Listener) -> TrainForecast:
    """The forecast for `config`. Nothing is downloaded and nothing is written.

    Raises:
        UsageError: Something named does not exist or does not fit together.
    """
    selection = select(config, listener)
    weights = None if config.untrained else config.weights
    network, _ = start_weights(
        config.model, weights, weights is None, True, config.seed, config.model_args
    )
    parts = {name: getattr(selection.splits, name) for name in ("train", "val", "test")}
    steps = selection.recipe.epochs * selection.steps_per_epoch
    parameters = sum(p.numel() for p in network.parameters())
    module = make_module(selection, network)
    return TrainForecast(
        out=str(selection.run),
        protocol=config.protocol,
        images={name: len(part.pairs) for name, part in parts.items()},
        groups={name: len(part.groups) for name, part in parts.items()},
        grouping=selection.index.grouping,
        model=selection.entry.name,
        parameters=parameters,
        decision=decision_words(threshold(selection, probabilities=module.probabilities)),
        recipe=selection.recipe,
        steps=steps,
        seconds=_seconds(selection, module),
        pixels_bytes=_pixels(selection),
        disk_bytes=_TENSORS_KEPT * _BYTES * parameters,
        started=(selection.run / FOLDER / LAST).is_file() and not config.fresh,
    )


def _pixels(selection: Selection) -> int:
    pairs = (*selection.splits.train.pairs, *selection.splits.val.pairs)
    image, mask = decode_pair(pairs[0])
    return (image.nbytes + mask.nbytes) * len(pairs)


def _seconds(selection: Selection, module: SegmentationModule) -> float:
    recipe = selection.recipe
    size = max(1, recipe.batch_size // selection.on.world)
    step = step_seconds(module, size, selection.on.device)
    batches = math.ceil(selection.per_epoch / recipe.batch_size)
    validation = _FORWARD_SHARE * selection.val_batches
    return recipe.epochs * step * (batches + validation)
