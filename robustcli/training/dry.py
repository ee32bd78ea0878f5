"""What a training would be, take and leave on the disk, without doing it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from robustcli.evaluation.listener import Listener
from robustcli.training.config import TrainConfig
from robustcli.training.keeping import FOLDER, LAST
from robustcli.training.learning import Learner
from robustcli.training.prepare import select
from robustcli.training.recipes import Recipe
from robustcli.training.record import Protocol
from robustcli.training.task import Selection
from robustcli.training.trial import step_seconds, try_out

OF_SEGMENTERS = ("expected_dice", "paper_batch", "patches", "decision")
"""Fields of a recipe."""
_BYTES = 4
_TENSORS_KEPT = 7  # two checkpoints of weights and two moments, and the weights alone
_FORWARD_SHARE = 1 / 3  # of a step; the backward pass computes two products for the forward's one


@dataclass(frozen=True)
class TrainForecast:
    """What is to be done; seconds come from the second of two steps on made-up images.

    Args:
        out: The run's folder.
        protocol: How a segmenter is split and scored.
        images: Of each part.
        groups: Of each part.
        grouping: What a group is.
        model: The network.
        parameters: How many it has.
        decision: What the network's answer is.
        recipe: With all overrides.
        steps: Of the optimizer, in all.
        seconds: For all epochs with their validation; the held-out images come on top.
        pixels_bytes: Of the decoded images, by the first of them.
        disk_bytes: Of checkpoints and weights.
        started: Whether the folder holds a training to go on with.
    """

    out: str
    protocol: Protocol | None
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
        return json.dumps(self.told(), indent=2)

    def told(self) -> dict[str, Any]:
        """What is known, by name; of a classifier without what only segmenters have."""
        told = asdict(self)
        if self.protocol is None:
            for name in OF_SEGMENTERS:
                told["recipe"].pop(name)
        return told

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
                f"Protocol:   {self.protocol}, {self.decision}"
                if self.protocol
                else f"Answer:     {self.decision}",
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
    start = replace(config, weights=weights, untrained=weights is None, offline=True)
    network, _ = selection.task.network(start, selection.index)
    try_out(selection, network, config.model_args)
    parts = {name: getattr(selection.splits, name) for name in ("train", "val", "test")}
    steps = selection.recipe.epochs * selection.steps_per_epoch
    parameters = sum(p.numel() for p in network.parameters())
    facts = selection.task.facts(config, selection, network)
    return TrainForecast(
        out=str(selection.run),
        protocol=facts.protocol,
        images={name: len(part.members) for name, part in parts.items()},
        groups={name: len(part.groups) for name, part in parts.items()},
        grouping=selection.index.grouping,
        model=selection.entry.name,
        parameters=parameters,
        decision=facts.decision,
        recipe=selection.recipe,
        steps=steps,
        seconds=_seconds(selection, selection.task.learner(selection, network)),
        pixels_bytes=_pixels(selection),
        disk_bytes=_TENSORS_KEPT * _BYTES * parameters,
        started=(selection.run / FOLDER / LAST).is_file() and not config.fresh,
    )


def _pixels(selection: Selection) -> int:
    held = (*selection.splits.train.members, *selection.splits.val.members)
    return sum(array.nbytes for array in selection.task.decode(held[0]).arrays) * len(held)


def _seconds(selection: Selection, learner: Learner) -> float:
    recipe = selection.recipe
    size = max(1, recipe.batch_size // selection.on.world)
    step = step_seconds(learner, size, selection.on.device)
    batches = len(selection.batches)
    validation = _FORWARD_SHARE * selection.val_batches
    return recipe.epochs * step * (batches + validation)
