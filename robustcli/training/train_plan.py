"""From settings to the plan of a training, cheapest checks first: no pixels, no folder made yet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.load import names_run, resolve
from robustcli.adapters.model import GREY
from robustcli.adapters.preprocessing import input_channels
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.rundir import check_folder
from robustcli.training.callbacks import FOLDER, LAST
from robustcli.training.classifier_training import Classification
from robustcli.training.config import TrainConfig
from robustcli.training.lit_module import LitModule
from robustcli.training.procedures import procedure_of
from robustcli.training.recipes import Protocol, Recipe, describe
from robustcli.training.segmenter_training import Segmentation
from robustcli.training.trainer import Machine, machine
from robustcli.training.training_task import TrainingTask, TrainInputs, TrainPlan
from robustcli.training.trial import step_seconds, try_out

# Which training task a model is for.


TASKS: dict[str, type[TrainingTask]] = {task.name: task for task in (Classification, Segmentation)}


def training_task(entry: ModelEntry) -> TrainingTask:
    """The task of training `entry`."""
    return TASKS[entry.task]()


_LEAST = 2  # images that a batch norm of one value per channel needs


def plan_training(config: TrainConfig, listener: Listener) -> TrainPlan:
    """The plan of the training that `config` asks for.

    Raises:
        UsageError: Something named does not exist or does not fit together.
    """
    return complete_plan(config, look_up(config), listener)


def look_up(config: TrainConfig) -> TrainInputs:
    """Network, data and devices that `config` names; the data set is opened here and nowhere else.

    Raises:
        UsageError: Something named does not exist or does not fit together.
    """
    entry = resolve(config.model)
    _check_named(config)
    _check_task(entry, config)
    task = training_task(entry)
    task.check(entry, config)
    on = machine(config.device, config.devices)
    _check_precision(config, on)
    dataset = task.open(config)
    index = task.limited(dataset, config)
    return TrainInputs(task, entry, dataset, index, task.split(index, config), on)


def complete_plan(config: TrainConfig, inputs: TrainInputs, listener: Listener) -> TrainPlan:
    """The plan of a training with `inputs`, which are those of `config`.

    Raises:
        UsageError: An option has no meaning here, or somebody's files are in the run's folder.
    """
    recipe = inputs.task.recipe(config, inputs.entry, inputs.splits)
    grey = input_channels(config.model_args) == 1
    procedure_of(recipe).check(inputs.machine, grey=grey)
    _check_shares(recipe, inputs.machine)
    run = config.directory(
        recipe, f"{inputs.index.digest} {inputs.index.contents}", inputs.machine.world
    )
    check_folder(run)
    plan = _with_least(TrainPlan(**vars(inputs), config=config, recipe=recipe, run=run, grey=grey))
    _announce(plan, listener)
    return plan


def _with_least(plan: TrainPlan) -> TrainPlan:
    """`plan` with the fewest images of a batch that the network's batch norms can learn from.

    They are looked at only where a batch would hold one image, as for that a network is built.

    Raises:
        UsageError: Such a network would get one image a step.
    """
    if 1 not in plan.batches:
        return plan
    start = replace(plan.config, untrained=plan.config.weights is None, offline=True)
    network, _ = plan.task.network(start, plan.index)
    norms = try_out(plan, network)
    if not norms:
        return plan
    if max(plan.batches) == 1:
        raise _one_a_step(plan, norms)
    return replace(plan, least=_LEAST)


def _one_a_step(plan: TrainPlan, norms: Sequence[str]) -> UsageError:
    name, recipe, world = plan.entry.name, plan.recipe, plan.machine.world
    images = plan.per_epoch
    why = f"Its batch norm (`{norms[0]}`{', ...' if len(norms) > 1 else ''}) then sees one value "
    why += "per channel, which has no variance."
    shared = f" in each of {world} processes" if world > 1 else ""
    if images < _LEAST * world:
        what = f"`{name}` cannot train on {images} image{'s' * (images > 1)} an epoch{shared}."
        return UsageError(what, why, "Give it more training images.")
    return UsageError(
        f"`{name}` cannot train on one image a step{shared} (`--batch-size {recipe.batch_size}`).",
        why,
        f"Use `--batch-size {_LEAST * world}` or more; `--accumulate` does not help.",
    )


def _check_task(entry: ModelEntry, config: TrainConfig) -> None:
    if config.task == "seg" and entry.task == "cls":
        raise UsageError(
            f"`{entry.name}` is a classifier.",
            "`robust train seg` trains segmenters, which say where something is.",
            f"Use `robust train cls --model {entry.name}`; `robust list models` shows which models "
            "are segmenters.",
        )
    if config.task == "cls" and entry.task == "seg":
        raise UsageError(
            f"`{entry.name}` is a segmenter.",
            "`robust train cls` trains classifiers, which say what is in an image.",
            f"Use `robust train seg --model {entry.name}`.",
        )


def _check_named(config: TrainConfig) -> None:
    if names_run(config.model):
        raise UsageError(
            f"`--model {config.model}` is a folder.",
            "The network is named, and where it starts from is said apart.",
            f"Use `--model NETWORK --weights {config.model}/weights.safetensors`.",
        )


def _check_precision(config: TrainConfig, on: Machine) -> None:
    if config.precision == "fp16" and on.device.type != "cuda":
        raise UsageError(
            "`--precision fp16` needs a CUDA device.",
            f"Training would run on {on.device.type}, where gradients cannot be scaled.",
            "Use `--precision bf16` or `fp32`.",
        )


def _check_shares(recipe: Recipe, on: Machine) -> None:
    if recipe.batch_size % on.world:
        raise UsageError(
            f"A batch of {recipe.batch_size} does not divide among {on.world} processes.",
            "`--batch-size` counts the images of a step over all devices.",
            "Use a batch size that is a multiple of the number of devices.",
        )


def _announce(plan: TrainPlan, listener: Listener) -> None:
    config, index, splits, task = plan.config, plan.index, plan.splits, plan.task
    if config.devices == "all":
        listener.say(_all_devices(plan.machine))
    if config.data is None:
        kind = " (a demonstration set)" if index.demonstration else ""
        listener.say(
            f"No --data: using {index.name}{kind}, {len(index.samples)} images, {index.location}."
        )
    for note in index.notes:
        listener.say(note)
    counts = ", ".join(
        f"{name} {task.counted(part)}"
        for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test))
    )
    listener.say(f"{task.way(config)}: {counts} ({splits.train.subset}).")
    listener.say(describe(plan.recipe))
    if plan.grey:
        listener.say(GREY.format(plan.entry.name))
    if plan.least > 1:
        shown = " and ".join(str(size) for size in plan.batches[-2:])
        listener.say(
            f"The batch norm of `{plan.entry.name}` cannot learn from a last batch of one "
            f"image: the last batches of an epoch have {shown} images instead."
        )


def _all_devices(on: Machine) -> str:
    if on.device.type == "cuda":
        return f"`--devices all`: {on.devices} processes, one per GPU of this machine."
    return (
        f"`--devices all` counts GPUs; on {on.device.type} it is {on.devices} process"
        f"{'' if on.devices == 1 else 'es'}. A number starts as many processes, which share the "
        "processor's cores."
    )


# The dry run: what a training would take in time, memory and disk space.


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
    return forecast(plan_training(config, listener))


def forecast(plan: TrainPlan) -> TrainForecast:
    """The forecast for `plan`, by two training steps on made-up images."""
    config = plan.config
    weights = None if config.untrained else config.weights
    start = replace(config, weights=weights, untrained=weights is None, offline=True)
    network, _ = plan.task.network(start, plan.index)
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
        disk_bytes=_TENSORS_KEPT * _BYTES * parameters,
        started=(plan.run / FOLDER / LAST).is_file() and not config.fresh,
    )


def _pixels(plan: TrainPlan) -> int:
    held = (*plan.splits.train.samples, *plan.splits.val.samples)
    return sum(array.nbytes for array in plan.task.decode(held[0]).arrays) * len(held)


def _seconds(plan: TrainPlan, lit_module: LitModule) -> float:
    recipe = plan.recipe
    size = max(1, recipe.batch_size // plan.machine.world)
    step = step_seconds(lit_module, size, plan.machine.device)
    batches = len(plan.batches)
    validation = _FORWARD_SHARE * plan.val_batches
    return recipe.epochs * step * (batches + validation)
