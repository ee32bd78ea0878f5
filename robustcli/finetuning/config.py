"""What a user asked `robust finetune` for, before anything is looked up."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from robustcli.finetuning.record import Mode
from robustcli.finetuning.selection import FreezeRule, make_rule
from robustcli.training.config import SEEDS_SUFFIX, TrainConfig

LORA_LAYERS = ("in_proj", "x_proj", "out_proj")
"""No difference is shown on the bundled data with `x_proj` or without; see `docs/finetune.md`."""


@dataclass(frozen=True)
class FinetuneConfig:
    """All settings of one fine-tuning; see `robust finetune --help` for their meaning.

    Args:
        training: Model, data, seed and every override of the recipe, the same for all modes;
            its `weights` and `untrained` are not used.
        pretrained: Weights to start from: a file, a training run, or a results folder of nnU-Net.
            None for the bundled ones, or those that the network's recipe starts from.
        mode: What is trained; `all` is scratch, full and freeze.
        profile_iterations: Profiled steps; None for an epoch's, at least 20, at most half of all,
            of half where the change of gradients decides, or for none where names decide.
        profile: Take this profile instead of measuring one.
        iterations: Steps of each mode, rounded up to whole epochs; None for the recipe's epochs.
        sweep: Also train by other rules (`FinetuneProtocol.rules`), and time what each saves.
        lora_layers: The projections of state-space blocks that get adapters in mode `lora`;
            `x_proj` means that of either direction.
    """

    training: TrainConfig
    pretrained: Path | None = None
    mode: Literal["all"] | Mode = "all"
    rule: FreezeRule = field(default_factory=make_rule)
    profile_iterations: int | None = None
    profile: Path | None = None
    profile_only: bool = False
    iterations: int | None = None
    sweep: bool = False
    lora_layers: tuple[str, ...] = LORA_LAYERS

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What is trained, in this order."""
        if self.profile_only:
            return ()
        return ("scratch", "full", "freeze") if self.mode == "all" else (self.mode,)

    @property
    def at_once(self) -> bool:
        """Whether names decide what is frozen before the first step, so that nothing is profiled.

        A number of steps beside them says after how many.
        """
        by_name = self.rule.pattern is not None and self.profile is None
        return by_name and self.profile_iterations is None and not self.profile_only

    def directory(self, training: Path) -> Path:
        """Where the run goes: `out`, else a folder named by the model and a hash of settings.

        Args:
            training: The folder that the same settings give a training, which has their hash.
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
