"""From settings to what a fine-tuning needs, looked up and checked before anything is written."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from torch import nn

from robustcli.adapters.cache_paths import hash_state
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.load import names_run, resolve
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener, Silent
from robustcli.core.ranks import ranks
from robustcli.core.rundir import check_folder, has_record
from robustcli.evaluation.device import describe as describe_device
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.pretrained import Pretrained
from robustcli.finetuning.record import FinetuneRecord, Mode, RuleRecord
from robustcli.finetuning.starts import Kind, kind_of
from robustcli.training.config import TrainConfig
from robustcli.training.prepare import select
from robustcli.training.processes import helped_run
from robustcli.training.record import read_train_record, recipe_differences
from robustcli.training.run_record import recipe_record
from robustcli.training.task import Selection

# Which options of a fine-tuning exclude each other.


def check_flags(config: FinetuneConfig) -> None:
    """Nothing, if the options go together.

    Raises:
        UsageError: Some exclude each other.
    """
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
    started = ranks().world > 1 and helped_run() is None
    trainings = len(config.modes) + config.profile_only
    if started and (config.sweep or trainings != 1):
        raise UsageError(
            "torchrun trains one mode at a time.",
            f"Asked for were {trainings}: its processes end with the first.",
            "Name one with `--mode`, or use `--devices N` without torchrun.",
        )


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
    def kind(self) -> Kind:
        """What is particular to the kind of model."""
        return kind_of(self.entry)

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Beginnings of the names of the layers that are new in this task."""
        return self.kind.heads(self.entry, lambda: self.network("scratch")[0])

    def training(self, mode: Mode, out: Path) -> TrainConfig:
        """The settings of the training of `mode` into the folder `out`."""
        return replace(self.config.training, out=out, untrained=mode == "scratch")

    def network(self, mode: Mode) -> tuple[nn.Module, str]:
        """The network as `mode` begins with it, and where its weights come from.

        Heads and whatever no file gives are the same in every mode.
        """
        training = self.config.training
        random = mode == "scratch" or self.given is not None
        start = replace(training, weights=None, untrained=random)
        network, origin = self.selection.task.network(start, self.selection.index)
        if mode == "scratch" or self.given is None:
            return network, origin
        self.kind.fill(network, self.given, self.entry, self.heads)
        return network, self.given.origin


def set_up(config: FinetuneConfig, listener: Listener) -> Setup:
    """What `config` names.

    Raises:
        UsageError: Something named does not exist or does not fit together.
    """
    kind = kind_of(_network_named(config))
    config = kind.with_defaults(config, listener.say)
    entry = resolve(config.training.model)
    check_flags(config)
    given = kind.pretrained(config, entry)
    training = config.training if given is None else _following(config.training, given)
    training = kind.sized(training, entry)
    training = _with_recipe(config, kind, training, entry, listener.say)
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
    return entry


def _following(training: TrainConfig, given: Pretrained) -> TrainConfig:
    return replace(training, model_args=dict(given.arguments), plan=given.plan)


def _with_recipe(
    config: FinetuneConfig, kind: Kind, typed: TrainConfig, entry: ModelEntry,
    say: Callable[[str], None],
) -> TrainConfig:  # fmt: skip
    """With the recipe that serves when none is named, and the epochs that the steps come to."""
    data = select(replace(typed, out=None), Silent()).index.name
    training = kind.usual_recipe(typed, entry, data, say)
    steps = config.iterations or kind.usual_steps(typed, training, data)
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


# The record of a fine-tuning, before it begins.


def finetune_record(setup: Setup, network: nn.Module) -> FinetuneRecord:
    """The record of a fine-tuning that begins.

    Args:
        setup: What is to be done.
        network: The network, for its size.
    """
    config, given, now = setup.config, setup.given, datetime.now(UTC)
    profile, by_name = config.profile, config.at_once
    return FinetuneRecord(
        task=setup.entry.task,
        command=config.training.command,
        status="running",
        created=now,
        updated=now,
        seed=config.training.seed,
        model=setup.entry.name,
        arguments=json.loads(json.dumps(dict(config.training.model_args))),
        parameters=sum(p.numel() for p in network.parameters()),
        pretrained=given.origin if given else _without(config.modes),
        pretrained_sha256=hash_state(dict(given.state)) if given else None,
        heads=list(setup.heads),
        dataset=setup.selection.task.facts(config.training, setup.selection, network).dataset,
        modes=list(config.modes),
        rule=RuleRecord(**asdict(config.rule)),
        profile="none" if by_name else str(profile or "measured"),
        profile_sha256=None if profile is None else _sha256(profile),
        profile_iterations=0 if by_name else setup.profile_iterations,
        epochs=setup.selection.recipe.epochs,
        iterations=setup.steps,
        device=describe_device(setup.selection.on.device),
    )


def _without(modes: tuple[str, ...]) -> str:
    return "none" if modes == ("scratch",) else "encoder: ImageNet-1K"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mode_differences(setup: Setup, old: FinetuneRecord) -> Iterator[str]:
    """Sentences on the settings in which the trainings of the modes so far differ from `setup`."""
    recipe = recipe_record(setup.selection.recipe)
    for mode in old.modes:
        if has_record(setup.run / mode):
            yield from recipe_differences(read_train_record(setup.run / mode).recipe, recipe)
