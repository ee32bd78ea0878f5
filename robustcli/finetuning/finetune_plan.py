"""The plan of a fine-tuning: all names looked up and checked once, before any file is written."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.fetching import local_path, state_digest
from robustcli.adapters.load import names_run, resolve
from robustcli.adapters.trainable import check_class_count, transfer
from robustcli.core.errors import UsageError, UsageErrors
from robustcli.core.listener import Listener, Silent
from robustcli.core.ranks import ranks
from robustcli.core.rundir import check_folder, has_record
from robustcli.data.sources import check_data_exists
from robustcli.evaluation.device import device_name
from robustcli.finetuning.config import LORA_LAYERS, FinetuneConfig
from robustcli.finetuning.finetuning_task import FINETUNE_TASKS, FinetuneTask, Pretrained
from robustcli.finetuning.freezing import saving
from robustcli.finetuning.gradients import (
    Statistic,
    profile_length,
    read_profile,
    statistics,
    unmeasured,
)
from robustcli.finetuning.record import FINETUNING, FinetuneRecord, Mode, RuleRecord, SavingRecord
from robustcli.finetuning.selection import (
    LEAST_FOR_CHANGE,
    Decision,
    FreezeRule,
    freeze_decisions,
    make_rule,
)
from robustcli.tasks.record import dataset_record
from robustcli.training.config import TrainConfig
from robustcli.training.processes import helped_run
from robustcli.training.record import RecipeRecord, read_train_record, recipe_differences
from robustcli.training.train_plan import (
    complete_plan,
    look_up_training,
    with_earlier_trainings,
)
from robustcli.training.training_task import TrainInputs, TrainPlan


def check_flags(config: FinetuneConfig) -> None:
    """Validates the combination of options.

    Raises:
        UsageError: Two options exclude each other.
    """
    training = config.training
    if config.iterations is not None and training.epochs is not None:
        raise UsageError(
            "`--iterations` and `--epochs` exclude each other.",
            "Both set the training length of each mode.",
            "Omit one of them.",
        )
    if config.profile is not None and config.profile_only:
        raise UsageError(
            "`--profile` and `--profile-only` exclude each other.",
            "`--profile` uses an existing profile, `--profile-only` measures a new one.",
            "`--profile FILE --dry-run` shows the tensors that a profile would freeze.",
        )
    if config.sweep and not ("full" in config.modes and "freeze" in config.modes):
        raise UsageError(
            "`--sweep` compares with full fine-tuning and uses the profile of mode `freeze`.",
            f"The requested modes are: {' and '.join(config.modes) or 'only a profile'}.",
            "Use `--mode all`; modes that are already trained are not trained again.",
        )
    if config.sweep and config.rule.pattern is not None:
        raise UsageError(
            f"`--sweep` needs a profile; `--freeze {config.rule.pattern}` measures none.",
            "This option selects tensors by name, without gradients.",
            "Omit `--freeze`: the sweep also tests prefixes of the network.",
        )
    started = ranks().world > 1 and helped_run() is None
    trainings = len(config.modes) + config.profile_only
    if started and (config.sweep or trainings != 1):
        raise UsageError(
            "torchrun trains one mode at a time.",
            f"The request contains {trainings}, but processes of torchrun end with the first "
            "training.",
            "Select one with `--mode`, or use `--devices N` without torchrun.",
        )


def options_without_effect(config: FinetuneConfig) -> Iterator[str]:
    """One sentence per group of options that change nothing with the modes of `config`.

    They are no errors, because the same options can be used for all modes of a run folder.
    """
    freezes, profile = "freeze" in config.modes or config.profile_only, []
    if config.profile is not None:
        profile.append(f"--profile {config.profile}")
    if config.profile_iterations is not None:
        profile.append(f"--profile-iterations {config.profile_iterations}")
    if not freezes:
        yield from _no_effect([*_rule_options(config.rule), *profile], "no mode freezes tensors")
    elif len(profile) > 1:
        yield from _no_effect(profile[1:], "an existing profile is used (`--profile`)")
    if freezes and config.at_once and config.rule.kind != FreezeRule.kind:
        kind = [f"--statistic {config.rule.kind}"]
        yield from _no_effect(kind, "`--freeze` selects tensors by name")
    if "lora" not in config.modes and config.lora_layers != LORA_LAYERS:
        layers = [f"--lora-layers {','.join(config.lora_layers)}"]
        yield from _no_effect(layers, "only mode `lora` adds adapters")
    if config.profile_only and config.mode != "all":
        yield from _no_effect([f"--mode {config.mode}"], "`--profile-only` trains no mode")
    if config.modes == ("scratch",) and config.pretrained is not None:
        yield (
            f"Mode `scratch` does not use the weights of `--pretrained {config.pretrained}`, only "
            "the options of their network."
        )


def _no_effect(options: Sequence[str], why: str) -> Iterator[str]:
    if options:
        listed = ", ".join(f"`{option}`" for option in options)
        yield f"{listed}: no effect, because {why}."


def _rule_options(rule: FreezeRule) -> Iterator[str]:
    """The options of `rule` that differ from the default rule."""
    default = make_rule()
    if rule.threshold is not None and (rule.relative or rule.threshold != default.threshold):
        yield f"--freeze-{'relative' if rule.relative else 'threshold'} {rule.threshold:g}"
    if rule.quantile is not None:
        yield f"--freeze-quantile {rule.quantile:g}"
    if rule.change is not None:
        yield f"--freeze-change {rule.change:g}"
    if rule.pattern is not None:
        yield f"--freeze {rule.pattern}"
    if rule.scope != default.scope:
        yield f"--freeze-scope {rule.scope}"
    if rule.kind != default.kind and rule.change is None:
        yield f"--statistic {rule.kind}"


_LEAST_PROFILE = 20
_MOMENTS = {"Adam": 2, "AdamW": 2, "SGD": 1}
_TRIED = 2
"""Batch size of the step whose operations are counted: batch normalisation needs two images."""


@dataclass(frozen=True)
class FinetunePlan:
    """A fine-tuning with all names looked up and checked.

    Args:
        pretrained: The initial weights; None for an ImageNet encoder or random weights.
        training: The plan shared by the trainings of all modes; `mode_plan` sets the folder.
        profile_iterations: Number of steps to profile.
        profile: Content of the file of `--profile`, which `--fresh` can delete; None without one.
    """

    config: FinetuneConfig
    pretrained: Pretrained | None
    training: TrainPlan
    run: Path
    profile_iterations: int
    profile: bytes | None = None

    @property
    def entry(self) -> ModelEntry:
        """The catalogue entry of the network."""
        return self.training.entry

    @property
    def steps(self) -> int:
        """Optimizer steps of each mode."""
        return self.training.recipe.epochs * self.training.steps_per_epoch

    @property
    def task(self) -> FinetuneTask:
        """The task-specific part: classifiers or segmenters."""
        return FINETUNE_TASKS[self.entry.task]

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Name prefixes of the layers that are new in this task."""
        return self.task.heads(self.entry, lambda: self.network("scratch")[0])

    def mode_plan(self, mode: Mode, out: Path) -> TrainPlan:
        """The plan of the training of `mode` into the folder `out`.

        Raises:
            UsageError: The folder contains files of something else.
        """
        check_folder(out)
        config = replace(self.training.config, out=out, untrained=mode == "scratch")
        return replace(self.training, config=config, run=out)

    def for_seed(self, seed: int, out: Path) -> FinetunePlan:
        """The plan of another seed with the same data split, into the folder `out`.

        Raises:
            UsageError: The folder contains files of something else.
        """
        training = self.training.for_seed(seed, out)
        return replace(self, config=self.config.for_seed(seed, out), training=training, run=out)

    def network(self, mode: Mode) -> tuple[nn.Module, str]:
        """The initial network of `mode`, and the origin of its weights in words.

        Heads and all other randomly initialised layers are the same in every mode.
        """
        plan, pretrained = self.training, self.pretrained
        random = mode == "scratch" or pretrained is not None
        start = replace(plan.config, weights=None, untrained=random)
        network, origin = plan.task.network(start, plan.entry, plan.index)
        if mode == "scratch" or pretrained is None:
            return network, origin
        weights, origin = pretrained.state, pretrained.origin
        transfer(network, weights, self.entry, self.heads, origin, patch=pretrained.patch)
        return network, origin

    def trial_network(self) -> nn.Module:
        """The network to test before training: that of `scratch` if it is alone, else of `full`."""
        return self.network("scratch" if self.config.modes == ("scratch",) else "full")[0]

    def decide(self, measured: Mapping[str, Statistic]) -> list[Decision]:
        """The decisions of the rule for the gradient statistics of all parameters.

        Raises:
            UsageError: No parameter would be left to train.
        """
        return freeze_decisions(measured, self.config.rule, self.heads)

    def known_decisions(self, network: nn.Module) -> list[Decision] | None:
        """Decisions from an existing profile or a name pattern; None if a profile is measured.

        Raises:
            UsageError: The profile is of another model, or no parameter would be left to train.
        """
        config = self.config
        if config.profile is not None:
            rows = read_profile(config.profile, network, self.entry.name, self.profile)
            return self.decide(statistics(rows))
        return self.named_decisions(network) if config.at_once else None

    def named_decisions(self, network: nn.Module) -> list[Decision] | None:
        """Decisions from a name pattern; None if the rule needs gradients.

        Raises:
            UsageError: The pattern matches no parameter, or no parameter would be left to train.
        """
        return None if self.config.rule.pattern is None else self.decide(unmeasured(network))

    def announce(self, decisions: Sequence[Decision], say: Callable[[str], None]) -> None:
        """Reports the frozen share of the parameters, and the reason if it is zero."""
        frozen = [d for d in decisions if d.frozen]
        count, total = sum(d.count for d in frozen), sum(d.count for d in decisions)
        say(
            f"Frozen: {len(frozen)} of {len(decisions)} tensors, {count:,} of {total:,} parameters "
            f"({count / total:.1%})."
        )
        rule = self.config.rule
        if frozen or rule.pattern is not None:
            return
        if rule.scope == "mamba" and not any(d.mamba for d in decisions):
            say(
                f"`{self.entry.name}` has no state-space block, so `--freeze-scope mamba` has no "
                "effect; `--freeze-scope all` selects from all tensors."
            )
            return
        scoped = {
            d.name: d.statistic
            for d in decisions
            if d.statistic is not None
            and (d.mamba or rule.scope == "all")
            and not d.name.startswith(self.heads)
        }
        if scoped:
            lowest = min(scoped, key=lambda name: scoped[name])
            say(f"The smallest statistic in scope is {scoped[lowest]:.3g}, of `{lowest}`.")

    def saving(self, frozen: Sequence[str], network: nn.Module) -> SavingRecord:
        """Memory and operations that freezing the parameters `frozen` saves in one step."""
        recipe = self.training.recipe
        images = torch.rand(_TRIED, *self.training.input_shape)
        tried = saving(network.train(), frozen, images, moments=_MOMENTS[recipe.optimizer])
        times = recipe.batch_size * recipe.accumulate / _TRIED
        flops, saved = round(times * tried.flops), round(times * tried.flops_saved)
        return tried.model_copy(update={"flops": flops, "flops_saved": saved})


