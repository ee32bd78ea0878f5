"""The settings of an evaluation that tasks use: models and images."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from robustcli.adapters.catalogue import ModelRequest
from robustcli.data.dataset import Dataset
from robustcli.data.mask_classes import ClassesOption
from robustcli.data.mask_values import ValueOption
from robustcli.data.natural_shifts import AnswerClasses
from robustcli.tasks.record import EvaluatedPart


@dataclass(frozen=True)
class TaskConfig:
    """Models, transforms and images of an evaluation; see `robust eval --help` for each option.

    `splits_of` is a training run that defines the split of each image, as if one of the models came
    from that run. `quick` selects the images of `data.splits.quick_look`. `dataset` is the data
    set of `data`, if it is already open. `mask_classes` is the value of `--classes`.
    """

    models: tuple[ModelRequest, ...]
    transforms: tuple[str, ...]
    data: str | None = None
    _: KW_ONLY
    label_space: str | None = None
    labels: Path | None = None
    per_class: int | None = None
    limit: int | None = None
    quick: bool = False
    answers: AnswerClasses = "auto"
    split: Literal["auto"] | EvaluatedPart = "auto"
    splits_of: Path | None = None
    seed: int = 0
    apply_at: Literal["original", "crop"] = "original"
    foreground: ValueOption = None
    ignore: ValueOption = None
    mask_classes: ClassesOption = None
    dataset: Dataset | None = None
    offline: bool = False
