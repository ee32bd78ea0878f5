"""`robust train --dry-run`: forecast of time, memory and disk space."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from robustcli.core.listener import Listener
from robustcli.training.cache import decode_sample
from robustcli.training.config import TrainConfig
from robustcli.training.lit_module import LitModule
from robustcli.training.recipes import Protocol, Recipe
from robustcli.training.train_plan import plan_training, try_out
from robustcli.training.trainer import CHECKPOINT_FOLDER, LAST
from robustcli.training.training_task import TrainPlan

_ONLY_OF_SEGMENTERS = ("expected_dice", "paper_batch", "patches", "decision")  # in a recipe
_BYTES = 4
_TENSORS_KEPT = 7  # two checkpoints with weights and two moments, and one file of weights
_AVERAGES_KEPT = 2  # additional copies with weight averaging: one per checkpoint
_FORWARD_SHARE = 1 / 3  # of a step; the backward pass computes twice as many products


@dataclass(frozen=True)
class TrainForecast:
    """The forecast of a training; times come from the second of two steps on generated images.

    Args:
        protocol: Protocol of a segmenter.
        seconds: Time of all epochs with validation, without scoring the held-out images.
        pixels_bytes: Estimated bytes of the decoded images.
        started: Whether the folder contains a training that would be resumed.
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
        """The forecast as one JSON object."""
        return json.dumps(self.as_dict(), indent=2)

    def as_dict(self) -> dict[str, Any]:
        """All fields; recipes of classifiers without the fields of segmenters."""
        fields = asdict(self)
        if self.protocol is None:
            for name in _ONLY_OF_SEGMENTERS:
                fields["recipe"].pop(name)
        if self.recipe.photos is None:
            fields["recipe"].pop("photos")
        return fields

    def as_text(self) -> str:
        """The forecast as lines of text."""
        parts = ", ".join(
            f"{name} {count:,} images of {self.groups[name]:,} {self.grouping}s"
            for name, count in self.images.items()
        )
        goes_on = " (exists: would be resumed)" if self.started else ""
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
                f"Time:       about {self.seconds:,.0f} s on this machine, estimated from two "
                "steps",
            ]
        )


def forecast_training(config: TrainConfig, listener: Listener) -> TrainForecast:
    """The forecast for `config`. Downloads nothing and writes nothing.

    Raises:
        UsageError: A named model, data set or recipe does not exist, or options contradict each
            other.
    """
    return forecast_plan(plan_training(config, listener))


def forecast_plan(plan: TrainPlan) -> TrainForecast:
    """The forecast for `plan`, from two training steps on generated images."""
    config = plan.config
    weights = None if config.untrained else config.weights
    start = replace(config, weights=weights, untrained=weights is None, offline=True)
    network, _ = plan.task.network(start, plan.entry, plan.index)
    try_out(plan, network)
    parts = {name: getattr(plan.splits, name) for name in ("train", "val", "test")}
    steps = plan.recipe.epochs * plan.steps_per_epoch
    parameters = sum(p.numel() for p in network.parameters())
    facts = plan.task.facts(plan, network)
    return TrainForecast(
        out=str(plan.run),
        protocol=facts.protocol,
        images={name: len(part.samples) for name, part in parts.items()},
        groups={name: len(part.groups) for name, part in parts.items()},
        grouping=plan.index.grouping,
        model=plan.entry.name,
        parameters=parameters,
        decision=facts.decision,
        recipe=plan.recipe,
        steps=steps,
        seconds=_seconds(plan, plan.task.lit_module(plan, network)),
        pixels_bytes=_pixels(plan),
        disk_bytes=_tensors_kept(plan.recipe) * _BYTES * parameters,
        started=(plan.run / CHECKPOINT_FOLDER / LAST).is_file() and not config.fresh,
    )


def _tensors_kept(recipe: Recipe) -> int:
    """Number of network-sized tensors in the files of the run."""
    averaged = recipe.photos is not None and recipe.photos.ema is not None
    return _TENSORS_KEPT + _AVERAGES_KEPT * averaged


def _pixels(plan: TrainPlan) -> int:
    samples = (*plan.splits.train.samples, *plan.splits.val.samples)
    return sum(array.nbytes for array in decode_sample(samples[0])) * len(samples)


def _seconds(plan: TrainPlan, lit_module: LitModule) -> float:
    recipe = plan.recipe
    size = max(1, recipe.batch_size // plan.machine.world)
    step = step_seconds(lit_module, size, plan.machine.device)
    validation = _FORWARD_SHARE * plan.val_batches
    return recipe.epochs * step * (len(plan.batches) + validation)


def make_step(lit_module: LitModule, size: int, device: torch.device) -> Callable[[], float]:
    """A function that takes a training step of `lit_module` and returns its seconds."""
    lit_module.network.to(device)
    optimizer = lit_module.make_optimizer()
    images = torch.rand(size, *lit_module.input_shape, device=device)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        lit_module.trial_loss(images).backward()
        optimizer.step()
        images[0, 0, 0, 0].item()  # synchronises the device
        return time.perf_counter() - started

    return step


def step_seconds(lit_module: LitModule, size: int, device: torch.device) -> float:
    """Seconds of a training step, the second of two, of `size` images; the weights are changed."""
    step = make_step(lit_module, size, device)
    step()
    return step()