def plan_finetuning(config: FinetuneConfig, listener: Listener) -> FinetunePlan:
    """The plan of the fine-tuning described by `config`; opens the data set once.

    Raises:
        UsageError: A named model, data set or file does not exist, or options contradict each
            other.
    """
    errors, entry = UsageErrors(), None
    with errors:
        entry = _network_named(config)
    if config.training.data is not None:
        with errors:
            check_data_exists(config.training.data, masks=entry is None or entry.task == "seg")
    if config.pretrained is not None and entry is not None:
        with errors:
            FINETUNE_TASKS[entry.task].check_exists(config.pretrained)
    errors.check()
    assert entry is not None, "otherwise an error is raised above"
    task = FINETUNE_TASKS[entry.task]
    config = task.with_defaults(config, entry, listener.say)
    check_flags(config)
    for sentence in options_without_effect(config):
        listener.say(sentence)
    if config.training.model != entry.name:
        entry = resolve(config.training.model)
    pretrained = task.pretrained(config, entry)
    typed = config.training
    if pretrained is not None:
        typed = replace(typed, model_args=dict(pretrained.arguments), plan=pretrained.plan)
    typed = replace(task.sized(typed, entry), out=None)
    inputs = look_up_training(typed, entry)
    check_class_count(config.training.model_args, inputs.index.mask_classes)
    training = complete_plan(_with_recipe(config, typed, inputs, listener.say), inputs, listener)
    run = config.directory(training.run)
    check_folder(run)
    if config.training.fresh:
        for folder in (run, *run.glob("seed-*")):
            FINETUNING.check_kept(folder, config.inputs)
    plan = FinetunePlan(
        replace(config, training=replace(training.config, out=config.training.out)), pretrained,
        training, run,
        _profiled(config, training.steps_per_epoch, training.recipe.epochs),
        _content(config.profile),
    )  # fmt: skip
    if pretrained is not None and config.modes != ("scratch",):
        listener.say(f"Starting from {pretrained.origin}.")
        plan.network("full")  # reports mismatching weights before any file is written
        weights = config.pretrained or (local_path(entry) if entry.asset is not None else None)
        plan = replace(plan, training=with_earlier_trainings(training, weights, listener))
    return plan


