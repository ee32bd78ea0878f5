"""What a user asked `robust train` for, before anything is looked up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from robustcli.core.names import ABLATE, file_name
from robustcli.data.mask_classes import ClassesOption, classes_settings
from robustcli.data.mask_values import ValueOption, mask_settings
from robustcli.nnunet.plans_json import NnUNetPlan
from robustcli.training.recipes import EXTENDABLE, Protocol, Recipe

SEEDS_SUFFIX = "-seeds"
"""Of the name of a folder that holds several seeds."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one training; see `robust train seg --help` for their meaning.

    What is None is the recipe's. `task` is what the user takes the model to be, None for either;
    `plan` is that of pretrained weights, for recipes that follow one; `mask_classes` are
    `--classes`. `seeds` is how many seeds are trained beside each other, from `seed` on; None for
    one training without a folder of seeds. `split_seed` chooses the images of `limit` and of each
    part; None for `seed`. `ablate` is one of the `model_args`, where it is kept: they are what the
    network is built from.
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
    precision: Literal["fp32", "bf16", "fp16"] | None = None
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
    target: float | None = None
    seeds: int | None = None
    split_seed: int | None = None
    ablate: str | None = None

    def __post_init__(self) -> None:
        if self.ablate is not None:
            object.__setattr__(self, "model_args", {**self.model_args, ABLATE: self.ablate})

    @property
    def parts_seed(self) -> int:
        """The seed that chooses which images train, validate and test."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def other_split_seed(self) -> int | None:
        """`parts_seed` where it is not `seed`; None where it is."""
        return None if self.parts_seed == self.seed else self.parts_seed

    def for_seed(self, seed: int, out: Path) -> TrainConfig:
        """The settings of one of the seeds, into the folder `out`: its parts are those of all."""
        return replace(self, seed=seed, split_seed=self.parts_seed, out=out, seeds=None)

    @property
    def ablation(self) -> str | None:
        """What is taken out of the network, however that was said; None for nothing."""
        return self.model_args.get(ABLATE)

    @property
    def folder_name(self) -> str:
        """The network and what is taken out of it, as a part of a folder's name."""
        without = "" if self.ablation is None else f"-no-{file_name(str(self.ablation))}"
        return file_name(self.model) + without

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
        for name in ("patches", "photos"):
            if how[name] is None:
                del how[name]
        start = [self.model, dict(self.model_args), self.weights, self.untrained, self.protocol]
        masks = mask_settings(self.foreground, self.ignore) + classes_settings(self.mask_classes)
        settings = [*start, self.seed, world, digest, how, *masks]
        if self.other_split_seed is not None:
            settings.append(f"split seed {self.split_seed}")
        short = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:8]
        # More seeds go on in the same folder, so their number is no part of its name.
        suffix = "" if self.seeds is None else SEEDS_SUFFIX
        return Path("runs") / f"train-{self.folder_name}-{short}{suffix}"
