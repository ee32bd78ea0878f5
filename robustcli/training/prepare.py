"""From settings to what a training needs, cheapest checks first: no pixels, no folder made yet."""

from __future__ import annotations

from pathlib import Path

from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.load import names_run, resolve
from robustcli.core.errors import UsageError
from robustcli.evaluation.listener import Listener
from robustcli.evaluation.record import FILE_NAME
from robustcli.training.config import TrainConfig
from robustcli.training.recipes import OWN, Recipe, describe
from robustcli.training.task import Selection
from robustcli.training.tasks import training_task
from robustcli.training.trainer import Machine, machine


def select(config: TrainConfig, listener: Listener) -> Selection:
    """What `config` names.

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
    index = task.open(config)
    splits = task.split(index, config)
    recipe = task.recipe(config, entry, splits)
    if recipe.patches is not None:
        _check_alone(recipe, on)
    _check_shares(recipe, on)
    run = config.directory(recipe, index.digest, on.world)
    check_folder(run)
    selection = Selection(task, entry, index, splits, recipe, on, run)
    _announce(config, selection, listener)
    return selection


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


def _check_alone(recipe: Recipe, on: Machine) -> None:
    if on.world > 1:
        raise UsageError(
            f"`--recipe {recipe.name}` trains on one device.",
            f"Its dice is that of a whole batch, which {on.world} processes would share.",
            f"Leave out `--devices` and torchrun, or use `--recipe {OWN}`.",
        )


def _check_shares(recipe: Recipe, on: Machine) -> None:
    if recipe.batch_size % on.world:
        raise UsageError(
            f"A batch of {recipe.batch_size} does not divide among {on.world} processes.",
            "`--batch-size` counts the images of a step over all devices.",
            "Use a batch size that is a multiple of the number of devices.",
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


def _announce(config: TrainConfig, selection: Selection, listener: Listener) -> None:
    index, splits, task = selection.index, selection.splits, selection.task
    if config.devices == "all":
        listener.say(_all_devices(selection.on))
    if config.data is None:
        kind = " (a demonstration set)" if index.demonstration else ""
        listener.say(
            f"No --data: using {index.name}{kind}, {len(index.members)} images, {index.location}."
        )
    counts = ", ".join(
        f"{name} {task.counted(part)}"
        for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test))
    )
    listener.say(f"{task.way(config)}: {counts} ({splits.train.subset}).")
    listener.say(describe(selection.recipe))


def _all_devices(on: Machine) -> str:
    if on.device.type == "cuda":
        return f"`--devices all`: {on.devices} processes, one per GPU of this machine."
    return (
        f"`--devices all` counts GPUs; on {on.device.type} it is {on.devices} process"
        f"{'' if on.devices == 1 else 'es'}. A number starts as many processes, which share the "
        "processor's cores."
    )
