"""From settings to what a fine-tuning needs, looked up and checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.load import names_run, resolve
from robustcli.adapters.places import local_path
from robustcli.adapters.seg_builders import SEG_BUILDERS
from robustcli.adapters.start import start_weights, wants_imagenet
from robustcli.core.errors import UsageError
from robustcli.evaluation.listener import Listener, Silent
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.defaults import as_nnunet, light, no_weights, usual_steps, with_defaults
from robustcli.finetuning.pretrained import Pretrained, fill, heads_of, read_pretrained
from robustcli.finetuning.record import Mode
from robustcli.models.umamba import UMamba
from robustcli.training.config import TrainConfig
from robustcli.training.prepare import Selection, check_folder, select
from robustcli.training.processes import started_by_torchrun

_LEAST_PROFILE = 20


@dataclass(frozen=True)
class Setup:
    """What was asked for, looked up.

    Args:
        config: With all defaults; its training is that of every mode but for folder and start.
        given: The weights to start from; None for an ImageNet encoder, or from nothing.
        selection: Network, data, splits, recipe and devices, the same for every mode.
        run: The folder.
        profile_iterations: Profiled steps.
    """

    config: FinetuneConfig
    given: Pretrained | None
    selection: Selection
    run: Path
    profile_iterations: int

    @property
    def entry(self) -> ModelEntry:
        """The network."""
        return self.selection.entry

    @property
    def steps(self) -> int:
        """Optimizer steps of each mode."""
        return self.selection.recipe.epochs * self.selection.steps_per_epoch

    @property
    def heads(self) -> tuple[str, ...]:
        """Beginnings of the names of the layers that are new in this task."""
        return heads_of(self.entry)

    def training(self, mode: Mode, out: Path) -> TrainConfig:
        """The settings of the training of `mode` into the folder `out`."""
        return replace(self.config.training, out=out, untrained=mode == "scratch")

    def network(self, mode: Mode) -> tuple[nn.Module, str]:
        """The network as `mode` begins with it, and where its weights come from.

        Heads and whatever no file gives are the same in every mode.
        """
        training = self.config.training
        random = mode == "scratch" or self.given is not None
        network, origin = start_weights(
            training.model, None, random, training.offline, training.seed, training.model_args
        )
        if mode == "scratch" or self.given is None:
            return network, origin
        fill(network, self.given, self.entry)
        return network, self.given.origin


def set_up(config: FinetuneConfig, listener: Listener) -> Setup:
    """What `config` names.

    Raises:
        UsageError: Something named does not exist or does not fit together.
    """
    config = with_defaults(config, listener.say)
    entry = _network_named(config)
    _check_flags(config)
    given = _pretrained(config, entry)
    training = config.training if given is None else _following(config.training, given)
    training = _sized(training, entry)
    training = _with_recipe(config, training, entry, listener.say)
    selection = select(replace(training, out=None), listener)
    run = config.directory(selection.run)
    check_folder(run)
    setup = Setup(
        replace(config, training=training), given, selection, run,
        _profiled(config, selection.steps_per_epoch, selection.recipe.epochs),
    )  # fmt: skip
    if given is not None and config.modes != ("scratch",):
        listener.say(f"Starting from {given.origin}.")
        setup.network("full")  # weights that do not fit stop here, before anything is written
    return setup


def started(setup: Setup) -> Mode:
    """A mode whose network the run has: without weights there is only the one from nothing."""
    return "scratch" if setup.config.modes == ("scratch",) else "full"


def _network_named(config: FinetuneConfig) -> ModelEntry:
    name = config.training.model
    entry = resolve(name)
    if names_run(name):
        raise UsageError(
            f"`{name}` is a folder of a training.",
            "The network is named, and where it starts from is said apart.",
            f"Use `robust finetune {entry.network} --pretrained {name}`.",
        )
    if entry.task != "seg":
        raise UsageError(
            f"`{entry.name}` is a classifier.",
            "`robust finetune` takes segmenters, which say where something is.",
            "`robust list models` shows which models are segmenters.",
        )
    return entry


def _check_flags(config: FinetuneConfig) -> None:
    training = config.training
    if config.iterations is not None and training.epochs is not None:
        raise UsageError(
            "`--iterations` and `--epochs` exclude each other.",
            "Both say how long each mode is trained.",
            "Leave one out.",
        )
    if config.profile is not None and config.profile_only:
        raise UsageError(
            "`--profile` and `--profile-only` exclude each other.",
            "One takes a profile that is there, the other makes one.",
            "`--profile FILE --dry-run` shows what a profile would freeze.",
        )
    if config.sweep and not ("full" in config.modes and "freeze" in config.modes):
        raise UsageError(
            "`--sweep` compares with full fine-tuning, by the profile of `freeze`.",
            f"Asked for was {' and '.join(config.modes) or 'a profile alone'}.",
            "Use `--mode all`; modes that are there already are not trained again.",
        )
    if config.sweep and config.rule.pattern is not None:
        raise UsageError(
            f"`--sweep` needs a profile; `--freeze {config.rule.pattern}` measures none.",
            "Names decide without looking at gradients.",
            "Leave `--freeze` out: the sweep tries prefixes of the network by itself.",
        )
    if started_by_torchrun() and (config.sweep or len(config.modes) != 1):
        raise UsageError(
            "torchrun trains one mode at a time.",
            f"Asked for were {len(config.modes)}: its processes end with the first.",
            "Name one with `--mode`, or use `--devices N` without torchrun.",
        )


def _pretrained(config: FinetuneConfig, entry: ModelEntry) -> Pretrained | None:
    """The weights to start from; None where the network's recipe gives them or none are needed."""
    arguments = config.training.model_args
    if config.pretrained is not None:
        return read_pretrained(config.pretrained, entry, arguments)
    if SEG_BUILDERS[entry.builder].load is None:
        return None
    if entry.asset is not None:  # also for `scratch` alone: other modes may join it later
        found = read_pretrained(local_path(entry), entry, arguments)
        return replace(found, origin=f"the bundled `{entry.name}`, trained on {entry.pretraining}")
    if config.modes == ("scratch",) or wants_imagenet(entry):
        return None
    raise no_weights(entry)


