"""The settings of `robust train` as the user typed them, before names are looked up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from robustcli.core.arguments import NotNegative, Positive, PositiveNumber
from robustcli.core.names import ABLATE, file_name
from robustcli.data.mask_classes import ClassesOption, classes_settings
from robustcli.data.mask_values import ValueOption, mask_settings
from robustcli.nnunet.plans_json import NnUNetPlan
from robustcli.training.recipes import EXTENDABLE, Protocol, Recipe

SEEDS_SUFFIX = "-seeds"
"""Suffix of the name of a folder with several seeds."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one training; see `robust train seg --help` for their meaning.

    A setting that is None takes the value of the recipe. `task` restricts the model to one task;
    None accepts both. `plan` is the nnU-Net plan of pretrained weights. `mask_classes` is the
    option `--classes`. `seeds` is the number of trainings, with consecutive seeds from `seed`; None
    means a single training without a folder per seed. `split_seed` selects the images of `limit`
    and of each part; None means `seed`. `ablate` is stored in `model_args`, from which the network
    is built.
    """

    model: str
    data: str | None = None
    out: Path | None = None
    protocol: Protocol = "patient"
    limit: Positive | None = None
    weights: Path | None = None
    untrained: bool = False
    model_args: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    epochs: Positive | None = None
    lr: PositiveNumber | None = None
    batch_size: Positive | None = None
    accumulate: Positive | None = None
    loss: str | None = None
    aug: str | None = None
    window: Positive | None = None
    clip: PositiveNumber | None = None
    patience: Positive | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    seed: int = 0
    device: str = "auto"
    devices: Positive | Literal["all"] = 1
    workers: NotNegative | None = None
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
    seeds: Positive | None = None
    split_seed: int | None = None
    ablate: str | None = None

    def __post_init__(self) -> None:
        if self.ablate is not None:
            object.__setattr__(self, "model_args", {**self.model_args, ABLATE: self.ablate})

    @property
    def parts_seed(self) -> int:
        """The seed of the split into training, validation and test images."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def other_split_seed(self) -> int | None:
        """`parts_seed` if it differs from `seed`, else None."""
        return None if self.parts_seed == self.seed else self.parts_seed

    def for_seed(self, seed: int, out: Path) -> TrainConfig:
        """The settings of the training with `seed` into `out`; all seeds share the data split."""
        return replace(self, seed=seed, split_seed=self.parts_seed, out=out, seeds=None)

    @property
    def ablation(self) -> str | None:
        """The ablated part of the network, from either option; None without ablation."""
        return self.model_args.get(ABLATE)

    @property
    def inputs(self) -> Iterator[tuple[str, str | Path | None]]:
        """Options that name files, with their values."""
        yield "--weights", self.weights
        yield "--data", self.data

    @property
    def folder_name(self) -> str:
        """The network and its ablated part, for the name of the run folder."""
        without = "" if self.ablation is None else f"-no-{file_name(str(self.ablation))}"
        return file_name(self.model) + without

    def directory(self, recipe: Recipe, digest: str, world: int = 1) -> Path:
        """The run folder: `out`, or a folder named after the model and a hash of the settings.

        Args:
            recipe: The recipe with all overrides.
            digest: Hash of the list of images.
            world: Number of training processes.
        """
        if self.out is not None:
            return self.out
        recipe_fields = asdict(recipe)
        if recipe.schedule in EXTENDABLE:
            del recipe_fields["epochs"]  # more epochs continue the same run
        for name in ("patches", "photos"):
            if recipe_fields[name] is None:
                del recipe_fields[name]
        start = [self.model, dict(self.model_args), self.weights, self.untrained, self.protocol]
        masks = mask_settings(self.foreground, self.ignore) + classes_settings(self.mask_classes)
        settings = [*start, self.seed, world, digest, recipe_fields, *masks]
        if self.other_split_seed is not None:
            settings.append(f"split seed {self.split_seed}")
        short = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:8]
        # More seeds continue in the same folder, so their number is not part of its name.
        suffix = "" if self.seeds is None else SEEDS_SUFFIX
        return Path("runs") / f"train-{self.folder_name}-{short}{suffix}"
