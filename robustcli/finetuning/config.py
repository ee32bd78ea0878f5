"""The settings of `robust finetune` as the user typed them, before names are looked up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from robustcli.core.arguments import Positive
from robustcli.finetuning.record import Mode
from robustcli.finetuning.selection import FreezeRule, make_rule
from robustcli.training.config import SEEDS_SUFFIX, TrainConfig

LORA_LAYERS = ("in_proj", "x_proj", "out_proj")
"""On the bundled data, adapters on `x_proj` change the score by less than its interval; see
`docs/finetune.md`."""


@dataclass(frozen=True)
class FinetuneConfig:
    """All settings of one fine-tuning; see `robust finetune --help` for their meaning.

    Args:
        training: Model, data, seed and every override of the recipe, the same for all modes;
            its `weights` and `untrained` are not used.
        pretrained: Path of the initial weights: a file, a training run, or a results folder of
            nnU-Net. None uses the bundled weights, or those that the network's recipe names.
        mode: The modes to train; `all` means scratch, full and freeze.
        profile_iterations: Steps to profile. None means one epoch, at least 20 and at most half of
            all steps; half of all steps for `change` rules; no step for `pattern` rules.
        profile: Path of an existing profile to use instead of measuring one.
        iterations: Optimizer steps of each mode, rounded up to full epochs; None uses the epochs
            of the recipe.
        sweep: Whether to also train with other freezing rules (`FinetuneTask.rules`) and to time
            the steps of each.
        lora_layers: Names of the projections in state-space blocks that get adapters in mode
            `lora`; `x_proj` means the projections of both scan directions.
    """

    training: TrainConfig
    pretrained: Path | None = None
    mode: Literal["all"] | Mode = "all"
    rule: FreezeRule = field(default_factory=make_rule)
    profile_iterations: Positive | None = None
    profile: Path | None = None
    profile_only: bool = False
    iterations: Positive | None = None
    sweep: bool = False
    lora_layers: tuple[str, ...] = LORA_LAYERS

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes to train, in the order of reports."""
        if self.profile_only:
            return ()
        return ("scratch", "full", "freeze") if self.mode == "all" else (self.mode,)

    @property
    def at_once(self) -> bool:
        """Whether a name pattern freezes parameters before the first step, without a profile.

        False if `profile_iterations` is also given: the pattern then applies after those steps.
        """
        by_name = self.rule.pattern is not None and self.profile is None
        return by_name and self.profile_iterations is None and not self.profile_only

    @property
    def inputs(self) -> Iterator[tuple[str, str | Path | None]]:
        """Options that name files, with their values, without the profile, which is read before."""
        yield "--pretrained", self.pretrained
        yield "--data", self.training.data

    def with_training(self, **changes: Any) -> FinetuneConfig:
        """These settings with `changes` of the settings of the trainings."""
        return replace(self, training=replace(self.training, **changes))

    def for_seed(self, seed: int, out: Path) -> FinetuneConfig:
        """The settings of the fine-tuning with `seed` into `out`; see `TrainConfig.for_seed`."""
        return replace(self, training=self.training.for_seed(seed, out))

    def directory(self, training: Path) -> Path:
        """The run folder: `out`, or a folder named after the model and a hash of the settings.

        Args:
            training: The default folder of a training with these settings; its name ends with
                their hash.
        """
        if self.training.out is not None:
            return self.training.out
        settings = [
            training.name, self.pretrained, asdict(self.rule), self.profile_iterations,
            self.profile, self.iterations,
            *([self.lora_layers] if self.lora_layers != LORA_LAYERS else []),
        ]  # fmt: skip
        short = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:8]
        suffix = "" if self.training.seeds is None else SEEDS_SUFFIX
        return Path("runs") / f"finetune-{self.training.folder_name}-{short}{suffix}"