def _following(training: TrainConfig, given: Pretrained) -> TrainConfig:
    return replace(training, model_args=dict(given.arguments), plan=given.plan)


def _sized(training: TrainConfig, entry: ModelEntry) -> TrainConfig:
    """With the window that the network's weights demand: a U-Mamba-Enc's have its patch's size."""
    if entry.family != "umamba":
        return training
    network, _ = start_weights(entry.name, None, True, True, 0, training.model_args)
    assert isinstance(network, UMamba)
    config = network.config
    if not any(config.tokens(stage)[1] for stage in range(len(config.features))):
        return training
    height, width = config.patch
    if height != width or training.window not in (None, height):
        raise UsageError(
            f"`{entry.name}` here takes patches of {height} x {width} pixels only.",
            "Some of its Mamba layers read whole channels as tokens, so its weights have the size "
            "of its plan's patch; training cuts squares of `--window`.",
            f"Leave out `--window`, or use `--window {height}`."
            if height == width
            else "Use weights that were trained with a square patch.",
        )
    return replace(training, window=height)


def _with_recipe(
    config: FinetuneConfig, training: TrainConfig, entry: ModelEntry, say: Callable[[str], None]
) -> TrainConfig:
    """With the recipe that serves when none is named, and the epochs that the steps come to."""
    data = select(replace(training, out=None), Silent()).index.name
    named = as_nnunet(training, entry, data, say)
    steps = config.iterations or usual_steps(training, named, data)
    training = light(named, data)
    if steps is None:
        return training
    per_epoch = select(replace(training, out=None), Silent()).steps_per_epoch
    return replace(training, epochs=math.ceil(steps / per_epoch))


def _profiled(config: FinetuneConfig, per_epoch: int, epochs: int) -> int:
    """Profiled steps: as asked, else an epoch's, at least 20, at most half of all.

    Raises:
        UsageError: After them, nothing would be left of the training.
    """
    total = per_epoch * epochs
    asked = config.profile_iterations
    if asked is None:
        return min(max(_LEAST_PROFILE, per_epoch), max(1, total // 2))
    profiles = "freeze" in config.modes and config.profile is None
    if profiles and asked >= total:
        raise UsageError(
            f"`--profile-iterations {asked}` leaves nothing to train.",
            f"Each mode has {total} steps; what is frozen is decided after those.",
            f"Use fewer than {total}, or `--profile-only`.",
        )
    return asked
