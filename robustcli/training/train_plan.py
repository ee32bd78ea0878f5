"""Makes the plan of a training from its settings, and forecasts it (`robust train --dry-run`).

Cheap checks come first. No file is written.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.adapters import model
from robustcli.adapters.catalogue import CATALOGUE, TRAINED_AS, ModelEntry, ModelRequest
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.load import names_run, resolve
from robustcli.adapters.model import AUTOCAST, GREY_NOTE
from robustcli.adapters.networks import BUILDERS, OUR_BUILDERS
from robustcli.adapters.preprocessing import input_channels
from robustcli.adapters.trainable import carried_arguments, check_class_count, wants_imagenet
from robustcli.adapters.training_run import header_beside, weights_in
from robustcli.core.errors import UsageError, UsageErrors
from robustcli.core.listener import Listener
from robustcli.core.machine import check_opencv, versions
from robustcli.core.names import canonical, counted
from robustcli.core.rundir import check_folder, has_record
from robustcli.data.sources import check_data_exists
from robustcli.data.splits import SPLITS, take
from robustcli.evaluation.device import device_name, unused_gpu
from robustcli.models.ablation import has_scan, no_scan, removed_parameters, scan_blocks
from robustcli.models.architectures import ARCHITECTURES
from robustcli.models.multiply_adds import count_multiply_adds
from robustcli.models.scan.dispatch import choose_backend
from robustcli.tasks.base import announce_default
from robustcli.tasks.heldout import trainings_of_initial, used_before
from robustcli.tasks.record import dataset_record
from robustcli.training.classifier_training import ClassifierTraining
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import decode_sample
from robustcli.training.lit_module import LitModule
from robustcli.training.procedures import procedure_of
from robustcli.training.recipes import Protocol, Recipe, describe_recipe
from robustcli.training.record import TRAINING, RecipeRecord, TrainRecord
from robustcli.training.segmenter_training import SegmenterTraining
from robustcli.training.trainer import CHECKPOINT_FOLDER, LAST, Machine, machine
from robustcli.training.training_task import TrainingTask, TrainInputs, TrainPlan

TRAINING_TASKS: dict[str, TrainingTask] = {
    task.name: task for task in (ClassifierTraining(), SegmenterTraining())
}
_LEAST = 2  # smallest batch for batch norms with one value per channel and image


def plan_training(config: TrainConfig, listener: Listener) -> TrainPlan:
    """The plan of the training `config`.

    Raises:
        UsageError: A named model, data set or recipe does not exist, or options contradict each
            other.
    """
    config = _with_name(config, listener)
    inputs = look_up_training(config)
    check_class_count(config.model_args, inputs.index.mask_classes)
    plan = complete_plan(_following_weights(config, inputs.entry), inputs, listener)
    return plan if config.untrained else with_earlier_trainings(plan, config.weights, listener)


def with_earlier_trainings(plan: TrainPlan, weights: Path | None, listener: Listener) -> TrainPlan:
    """`plan` with the trainings of `weights`, the file or run from which the training starts.

    Announces that they used held-out images. `weights` is None for none of this program.
    """
    if weights is None:
        return plan
    earlier = trainings_of_initial(ModelRequest(plan.entry.name, weights=weights))
    remark = used_before(earlier, plan.index, plan.splits.test)
    if remark:
        listener.say(
            f"WARNING: {remark[0].upper()}{remark[1:]}. Use the split of that training (its seed "
            "as `--split-seed`, and its `--limit`), or other data."
        )
    return replace(plan, used_before=remark, earlier=earlier)


def _with_name(config: TrainConfig, listener: Listener) -> TrainConfig:
    """`config` with our network for names that timm also has, with an announcement."""
    entry = CATALOGUE.get(TRAINED_AS.get(canonical(config.model), ""))
    if entry is None:
        return config
    listener.say(
        f"`{config.model}` refers to `{entry.name}` here, which has a stem for small images (3 x "
        f"3, stride 1, no max-pooling), {entry.parameters:,} parameters with 10 classes. The "
        "network of timm with this name, for larger photos, is `--model "
        f"timm:{canonical(config.model)}`."
    )
    return replace(config, model=entry.name)


def look_up_training(config: TrainConfig, entry: ModelEntry | None = None) -> TrainInputs:
    """Looks up the network, data and devices of `config`; the only place that opens the data set.

    `entry` is the network if it is already looked up.

    Raises:
        UsageError: A named model, data set or recipe does not exist, or options contradict each
            other.
    """
    errors = UsageErrors()
    with errors:
        if entry is None:
            entry = resolve(config.model)
            _check_named(config)
        _check_task(entry, config)
        _check_ablation(entry, config)
        task = TRAINING_TASKS[entry.task]
        task.check(entry, config)
    with errors:
        _check_start(config)
    with errors:
        _check_seeds(config)
    if config.data is not None:
        with errors:
            check_data_exists(config.data, masks=config.task != "cls")
    with errors:
        on = machine(config.device, config.devices)
        _check_precision(config, on)
    check_opencv()
    errors.check()
    assert entry is not None, "otherwise an error is raised above"
    dataset = task.open(config, entry)
    index = take(dataset, limit=config.limit, seed=config.parts_seed)
    return TrainInputs(task, entry, dataset, index, task.split(index, config), on)


def complete_plan(config: TrainConfig, inputs: TrainInputs, listener: Listener) -> TrainPlan:
    """The plan of a training with the `inputs` of `config`.

    Raises:
        UsageError: An option is not used by the recipe, or the run folder contains files of
            something else.
    """
    config = inputs.task.built_for(config, inputs.index)
    recipe = inputs.task.recipe(config, inputs.entry, inputs.splits)
    if recipe.precision == "bf16" and config.precision is None and not _has_bf16(inputs.machine):
        recipe = replace(recipe, precision="fp32")
    grey = input_channels(config.model_args) == 1
    procedure_of(recipe).check(inputs.machine, grey=grey)
    _check_shares(recipe, inputs.machine)
    digest = f"{inputs.index.digest} {inputs.index.contents}"
    run = config.directory(recipe, digest, inputs.machine.world)
    check_folder(run)
    if config.fresh:
        for folder in (run, *run.glob("seed-*")):
            TRAINING.check_kept(folder, config.inputs)
    plan = _with_least(TrainPlan(**vars(inputs), config=config, recipe=recipe, run=run, grey=grey))
    _announce(plan, listener)
    return plan


def _with_least(plan: TrainPlan) -> TrainPlan:
    """`plan` with the smallest batch that the network's batch norms can train on.

    Builds the network for this only if a batch would have one image.

    Raises:
        UsageError: The batch norms need more than one image per step.
    """
    if 1 not in plan.batches:
        return plan
    start = replace(plan.config, untrained=plan.config.weights is None, offline=True)
    network, _ = plan.task.network(start, plan.entry, plan.index)
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
    why += "per channel, for which no variance exists."
    shared = f" in each of {world} processes" if world > 1 else ""
    if images < _LEAST * world:
        what = f"`{name}` cannot train on {counted(images, 'image')} per epoch{shared}."
        return UsageError(what, why, "Use more training images.")
    return UsageError(
        f"`{name}` cannot train on one image per step{shared} (`--batch-size "
        f"{recipe.batch_size}`).",
        why,
        f"Use `--batch-size {_LEAST * world}` or more; `--accumulate` has no effect on this.",
    )


def _check_task(entry: ModelEntry, config: TrainConfig) -> None:
    if config.task == "seg" and entry.task == "cls":
        raise UsageError(
            f"`{entry.name}` is a classifier.",
            "`robust train seg` trains segmenters, which predict masks.",
            f"Use `robust train cls --model {entry.name}`; `robust list models` lists the "
            "segmenters.",
        )
    if config.task == "cls" and entry.task == "seg":
        raise UsageError(
            f"`{entry.name}` is a segmenter.",
            "`robust train cls` trains classifiers, which predict the class of an image.",
            f"Use `robust train seg --model {entry.name}`.",
        )


def _check_ablation(entry: ModelEntry, config: TrainConfig) -> None:
    """Raises UsageError if `--ablate scan` is given for a network without a scan."""
    if config.ablation is None:
        return
    architecture = ARCHITECTURES.get(entry.variant) if entry.builder in OUR_BUILDERS else None
    if architecture is None or not architecture.scans:
        raise no_scan(entry.name)


def _following_weights(config: TrainConfig, entry: ModelEntry) -> TrainConfig:
    """`config` with the builder arguments of the initial weights; typed arguments override them.

    The record and the weights file of the run need the merged arguments to rebuild the network.
    """
    if config.weights is None or config.untrained:
        return config
    header = header_beside(weights_in(config.weights))
    if header is None or canonical(header.model) != canonical(entry.network):
        return config
    return replace(config, model_args={**carried_arguments(header), **config.model_args})


def _check_seeds(config: TrainConfig) -> None:
    """Raises UsageError for a seed that does not fit into the integer columns of results."""
    last = config.seed + (config.seeds or 1) - 1
    for option, seed in (
        ("--seed", config.seed),
        ("--seed", last),
        ("--split-seed", config.parts_seed),
    ):
        if not -(2**63) <= seed < 2**63:
            raise UsageError(
                f"`{option} {seed}` is out of range.",
                "Seeds of trainings are integers of 64 bits: from -2^63 to 2^63 - 1.",
                "Use a smaller number, such as 0.",
            )


def _check_start(config: TrainConfig) -> None:
    if config.weights is not None and config.untrained:
        raise UsageError(
            f"`--weights {config.weights}` and `--untrained` exclude each other.",
            "A training starts either from the weights of a file or from random weights.",
            "Omit one of them.",
        )


def _check_named(config: TrainConfig) -> None:
    if names_run(config.model):
        raise UsageError(
            f"`--model {config.model}` is a folder.",
            "`--model` names the network; `--weights` names its initial weights.",
            f"Use `--model NETWORK --weights {config.model}/weights.safetensors`.",
        )


def _check_precision(config: TrainConfig, on: Machine) -> None:
    if config.precision == "fp16" and on.device.type != "cuda":
        raise UsageError(
            "`--precision fp16` needs a CUDA device.",
            f"Training would run on {on.device.type}, where gradients cannot be scaled.",
            "Use `--precision bf16` or `fp32`.",
        )


def _has_bf16(on: Machine) -> bool:
    """Whether the device is a GPU with native bf16 arithmetic."""
    return on.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _check_shares(recipe: Recipe, on: Machine) -> None:
    if recipe.batch_size % on.world:
        raise UsageError(
            f"A batch of {recipe.batch_size} cannot be divided evenly among {on.world} processes.",
            "`--batch-size` counts the images of a step over all devices.",
            "Use a batch size that is a multiple of the number of devices.",
        )


def _announce(plan: TrainPlan, listener: Listener) -> None:
    config, index, splits, task = plan.config, plan.index, plan.splits, plan.task
    if note := unused_gpu(config.device, plan.machine.device):
        listener.say(note)
    if config.devices == "all":
        listener.say(_all_devices(plan.machine))
    announce_default(index, config.data, listener)
    for note in index.notes:
        listener.say(note)
    counts = ", ".join(
        f"{name} {task.counted(part)}"
        for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test))
    )
    listener.say(f"{task.protocol_words(config)}: {counts} ({splits.train.subset}).")
    if config.split_seed is not None and config.limit is None and _has_fixed_split(plan):
        why = "protocol `paper`" if config.protocol == "paper" else "the data set"
        option = f"`--split-seed {config.split_seed}`"
        listener.say(f"{option}: no effect, because {why} defines the split.")
    listener.say(describe_recipe(plan.recipe))
    faults = task.start_faults(plan)
    if faults:
        listener.say("Known faults of this recipe, which are kept for comparability:")
    for fault in faults:
        listener.say(f"- {fault}")
    if config.ablation is not None:
        listener.say(_ablated_words(plan))
    if plan.grey:
        listener.say(GREY_NOTE.format(plan.entry.name))
    if plan.least > 1:
        shown = " and ".join(str(size) for size in plan.batches[-2:])
        listener.say(
            f"The batch norm of `{plan.entry.name}` cannot be trained with a last batch of one "
            f"image: the last batches of an epoch have {shown} images instead."
        )


def _has_fixed_split(plan: TrainPlan) -> bool:
    """Whether the split into training, validation and test images depends on no seed."""
    defined = {sample.split for sample in plan.index.samples}
    return plan.config.protocol == "paper" or defined.issuperset(SPLITS)


def _ablated_words(plan: TrainPlan) -> str:
    entry, arguments = plan.entry, plan.config.model_args
    with torch.device("meta"):
        network = BUILDERS[entry.builder].create(entry.variant, arguments)
    removed = sum(math.prod(shape) for shape in removed_parameters(network).values())
    blocks = counted(len(scan_blocks(network)), "block")
    return (
        f"A control of `{entry.name}` (`--ablate {plan.config.ablation}`): the scan of {blocks} is "
        f"the identity, and {removed:,} parameters that only the scan uses are removed."
    )


def _all_devices(on: Machine) -> str:
    if on.device.type == "cuda":
        return f"`--devices all`: {on.devices} processes, one per GPU of this machine."
    return (
        f"`--devices all` counts GPUs; on {on.device.type} it is {on.devices} "
        f"process{'' if on.devices == 1 else 'es'}. `--devices N` starts N processes, which share "
        "the processor's cores."
    )


def try_out(plan: TrainPlan, network: nn.Module) -> Sequence[str]:
    """Runs one generated image through `network` on the device of this process.

    Other processes do not take part. Restores the device and the state of the network.

    Returns:
        Names of the batch norms with a single value per channel, which cannot train on one image.

    Raises:
        UsageError: The network cannot process such an image, or its output is not one of the task.
    """
    entry, shape, recipe = plan.entry, plan.input_shape, plan.recipe
    kind, arguments = f"{entry.builder}:{entry.variant}", plan.config.model_args
    tried = model.Trial(entry.name, kind, arguments, shape, "--window", recipe.precision)
    device, home = _device_of_rank(plan.machine), next(network.parameters()).device
    autocast, learns = AUTOCAST.get(recipe.precision), network.training

    def forward() -> object:
        images = model.made_up_image(shape).to(device).float() / 255
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            return plan.task.answer(network, images)

    network.to(device).eval()
    try:
        with model.norms_of_one_value(network) as norms:
            answer = model.first_pass(forward, tried)
    finally:
        network.to(home).train(learns)
    plan.task.check_answer(answer, network, tried)
    return norms


def _device_of_rank(machine: Machine) -> torch.device:
    """The device of this process, as Lightning will choose it."""
    device = machine.device
    if device.type == "cuda" and machine.world > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


_PACKAGES = ("lightning", "monai")
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
            f"{name} {counted(count, 'image')} of {counted(self.groups[name], self.grouping)}"
            for name, count in self.images.items()
        )
        goes_on = " (exists: would be resumed)" if self.started else ""
        length = f"{counted(self.recipe.epochs, 'epoch')}, {counted(self.steps, 'step')}"
        return "\n".join(
            [
                f"Run:        {self.out}{goes_on}",
                f"Protocol:   {self.protocol}, {self.decision}"
                if self.protocol
                else f"Answer:     {self.decision}",
                f"Data:       {parts}",
                f"Model:      {self.model}, {self.parameters:,} parameters",
                f"Recipe:     {self.recipe.name}: {length}",
                f"Memory:     {self.pixels_bytes / 1e6:,.0f} MB of decoded images",
                f"Disk:       {self.disk_bytes / 1e6:,.0f} MB",
                f"Time:       about {self.seconds:,.0f} s on this machine, estimated from two "
                "steps",
            ]
        )


def train_record(plan: TrainPlan, network: nn.Module, origin: str) -> TrainRecord:
    """The record of a new training; its splits are counted later by `count_splits`."""
    config, now = plan.config, datetime.now(UTC)
    facts, device = plan.task.facts(plan, network), plan.machine.device
    image = torch.zeros(1, *plan.input_shape, device=next(network.parameters()).device)
    return TrainRecord(
        task=plan.task.name,
        command=config.command,
        status="running",
        created=now,
        updated=now,
        seed=config.seed,
        split_seed=config.other_split_seed,
        protocol=facts.protocol,
        faults=plan.procedure.faults(plan.entry.name),
        model=plan.entry.name,
        family=plan.entry.family,
        arguments=json.loads(json.dumps(dict(config.model_args))),  # JSON types, as when read
        parameters=sum(p.numel() for p in network.parameters()),
        multiply_adds=count_multiply_adds(lambda: plan.task.answer(network, image), network),
        initial_weights=plan.described(origin),
        initial_weights_sha256=state_digest(network.state_dict()),
        dataset=dataset_record(plan.index),
        grouping=plan.index.grouping,
        splits={},
        recipe=RecipeRecord.of(plan.recipe),
        decision=facts.decision,
        versions=versions() | {package: version(package) for package in _PACKAGES},
        device=device_name(device),
        devices=plan.machine.world,
        scan_backend=choose_backend(device, torch.float32) if has_scan(network) else None,
        threads=torch.get_num_threads(),
    )


def forecast_training(config: TrainConfig, listener: Listener) -> TrainForecast:
    """The forecast for `config`. Downloads nothing and writes nothing.

    Raises:
        UsageError: A named model, data set or recipe does not exist, or options contradict each
            other.
    """
    return forecast_plan(plan_training(config, listener))


def forecast_plan(plan: TrainPlan) -> TrainForecast:
    """The forecast for `plan`, from two training steps on generated images.

    Raises:
        UsageError: The folder contains another run, or a training with other settings than `plan`.
            Weights of ImageNet to start from are not compared, because nothing is downloaded.
    """
    config = plan.config
    weights = None if config.untrained else config.weights
    start = replace(config, weights=weights, untrained=weights is None, offline=True)
    network, _ = plan.task.network(start, plan.entry, plan.index)
    try_out(plan, network)
    started = (plan.run / CHECKPOINT_FOLDER / LAST).is_file() and not config.fresh
    if has_record(plan.run) and not config.fresh:
        new = train_record(plan, network, "")
        if start.untrained and not config.untrained and wants_imagenet(plan.entry):
            known = TRAINING.read(plan.run).initial_weights_sha256
            new = new.model_copy(update={"initial_weights_sha256": known})
        TRAINING.check_continues(plan.run, new)
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
        started=started,
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
