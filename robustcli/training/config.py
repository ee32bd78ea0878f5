"""What a user asked `robust train` for, before anything is looked up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from robustcli.core.names import file_name
from robustcli.data.mask_classes import ClassesOption, classes_settings
from robustcli.data.mask_values import ValueOption, mask_settings
from robustcli.nnunet.plans_json import NnUNetPlan
from robustcli.training.recipes import EXTENDABLE, Protocol, Recipe


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one training; see `robust train seg --help` for their meaning.

    What is None is the recipe's. `task` is what the user takes the model to be, None for either;
    `plan` is that of pretrained weights, for recipes that follow one; `mask_classes` are
    `--classes`.
    """

    model: str
    data: str | None = None
    out: Path | None = None
    protocol: Protocol = "patient"
    limit: int | None = None
    weights: Path | None = None
    untrained: bool = False
    model_args: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    loss: str | None = None
    aug: str | None = None
    window: int | None = None
    clip: float | None = None
    patience: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    device: str = "auto"
    devices: int | Literal["all"] = 1
    workers: int | None = None
    fresh: bool = False
    offline: bool = False
    command: str = "robustcli.train(...)"
    recipe: str | None = None
    plan: NnUNetPlan | None = None
    task: Literal["cls", "seg"] | None = None
    foreground: ValueOption = None
    ignore: ValueOption = None
    mask_classes: ClassesOption = None

    def directory(self, recipe: Recipe, digest: str, world: int = 1) -> Path:
        """Where the run goes: `out`, else a folder named by the model and a hash of settings.

        Args:
            recipe: With all overrides.
            digest: The hash of the list of pairs.
            world: Processes that train, whoever starts them.
        """
        if self.out is not None:
            return self.out
        how = asdict(recipe)
        if recipe.schedule in EXTENDABLE:
            del how["epochs"]  # more of them go on with the same run
        if recipe.patches is None:
            del how["patches"]
        start = [self.model, dict(self.model_args), self.weights, self.untrained, self.protocol]
        masks = mask_settings(self.foreground, self.ignore) + classes_settings(self.mask_classes)
        settings = [*start, self.seed, world, digest, how, *masks]
        short = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:8]
        name = file_name(self.model)
        return Path("runs") / f"train-{name}-{short}"