def _content(profile: Path | None) -> bytes | None:
    """The content of the file of `--profile`; None if unreadable (`read_profile` reports it)."""
    if profile is not None:
        with suppress(OSError):
            return profile.read_bytes()
    return None


def _network_named(config: FinetuneConfig) -> ModelEntry:
    name = config.training.model
    entry = resolve(name)
    if names_run(name):
        raise UsageError(
            f"`{name}` is the folder of a training.",
            "MODEL is the network; `--pretrained` sets its initial weights.",
            f"Use `robust finetune {entry.network} --pretrained {name}`.",
        )
    return entry


def _with_recipe(
    config: FinetuneConfig, typed: TrainConfig, inputs: TrainInputs, say: Callable[[str], None]
) -> TrainConfig:
    """`typed` with the default recipe if none is named, and the epochs for the requested steps."""
    task, data = FINETUNE_TASKS[inputs.entry.task], inputs.index.name
    training = task.usual_recipe(typed, inputs.entry, data, say)
    steps = config.iterations or task.usual_steps(typed, training, data)
    if steps is None:
        return training
    per_epoch = complete_plan(training, inputs, Silent()).steps_per_epoch
    return replace(training, epochs=math.ceil(steps / per_epoch))


def _profiled(config: FinetuneConfig, per_epoch: int, epochs: int) -> int:
    """The number of profiled steps: as requested, else one epoch, at least 20, at most half of all.

    A rule by the change of gradients profiles half of all steps.

    Raises:
        UsageError: The training is too short for the profile, or the profile for the rule.
    """
    total = per_epoch * epochs
    by_change = config.rule.change is not None
    steps = config.profile_iterations
    if steps is None and by_change:
        steps = max(1, total // 2)
    elif steps is None:
        steps = min(max(_LEAST_PROFILE, per_epoch), max(1, total // 2))
    if config.profile is None and not config.at_once:
        _check_profiled(config, steps, total)
    return steps


def _check_profiled(config: FinetuneConfig, steps: int, total: int) -> None:
    """Raises UsageError if `steps` profiled steps do not suit a training of `total` steps."""
    typed = f"`--profile-iterations {steps}`"
    by_default, freezes = config.profile_iterations is None, "freeze" in config.modes
    if config.rule.change is not None and steps < LEAST_FOR_CHANGE and not by_default:
        raise UsageError(
            f"{typed} is too few for `--freeze-change`.",
            "This rule compares the changes of gradients late and early in the profile.",
            f"Use at least {LEAST_FOR_CHANGE}; several tens are more reliable.",
        )
    if not (freezes or config.profile_only):
        return
    if config.rule.change is not None and steps < LEAST_FOR_CHANGE:
        raise UsageError(
            f"A training of {total} steps is too short for `--freeze-change`.",
            f"Half of its steps are profiled, and the rule needs {LEAST_FOR_CHANGE} of them to "
            "compare late with early changes of gradients.",
            f"Use `--iterations {2 * LEAST_FOR_CHANGE}` or more; many more are more reliable.",
        )
    if freezes and steps >= total and by_default:
        raise UsageError(
            "A training of one step is too short for mode `freeze`.",
            "Tensors are frozen after the profiled steps, of which there is at least one.",
            "Use `--iterations 2` or more, or select the tensors without a new profile: `--freeze "
            "PATTERN`, `--profile FILE`.",
        )
    if freezes and steps >= total:
        raise UsageError(
            f"{typed} leaves no steps for training.",
            f"Each mode has {total} steps; tensors are frozen after the profiled steps.",
            f"Use fewer than {total}, or `--profile-only`.",
        )
    if steps > total:
        raise UsageError(
            f"{typed} is more than the training has.",
            f"It has {total} steps, each of which can be profiled once.",
            f"Use at most {total}, or a longer training (`--iterations {steps}`).",
        )


def finetune_record(plan: FinetunePlan, network: nn.Module) -> FinetuneRecord:
    """The record of a new fine-tuning."""
    config, pretrained, now = plan.config, plan.pretrained, datetime.now(UTC)
    profile, without = plan.profile, "encoder: ImageNet-1K"
    if config.modes == ("scratch",):
        without = "none"
    return FinetuneRecord(
        task=plan.entry.task,
        command=config.training.command,
        status="running",
        created=now,
        updated=now,
        seed=config.training.seed,
        split_seed=config.training.other_split_seed,
        model=plan.entry.name,
        arguments=json.loads(json.dumps(dict(config.training.model_args))),
        parameters=sum(p.numel() for p in network.parameters()),
        pretrained=plan.training.described(pretrained.origin) if pretrained else without,
        pretrained_sha256=state_digest(dict(pretrained.state)) if pretrained else None,
        heads=list(plan.heads),
        dataset=dataset_record(plan.training.index),
        modes=list(config.modes),
        rule=RuleRecord(**asdict(config.rule)),
        profile="none" if config.at_once else str(config.profile or "measured"),
        profile_sha256=None if profile is None else hashlib.sha256(profile).hexdigest(),
        profile_iterations=_profile_steps(plan),
        lora_layers=list(config.lora_layers),
        recipe=RecipeRecord.of(plan.training.recipe),
        epochs=plan.training.recipe.epochs,
        iterations=plan.steps,
        device=device_name(plan.training.machine.device),
    )


def _profile_steps(plan: FinetunePlan) -> int:
    """Number of steps of the profile: of an existing file, else those to profile."""
    if plan.profile is not None:
        return profile_length(plan.profile)
    return 0 if plan.config.at_once else plan.profile_iterations


def mode_differences(plan: FinetunePlan, old: FinetuneRecord) -> Iterator[str]:
    """One sentence per setting in which the trained modes differ from `plan`."""
    recipe = RecipeRecord.of(plan.training.recipe)
    for mode in old.modes:
        if not has_record(plan.run / mode):
            continue
        record = read_train_record(plan.run / mode)
        yield from recipe_differences(record.recipe, recipe)
        if mode in plan.config.modes and record.devices != plan.training.machine.world:
            yield f"`--devices` was {record.devices}, now it is {plan.training.machine.world}."
