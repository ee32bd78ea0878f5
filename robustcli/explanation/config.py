"""The settings of `robust explain`, before names are resolved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path

from robustcli.core.arguments import Positive
from robustcli.core.errors import UsageError
from robustcli.core.names import file_name
from robustcli.evaluation.config import EvalConfig

DEFAULT_WORST = 8
"""Default number of photos to explain."""
BLOCK_PHOTOS = 8
"""Photos per file; an interruption loses at most this many photos of a method and transform."""


BATCH_SIZES = {"cuda": 32, "mps": 16, "cpu": 8}
"""Default number of images per forward pass, by type of device. Gradients take several times the
memory of a forward pass."""


@dataclass(frozen=True)
class ExplainConfig(EvalConfig):
    """All settings of an explanation; see `robust explain --help` for their meaning.

    `source` is a finished evaluation that defines model, images and predictions. In this case,
    `models` selects one of its models, and `moved` are present paths of weights files that have
    moved. `run_code` allows the Python and TorchScript code that the evaluation names.
    """

    _: KW_ONLY
    source: Path | None = None
    moved: tuple[Path, ...] = ()
    run_code: bool = False
    images: tuple[str, ...] = ()
    worst: Positive | None = None
    class_name: str | None = None
    mask_class: str | None = None
    methods: tuple[str, ...] = ()
    layer: str | None = None
    sanity: bool = False
    boxes: Path | None = None
    command: str = "robustcli.explain(...)"

    def directory(self, digest: str) -> Path:
        """See `EvalConfig.directory`; the default name depends on all settings but methods."""
        if self.out is not None:
            return self.out
        evaluated = super().directory(digest).name
        settings = [
            evaluated, *self.transforms, self.severities, self.images, self.worst,
            self.class_name, self.limit, self.layer, self.sanity, self.boxes,
        ]  # fmt: skip
        if self.mask_class is not None:
            settings.append(f"class of masks {self.mask_class}")
        short = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:8]
        return Path("runs") / f"explain-{file_name(self.models[0].name)}-{short}"

    def evaluation(self, out: Path) -> EvalConfig:
        """The evaluation of the same models, images and transforms, in the folder `out`."""
        shared = {field.name: getattr(self, field.name) for field in fields(EvalConfig)}
        # `limit` counts images of the class.
        limit = None if self.class_name is not None else self.limit
        return EvalConfig(**{**shared, "out": out, "fresh": False, "limit": limit})


def refuse_with_run(run: str | Path, options: Mapping[str, object], defines: str) -> None:
    """Raises UsageError if one of `options`, by name, is set: `run` `defines` them, in words."""
    for option, value in options.items():
        if value:
            raise UsageError(
                f"`{option}` cannot be used with a finished run.",
                f"`{run}` defines {defines}.",
                "Omit it, or explain the model with `--model NAME` instead of the run.",
            )


MODEL_OF_RUN = "the settings of its models and of their preprocessing"
